"""Pruning in one run by em_cnn.py: python -m figures.em_sparsity PNG RUN_FOLDER ...

Left: accuracy of the last network and of the ensemble against sparsity, a point per run; right: sparsity over the
epochs of every run that prunes. A row per data set.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from .style import TITLES, plt, save

LAST, ENSEMBLE = "#0072B2", "#D55E00"


@dataclass(frozen=True)
class Sampled:
    """What the figure reads of one run."""

    args: dict
    row: pd.Series
    metrics: pd.DataFrame

    @property
    def name(self) -> str:
        """The settings of the group prior."""
        return ", ".join(f"{name} {self.args[name]:g}" for name in ("eps0", "soft", "hard"))


def read(folder: Path) -> Sampled:
    """One run folder."""
    args = json.loads((folder / "args.json").read_text())
    return Sampled(args, pd.read_csv(folder / "table.csv").iloc[0], pd.read_csv(folder / "metrics.csv"))


def draw(folders: Sequence[Path], file: Path) -> Path:
    """Draw the figure of run folders."""
    runs = [read(Path(folder)) for folder in folders]
    names = list(dict.fromkeys(run.args["data"] for run in runs))
    figure, axes = plt.subplots(len(names), 2, figsize=(9, 3.4 * len(names)), squeeze=False)
    for (left, right), name in zip(axes, names, strict=True):
        chosen = [run for run in runs if run.args["data"] == name]
        em = sorted((run for run in chosen if run.args["c"] == "em"), key=lambda run: run.row["sparsity"])
        sgd = [run for run in chosen if run.args["c"] == "sgd"]
        for column, colour, label in (("accuracy", LAST, "last network"), ("accuracy_averaged", ENSEMBLE, "ensemble")):
            left.plot(
                [run.row["sparsity"] for run in em], [run.row[column] for run in em], "o-", color=colour, label=label
            )
            for run in sgd:
                left.axhline(run.row[column], color=colour, lw=0.8, ls="--", label=f"SGD, {label}")
        left.set(title=TITLES.get(name, name), xlabel="sparsity, zeros / all parameters", ylabel="test accuracy, %")
        for run in em:
            if not run.args["dense"]:
                right.plot(run.metrics["epoch"], run.metrics["sparsity"], ".-", label=run.name)
        right.set(title=TITLES.get(name, name), xlabel="epoch", ylabel="sparsity", ylim=(0, 1))
        for axis in (left, right):
            if axis.get_legend_handles_labels()[0]:
                axis.legend(fontsize=8)
    return save(figure, file.parent, file.name, file)


if __name__ == "__main__":
    print(draw([Path(folder) for folder in sys.argv[2:]], Path(sys.argv[1])))
