"""Cost of an iteration of lr_simulation.py against the number of coefficients p, n = 100.

    python -m benchmarks -only scaling_p

The 12 chains of Table 1, compiled, and a plain NumPy loop over one chain; time per chain and iteration.
"""

from __future__ import annotations

import torch

from benchmarks.lr_simulation import NumpyLoop, advance, affordable, program
from benchmarks.record import Bench
from data.simulation import simulate
from experiment import device

SIZES = (1000, 3000, 10_000, 30_000, 100_000)
WORK = 1_000_000  # coefficients x iterations of one timing


def main(bench: Bench) -> None:
    torch.set_grad_enabled(False)
    device.prepare()
    sizes, work = bench.size(SIZES, (100, 300, 1000)), bench.size(WORK, 10_000)
    data = {p: simulate(1, p=p) for p in sizes}
    loops = {p: NumpyLoop(data[p]) for p in sizes}
    iterations = {p: affordable(work / p) for p in sizes}
    how = {"compiled": not bench.quick}
    programs = {p: program([data[p]], iterations=iterations[p], **how) for p in sizes}
    runs = {("loop", p): lambda p=p: loops[p].run(iterations[p]) for p in sizes}
    runs |= {("program", p): lambda p=p: advance(programs[p][0], iterations[p]) for p in sizes}
    seconds = bench.seconds(runs, rounds=9)
    curves = {
        "NumPy loop, 1 chain": {p: 1000 * seconds["loop", p] / iterations[p] for p in sizes},
        "12 chains": {p: 1000 * seconds["program", p] / iterations[p] / programs[p][1] for p in sizes},
    }
    bench.record_curves("lr_simulation, cost against p", "ms/chain-iteration", "p", curves)
