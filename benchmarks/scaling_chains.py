"""Cost of an iteration of all chains of lr_simulation.py and uci_run.py against their number.

    python -m benchmarks -only scaling_chains

The programs advance all chains together; the baselines are plain loops over one chain, one chain after the other. Up to
the 12 settings of Table 1, or the 3 methods, the chains share one data set; more are on more data sets or splits.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial

import numpy as np
import torch

from benchmarks import uci
from benchmarks.lr_simulation import NumpyLoop, advance, affordable, program
from benchmarks.record import Bench
from data.simulation import LinearData, simulate
from experiment import device
from uci_run import METHODS

SIMULATED = (1, 3, 12, 36, 120, 360, 1008)
UCI = (1, 3, 12, 60, 240, 960)


def float32(data: LinearData) -> LinearData:
    """The same in the loops' precision, so that those on one data set share it."""
    return dataclasses.replace(data, x=data.x.astype(np.float32), y=data.y.astype(np.float32))


def in_turn(loops: list, rounds: int) -> Callable[[], None]:
    """One chain after the other, so many iterations or epochs each."""

    def run() -> None:
        for loop in loops:
            loop.run(rounds)

    return run


def record(bench: Bench, name: str, baseline: str, runs: dict, steps: dict[int, int], rounds: int) -> None:
    """ms per iteration of all chains; steps: iterations of one timing, by the number of chains."""
    seconds = bench.seconds(runs, rounds)
    cases = {"loop": baseline, "program": "all chains together"}
    curves = {case: {n: 1000 * seconds[key, n] / steps[n] for n in steps} for key, case in cases.items()}
    bench.record_curves(f"{name}, cost against chains", "ms/iteration", "chains", curves)


def simulated(bench: Bench) -> None:
    """lr_simulation.py, compiled."""
    counts, runs = bench.size(SIMULATED, (1, 3, 12)), {}
    data = [float32(simulate(1 + i)) for i in range(counts[-1] // 12)]
    loops = [NumpyLoop(data[i // 12], seed=i) for i in range(counts[-1])]
    iterations = {n: affordable(bench.size(12_000, 1) / n) for n in counts}
    cells = {1: ("-c", "sa", "-v0", 0.1, "-sd", 1), 3: ("-v0", 0.1, "-sd", 1)}
    for n, steps in iterations.items():
        some = data[: max(1, n // 12)]
        together, _ = program(some, *cells.get(n, ()), compiled=not bench.quick, iterations=steps)
        runs["loop", n] = in_turn(loops[:n], steps)
        runs["program", n] = partial(advance, together, steps)
    record(bench, "lr_simulation", "NumPy loops, one after the other", runs, iterations, rounds=7)


def regressions(bench: Bench) -> None:
    """uci_run.py."""
    torch.set_num_threads(1)  # as uci_run.py does
    counts, runs, steps = bench.size(UCI, (1, 3, 6)), {}, {}
    splits = uci.random_splits(counts[-1] // 3)
    loops = [uci.TorchLoop(splits[i // 3]) for i in range(counts[-1])]
    for n in counts:
        epochs = bench.size(max(1, 20 // n), 1)
        together = uci.program(splits[: max(1, n // 3)], METHODS if n > 1 else METHODS[:1])
        runs["loop", n] = in_turn(loops[:n], epochs)
        runs["program", n] = partial(uci.advance, together, epochs)
        steps[n] = epochs * together.batches
    record(bench, "uci_run", "torch loops, one after the other", runs, steps, rounds=5)


def main(bench: Bench) -> None:
    device.prepare()
    with torch.no_grad():
        simulated(bench)
    regressions(bench)
