"""Tables of EM-MCMC (Ke and Fan 2022), of the convergence of stochastic approximation, and of speed."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd

from .images import on_images
from .rows import WHERE, in_se, load, means, ordered, plain, protocols, provenance, published
from .text import NAMES, Table, count, finished, name, number, of, pm, short, where

EXAMPLES = {  # of em_regression.py: metric, digits, title
    1: ("mse", 3, "Example 1, p = 1000: MSE"),
    2: ("mse", 3, "Example 2, p = 2000: MSE"),
    3: ("accuracy", 1, "Example 3, p = 1000: accuracy, %"),
}


OURS = ("n", "median", "best", "mean ± sd", "sparsity", "exactly the true variables")


def em_regression(folder: Path, protocol: str) -> Table:
    """Variable selection beside the authors' logs."""
    columns = ["example", "seed", "restart", "mse", "mse_floor", "accuracy", "sparsity", "exact", "chosen"]
    rows = load(folder, "em_regression", protocol, columns)
    rows = rows.assign(ratio=rows["mse"] / rows["mse_floor"])
    several = rows.groupby(["example", *WHERE])["restart"].transform("max") > 0 if len(rows) else rows["chosen"] == 1
    chosen, alone = rows[rows["chosen"] == 1], rows[several & (rows["restart"] == 0)]
    paper = published("em_regression", protocol).set_index("example")
    printed, known = [], []
    for example, (metric, digits, title) in EXAMPLES.items():
        parts = [(title, chosen, metric), ("its ratio to the noise of the same test rows", chosen, "ratio")]
        parts += [("its first chain alone", alone, metric)]
        for label, part, values in parts:
            part = part[(part["example"] == example) & part[values].notna()]
            first = label == title
            theirs = paper.loc[example] if first and example in paper.index else None
            log = "" if theirs is None else f"{theirs[metric]:g}, {100 * theirs['sparsity']:.2f}%"
            groups = [group for _, group in part.groupby(WHERE, sort=False)]
            for group in groups or ([part] if first and theirs is not None else []):
                x = group[values]
                known.append(math.nan if theirs is None else in_se(x.mean(), x.sem(), theirs[metric]))
                line = {"": label} | (group_of(group, values, digits) if len(group) else dict.fromkeys(OURS, ""))
                line |= {"authors' run: value, sparsity": log, "difference in se": number(known[-1], 1, "+")}
                printed.append(line)
    note = (
        "Error on test rows over n simulated data sets, of several chains per data set the best by BIC; exactly: data "
        "sets with all true variables and no other. Difference in our own standard errors. " + provenance(rows)
    )
    return Table("EM-MCMC: variable selection", note, finished(printed, [""]), known)


def group_of(rows: pd.DataFrame, metric: str, digits: int) -> dict:
    """Rows of the same protocol and hardware as printed."""
    x = rows[metric]
    best = x.max() if metric == "accuracy" else x.min()
    line = {"n": str(len(x)), "median": number(x.median(), digits), "best": number(best, digits)}
    line |= {"mean ± sd": pm(x.mean(), x.std(), digits), "sparsity": f"{100 * rows['sparsity'].mean():.2f}%"}
    line |= {"exactly the true variables": f"{rows['exact'].sum():.0f} of {len(rows)}"}
    return line | where(rows.iloc[0])


THRESHOLDS = ["eps0", "soft", "hard"]
SETTING = ["data", "model", "method", "dense", "sn", "rule", *THRESHOLDS]


def em_images(folder: Path, protocol: str) -> Table:
    """Networks pruned while they are sampled."""
    metrics = ["accuracy", "nll", "accuracy_averaged", "nll_averaged", "ece_averaged", "sparsity", "samples"]
    rows = load(folder, "em_images", protocol, [*SETTING, "seed", "val", *metrics])
    rows = rows[rows["val"].fillna(0) == 0]
    unused = rows["dense"] == 1  # thresholds and rule
    rows = rows.assign(**{key: rows[key].where(~unused) for key in (*THRESHOLDS, "rule")})
    table = means(rows, SETTING, metrics).sort_values("sparsity_mean", kind="stable")
    order = {"data": ["fmnist", "cifar10", "cifar100"], "model": sorted(table["model"].unique())}
    printed = [
        {"data": name(row["data"]), "network": name(row["model"]), "method": em_name(row), "epochs": short(row["sn"])}
        | {"n": count(row["n"]), "sparsity": f"{100 * row['sparsity_mean']:.1f}%"}
        | {"last network, %": of(row, "accuracy"), "NLL": of(row, "nll", 4)}
        | {"members": number(row["samples_mean"], 0), "ensemble, %": of(row, "accuracy_averaged")}
        | {"its NLL": of(row, "nll_averaged", 4), "its ECE, %": of(row, "ece_averaged", 2, 100)}
        | where(row)
        for row in ordered(table, **order, dense=(1, 0), method=["sgd", "em"]).to_dict("records")
    ]
    note = "Mean ± sd over n seeds. " + provenance(rows)
    return Table("EM-MCMC: images", note, finished(printed, ["data"]))


