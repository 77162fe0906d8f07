"""Accuracy under attack, after Figure 2 of Deng et al. 2019: python -m figures.adversarial PNG RUN_FOLDER ...

Reads attack.csv of every run folder (those of single seeds inside it as well). One row of panels per
data set, one column per attack, one curve per method: the mean over its seeds, with the range. Open
circles are the published curves, read off the paper's figure to about two points. Above the curves
one test image at every zeta, as attacked on the way to the class that SGHMC-SA predicts.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file

from experiment.assessment import ZETAS
from experiment.report import published

from .style import COLOURS, NETWORK_LABELS, TITLES, plt

ATTACKS = {"fgsm_predicted": "FGSM, predicted class", "fgsm_true": "FGSM, true class", "pgd": "PGD, true class"}


def draw(runs: list[Path], file: Path) -> Path:
    """Draw the attacks of these runs."""
    tables = [pd.read_csv(path) for run in runs for path in sorted(run.rglob("attack.csv"))]
    table, paper = pd.concat(tables, ignore_index=True), published("figure2")
    names, attacks = list(table["data"].unique()), [a for a in ATTACKS if a in set(table["attack"])]
    figure = plt.figure(figsize=(3.6 * len(attacks), 4.2 * len(names)))
    grid = figure.add_gridspec(2 * len(names), len(attacks), height_ratios=[1, 4] * len(names))
    for i, name in enumerate(names):
        strip = figure.add_subplot(grid[2 * i, :])
        images = load_file(example(runs, name))["example"][:, 0]  # (zeta, h, w) of the first channel
        images = np.pad(images, ((0, 0), (0, 0), (1, 1)), constant_values=1.0)
        strip.imshow(images.transpose(1, 0, 2).reshape(images.shape[1], -1), cmap="gray", vmin=0, vmax=1)
        centres = [(j + 0.5) * images.shape[2] for j in range(len(ZETAS))]
        strip.set(xticks=centres, xticklabels=[f"{zeta:g}" for zeta in ZETAS], yticks=[])
        strip.set_title(f"{TITLES.get(name, name)}: the first test image, FGSM on the predicted class, by $\\zeta$")
        strip.spines[:].set_visible(False)
        for j, attack in enumerate(attacks):
            ax = figure.add_subplot(grid[2 * i + 1, j])
            rows = table[(table["data"] == name) & (table["attack"] == attack)]
            for method in [m for m in NETWORK_LABELS if m in set(rows["method"])]:
                seeds = rows[rows["method"] == method].groupby("zeta")["accuracy"]
                colour = COLOURS[method]
                ax.plot(seeds.mean().index, seeds.mean(), color=colour, label=NETWORK_LABELS[method])
                ax.fill_between(seeds.mean().index, seeds.min(), seeds.max(), color=colour, alpha=0.2, linewidth=0)
                if attack == "fgsm_predicted":
                    points = paper[(paper["data"] == name) & (paper["method"] == method)]
                    ax.plot(points["zeta"], points["accuracy"], "o", color=colour, fillstyle="none", markersize=4)
            ax.set(title=f"{ATTACKS[attack]} (n = {rows['n'].max()})", xlabel=r"$\zeta$", ylim=(0, 100))
            if j == 0:
                ax.set_ylabel("accuracy, %")
                ax.legend()
    figure.savefig(file)
    plt.close(figure)
    return file


def example(runs: list[Path], name: str) -> Path:
    """The attacked example of a data set, of SGHMC-SA if it is among the runs."""
    found = [path for run in runs for path in sorted(run.rglob("attack.csv"))]
    keys = {path: tuple(pd.read_csv(path, nrows=1)[["data", "method"]].iloc[0]) for path in found}
    of_data = sorted((key[1] != "sa", str(path)) for path, key in keys.items() if key[0] == name)
    return Path(of_data[0][1]).with_name("attack_example.safetensors")


if __name__ == "__main__":
    print(draw([Path(run) for run in sys.argv[2:]], Path(sys.argv[1])))
