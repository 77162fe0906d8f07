"""Calibration and out-of-distribution detection: python -m figures.calibration PNG RUN_FOLDER ...

Reads predictions.safetensors and, where there is one, ood.safetensors of every run folder (those of
single seeds inside it as well). One row of panels per data set: reliability of the last network, of
the delivered prediction (the posterior average of a Bayesian run), and the entropy of the predictions
inside and outside the distribution. Seeds of a method are pooled.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file

from experiment.classification import BINS, ece, reliability

from .style import COLOURS, NETWORK_LABELS, TITLES, plt

Pool = dict[tuple[str, str], list[dict]]  # (data, method) -> tensors of its seeds


def pooled(runs: list[Path], name: str) -> Pool:
    """The tensors NAME of all runs and of the seeds inside them."""
    pool = {}
    for path in sorted(path for run in runs for path in run.rglob(name)):
        args = json.loads((path.parent / "args.json").read_text())
        pool.setdefault((args["data"], args["c"]), []).append(load_file(path))
    return pool


def draw(runs: list[Path], file: Path) -> Path:
    """Draw the predictions of these runs."""
    predictions, outside = pooled(runs, "predictions.safetensors"), pooled(runs, "ood.safetensors")
    names = list(dict.fromkeys(data for data, _ in predictions))
    figure, rows = plt.subplots(len(names), 3, figsize=(11, 3.5 * len(names)), squeeze=False)
    for name, axes in zip(names, rows, strict=True):
        methods = [method for method in NETWORK_LABELS if (name, method) in predictions]
        for ax, kind, title in (
            (axes[0], "probabilities_last", "last network"),
            (axes[1], "probabilities", "prediction (posterior average)"),
        ):
            for method in methods:
                seeds = predictions[name, method]
                p, y = torch.cat([s[kind] for s in seeds]), torch.cat([s["labels"] for s in seeds])
                share, confidence, correct = reliability(p, y)
                shown = share * len(y) >= 10  # fewer images say nothing
                error = sum(ece(s[kind], s["labels"]) for s in seeds) / len(seeds)
                label = f"{NETWORK_LABELS[method]}, ECE {100 * error:.2f}%"
                ax.plot(confidence[shown], correct[shown], ".-", color=COLOURS[method], label=label)
            ax.plot([0, 1], [0, 1], color=COLOURS["truth"], linewidth=0.6)
            ax.set(title=f"{TITLES.get(name, name)}: {title}", xlabel=f"confidence, {BINS} bins", ylabel="accuracy")
            ax.legend(loc="upper left")
        histogram(axes[2], name, {m: outside[name, m] for m in methods if (name, m) in outside})
    figure.savefig(file)
    plt.close(figure)
    return file


def histogram(ax, name: str, pools: dict[str, list[dict]]) -> None:
    """Entropy of the predictions, inside (solid) and outside (dashed)."""
    most = max(float(x.max()) for seeds in pools.values() for s in seeds for x in s.values()) if pools else 1.0
    for method, seeds in pools.items():
        for side, line in (("inside", "-"), ("outside", "--")):
            values = torch.cat([s[f"entropy_{side}"] for s in seeds]).numpy()
            label = NETWORK_LABELS[method] if side == "inside" else None
            style = {"histtype": "step", "color": COLOURS[method], "linestyle": line}
            ax.hist(values, bins=40, range=(0, most), density=True, label=label, **style)
    ax.set(title=f"{TITLES.get(name, name)}: inside (solid), outside (dashed)", yscale="log")
    ax.set(xlabel="predictive entropy, nats", ylabel="density (log scale)")
    if pools:
        ax.legend()


if __name__ == "__main__":
    print(draw([Path(run) for run in sys.argv[2:]], Path(sys.argv[1])))
