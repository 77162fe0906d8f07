"""Finished cells as rows of results/<table>.csv.

One row per cell, setting and seed: what the script wrote to table.csv, the settings that tell rows apart, and where
the numbers come from. Rows of cells that are not among the run folders stay as they are, so that results/ grows by what
is run and a fresh clone can report on all of it. Beside it <table>_paired.csv, differences on the same test images,
figure2.csv from attack.csv, and table2_ood.csv from ood.csv.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor

from experiment.classification import log_likelihood
from experiment.run import write_csv

from .cells import Cell, Place

# of args.json, where table.csv has no such column
SETTINGS = ["sn", "burn", "thin", "average", "scale_to", "train", "amp", "lr", "v1", "invT"]
SETTINGS += ["anneal", "milestones", "val", "noise_lr", "kl_weight", "kl_layers", "finetune"]
SETTINGS += ["cycles", "warmup", "rule", "eps0", "eps1", "soft", "hard"]
SETTINGS += ["dc", "da", "iterations", "epochs", "restarts"]
SUMMARY = ["theta_star", "slope", "slope_se"]  # of summary.json, of sa_convergence.py
HARDWARE = ["torch", "cpu", "gpu", "commit"]  # of environment.json
SAME = ["data", "aug", "model", "scale", "pruning", "target", "anneal", "val", "sn", "milestones"]
SAME += ["dense", "eps0", "soft", "hard"]  # of methods that can be compared
FIRST = {"table2": "sa", "table3": "sa", "em-images": "em"}  # whose differences from the others are taken


def file_name(table: str) -> str:
    """Of a table's CSV, without the ending."""
    return table.replace("-", "_")


def read(path: Path) -> dict:
    return json.loads(path.read_text())


def rows(cell: Cell, place: Place, protocol: str) -> pd.DataFrame:
    """The rows of a finished cell."""
    folder = place.folder(cell)
    table = pd.read_csv(folder / cell.product.replace("summary.json", "table.csv"))
    args, environment, summary = (read(folder / f"{name}.json") for name in ("args", "environment", "summary"))
    where = {name: environment[name] for name in HARDWARE}  # of an evaluated run: where it was made
    if cell.evaluates:
        return table.assign(sn=args["sn"], protocol=protocol, cell=cell.name, **where)
    details = [row for row in summary.get("cells", []) if "seed" in row]  # diagnostics of every chain
    others = [pd.json_normalize(details)] if details else []
    speeds = [pd.read_csv(path) for path in sorted(folder.rglob("speed.csv"))]
    for other in [*others, *([pd.concat(speeds)] if speeds else [])]:
        table = table.merge(other, how="left", on=[name for name in other if name in table])
    settings = {name: args[name] for name in SETTINGS if name in args and name not in table}
    settings = {name: " ".join(map(str, x)) if isinstance(x, list) else x for name, x in settings.items()}
    settings |= {name: summary[name] for name in SUMMARY if name in summary}
    return table.assign(**settings, protocol=protocol, cell=cell.name, seconds=summary["seconds"], **where)


def merged(old: pd.DataFrame | None, new: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """New rows in the place of the old ones that agree with one of them in `by`; others stay. Order: as it was."""
    if old is None or not len(old):
        return new
    replaced = old[by].astype(str).agg("/".join, axis=1).isin(set(new[by].astype(str).agg("/".join, axis=1)))
    return pd.concat([old[~replaced], new], ignore_index=True)


def update(cells: list[Cell], place: Place, protocol: str, folder: Path) -> None:
    """Write the rows of all finished cells to the CSV files in a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    found: dict[str, list[pd.DataFrame]] = {}
    finished = [cell for cell in cells if place.state(cell) == "finished"]
    for cell in finished:
        name = f"{file_name(cell.table)}_ood" if cell.product == "ood.csv" else file_name(cell.table)
        found.setdefault(name, []).append(rows(cell, place, protocol))
    for name, frames in found.items():
        write(folder / f"{name}.csv", pd.concat(frames, ignore_index=True), ["protocol", "cell"])
    for table, first in FIRST.items():
        differences = paired([cell for cell in finished if cell.table == table and not cell.evaluates], place, first)
        if len(differences):
            by = ["protocol", "difference", *(name for name in SAME if name in differences)]
            write(folder / f"{file_name(table)}_paired.csv", differences.assign(protocol=protocol), by)


def write(path: Path, new: pd.DataFrame, by: list[str]) -> None:
    """Merge new rows into a CSV file."""
    old = pd.read_csv(path) if path.exists() else None
    write_csv(path, merged(old, new, by))


def per_image(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Accuracy in percent and negative log-likelihood of every single test image, (n)."""
    p, y = tensors["probabilities"], tensors["labels"]
    return {"accuracy": 100 * (p.argmax(-1) == y).double(), "nll": -log_likelihood(p, y)}


def paired(cells: list[Cell], place: Place, first: str) -> pd.DataFrame:
    """Method `first` minus every other one on the same test images, over the seeds that both have.

    <metric>_se_images: standard error over test images of the difference averaged over seeds, for these seeds;
    <metric>_se_seeds: standard error over seeds, for these images.
    """
    predictions: dict[tuple, dict[int, dict[str, Tensor]]] = {}
    origins: dict[tuple, list[dict]] = {}
    names = list(SAME)
    for path in sorted(path for cell in cells for path in place.folder(cell).rglob("predictions.safetensors")):
        row = read(path.parent / "args.json") | pd.read_csv(path.parent / "table.csv").iloc[0].to_dict()
        names = [name for name in names if name in row]
        setting = tuple(" ".join(map(str, x)) if isinstance(x := row[name], list) else x for name in names)
        key = (*setting, row["method"])
        predictions.setdefault(key, {})[int(row["seed"])] = per_image(load_file(path))
        origins.setdefault(key, []).append(read(path.parent / "environment.json"))
    result = []
    for (*setting, method), seeds in predictions.items():
        ours = predictions.get((*setting, first), {})
        common = sorted(seeds.keys() & ours.keys()) if method != first else []
        if not common:
            continue
        row = dict(zip(names, setting, strict=True)) | {"difference": f"{first} - {method}", "seeds": len(common)}
        for metric in ("accuracy", "nll"):
            difference = torch.stack([ours[s][metric] - seeds[s][metric] for s in common])
            row[metric] = float(difference.mean())
            row[f"{metric}_se_images"] = float(difference.mean(0).std()) / math.sqrt(difference.shape[1])
            several = len(common) > 1
            row[f"{metric}_se_seeds"] = float(difference.mean(1).std()) / math.sqrt(len(common)) if several else None
        both = origins[*setting, first] + origins[*setting, method]
        result.append(row | {name: " / ".join(sorted({x[name] for x in both if x[name]})) for name in HARDWARE})
    return pd.DataFrame(result)
