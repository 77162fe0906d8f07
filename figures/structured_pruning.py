"""Structured pruning: python -m figures.structured_pruning threshold|units|curves PNG RUN_FOLDER ...

Reads runs of sbp_cnn.py, and those of single seeds inside the folders.

threshold: sweep.csv (-threshold_sweep), accuracy and units of the network cut at every SNR.
units: units.csv of -c sbp and sbpa, the SNR of every unit, layer by layer; of pixels as a picture.
curves: metrics.csv, the units that are left over the epochs.
"""

from __future__ import annotations

import json
import math
import sys
import textwrap
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.ticker import LogLocator, NullFormatter

from .style import TITLES, plt

NAMES = {"lenet-fc": "LeNet-fc", "lenet5": "LeNet5", "vgglike": "VGG-like"}
METHODS = {"sbp": "SBP", "sbpa": "SBPa", "sparsevd": "SparseVD", "ssl": "SSL"}
PREFIX = "units_"


def found(runs: list[Path], name: str) -> dict[Path, dict]:
    """Folders that hold a file of this name, with their flags; the plain networks inside them left out."""
    folders = sorted(path.parent for run in runs for path in run.rglob(name))
    flags = {folder: json.loads((folder / "args.json").read_text()) for folder in folders}
    return {f: args for f, args in flags.items() if args["c"] in METHODS and f.name not in ("dense", "finetune")}


def title(args: dict) -> str:
    name = f"{NAMES[args['model']]} on {TITLES.get(args['data'], args['data'])}, {METHODS[args['c']]}"
    settings = {"KL": args["kl_weight"], "noise step": args["noise_lr"]}
    changed = [f"{what} x {value:g}" for what, value in settings.items() if value != 1]
    if args["c"] == "sbp" and args.get("kl_layers"):
        changed.append(f"KL of the first layers x {', '.join(f'{value:g}' for value in args['kl_layers'])}")
    return "\n".join([name, *([", ".join(changed)] if changed else [])])


def plain_numbers(ax) -> None:
    """Label a logarithmic axis by 20 and 50, not by powers of 10."""
    ax.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    ax.yaxis.set_major_formatter("{x:g}")
    ax.yaxis.set_minor_formatter(NullFormatter())


def threshold(runs: list[Path], file: Path) -> Path:
    """Accuracy and units against the threshold on the SNR."""
    folders = found(runs, "sweep.csv")
    figure, axes = plt.subplots(1, len(folders), figsize=(5.5 * len(folders), 4), squeeze=False)
    for ax, (folder, args) in zip(axes[0], folders.items(), strict=True):
        table = pd.read_csv(folder / "sweep.csv")
        ax.plot(table["threshold"], table["accuracy"], color="black")
        ax.axvline(args["snr"], color="0.6", linewidth=0.8, linestyle="--")
        ax.set(title=title(args), xlabel="threshold on the SNR", ylabel="test accuracy as cut, % (black)")
        right = ax.twinx()
        for name in [name for name in table if name.startswith(PREFIX)]:
            right.plot(table["threshold"], table[name], linewidth=1, alpha=0.8, label=name.removeprefix(PREFIX))
        right.set(yscale="log", ylabel="units left (coloured)")
        plain_numbers(right)
        right.spines["right"].set_visible(True)
        right.legend(loc="lower left")
    figure.savefig(file)
    plt.close(figure)
    return file


def units(runs: list[Path], file: Path) -> Path:
    """SNR of every unit; a row per run."""
    flags = {folder: args for folder, args in found(runs, "units.csv").items() if args["c"] in ("sbp", "sbpa")}
    tables = {folder: pd.read_csv(folder / "units.csv") for folder in flags}
    panels = {folder: list(table.groupby(["layer", "side"], sort=False)) for folder, table in tables.items()}
    columns = min(7, max(map(len, panels.values())))
    rows = [(folder, group[i : i + columns]) for folder, group in panels.items() for i in range(0, len(group), columns)]
    figure, axes = plt.subplots(len(rows), columns, figsize=(2.7 * columns, 2.7 * len(rows)), squeeze=False)
    for line, (folder, group) in zip(axes, rows, strict=True):
        args = flags[folder]
        beside = "\n".join(part for row in title(args).splitlines() for part in textwrap.wrap(row, 30))
        line[0].set_ylabel(f"{beside}\n\nSNR")
        for ax in line[len(group) :]:
            ax.axis("off")
        for ax, ((layer, side), table) in zip(line, group, strict=False):
            kept = f"{int(table['kept'].sum())} of {len(table)}"
            side_length = math.isqrt(len(table))
            pixels = (layer, side) == (tables[folder]["layer"].iloc[0], "inputs")
            if pixels and side_length**2 == len(table):
                picture = np.log10(table["score"].to_numpy()).reshape(side_length, side_length)
                shown = ax.imshow(picture, cmap="viridis", vmin=-1)
                figure.colorbar(shown, ax=ax, shrink=0.8, label="log10 SNR")
                ax.set(title=f"pixels, {kept}", xticks=[], yticks=[])
                continue
            score = np.sort(table["score"].to_numpy())[::-1]
            ax.semilogy(np.arange(1, len(score) + 1), score, ".", markersize=3, color="#0072B2")
            plain_numbers(ax)
            ax.axhline(args["snr"], color="0.6", linewidth=0.8, linestyle="--")
            ax.set(title=f"{layer} {side}, {kept}", xlabel="unit, by its SNR")
    figure.savefig(file)
    plt.close(figure)
    return file


def curves(runs: list[Path], file: Path) -> Path:
    """Units left over the epochs; one panel per model and method, every seed a line."""
    folders = found(runs, "metrics.csv")
    kinds = list(dict.fromkeys(title(args) for args in folders.values()))
    width = min(3, len(kinds))
    shape = (math.ceil(len(kinds) / width), width)
    figure, axes = plt.subplots(*shape, figsize=(4.2 * shape[1], 3.3 * shape[0]), squeeze=False)
    for ax in axes.flat[len(kinds) :]:
        ax.axis("off")
    for kind, ax in zip(kinds, axes.flat, strict=False):
        for folder in [folder for folder, args in folders.items() if title(args) == kind]:
            table = pd.read_csv(folder / "metrics.csv")
            names = [name for name in table if name.startswith(PREFIX)]
            first = not ax.lines
            for i, name in enumerate(names):
                label = name.removeprefix(PREFIX) if first else None
                ax.plot(table["epoch"], table[name], color=f"C{i % 10}", linewidth=1, label=label)
        ax.set(title=kind, xlabel="epoch", ylabel="units left", yscale="log")
        plain_numbers(ax)
        ax.legend(ncols=2 if len(names) > 4 else 1, fontsize=7)
    figure.savefig(file)
    plt.close(figure)
    return file


if __name__ == "__main__":
    kind, file, *runs = sys.argv[1:]
    print({"threshold": threshold, "units": units, "curves": curves}[kind]([Path(run) for run in runs], Path(file)))
