"""What is the same for every script."""

import pytest

import bayes_cnn
import em_cnn
import em_regression
import lr_simulation
import posterior_cnn
import sa_convergence
import sbp_cnn
import uci_run

SCRIPTS = [lr_simulation, uci_run, posterior_cnn, bayes_cnn, sbp_cnn, em_cnn, em_regression, sa_convergence]


@pytest.mark.parametrize("module", SCRIPTS, ids=lambda module: module.__name__)
def test_every_flag_is_explained(module, capsys):
    parser, _ = module.parse([])
    with pytest.raises(SystemExit) as stop:
        module.parse(["-h"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for action in parser._actions:
        assert action.help and action.option_strings[0] in text
