"""Colours and sizes that all figures share."""

from __future__ import annotations

from pathlib import Path

import matplotlib

matplotlib.use("Agg")

from matplotlib import pyplot as plt

# Okabe-Ito: told apart by readers with any colour vision
COLOURS = {
    **{"sa": "#0072B2", "em": "#D55E00", "sgld": "#009E73", "sghmc": "#009E73", "truth": "#000000"},
    **{"vanilla": "#CC79A7", "dropout": "#E69F00"},
}
LABELS = {"sa": "SA", "em": "EM", "sgld": "fixed prior", "sghmc": "fixed prior"}
NETWORK_LABELS = {"sa": "SGHMC-SA", "em": "SGHMC-EM", "sghmc": "SGHMC", "dropout": "Dropout", "vanilla": "Vanilla"}
TITLES = {"mnist": "MNIST", "fmnist": "Fashion-MNIST", "cifar10": "CIFAR10", "cifar100": "CIFAR100"}

plt.rcParams.update(
    {
        "font.size": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.titlesize": 10,
        "legend.frameon": False,
        "figure.constrained_layout.use": True,
        "savefig.dpi": 150,
    }
)


def save(figure, folder: Path, name: str, file: Path | None) -> Path:
    """Save to `file`, by default FOLDER/figures/NAME, and close the figure."""
    file = file or folder / "figures" / name
    figure.savefig(file)
    plt.close(figure)
    return file
