"""Figure of lr_simulation.py: python -m figures.lr_simulation RUN_FOLDER [PNG]

Posterior of beta_1..3 against the truth, training and test fit, all coefficients, for the first
data set and one (v0, sigma_0). Every series is drawn as it is, neither shifted nor scaled.
"""

from __future__ import annotations

import itertools
import json
import sys
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from .style import COLOURS, LABELS, plt, save


def draw(folder: Path, file: Path | None = None, v0: float | None = None, sd: float | None = None) -> Path:
    """Draw the figure of a run folder; v0 and sd default to the paper's (0.1, 1), else the first."""
    folder = Path(folder)
    args = json.loads((folder / "args.json").read_text())
    posterior = load_file(folder / "posterior.safetensors")
    v0 = v0 if v0 is not None else 0.1 if 0.1 in args["v0"] else args["v0"][0]
    sd = sd if sd is not None else 1.0 if 1.0 in args["sd"] else args["sd"][0]
    cells = list(itertools.product(args["c"], args["v0"], args["sd"]))
    truth, mean = posterior["beta"][0], posterior["mean_beta"][0]  # (p), (cell, p)
    shown = [(method, cells.index((method, v0, sd))) for method in args["c"]]
    shown = [(method, i) for method, i in shown if np.isfinite(mean[i]).all()]  # diverged chains have no curve

    figure, axes = plt.subplots(2, 3, figsize=(11, 6.2))
    for j, ax in enumerate(axes[0]):
        for method, i in shown:
            draws = posterior["trace"][0, :, i, :, j].ravel()
            ax.hist(
                draws, 60, density=True, histtype="stepfilled", alpha=0.45, color=COLOURS[method], label=LABELS[method]
            )
        ax.axvline(truth[j], color=COLOURS["truth"], linestyle="--", linewidth=1.2, label="true value")
        ax.set(title=rf"posterior of $\beta_{j + 1}$", xlabel=rf"$\beta_{j + 1}$", yticks=[])
    axes[0, 0].legend()

    for ax, part, title in ((axes[1, 0], "", "training fit"), (axes[1, 1], "_test", "test fit")):
        x, y = posterior[f"x{part}"][0], posterior[f"y{part}"][0]
        for method, i in shown:
            ax.scatter(y, x @ mean[i], s=11, color=COLOURS[method], alpha=0.75, label=LABELS[method])
        ends = [y.min(), y.max()]
        ax.plot(ends, ends, color=COLOURS["truth"], linewidth=0.8)
        ax.set(title=title, xlabel="observed y", ylabel="posterior mean of X$\\beta$")

    ax = axes[1, 2]
    for method, i in reversed(shown):
        ax.plot(range(1, len(truth) + 1), mean[i], ".", markersize=3, color=COLOURS[method], label=LABELS[method])
    ax.plot([1, 2, 3], truth[:3], "x", color=COLOURS["truth"], label="true non-zero")
    ax.set(title="all coefficients, posterior mean", xlabel="index j (log scale)", xscale="log")
    figure.suptitle(rf"$v_0$ = {v0:g}, $\sigma_0$ = {sd:g}, seed {args['seed']}, {args['iterations']:,} iterations")
    return save(figure, folder, "lr_simulation.png", file)


if __name__ == "__main__":
    print(draw(Path(sys.argv[1]), *map(Path, sys.argv[2:3])))
