"""Tables of MNIST, Fashion-MNIST and sparse ResNet20 (Deng et al. 2019)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pandas as pd

from .rows import WHERE, in_se, keyed, load, means, ordered, provenance, published, with_published
from .text import METHODS, NAMES, Table, count, finished, name, number, of, pair, pm, short, where

METRICS = ("accuracy", "nll", "ece", "brier")
SETTING = ["data", "aug", "sn", "method"]
DATA = ["mnist", "fmnist"]
IMAGE_METHODS = ["sa", "sghmc", "dropout", "vanilla"]


def table2(folder: Path, protocol: str) -> Table:
    """Accuracy and calibration."""
    kinds = {"_averaged": "average", "": "last sample", "_best_sample": "best sample by each column"}
    metrics = [metric + ending for ending in sorted(kinds) for metric in METRICS]  # n is that of the first, accuracy
    rows = load(folder, "table2", protocol, [*SETTING, "seed", "val", *metrics])
    rows = rows[rows["val"].fillna(0) == 0]
    paper = published("table2", protocol)
    table = with_published(means(rows, SETTING, metrics), paper, ["data", "aug", "method"])
    printed, known = [], []
    order = {"data": DATA, "aug": (0, 1), "sn": sorted(rows["sn"].unique()), "method": IMAGE_METHODS}
    for row in ordered(table, **order).to_dict("records"):
        theirs = row["accuracy_published"]
        sampled = pd.notna(row["accuracy_averaged_mean"])
        for ending, kind in kinds.items() if sampled else {"": ""}.items():
            first = kind in ("", "average")
            accuracy = f"accuracy{ending}"
            apart = in_se(row[f"{accuracy}_mean"], row[f"{accuracy}_se"], theirs) if first else math.nan
            known += [apart] if first else []
            printed.append(
                {"data": name(row["data"]) + (", augmented" if row["aug"] else "")}
                | {"method": f"**{name(row['method'])}**" if first else "", "of": kind}
                | {"epochs": short(row["sn"]), "n": count(row["n"]), "accuracy, %": of(row, accuracy)}
                | {"published": number(theirs) if first else "", "difference in se": number(apart, 1, "+")}
                | {"NLL": of(row, f"nll{ending}", 4), "ECE, %": of(row, f"ece{ending}", 2, 100)}
                | {"Brier": of(row, f"brier{ending}", 4)}
                | where(row)
            )
    note = (
        "Mean ± sd over n seeds. Published: the full schedule, 200 epochs and 1000 augmented. Differences in our own "
        "standard errors, which are rough at few seeds. " + provenance(rows)
    )
    return Table("Image networks: accuracy and calibration", note, finished(printed), known)


def on_images(
    folder: Path,
    table: str,
    protocol: str,
    settings: dict[str, str],
    paper: dict | None = None,
    names: Mapping[str, str] = NAMES,
) -> Table:
    """Differences on the same test images, from <table>_paired.csv.

    settings: columns that tell rows apart, with their titles.  paper: published difference by (setting, difference).
    names: of the methods.
    """
    rows = load(folder, f"{table}_paired", protocol, ["val", *settings])
    rows = keyed(rows[rows["val"].fillna(0) == 0], [*settings])
    printed = []
    orders = {key: DATA if key == "data" else list(rows[key].unique()) for key in settings}
    for row in ordered(rows, **orders).to_dict("records"):
        first, other = row["difference"].split(" - ")
        line = {"difference": f"{names[first]} − {names[other]}"}
        line |= {title: short(row[key]) for key, title in settings.items()}
        line |= {settings[key]: name(row[key]) for key in ("data", "model") if key in settings}
        line |= {"n": count(row["seeds"]), "accuracy": signed(row, "accuracy", 2), "NLL": signed(row, "nll", 4)}
        line |= {"accuracy: se over seeds": number(row["accuracy_se_seeds"], 2)}
        line |= {"NLL: se over seeds": number(row["nll_se_seeds"], 4)}
        if paper is not None:
            key = (*(row[key] for key in settings if key in ("data", "target")), row["difference"])
            line["accuracy, published"] = number(paper.get(key), 2, "+")
        printed.append(line | where(row))
    note = "On the same test images: mean over n seeds ± standard error over images, and standard error over seeds. "
    note += provenance(rows)
    return Table("", note, finished(printed, ["difference", *settings.values()]))


def signed(row, metric: str, digits: int) -> str:
    """'+0.06 ± 0.03', over images."""
    text = pm(row[metric], row[f"{metric}_se_images"], digits)
    return f"+{text}" if text and row[metric] >= 0 else text


def table2_paired(folder: Path, protocol: str) -> Table:
    """SA minus the others on the same test images."""
    paper = published("table2", protocol)
    paper = paper[paper["aug"] == 0].set_index(["data", "method"])["accuracy"].to_dict()
    apart = {(d, f"sa - {m}"): paper[d, "sa"] - x for (d, m), x in paper.items() if m != "sa"}
    settings = {"data": "data", "aug": "augmented", "sn": "epochs"}
    table = on_images(folder, "table2", protocol, settings, apart)
    return replace(table, title="Image networks: SGHMC-SA minus the others")


def table2_ood(folder: Path, protocol: str) -> Table:
    """Telling other data from the test images."""
    by = ["data", "ood", "score", "method", "sn"]
    rows = load(folder, "table2_ood", protocol, [*by, "seed", "auroc", "fpr95"])
    table = ordered(means(rows, by, ["auroc", "fpr95"]), data=DATA, score=["entropy", "mutual_information"])
    printed: dict[tuple, dict] = {}
    for row in table.to_dict("records"):
        key = tuple(row[k] for k in ("data", "ood", "score", "sn", *WHERE))
        start = {"": f"{name(row['ood'])} told from {name(row['data'])}", "score": row["score"].replace("_", " ")}
        start |= {"epochs": short(row["sn"]), "n": count(row["n"])} | where(row)
        line = printed.setdefault(key, start | dict.fromkeys(map(name, IMAGE_METHODS), ""))
        line[name(row["method"])] = pair(of(row, "auroc", 3), number(row["fpr95_mean"]))
    note = "AUROC / FPR95, mean ± sd over n seeds. " + provenance(rows)
    return Table("Telling images of other data", note, finished(list(printed.values())))


ZETAS = (0.0, 0.1, 0.2, 0.3, 0.5)  # of the published ones, and none
ATTACKS = {"fgsm_predicted": "FGSM, predicted class", "fgsm_true": "FGSM, true class", "pgd": "PGD, true class"}


def figure2(folder: Path, protocol: str) -> Table:
    """Accuracy under attack."""
    by = ["data", "attack", "sn", "method"]
    rows = load(folder, "figure2", protocol, [*by, "zeta", "n", "seed", "accuracy"])
    rows = rows.assign(zeta=rows["zeta"].round(4)).rename(columns={"n": "images"})
    paper = published("figure2", protocol).assign(attack="fgsm_predicted")
    table = means(rows[rows["zeta"].isin(ZETAS)], [*by, "images", "zeta"], ["accuracy"])
    table = keyed(with_published(table, paper, ["data", "attack", "method", "zeta"]), ["sn", "images", *WHERE])
    printed: dict[tuple, dict] = {}
    known = []
    order = {"data": DATA, "attack": list(ATTACKS), "sn": ["", *sorted(rows["sn"].unique())], "method": IMAGE_METHODS}
    for row in ordered(table, **order, zeta=ZETAS).to_dict("records"):
        start = {"data": name(row["data"]), "attack": ATTACKS[row["attack"]], "method": name(row["method"])}
        start |= {"epochs": short(row["sn"]), "images": short(row["images"]), "n": count(row["n"])}
        start |= where(row) | {f"zeta {zeta:g}": "" for zeta in ZETAS}
        line = printed.setdefault(tuple(row[k] for k in [*by, "images", *WHERE]), start)
        theirs = f"({row['accuracy_published']:.0f})" if pd.notna(row["accuracy_published"]) else ""
        line[f"zeta {row['zeta']:g}"] = f"{of(row, 'accuracy', 1)} {theirs}".strip()
        known.append(in_se(row["accuracy_mean"], row["accuracy_se"], row["accuracy_published"]))
    note = (
        "Accuracy in percent at the strength zeta, mean over n seeds; in brackets: published, full schedule, read off "
        "Figure 2 by eye to two points. " + provenance(rows)
    )
    return Table("Accuracy under attack", note, finished(list(printed.values())), known)


SHORT = "^(?:weight|unit|rho)_"  # cells that compare ways of pruning
RUN = ["data", "model", "method", "annealed", "target", "sn", "milestones"]


def resnets(folder: Path, protocol: str) -> pd.DataFrame:
    """All runs, annealed 1 or 0."""
    columns = ["data", "model", "method", "target", "sn", "milestones", "seed", "val", "anneal", "pruning"]
    columns += ["accuracy", "nll", "accuracy_dense", "parameters_kept", "sparsity"]
    rows = load(folder, "table3", protocol, columns)
    return rows.assign(annealed=(rows["anneal"] > 1).astype(int))


def table3(folder: Path, protocol: str) -> Table:
    """Accuracy of sparse networks."""
    rows = resnets(folder, protocol)
    rows = rows[(rows["val"].fillna(0) == 0) & ~rows["cell"].astype(str).str.contains(SHORT)]
    paper = published("table3", protocol)
    logs = published("table3_logs", protocol)
    logs = logs.assign(annealed=logs["annealed"].fillna(1)).set_index(["method", "annealed", "target"])["accuracy"]
    by = RUN[:5]
    metrics = ["accuracy", "nll", "accuracy_dense", "parameters_kept"]
    table = with_published(means(rows, RUN, metrics), paper, by)
    order = {"target": sorted(table["target"].unique()), "annealed": (1, 0)}
    methods = [m for m in METHODS if m in set(table["method"])]
    order |= {"method": [*methods, *sorted(set(table["method"]) - set(methods))]}
    order |= {"sn": sorted(rows["sn"].unique(), reverse=True)}
    printed, known = [], []
    for row in ordered(table, **order).to_dict("records"):
        apart = in_se(row["accuracy_mean"], row["accuracy_se"], row["accuracy_published"])
        known.append(apart)
        kept = row["parameters_kept_mean"]
        kept = row["parameters_published"] if pd.isna(kept) else kept
        log = logs.get((row["method"], row["annealed"], row["target"])) if row["model"] == "resnet20" else None
        printed.append(
            {"sparsity": f"{100 * row['target']:g}%", "network": name(row["model"])}
            | {"method": ("A-" if row["annealed"] and row["method"] != "dense" else "") + name(row["method"])}
            | {"parameters": "" if pd.isna(kept) else f"{kept:,.0f}"}
            | {"epochs": short(row["sn"]), "milestones": short(row["milestones"]), "n": count(row["n"])}
            | {"last epoch, %": of(row, "accuracy"), "NLL": of(row, "nll", 3)}
            | {"dense minus sparse": number(row["accuracy_dense_mean"] - row["accuracy_mean"])}
            | {"published": number(row["accuracy_published"]), "difference in se": number(apart, 1, "+")}
            | {"the authors' log, last epoch": number(log)}
            | where(row)
        )
    note = (
        "Mean ± sd over n seeds of the last epoch; published: best epoch by test accuracy, full schedule, original "
        "pixels. A-: annealed. Differences in our own standard errors, none for one seed. " + provenance(rows)
    )
    return Table("Sparse ResNets: accuracy", note, finished(printed), known)


def table3_paired(folder: Path, protocol: str) -> Table:
    """SA minus the others on the same test images."""
    paper = published("table3", protocol)
    paper = paper[paper["annealed"] == 1].set_index(["data", "target", "method"])["accuracy"].to_dict()
    apart = {(d, t, f"sa - {m}"): paper[d, t, "sa"] - x for (d, t, m), x in paper.items() if m != "sa"}
    settings = {"data": "data", "target": "sparsity", "sn": "epochs", "milestones": "milestones"}
    table = on_images(folder, "table3", protocol, settings, apart)
    return replace(table, title="Sparse ResNets: SGHMC-SA minus the others")


def table3_pruning(folder: Path, protocol: str) -> Table:
    """What is pruned."""
    rows = resnets(folder, protocol)
    rows = rows[(rows["val"].fillna(0) == 0) & rows["cell"].astype(str).str.contains(SHORT)]
    by = ["target", "sn", "pruning"]
    table = means(rows, by, ["accuracy", "nll", "sparsity"])
    printed = [
        {"pruned by": row["pruning"], "target": f"{100 * row['target']:g}%", "epochs": short(row["sn"])}
        | {"n": count(row["n"]), "accuracy, %": of(row, "accuracy"), "NLL": of(row, "nll", 3)}
        | {"sparsity reached": number(row["sparsity_mean"], 3)}
        | where(row)
        for row in ordered(table, target=(0.9, 0.5), pruning=["weight", "unit", "rho"]).to_dict("records")
    ]
    note = "SGHMC-SA, short runs that differ in nothing else. " + provenance(rows)
    return Table("Sparse ResNets: weights, units, rho", note, finished(printed, ["pruned by"]))


def table3_validation(folder: Path, protocol: str) -> Table:
    """Milestones on held-out images."""
    rows = resnets(folder, protocol)
    rows = rows[rows["val"].fillna(0) > 0]
    table = means(rows, ["sn", "milestones", "target"], ["accuracy", "nll"])
    printed = [
        {"milestones": row["milestones"], "epochs": short(row["sn"]), "sparsity": f"{100 * row['target']:g}%"}
        | {"n": count(row["n"]), "validation accuracy, %": of(row, "accuracy"), "NLL": of(row, "nll", 3)}
        | where(row)
        for row in table.to_dict("records")
    ]
    note = "SGHMC-SA on held-out training images, which the dense network has seen. " + provenance(rows)
    return Table("Sparse ResNets: milestones", note, finished(printed, ["milestones"]))
