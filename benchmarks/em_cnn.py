"""A training step of em_cnn.py against the same step with torch.optim.SGD.

    python -m benchmarks -only em_cnn

ResNet20 on random bytes of the shape of CIFAR10, on all cores of the CPU; where there is a GPU, on it.
"""

from __future__ import annotations

import torch

from benchmarks.plain_loop import PlainLoop, fake, finished
from benchmarks.record import Bench
from em_cnn import Chain, network, parse, recipe
from experiment import device

SHAPE = (3, 32, 32)


def flags(*arguments):
    """Parsed flags that train for as long as one likes, with steps too small to matter."""
    common = ("-model", "resnet20", "-sn", 100_000, "-lr", 1e-12, "-hard", 0)
    return parse([*map(str, (*common, *arguments))])[1]


def steps(bench: Bench, where: torch.device, batch: int, images: int, amp: int) -> None:
    """Images per second of training."""
    data = fake(images, SHAPE).to(where)
    compiled = where.type == "cuda"
    common = ("-train", batch, "-amp", amp, "-compile", int(compiled))
    args, how = flags(*common), {"amp": bool(amp), "compiled": compiled}
    plain = PlainLoop(network(args, data), data, batch, recipe(args), lr=1e-9, weight_decay=5e-4, **how)
    programs = {"torch.optim.SGD, momentum": plain}
    programs["-dense 1"] = Chain(flags(*common, "-dense", 1), data, seed=1)
    programs["sparse, an EM step every epoch"] = Chain(flags(*common, "-warmup", 0), data, seed=1)
    seconds = bench.seconds({name: finished(program.epoch, where) for name, program in programs.items()}, rounds=7)
    name = f"em_cnn, ResNet20, batch {batch}, {'bfloat16' if amp else 'float32'}, {where.type}"
    bench.record(name, "images/s", {case: images / s for case, s in seconds.items()})


def main(bench: Bench) -> None:
    device.prepare()
    where = device.resolve("auto")
    if where.type == "cuda":
        steps(bench, where, 1000, bench.size(50_000, 2000), amp=1)
    else:
        steps(bench, where, *bench.size((128, 1280), (8, 8)), amp=0)