def em_name(row) -> str:
    """SGD, or EM-MCMC with its thresholds."""
    if row["method"] == "sgd":
        return name("sgd")
    if row["dense"]:
        return "EM-MCMC, dense"
    return ", ".join(["EM-MCMC", *(f"{key} {short(row[key])}" for key in THRESHOLDS)])


def em_images_paired(folder: Path, protocol: str) -> Table:
    """EM-MCMC minus SGD on the same test images."""
    settings = {"data": "data", "model": "network", "dense": "dense", "sn": "epochs"}
    table = on_images(folder, "em_images", protocol, settings, names=NAMES | {"em": "EM-MCMC"})
    return replace(table, title="EM-MCMC minus SGD")


def convergence(folder: Path, protocol: str) -> Table:
    """Rates against the theorems."""
    columns = ["lr", "iteration", "wasserstein", "bias", "slope", "slope_se", "iterations"]
    rows = load(folder, "convergence", protocol, columns)
    last = rows[rows["iteration"] == rows["iterations"]]
    printed = [
        {"step size, sigma^2": short(row["lr"]), "iterations": count(row["iterations"])}
        | {"Wasserstein distance, posterior sd": number(row["wasserstein"], 3), "bias of theta": number(row["bias"], 3)}
        | where(row)
        for row in last.sort_values("lr", ascending=False, kind="stable").to_dict("records")
    ]
    slopes = last[["slope", "slope_se", *WHERE]].drop_duplicates()
    known = [in_se(row["slope"], row["slope_se"], 1.0) for row in slopes.to_dict("records")]
    told = [
        f"{pm(row['slope'], row['slope_se'], 3)}, {number(apart, 1, '+')} standard errors from the theorem's 1"
        for row, apart in zip(slopes.to_dict("records"), known, strict=True)
    ]
    note = (
        f"The mean squared error of theta falls as omega_k to the power {'; '.join(told) or '(not run)'}. The distance "
        "of the samples from their limit falls to a floor that is proportional to the step size. " + provenance(rows)
    )
    return Table("Convergence of stochastic approximation", note, finished(printed, ["step size, sigma^2"]), known)


SPEED = {  # of a page: how the names of its benchmarks begin
    "chains": ("lr_simulation", "uci_run"),
    "posterior_cnn": ("posterior_cnn", "augmentation"),
    "bayes_cnn": ("bayes_cnn", "inference"),
    "sbp_cnn": ("sbp_cnn",),
    "em_cnn": ("em_cnn",),
    "parts": ("parts of", "add_grad", "pruning"),
}


def measured(folder: Path, protocol: str, curves: bool) -> pd.DataFrame:
    """Rows of benchmarks.csv: of curves, which have an exponent, or all others. They are of the CPU."""
    path = folder / "benchmarks.csv"
    if not path.exists() or "cpu" not in protocols(protocol):
        return pd.DataFrame(columns=["benchmark", "case", "unit", "value", "ratio", "hardware"])
    rows = pd.read_csv(path)
    return rows[rows["exponent"].notna() == curves].assign(hardware=rows["hardware"].map(plain))


def amount(value: float, unit: str) -> str:
    """A rate, time or size."""
    return f"{value:,.0f} {unit}" if value >= 100 else f"{value:.3g} {unit}"


def benchmarks(folder: Path, protocol: str, part: str = "") -> Table:
    """Rates and times beside their baselines.

    part: of SPEED; default all.
    """
    rows = measured(folder, protocol, curves=False)
    rows = rows[rows["benchmark"].str.startswith(SPEED[part] if part else "")]
    printed = [
        {"benchmark": row["benchmark"], "case": row["case"], "measured": amount(row["value"], row["unit"])}
        | {"against the baseline": f"{row['ratio']:.2f}", "hardware": row["hardware"]}
        for row in rows.to_dict("records")
    ]
    note = "Medians of one run, in turn with the baseline, which is the first row of every benchmark."
    return Table("Speed", note, pd.DataFrame(printed, columns=None if printed else ["benchmark"]).astype(str))


def scaling(folder: Path, protocol: str) -> Table:
    """How cost and memory grow with size: a row per curve."""
    printed = []
    rows = measured(folder, protocol, curves=True)
    for (benchmark, case), curve in rows.groupby(["benchmark", "case"], sort=False):
        first, last = curve.iloc[0], curve.iloc[-1]
        printed.append(
            {"benchmark": benchmark, "case": case, "against": f"{first['against']}, {first['at']:g} to {last['at']:g}"}
            | {"measured": f"{amount(first['value'], '')}to {amount(last['value'], last['unit'])}"}
            | {"exponent": f"{last['exponent']:.2f} ± {last['exponent_se']:.2f}"}
            | {"against the baseline, last": f"{last['ratio']:.3g}", "hardware": last["hardware"]}
        )
    note = "cost ~ size^exponent, by least squares on logarithms, ± standard error. At small sizes the fixed cost of "
    note += "starting operations lowers the exponent."
    return Table("Scaling", note, pd.DataFrame(printed, columns=None if printed else ["benchmark"]).astype(str))


PARTS = {f"benchmarks_{part}": partial(benchmarks, part=part) for part in SPEED}
