"""How a script ends: which chains diverged, and where the results are."""

from __future__ import annotations

import pandas as pd
from torch import Tensor

from .run import Diverged, Run


def smaller_step(lr: float) -> str:
    """What helps a chain that has diverged at ten times this step size."""
    return f"use a smaller step: -lr {lr:g}"


def diverged_chains(name: str, finite: Tensor, alive: Tensor, lr: float) -> str:
    """How many chains of a batch have diverged, when the first did, and what helps; '' where all are finite.

    finite: iterations of every chain before its first non-finite one.  alive: chains without one.
    lr: a step size that is small enough.
    """
    gone = ~alive
    if not gone.any():
        return ""
    count = f"{int(gone.sum())} of {gone.numel()} chains of {name}"
    return f"{count}, the first at iteration {int(finite[gone].min()) + 1}; {smaller_step(lr)}"


def diverged_rows(table: pd.DataFrame, metric: str) -> str:
    """How many rows of a finished run's table.csv are empty since their chains diverged; '' where none is.

    metric: a column that every other row has a number in.
    """
    empty = table[metric].isna()
    if not empty.any():
        return ""
    return f"{empty.sum()} of {len(empty)} rows of table.csv, which are empty; a smaller step, -lr, helps"


def conclude(run: Run, diverged: str, done: str = "results", figure: str = "") -> int:
    """Say where the results are; returns the exit status.

    diverged: what some chains did while the others finished, '' if none did.
    done: what is said of the run folder.  figure: name of the figure in it, if it is said as well.

    Raises:
        Diverged: some chains did.
    """
    if run.writes:
        print(f"{done}: {run.folder}" + (f", figure: {run.folder}/figures/{figure}.png" if figure else ""))
    if diverged:
        raise Diverged(diverged)
    return 0
