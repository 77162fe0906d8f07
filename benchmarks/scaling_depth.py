"""Cost of a training step of bayes_cnn.py against the depth of the ResNet, and of the same step with torch.optim.SGD.

    python -m benchmarks -only scaling_depth

Random bytes of the shape of CIFAR10, float32, on all cores of the CPU; where there is a GPU, on it.
"""

from __future__ import annotations

from bayes_cnn import Chain, network
from benchmarks.bayes_cnn import SHAPE, flags
from benchmarks.plain_loop import PlainLoop, fake, finished
from benchmarks.record import Bench
from data.augment import RECIPES
from experiment import device

DEPTHS = (20, 32, 44, 56, 110)


def main(bench: Bench) -> None:
    device.prepare()
    where = device.resolve("auto")
    depths, batch = bench.size(DEPTHS, (8, 14, 20)), bench.size(1000 if where.type == "cuda" else 128, 2)
    data, runs = fake(batch, SHAPE).to(where), {}  # one step is one epoch
    for depth in depths:
        args = flags("-train", batch, "-depth", depth, "-prune", 1, "-gap", 1)
        plain = PlainLoop(network(args, data), data, batch, RECIPES["cifar10"], lr=1e-9, weight_decay=5e-4)
        runs["sgd", depth] = finished(plain.epoch, where)
        runs["sa", depth] = finished(Chain(args, data, seed=1).epoch, where)
    seconds = bench.seconds(runs, rounds=7)
    cases = {"sgd": "torch.optim.SGD, momentum", "sa": "-prune 1 -c sa"}
    curves = {case: {depth: seconds[name, depth] for depth in depths} for name, case in cases.items()}
    bench.record_curves(f"bayes_cnn, batch {batch}, {where.type}, cost against depth", "s/step", "depth", curves)
