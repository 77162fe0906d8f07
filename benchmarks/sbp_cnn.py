"""A training step of sbp_cnn.py with noise against the same step of the plain network.

    python -m benchmarks.sbp_cnn

LeNet5 and the VGG-like network at half width (on a GPU at full width) on random bytes, on all cores of the CPU; where
there is a GPU, on it.
"""

from __future__ import annotations

import tempfile
from functools import partial
from pathlib import Path

import torch

from benchmarks.plain_loop import fake, finished
from benchmarks.record import record
from data.image_sets import ImageData
from experiment import device
from experiment.run import Run
from experiment.structured import SBP
from experiment.timing import interleaved
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


def steps(model: str, where: torch.device, images: int, *flags) -> None:
    """Images per second of training."""
    data = fake(images, SHAPES[model]).to(where)
    with tempfile.TemporaryDirectory() as folder:
        chains = {method: chain(method, model, data, Path(folder), *flags) for method in ("dense", "sbp")}

        runs = {method: finished(each, where) for method, each in chains.items()}
        seconds = interleaved(runs, rounds=15)
    name = f"sbp_cnn, {' '.join(map(str, (model, *flags)))}, {where.type}"
    record(name, "images/s", {method: images / s for method, s in seconds.items()})


def main() -> None:
    device.prepare()
    where = device.resolve("auto")
    big = where.type == "cuda"
    for amp in (0, 1):
        steps("lenet5", where, 12_800 if big else 1280, "-amp", amp)
    steps("vgglike", where, 10_000 if big else 400, "-amp", 1, "-scale", 1.0 if big else 0.5)


if __name__ == "__main__":
    main()
