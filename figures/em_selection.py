"""Figure of em_regression.py: python -m figures.em_selection PNG RUN_FOLDER ...

Mean square of the weights that leave an input, over training: of every relevant variable, and the largest one of all
others, in every chosen chain; a panel per run.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from .style import plt, save

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")


def draw(folders: Sequence[Path], file: Path | None = None) -> Path:
    """Draw the figure of run folders, by default into the first one."""
    figure, axes = plt.subplots(1, len(folders), figsize=(4 * len(folders), 3.4), squeeze=False)
    for axis, folder in zip(axes[0], folders, strict=True):
        args = json.loads((folder / "args.json").read_text())
        table = pd.read_csv(folder / "table.csv")
        rows = pd.read_csv(folder / "metrics.csv").merge(table.loc[table["chosen"] == 1, ["seed", "restart"]])
        names = [name for name in rows if name.startswith("mean_square_")]
        shown = np.append(rows[names].to_numpy(), [args["soft"], args["hard"]])
        shown, epochs = shown[shown > 0], rows["epoch"]
        axis.set(xscale="log", yscale="log")  # with limits, as there may be nothing but pruned variables to draw
        axis.set(xlim=(0.9 * epochs.min(), 1.1 * epochs.max()), ylim=(shown.min() / 2, 2 * shown.max()))
        for name, colour in zip(names, (*PALETTE[: len(names) - 1], "0.6"), strict=True):
            label = name.removeprefix("mean_square_")
            for i, (_, chain) in enumerate(rows.groupby("seed")):
                size = chain[name].where(chain[name] > 0)  # pruned ones end
                axis.plot(chain["epoch"], size, color=colour, lw=0.8, alpha=0.8, label=None if i else label)
        for name, style in (("soft", ":"), ("hard", "--")):
            axis.axhline(args[name], color="black", lw=0.8, ls=style, label=f"{name} threshold")
        n = rows["seed"].nunique()
        axis.set(title=f"Example {args['example']}, n = {n}", xlabel="epoch")
    axes[0, 0].set_ylabel("mean square of the weights of an input")
    most = max(axes[0], key=lambda axis: len(axis.get_legend_handles_labels()[0]))
    most.legend(fontsize=7, ncols=2, loc="lower right")
    return save(figure, Path(folders[0]), "em_selection.png", file)


if __name__ == "__main__":
    print(draw([Path(folder) for folder in sys.argv[2:]], Path(sys.argv[1])))
