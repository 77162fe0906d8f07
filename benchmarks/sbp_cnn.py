"""A training step of sbp_cnn.py with noise against the same step of the plain network.

    python -m benchmarks -only sbp_cnn

LeNet5 and the VGG-like network at half width (on a GPU at full width) on random bytes, on all cores of the CPU, in
bfloat16 where that is fast; where there is a GPU, on it.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import torch

from benchmarks.plain_loop import fake, fast_bfloat16, finished
from benchmarks.record import Bench
from data.image_sets import ImageData
from experiment import device
from experiment.run import Run
from experiment.structured import SBP
from sbp_cnn import Chain, fresh_network, parse

SHAPES = {"lenet5": (1, 28, 28), "vgglike": (3, 32, 32)}


def chain(method: str, model: str, data: ImageData, folder: Path, *flags) -> Chain:
    """A run that trains for as long as one likes, with steps too small to matter."""
    common = ("-sn", 100_000, "-lr", 1e-12, "-l2", 0, "-aug", 0, "-out", folder / method)
    args = parse(["-c", "sbp", "-model", model, *map(str, (*common, *flags))])[1]
    net = fresh_network(args, data, seed=1)  # without dropout
    args.c = method
    made = Chain(args, data, 1, Run("", "", vars(args)), net)
    made.method.train = partial(SBP.train, made.method)  # both with batch norm in evaluation mode: the noise alone
    return made


def steps(bench: Bench, model: str, where: torch.device, images: int, *flags) -> None:
    """Images per second of training."""
    data = fake(images, SHAPES[model]).to(where)
    with tempfile.TemporaryDirectory() as folder:
        chains = {method: chain(method, model, data, Path(folder), *flags) for method in ("dense", "sbp")}

        runs = {method: finished(each.epoch, where) for method, each in chains.items()}
        seconds = bench.seconds(runs, rounds=9)
    name = f"sbp_cnn, {' '.join(map(str, (model, *flags)))}, {where.type}"
    bench.record(name, "images/s", {method: images / s for method, s in seconds.items()})


def main(bench: Bench) -> None:
    device.prepare()
    where = device.resolve("auto")
    big = where.type == "cuda"
    precisions = (0, 1) if big or fast_bfloat16() else (0,)
    for amp in precisions:
        steps(bench, "lenet5", where, bench.size(12_800 if big else 1280, 128), "-amp", amp)
    images = bench.size(10_000 if big else 400, 100)
    steps(bench, "vgglike", where, images, "-amp", precisions[-1], "-scale", 1.0 if big else 0.5)
