"""Chain-iterations per second of lr_simulation.py against a plain NumPy loop over one chain.

python -m benchmarks -only lr_simulation
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
import torch

from benchmarks.record import Bench
from data.simulation import LinearData, simulate
from experiment import device
from lr_simulation import Simulation, parse


class NumpyLoop:
    """SGLD-SA on one chain, the equations written down one after the other, in float32."""

    def __init__(self, data: LinearData, v0: float = 0.1, sd: float = 1.0, seed: int = 1):
        self.x, self.y = (np.asarray(part, np.float32) for part in (data.x, data.y))
        self.n, self.p = self.x.shape
        self.rng = np.random.default_rng(seed)
        self.v0, self.v1, self.sigma2 = np.float32(v0), np.float32(10), np.float32(sd**2)
        self.beta = 0.1 * self.rng.standard_normal(self.p, dtype=np.float32)
        self.rho, self.delta = np.full(self.p, 0.5, np.float32), np.float32(0.5)
        self.kappa0, self.kappa1 = np.ones(self.p, np.float32), np.ones(self.p, np.float32)
        self.k = 0

    def run(self, iterations: int) -> None:
        for _ in range(iterations):
            self.k += 1
            lr = np.float32(0.001 * self.k ** (-1 / 3))
            omega = np.float32(min(0.1, 1000 / (100 + self.k) ** 0.7))
            sigma, beta = np.sqrt(self.sigma2), self.beta
            grad = self.x.T @ (self.x @ beta - self.y) / self.sigma2
            grad += self.kappa0 * np.sign(beta) / sigma + self.kappa1 * beta / self.sigma2
            noise = self.rng.standard_normal(self.p, dtype=np.float32)
            beta = beta - lr * grad + np.sqrt(2 * lr + (0.01 * lr) ** 2) * noise
            size = np.abs(beta)
            odds = np.log(self.delta / (1 - self.delta) * 2 * self.v0 / np.sqrt(2 * np.pi * self.v1))
            odds = odds + size / (sigma * self.v0) - beta**2 / (2 * self.sigma2 * self.v1)
            self.rho = (1 - omega) * self.rho + omega / (1 + np.exp(np.clip(-odds, -80, 80)))
            self.kappa0 = (1 - omega) * self.kappa0 + omega * (1 - self.rho) / self.v0
            self.kappa1 = (1 - omega) * self.kappa1 + omega * self.rho / self.v1
            self.delta = (1 - omega) * self.delta + omega * self.rho.sum() / (2 * self.p - 1)
            linear, constant = (self.kappa0 * size).sum(), (self.kappa1 * beta**2).sum() + 1
            constant = constant + ((self.y - self.x @ beta) ** 2).sum()
            quadratic = self.n + self.p + 1
            root = (linear + np.sqrt(linear**2 + 4 * quadratic * constant)) / (2 * quadratic)
            self.sigma2 = (1 - omega) * self.sigma2 + omega * root**2
            self.beta = beta


def affordable(limit: float) -> int:
    """The largest of 10, 100 and 1000 iterations up to a limit, 10 at least."""
    return max([n for n in (100, 1000) if n <= limit], default=10)


def program(data: Sequence[LinearData], *flags, compiled: bool, iterations: int) -> tuple[Simulation, int]:
    """The cells of the flags, by default the 12 of Table 1, on these data sets, and how many chains these are.

    iterations: a power of 10 that `advance` will be asked for.
    """
    thin = min(100, iterations)
    burn = 500_000 // thin - 10  # no draw is kept before an end that is never reached
    common = ("-seeds", len(data), "-p", data[0].x.shape[1], "-compile", int(compiled), "-thin", thin, "-burn", burn)
    _, args = parse([*map(str, (*common, *flags))])
    cells = list(itertools.product(args.c, args.v0, args.sd))
    return Simulation(args, cells, data), len(data) * len(cells)


def advance(simulation: Simulation, iterations: int) -> None:
    for _ in range(iterations // simulation.args.thin):
        simulation.epoch()


def main(bench: Bench) -> None:
    torch.set_grad_enabled(False)
    device.prepare()
    data = [simulate(1 + i) for i in range(10)]
    loop, iterations = NumpyLoop(data[0]), bench.size(2000, 10)
    kinds = bench.size({"compiled": True, "eager": False}, {"eager": False})
    programs = {
        f"{12 * seeds} chains, {kind}": program(data[:seeds], compiled=compiled, iterations=iterations)
        for seeds in (1, 10)
        for kind, compiled in kinds.items()
    }
    alternatives = {"NumPy loop, 1 chain": lambda: loop.run(iterations)}
    alternatives |= {name: lambda each=each: advance(each, iterations) for name, (each, _) in programs.items()}
    seconds = bench.seconds(alternatives, rounds=7)
    chains = {"NumPy loop, 1 chain": 1} | {name: count for name, (_, count) in programs.items()}
    rates = {name: chains[name] * iterations / s for name, s in seconds.items()}
    bench.record("lr_simulation", "chain-iterations/s", rates)
