"""A training step of bayes_cnn.py against the same step with torch.optim.SGD, and the speed of a pruned network.

    python -m benchmarks -only bayes_cnn

ResNet20 on random bytes of the shape of CIFAR10, on all cores of the CPU, in bfloat16 where that is fast; where there
is a GPU, on it.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from bayes_cnn import Chain, network, parse
from benchmarks.plain_loop import PlainLoop, fake, fast_bfloat16, finished
from benchmarks.record import Bench
from data.augment import RECIPES
from experiment import device
from experiment.compressed import save_onnx
from sampler.magnitude_pruning import keep_largest

SHAPE = (3, 32, 32)
REPEATS = 4  # batches of one timing of inference


def flags(*arguments) -> object:
    """Parsed flags that train for as long as one likes, with steps too small to matter."""
    return parse(["-sn", "100000", "-lr", "1e-12", *map(str, arguments)])[1]


def steps(bench: Bench, where: torch.device, batch: int, images: int, amp: int) -> None:
    """Images per second of training."""
    data = fake(images, SHAPE).to(where)
    compiled = where.type == "cuda"
    common = ("-train", batch, "-amp", amp, "-compile", int(compiled))
    net, how = network(flags(*common), data), {"amp": bool(amp), "compiled": compiled}
    plain = PlainLoop(net, data, batch, RECIPES["cifar10"], lr=1e-9, weight_decay=5e-4, **how)
    programs = {"torch.optim.SGD, momentum": plain}
    programs["-prune 0"] = Chain(flags(*common, "-prune", 0), data, seed=1)
    programs["-prune 1 -c sa"] = Chain(flags(*common, "-prune", 1, "-gap", 1), data, seed=1)
    runs = {name: finished(program.epoch, where) for name, program in programs.items()}
    seconds = bench.seconds(runs, rounds=9)
    name = f"bayes_cnn, ResNet20, batch {batch}, {'bfloat16' if amp else 'float32'}, {where.type}"
    bench.record(name, "images/s", {case: images / s for case, s in seconds.items()})


def repeat(function, *arguments) -> None:
    """Long enough to time."""
    for _ in range(REPEATS):
        function(*arguments)


def inference(bench: Bench, batch: int) -> None:
    """Images per second of a dense and of a 90% sparse ResNet20 on the CPU: zeros among weights save nothing."""
    import onnxruntime

    args = flags("-device", "cpu")
    data = fake(10, SHAPE)
    dense, sparse = network(args, data).eval(), network(args, data).eval()
    with torch.no_grad():
        for name in sparse.sparse_layers:
            weight = sparse.get_parameter(name)
            weight.mul_(keep_largest(weight, 0.917))
    x = torch.randn(batch, *SHAPE).contiguous(memory_format=torch.channels_last)
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        runs = {"dense, torch": lambda: repeat(dense, x), "90% sparse, torch": lambda: repeat(sparse, x)}
        for case, net in (("dense", dense), ("90% sparse", sparse)):
            file = Path(folder) / f"{case}.onnx"
            save_onnx(net, SHAPE, file)
            session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
            runs[f"{case}, ONNX Runtime"] = lambda session=session: repeat(session.run, None, {"images": x.numpy()})
        seconds = bench.seconds(runs, rounds=9)
    images = REPEATS * batch
    bench.record(
        f"inference, ResNet20, batch {batch}, cpu", "images/s", {case: images / s for case, s in seconds.items()}
    )


def main(bench: Bench) -> None:
    device.prepare()
    where = device.resolve("auto")
    if where.type == "cuda":
        steps(bench, where, 1000, bench.size(50_000, 2000), amp=1)
    else:
        for amp in (1, 0) if fast_bfloat16() else (0,):
            steps(bench, where, *bench.size((128, 640), (8, 8)), amp)
    inference(bench, bench.size(256, 4))
