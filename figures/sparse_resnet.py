"""Sparse fine-tuning by several methods: python -m figures.sparse_resnet PNG RUN_FOLDER ...

Reads the runs of bayes_cnn.py -prune 1 (and those of single seeds inside the folders): accuracy and sparsity over the
epochs, the share of weights that every layer keeps, and, of the first seed, the penalty weights kappa0 and kappa1 that
the latent variables ended with, over the size of the weights.
"""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from safetensors.numpy import load_file

from .style import COLOURS, NETWORK_LABELS, plt

SHOWN = 4000  # weights in a scatter plot


@dataclass(frozen=True)
class Sparse:
    """What the figure reads of one run."""

    args: dict
    metrics: pd.DataFrame
    dense: float
    density: dict[str, float]
    sizes: np.ndarray  # |beta| of the sparse layers
    kappa0: np.ndarray
    kappa1: np.ndarray


def place(name: str) -> list:
    """Sorts the names of parameters as the network has them: layer1.2 before layer1.10, fc last."""
    return [
        name.startswith("fc"),
        *[(part.isdigit(), int(part) if part.isdigit() else part) for part in name.split(".")],
    ]


def read(folder: Path) -> Sparse:
    """One run folder."""
    checkpoint = load_file(folder / "checkpoint.safetensors")
    names = [name[4:] for name, x in checkpoint.items() if name.startswith("net.") and x.ndim in (2, 4)]
    weights = {name: checkpoint[f"net.{name}"] for name in sorted(names, key=place)}
    sparse = [x for name, x in weights.items() if ".conv" in name]  # in the order of the prior's layers

    def latent(name: str) -> np.ndarray:
        return np.concatenate([checkpoint[f"prior.{name}.{i}"].ravel() for i in range(len(sparse))])

    return Sparse(
        json.loads((folder / "args.json").read_text()),
        pd.read_csv(folder / "metrics.csv"),
        float(pd.read_csv(folder / "table.csv")["accuracy_dense"].iloc[0]),
        {name.removesuffix(".weight"): float((x != 0).mean()) for name, x in weights.items()},
        np.concatenate([np.abs(x).ravel() for x in sparse]),
        latent("kappa0"),
        latent("kappa1"),
    )


def draw(folders: list[Path], file: Path) -> Path:
    """Draw these runs."""
    found = sorted(path.parent for folder in folders for path in folder.rglob("checkpoint.safetensors"))
    runs = [read(folder) for folder in found]
    methods = [method for method in NETWORK_LABELS if any(run.args["c"] == method for run in runs)]
    figure, axes = plt.subplots(2, 2, figsize=(11, 7.5))
    curves(axes[0, 0], runs, methods)
    densities(axes[0, 1], runs, methods)
    first = {method: next(run for run in runs if run.args["c"] == method) for method in methods}
    for ax, name, penalty in ((axes[1, 0], "kappa0", r"|\beta|"), (axes[1, 1], "kappa1", r"\beta^2")):
        for method, run in first.items():
            values = getattr(run, name)
            rows = np.random.default_rng(0).permutation(len(values))[:SHOWN]
            label = rf"{NETWORK_LABELS[method]}, norm $\|\beta\|$ = {np.linalg.norm(run.sizes):.2f}"
            style = {"color": COLOURS[method], "label": label, "markersize": 2, "alpha": 0.6}
            ax.plot(run.sizes[rows], values[rows], ".", **style)
        ax.set(xlabel=r"$|\beta|$ at the end; 0: pruned")
        ax.set_xscale("symlog", linthresh=1e-3)
        ax.set_yscale("symlog", linthresh=1e-3)
        ax.set(title=rf"$\kappa_{name[-1]}$, weight of the penalty on ${penalty}$ ({SHOWN} weights)")
        ax.legend(markerscale=4)
    figure.savefig(file)
    plt.close(figure)
    return file


def curves(ax, runs: list[Sparse], methods: list[str]) -> None:
    """Test accuracy of every seed, and the sparsity, over the epochs."""
    right = ax.twinx()
    for run in runs:
        method, epochs = run.args["c"], run.metrics["epoch"]
        ax.plot(epochs, run.metrics["accuracy"], color=COLOURS[method], linewidth=1)
        right.plot(epochs, 100 * run.metrics["sparsity"], color="0.6", linewidth=0.8, linestyle="--")
    for method in methods:
        ends = [run.metrics["accuracy"].iloc[-1] for run in runs if run.args["c"] == method]
        ax.plot([], [], color=COLOURS[method], label=f"{NETWORK_LABELS[method]}, {np.mean(ends):.2f} (n = {len(ends)})")
    for dense in sorted({run.dense for run in runs}):
        ax.axhline(dense, color=COLOURS["truth"], linewidth=0.8, label=f"dense network, {dense:.2f}")
    ax.set(title="accuracy over the epochs (last epoch)", xlabel="epoch", ylabel="test accuracy, %")
    ax.legend(loc="lower left")
    right.set(ylabel="sparsity, % (dashed)", ylim=(0, 100))
    right.spines["right"].set_visible(True)


def densities(ax, runs: list[Sparse], methods: list[str]) -> None:
    """Share of weights kept, layer by layer."""
    width = 0.8 / len(methods)
    for i, method in enumerate(methods):
        mean = pd.DataFrame([run.density for run in runs if run.args["c"] == method]).mean()
        ax.bar(np.arange(len(mean)) + i * width, mean, width, color=COLOURS[method], label=NETWORK_LABELS[method])
    names = list(runs[0].density)
    ax.set_xticks(np.arange(len(names)) + 0.4 - width / 2, names, rotation=90, fontsize=7)
    ax.set(title="density of the layers (shortcuts, conv1 and fc are not sparse)", ylabel="weights kept / weights")
    ax.legend(loc="center")


if __name__ == "__main__":
    print(draw([Path(run) for run in sys.argv[2:]], Path(sys.argv[1])))
