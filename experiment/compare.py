"""Image classification runs beside each other: python -m experiment.compare NAME RUN_FOLDER ...

Writes results/NAME.csv, one row per run and seed with its provenance, results/NAME_paired.csv, SGHMC-SA (or SBP, or
EM-MCMC) minus every other method on the same test images, and NAME_attack.csv and NAME_ood.csv of runs that were
assessed. Gaps between methods are about as large as the standard deviation that 10,000 test images leave, so that only
paired differences can show them.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import load_file
from torch import Tensor

from .classification import log_likelihood
from .classifier import METRICS
from .report import PUBLISHED, formatted, over_seeds
from .run import write_csv

# of table.csv and of args.json, as far as the runs have them
BY = ["data", "aug", "model", "scale", "pruning", "target"]
BY += ["sn", "milestones", "noise_lr", "kl_weight", "kl_layers", "dense", "eps0", "soft", "hard", "method"]
SETTINGS = ["sn", "burn", "thin", "average", "scale_to", "train", "amp", "lr", "v1", "invT"]
SETTINGS += ["noise_lr", "kl_weight", "finetune", "cycles", "warmup", "rule", "eps0", "eps1", "soft", "hard"]
LISTS = ["milestones", "kl_layers"]
METHODS = ["dense", "sa", "em", "sgd", "sghmc", "dropout", "vanilla", "sbp", "sbpa", "ssl", "sparsevd"]  # in this order
FIRST = ("sa", "sbp", "em")  # the method that is compared with the others: the first of these that was run
HARDWARE = ["torch", "cpu", "gpu", "commit"]  # of environment.json


def collect(runs: list[Path]) -> tuple[pd.DataFrame, dict[tuple, dict[int, dict[str, Tensor]]]]:
    """Rows of all seeds of all runs, and their predictions as {setting: {seed: tensors}}."""
    rows, predictions = [], {}
    for path in sorted(path for run in runs for path in run.rglob("predictions.safetensors")):
        args, environment, summary = (
            json.loads((path.parent / f"{name}.json").read_text()) for name in ("args", "environment", "summary")
        )
        row = pd.read_csv(path.parent / "table.csv").iloc[0].to_dict()
        if (path.parent / "speed.csv").exists():
            row |= pd.read_csv(path.parent / "speed.csv").iloc[0].to_dict()
        row |= {name: args[name] for name in SETTINGS if name in args} | {"seconds": summary["seconds"]}
        row |= {name: " ".join(map(str, args[name])) for name in LISTS if name in args}
        rows.append(row | {name: environment[name] for name in HARDWARE})
        predictions.setdefault(tuple(row[name] for name in BY if name in row), {})[row["seed"]] = load_file(path)
    table = pd.DataFrame(rows)
    table = table.sort_values([*keys(table), "seed"], key=lambda x: x.map(METHODS.index) if x.name == "method" else x)
    return table.reset_index(drop=True), predictions


def keys(table: pd.DataFrame) -> list[str]:
    """The columns that say what a row is of."""
    return [name for name in BY if name in table]


def per_image(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Accuracy in percent and negative log-likelihood of every single test image, (n)."""
    p, y = tensors["probabilities"], tensors["labels"]
    return {"accuracy": 100 * (p.argmax(-1) == y).double(), "nll": -log_likelihood(p, y)}


def paired(predictions: dict[tuple, dict[int, dict[str, Tensor]]], names: list[str]) -> pd.DataFrame:
    """SA, or else SBP or EM-MCMC, minus every other method, over the seeds that both have.

    names: of the settings, the method last.

    <metric>_se_images: standard error over test images of the difference averaged over seeds, for these
    seeds; <metric>_se_seeds: standard error over seeds, for these images.
    """
    methods = {method for *_, method in predictions}
    rows, first = [], next((method for method in FIRST if method in methods), None)
    for (*setting, method), seeds in predictions.items():
        ours = predictions.get((*setting, first))
        common = sorted(seeds.keys() & ours.keys()) if ours and method != first else []
        if not common:
            continue
        row = dict(zip(names[:-1], setting, strict=True)) | {"difference": f"{first} - {method}", "seeds": len(common)}
        for metric in ("accuracy", "nll"):
            difference = torch.stack([per_image(ours[s])[metric] - per_image(seeds[s])[metric] for s in common])
            row[metric] = float(difference.mean())
            row[f"{metric}_se_images"] = float(difference.mean(0).std()) / math.sqrt(difference.shape[1])
            several = len(common) > 1
            row[f"{metric}_se_seeds"] = float(difference.mean(1).std()) / math.sqrt(len(common)) if several else None
        rows.append(row)
    return pd.DataFrame(rows)


def main(name: str, *runs: str) -> None:
    table, predictions = collect([Path(run) for run in runs])
    by = keys(table)
    differences = paired(predictions, by)
    write_csv(PUBLISHED.parent / f"{name}.csv", table)
    if len(differences):
        write_csv(PUBLISHED.parent / f"{name}_paired.csv", differences)
    for kind in ("attack", "ood"):
        found = [path for run in runs for path in sorted(Path(run).rglob(f"{kind}.csv"))]
        if found:
            sn = [json.loads((path.parent / "args.json").read_text())["sn"] for path in found]
            tables = [pd.read_csv(path).assign(sn=n) for path, n in zip(found, sn, strict=True)]
            write_csv(PUBLISHED.parent / f"{name}_{kind}.csv", pd.concat(tables, ignore_index=True))
    metrics = [f"{m}{suffix}" for m in METRICS for suffix in ("", "_averaged") if f"{m}{suffix}" in table]
    print(formatted(over_seeds(table, by, metrics), by, metrics, digits=4).to_string(index=False))
    if len(differences):
        print(differences.round(4).to_string(index=False))


if __name__ == "__main__":
    main(*sys.argv[1:])
