"""What is said of diverged chains, and of where the results are."""

from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch

from experiment.ending import conclude, diverged_chains, diverged_rows
from experiment.run import Diverged


def test_diverged_chains_of_a_grid():
    """The first of them, and not of all chains, is named."""
    finite = torch.tensor([[9, 4], [2, 9]])
    said = diverged_chains("boston", finite, finite == 9, 1e-6)
    assert said == "2 of 4 chains of boston, the first at iteration 3; use a smaller step: -lr 1e-06"
    assert diverged_chains("boston", finite, finite > 0, 1e-6) == ""


def test_diverged_rows_are_those_without_a_number():
    table = pd.DataFrame({"seed": [1, 2, 3], "mse": [0.5, np.nan, np.inf], "selected": np.nan})
    assert diverged_rows(table, "mse").startswith("1 of 3 rows of table.csv")
    assert diverged_rows(table[table["seed"] != 2], "mse") == ""


@pytest.mark.parametrize("writes", [True, False])
def test_the_end_of_a_run(capsys, writes):
    """Of several processes only the one that writes says where; all of them end with the same status."""
    run = SimpleNamespace(folder="runs/x", writes=writes)
    assert conclude(run, "", figure="f") == 0
    assert capsys.readouterr().out == ("results: runs/x, figure: runs/x/figures/f.png\n" if writes else "")
    with pytest.raises(Diverged, match="1 of 2 chains"):
        conclude(run, "1 of 2 chains", done="finished before")
    assert capsys.readouterr().out == ("finished before: runs/x\n" if writes else "")
