"""Figure of sa_convergence.py: python -m figures.sa_convergence RUN_FOLDER [PNG]

Left: mean squared error of the latent variable against omega_k, with the fitted slope.
Right: distance of the samples' distribution from pi(beta, theta*) for several step sizes.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pandas as pd

from .style import plt, save


def draw(folder: Path, file: Path | None = None) -> Path:
    """Draw the figure of a run folder."""
    folder = Path(folder)
    table, summary = pd.read_csv(folder / "table.csv"), json.loads((folder / "summary.json").read_text())
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4))
    steps = sorted(table["lr"].unique())

    rows = table[table["lr"] == steps[0]]
    left.loglog(
        rows["omega"], rows["mse"], ".-", color="#0072B2", label=rf"chains, $\epsilon$ = {steps[0]:g} $\sigma^2$"
    )
    late = rows[rows["iteration"] >= summary["slope_from_iteration"]]
    centre = np.log(late["omega"]).mean(), np.log(late["mse"]).mean()
    line = np.exp(centre[1] + summary["slope"] * (np.log(late["omega"]) - centre[0]))
    label = f"fitted slope {summary['slope']:.3f} $\\pm$ {summary['slope_se']:.3f}"
    left.loglog(late["omega"], line, color="#D55E00", linewidth=2, label=label)
    left.invert_xaxis()
    left.set(title="latent variable: theorem says slope 1", ylabel=r"mean of $(\theta_k - \theta^*_\epsilon)^2$")
    left.set_xlabel(r"step size of stochastic approximation, $\omega_k$ (falls with k)")
    left.legend()

    for lr, colour in zip(steps, ("#0072B2", "#009E73", "#E69F00", "#D55E00", "#CC79A7"), strict=False):
        rows = table[table["lr"] == lr]
        right.loglog(
            rows["iteration"], rows["wasserstein"], ".-", color=colour, label=rf"$\epsilon$ = {lr:g} $\sigma^2$"
        )
    right.set(title=r"samples: distance to $\pi(\beta, \theta^*)$", xlabel="iteration k")
    right.set_ylabel("Wasserstein-1 distance, in posterior sd")
    right.legend()
    return save(figure, folder, "sa_convergence.png", file)


if __name__ == "__main__":
    print(draw(Path(sys.argv[1]), *map(Path, sys.argv[2:3])))
