"""Choosing v0, v1, step size and temperature, for docs/choosing.md.

    python -m figures.choosing prior figures/choosing_prior.png
    python -m figures.choosing table results/choosing.csv RUN_FOLDER ...
    python -m figures.choosing sampler figures/choosing_sampler.png results/choosing.csv

prior: inclusion probability, penalties and the force on a weight, from the equations; nothing is measured.
table: one row per run of uci_run.py of a single cell: its temperatures and its errors.
sampler: that table, temperatures and errors against the step size and against the temperature.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from sampler.spike_slab import inclusion_log_odds, penalties

from .style import plt

# v0, v1 as published; colours as in style.py
PUBLISHED = {
    "regression": (0.1, 10.0, "#0072B2"),
    "MNIST": (1.0, 0.1, "#E69F00"),
    "ResNet20, 30%": (0.5, 1e-3, "#CC79A7"),
    "ResNet20, 90%": (0.005, 1e-5, "#D55E00"),
}
LAST = 0.2  # share of the epochs, at the end, over which temperatures are averaged
SETTINGS = ["data", "c", "lr", "invT", "anneal", "train", "sn", "seed", "seeds", "val"]  # of args.json


SERIES = (  # names of the runs, up to the first _
    {"minibatch": "minibatches of 50", "full": "all 357 rows"},
    {"constant": "constant", "annealed": "annealed, 1.003 per step"},
)


def crossing(v0: float, v1: float, delta: float = 0.5) -> tuple[float, float]:
    """The |beta| between which the slab is the more probable one, at sigma = 1; (nan, nan) where it never is.

    log A - log B of Eq. (5) is a parabola in |beta| that opens downwards: constant + |beta| / v0 - beta^2 / (2 v1).
    """
    constant = math.log(delta / (1 - delta)) + math.log(v0 * math.sqrt(2 / (math.pi * v1)))
    square = (v1 / v0) ** 2 + 2 * v1 * constant
    if square < 0:
        return math.nan, math.nan
    return max(0.0, v1 / v0 - math.sqrt(square)), v1 / v0 + math.sqrt(square)


def prior(file: Path) -> Path:
    """Inclusion probability, penalties and force against |beta|, at delta = 1/2 and sigma = 1."""
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(12, 3.9))
    beta = torch.logspace(-4, 1, 1000, dtype=torch.float64)
    for name, (v0, v1, colour) in PUBLISHED.items():
        scale = torch.tensor(v0, dtype=torch.float64)
        rho = inclusion_log_odds(beta, torch.full_like(beta, 0.5), scale, v1).sigmoid()
        kappa0, kappa1 = penalties(rho, v0, v1)
        label = f"{name}: $v_0$ = {v0:g}, $v_1$ = {v1:g}"
        left.plot(beta, rho, color=colour, label=label)
        for bound in crossing(v0, v1):
            left.plot(bound, 0.5, "o", color=colour, markersize=5)
        middle.plot(beta, kappa0, color=colour)
        middle.plot(beta, kappa1, color=colour, linestyle="--")
        right.plot(beta, kappa0 + kappa1 * beta, color=colour)
    left.set(title=r"$\rho$: probability of the slab", ylim=(-0.02, 1.02))
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=2)
    middle.set(title=r"$\kappa_0$ of $|\beta|$ (solid), $\kappa_1$ of $\beta^2$ (dashed)", yscale="log")
    middle.set(ylim=(1e-3, 1e6))
    right.set(title=r"force on the weight, $\kappa_0 + \kappa_1 |\beta|$", yscale="log", ylim=(1e-3, 1e4))
    for ax in (left, middle, right):
        ax.set(xscale="log", xlabel=r"$|\beta|$", xlim=(1e-4, 10))
    figure.savefig(file)
    plt.close(figure)
    return file


def row(folder: Path) -> dict:
    """One run of uci_run.py of a single cell on diabetes. One that has no summary has stopped: all chains diverged."""
    args = json.loads((folder / "args.json").read_text())
    environment = json.loads((folder / "environment.json").read_text())
    where = {name: environment[name] for name in ("torch", "cpu")}
    where |= {"command": (folder / "command.sh").read_text().strip()}
    settings = {"run": folder.name} | {name: args[name] for name in SETTINGS}
    settings["invT"] = args["invT"] or 1.0  # the script's for diabetes
    if not (folder / "summary.json").exists():
        return settings | {"diverged": args["seeds"]} | where
    summary, metrics = json.loads((folder / "summary.json").read_text()), pd.read_csv(folder / "metrics.csv")
    late = metrics[metrics["epoch"] > (1 - LAST) * args["sn"]]
    temperatures = {name: late[name].mean() for name in metrics if name.startswith("temperature_")}
    errors = {name: summary["cells"][0][f"{name}_mean"] for name in ("rmse", "rmse_averaged")}
    return settings | temperatures | errors | {"diverged": summary["diverged"]} | where


def table(folders: list[Path], file: Path) -> Path:
    """Write the rows of the runs."""
    rows = pd.DataFrame([row(folder) for folder in folders]).sort_values(["train", "anneal", "invT", "lr"])
    rows.to_csv(file, index=False, float_format="%.6g")
    return file


def curves(warm, wrong, rows: pd.DataFrame, x: str, colour: str, label: str) -> None:
    """Kinetic temperature, and RMSE of the last sample (solid) and of the average (dashed), where no chain diverged."""
    rows = rows.sort_values(x)
    fine = rows[rows["diverged"] == 0]
    style = {"color": colour, "markersize": 4}
    warm.plot(fine[x], fine["temperature_kinetic"], "o-", label=label, **style)
    wrong.plot(fine[x], fine["rmse"], "o-", label=f"{label}: last sample", **style)
    wrong.plot(fine[x], fine["rmse_averaged"], "s--", label=f"{label}: average", **style)


def sampler(results: Path, file: Path) -> Path:
    """Temperatures and errors against the step size (above) and against the claimed temperature (below)."""
    rows = pd.read_csv(results)
    rows["temperature"] = 1 / rows["invT"]
    figure, axes = plt.subplots(2, 2, figsize=(10, 7.6))
    for (warm, wrong), x, names in zip(axes, ("lr", "temperature"), SERIES, strict=True):
        for (name, label), colour in zip(names.items(), ("#D55E00", "#0072B2"), strict=True):
            curves(warm, wrong, rows[rows["run"].str.startswith(f"{name}_")], x, colour, label)
        warm.set(xscale="log", yscale="log", ylabel="kinetic temperature, last fifth of the run")
        warm.set(xlim=warm.get_xlim(), ylim=warm.get_ylim())
        limits = np.array(warm.get_xlim())
        warm.plot(limits, limits if x == "temperature" else np.ones(2), color="black", linewidth=0.8, label="claimed")
        wrong.set(xscale="log", ylabel="validation RMSE")
        for ax in (warm, wrong):
            ax.set_xlabel("step size (-lr)" if x == "lr" else "temperature at the start, 1 / invT")
            ax.legend()
    axes[0, 0].set_title("temperature against the step size, invT = 1")
    axes[0, 1].set_title("error against the step size")
    axes[1, 0].set_title("temperature against the claimed one")
    axes[1, 1].set(title="error against the temperature", ylim=(50, 130))
    figure.savefig(file)
    plt.close(figure)
    return file


if __name__ == "__main__":
    kind, first, *others = sys.argv[1:]
    if kind == "prior":
        print(prior(Path(first)))
    elif kind == "table":
        print(table([Path(run) for run in others], Path(first)))
    else:
        print(sampler(Path(others[0]), Path(first)))
