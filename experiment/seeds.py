"""The seeds of an image run: one network each, in a folder each, and their common table."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import torch
from torch import nn

from data.image_sets import ImageData, hold_out

from . import device, distributed
from .board import summary_writer
from .classifier import Classifier
from .compressed import check_export
from .pretrained import load_pretrained
from .run import Diverged, Run, RunError
from .training import train


def split(args: Namespace, data: ImageData, seed: int) -> ImageData:
    """The data of one seed: with -val its own validation part stands in the place of the test part.

    Raises:
        ValueError: too few images for a minibatch.
    """
    data = hold_out(data, args.val, seed) if args.val else data
    if args.train > len(data.train):
        raise ValueError(f"argument -train: {args.train} is more than the {len(data.train)} training images")
    return data


def check_kept(args: Namespace) -> None:
    """Raise ValueError where what -tensorboard and -export ask for cannot be written; writes nothing."""
    if args.tensorboard:
        summary_writer()
    if getattr(args, "export", None):
        if not args.save:
            raise ValueError("argument -export: needs -save 1")
        check_export(Path(args.export))


def fit(args: Namespace, chain: Classifier, run: Run, key: dict, seed: int) -> str:
    """Train one network and write its results; returns '' or how it diverged.

    key: columns of table.csv, beside the seed, that say what the row is of.
    """
    if not train(chain, run, args.sn, bool(args.resume)):
        return chain.divergence(args.lr)
    chain.store(run, bool(args.save))
    finish(args, pd.DataFrame([key | {"seed": seed} | chain.result()]), run, key)
    return ""


def finish(args: Namespace, table: pd.DataFrame, run: Run, key: dict) -> None:
    """table.csv and summary.json: means over the seeds."""
    means = table.drop(columns=[*key, "seed"]).astype(float).mean().to_dict()
    where = device.resolve(args.device)
    where = torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu"
    on = "validation" if args.val else "test"
    run.finish(table, means | {"seeds": len(table), "evaluated_on": on, "device": where, "seconds": run.seconds})


def folders(args: Namespace, folder: Path) -> dict[int, Path]:
    """The run folder of every seed: of several, each has its own inside `folder`."""
    seeds = range(args.seed, args.seed + args.seeds)
    return {seed: folder / f"seed{seed}" if args.seeds > 1 else folder for seed in seeds}


def load_part(net: nn.Module, part: Run, resume: bool, fit_part: Callable[[], str]) -> None:
    """The network of a run that comes before, as a part of another one; trained here unless that is finished.

    fit_part: trains it and writes it to its folder -> '' or how it diverged.

    Raises:
        Diverged: it did.
        RunError: its file is damaged.
    """
    if not (resume and part.finished) and (diverged := fit_part()):
        raise Diverged(diverged)
    distributed.barrier()  # process 0 has written it
    try:
        load_pretrained(net, part.folder)
    except ValueError as error:
        raise RunError(f"the plain network in {part.folder} is damaged; start again without -resume") from error


def fit_seeds(args: Namespace, run: Run, key: dict, fit_one: Callable[[int, Run], str]) -> tuple[dict[int, Run], str]:
    """Fit every seed that is not finished yet; returns the run folders of the finished ones, and how others diverged.

    fit_one: (seed, run folder) -> '' or how it diverged.

    Raises:
        Diverged: all of them did.
    """
    places = folders(args, run.folder)
    runs = {seed: run.part(folder.name) if args.seeds > 1 else run for seed, folder in places.items()}
    open_ = {seed: each for seed, each in runs.items() if not (args.resume and each.finished)}
    diverged = "; ".join(filter(None, [fit_one(seed, each) for seed, each in open_.items()]))
    distributed.barrier()  # process 0 has written them
    runs = {seed: each for seed, each in runs.items() if each.finished}
    if not runs:
        raise Diverged(diverged)
    if not run.finished:
        finish(args, table_of(runs), run, key)
    return runs, diverged


def table_of(runs: dict[int, Run]) -> pd.DataFrame:
    """The result rows of all seeds."""
    return pd.concat([pd.read_csv(run.folder / "table.csv") for run in runs.values()], ignore_index=True)
