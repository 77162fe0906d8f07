"""The seeds of an image run: one network each, in a folder each, and their common table."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable

import pandas as pd
import torch

from . import device
from .classifier import Classifier
from .run import Diverged, Run
from .training import train


def fit(args: Namespace, chain: Classifier, run: Run, key: dict, seed: int) -> str:
    """Train one network and write its results; returns '' or how it diverged.

    key: columns of table.csv, beside the seed, that say what the row is of.
    """
    if not train(chain, run, args.sn, bool(args.resume)):
        return chain.divergence()
    run.store("predictions", chain.predictions())
    if args.save:
        run.store("model", chain.net.state_dict())
    finish(args, pd.DataFrame([key | {"seed": seed} | chain.result()]), run, key)
    return ""


def finish(args: Namespace, table: pd.DataFrame, run: Run, key: dict) -> None:
    """table.csv and summary.json: means over the seeds."""
    means = table.drop(columns=[*key, "seed"]).astype(float).mean().to_dict()
    where = device.resolve(args.device)
    where = torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu"
    on = "validation" if args.val else "test"
    run.finish(table, means | {"seeds": len(table), "evaluated_on": on, "device": where, "seconds": run.seconds})


def fit_seeds(args: Namespace, run: Run, key: dict, fit_one: Callable[[int, Run], str]) -> tuple[dict[int, Run], str]:
    """Fit every seed that is not finished yet; returns the run folders of the finished ones, and how others diverged.

    fit_one: (seed, run folder) -> '' or how it diverged.

    Raises:
        Diverged: all of them did.
    """
    seeds = range(args.seed, args.seed + args.seeds)
    runs = {seed: run.part(f"seed{seed}") if args.seeds > 1 else run for seed in seeds}
    open_ = {seed: each for seed, each in runs.items() if not (args.resume and each.finished)}
    diverged = "; ".join(filter(None, [fit_one(seed, each) for seed, each in open_.items()]))
    runs = {seed: each for seed, each in runs.items() if each.finished}
    if not runs:
        raise Diverged(diverged)
    if not run.finished:
        finish(args, table_of(runs), run, key)
    return runs, diverged


def table_of(runs: dict[int, Run]) -> pd.DataFrame:
    """The result rows of all seeds."""
    return pd.concat([pd.read_csv(run.folder / "table.csv") for run in runs.values()], ignore_index=True)
