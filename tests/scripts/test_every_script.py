"""What is the same for every script."""

import shlex
import subprocess
import sys

import pandas as pd
import pytest

import bayes_cnn
import em_cnn
import em_regression
import lr_simulation
import posterior_cnn
import sa_convergence
import sbp_cnn
import uci_run
from tests.forked import ROOT

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


@pytest.mark.slow
def test_a_full_disk_is_an_error_and_loses_nothing(script, tmp_path):
    """A limit on the size of files stands in for it: the checkpoint does not fit."""
    tiny = ("-data", "diabetes", "-sn", 6, "-burn", 2, "-train", 50, "-save_every", 0)
    whole = script.run("uci_run.py", *tiny, out=tmp_path / "whole")
    words = [sys.executable, "uci_run.py", *map(str, tiny), "-resume", "1", "-out", str(tmp_path / "full")]
    limited = ["bash", "-c", f"ulimit -f 8; exec {shlex.join(words)}"]
    full = subprocess.run(limited, cwd=ROOT, capture_output=True, text=True)
    lines = [line for line in full.stderr.splitlines() if "error" in line]
    assert (full.returncode, len(lines)) == (2, 1)
    assert "checkpoint.safetensors cannot be written" in lines[0] and "Traceback" not in full.stderr
    assert not list((tmp_path / "full").rglob("*.tmp")) and not (tmp_path / "full" / "checkpoint.safetensors").exists()
    again = script.run("uci_run.py", *tiny, "-resume", 1, out=tmp_path / "full")
    assert again.code == 0
    pd.testing.assert_frame_equal(again.table, whole.table, check_exact=True)
