"""Tables of structured Bayesian pruning (Neklyudov et al. 2017)."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd

from sbp_cnn import OF

from .rows import in_se, load, means, ordered, provenance, published
from .text import Table, count, finished, name, number, of, short, where

SITES = [*(f"conv{i}" for i in range(1, 14)), "fc1.inputs", "fc1", "fc2.inputs", "fc2"]  # in this order
SETTING = ["data", "model", "scale", "method", "sn", "noise_lr", "kl_weight", "kl_layers", "warmup", "finetune", "amp"]
METRICS = ["error", "flops_ratio", "parameters", "parameters_dense", "accuracy_train"]
KINDS = {"cpu": "CPU", "onnx": "ONNX Runtime", "gpu": "GPU"}  # of speed-ups, with their titles
SPEEDS = [f"speedup_{kind}_{batch}" for kind in KINDS for batch in (256, 1)]
METHODS = ["dense", "sbp", "sbpa", "ssl", "sparsevd"]
SHOWN = {"dense": "plain", "sbp": "SBP", "sbpa": "SBPa", "ssl": "SSL", "sparsevd": "SparseVD"}
TRAIN, TIMES = "training accuracy, %", [f"{title}, batch 256 (1)" for title in KINDS.values()]
OURS = ["settings", "epochs", "n", TRAIN, "error, %", "units", "parameters left", "FLOPs", *TIMES]
MODELS = ["lenet-fc", "lenet5", "vgglike"]


def runs(folder: Path, file: str, protocol: str) -> pd.DataFrame:
    """All rows of a CSV file; settings that a method has not are empty."""
    rows = load(folder, file, protocol, [*SETTING, *METRICS, *SPEEDS, "seed", "val"])
    rows = rows.assign(warmup=rows["warmup"].where(rows["warmup"] > 0), amp=rows["amp"].fillna(0))
    return rows.assign(**{key: rows[key].where(rows["method"].isin(OF[key])) for key in OF if key in SETTING})


def settings(row) -> str:
    """What differs from the published settings."""
    parts = [f"width × {short(row['scale'])}"] if row["scale"] not in ("", 1.0) else []
    parts += [f"noise step × {short(row['noise_lr'])}"] if row["noise_lr"] not in ("", 1.0) else []
    parts += [f"KL × {short(row['kl_weight'])}"] if row["kl_weight"] not in ("", 1.0) else []
    parts += [f"KL × {str(row['kl_layers']).replace('.0', '')} by layer"] if row["kl_layers"] else []
    parts += [f"warm-up of {short(row['warmup'])} epochs"] if row["warmup"] else []
    parts += [f"{short(row['finetune'])} epochs fine-tuned"] if row["finetune"] else []
    parts += ["bfloat16"] if row["amp"] else []
    return ", ".join(parts)


def units(row, sites: list[str]) -> str:
    """'20-50-800-500', means over seeds."""
    left = [row[f"units_{site}_mean"] for site in sites if pd.notna(row.get(f"units_{site}_mean"))]
    return "-".join(f"{x:.0f}" for x in left)


def pruned(rows: pd.DataFrame, paper: pd.DataFrame, title: str, note: str) -> Table:
    """One row per setting, and published rows without ours at the end of their network."""
    sites = [site for site in SITES if f"units_{site}" in rows and rows[f"units_{site}"].notna().any()]
    metrics = [*METRICS, *SPEEDS, *(f"units_{site}" for site in sites)]
    table = ordered(means(rows, SETTING, metrics), model=MODELS, method=METHODS)
    theirs = paper.set_index(["model", "method"]).to_dict("index")
    seen, printed, known = set(), [], []
    for row in table.to_dict("records"):
        # the paper has SBPa of the VGG-like network only, and only one SBP of the others
        key = next((k for k in ((row["model"], m) for m in (row["method"], row["method"][:3])) if k in theirs), None)
        line, apart = printed_row(row, theirs.get(key), sites)
        seen.add(key)
        known.append(apart)
        printed.append((row["model"], line))
    for key in [key for key in theirs if key not in seen]:
        line, _ = printed_row({"model": key[0], "method": key[1]}, theirs[key], sites)
        printed.append((key[0], line))
    printed.sort(key=lambda item: MODELS.index(item[0]))
    frame = finished([line for _, line in printed], ["network"])
    empty = [column for column in TIMES if column in frame and not frame[column].any()]
    return Table(title, note + provenance(rows), frame.drop(columns=empty), known)


def printed_row(row: dict, theirs: dict | None, sites: list[str]) -> tuple[dict, float]:
    """A row as printed, and its difference from the published error; theirs: the published one."""
    theirs, ours = theirs or {}, "error_mean" in row
    apart = in_se(row["error_mean"], row["error_se"], theirs.get("error")) if ours else math.nan
    line = {"network": name(row["model"]), "method": SHOWN[row["method"]]} | dict.fromkeys(OURS, "")
    if ours:
        kept = number(100 * row["parameters_mean"] / row["parameters_dense_mean"], 1)
        values = [settings(row), short(row["sn"]), count(row["n"]), number(row["accuracy_train_mean"], 1)]
        values += [of(row, "error"), units(row, sites), f"{kept}%" if kept else ""]
        values += [f"{number(row['flops_ratio_mean'])}x", *(speedup(row, kind) for kind in KINDS)]
        line |= dict(zip(OURS, values, strict=True))
    line |= {"published: error": number(theirs.get("error")), "difference in se": number(apart, 1, "+")}
    line |= {"published: units": theirs.get("units", ""), "published: FLOPs, CPU, GPU": published_speed(theirs)}
    return line | where(row), apart


def speedup(row, kind: str) -> str:
    """'2.8x (1.3x)': at batch 256, and at 1."""
    large, one = (row[f"speedup_{kind}_{batch}_mean"] for batch in (256, 1))
    return "" if pd.isna(large) else f"{large:.1f}x ({one:.1f}x)"


def published_speed(theirs: dict) -> str:
    """'11.23x, 2.33x, 8.08x'."""
    known = (number(theirs.get(key)) for key in ("flops_ratio", "cpu", "gpu"))
    return ", ".join(f"{x}x" for x in known if x)


COUNTED = (
    "Mean ± sd over n seeds; error, units and size of the network as cut, units means over seeds. FLOPs and times as "
    "factors against the plain network, by its own timing on a machine in use. Differences in our own standard errors. "
)


def sbp_table(folder: Path, protocol: str, file: str, data: str, title: str) -> Table:
    """Networks beside the published ones.

    file: of the CSV.  data: of the paper.
    """
    rows = runs(folder, file, protocol)
    rows = rows[(rows["val"].fillna(0) == 0) & ~rows["data"].astype(str).str.endswith("-random")]
    paper = published("sbp", protocol)
    table = pruned(rows, paper[paper["data"] == data], title, COUNTED)
    return replace(table, frame=table.frame.drop(columns=TRAIN, errors="ignore"))


sbp_mnist = partial(sbp_table, file="sbp_mnist", data="mnist", title="Structured pruning of LeNets")
sbp_vgg = partial(
    sbp_table, file="sbp_vgg", data="cifar10", title="Structured pruning of a VGG-like network on CIFAR10"
)


def alone(rows: pd.DataFrame, title: str, note: str, *without: str) -> Table:
    """Without published numbers, and without some columns."""
    table = pruned(rows, rows.iloc[:0], title, note)
    frame = table.frame[[c for c in table.frame if not c.startswith(("published", "difference", *without))]]
    return Table(title, table.note, frame)


def sbp_validation(folder: Path, protocol: str) -> Table:
    """Settings on held-out training images."""
    rows = pd.concat([runs(folder, file, protocol) for file in ("sbp_mnist", "sbp_vgg")], ignore_index=True)
    rows = rows[rows["val"].fillna(0) > 0]
    return alone(rows, "Structured pruning: settings", "On held-out training images (-val). ", *TIMES, TRAIN)


def sbp_random(folder: Path, protocol: str) -> Table:
    """Random labels."""
    rows = runs(folder, "sbp_mnist", protocol)
    rows = rows[rows["data"] == "mnist-random"]
    note = "LeNet-fc on MNIST with random labels, of the test images too; whole layers may vanish (-allow_empty 1). "
    return alone(rows, "Structured pruning: random labels", note, *TIMES)
