"""Chain-iterations per second of lr_simulation.py against a plain NumPy loop over one chain.

python -m benchmarks.lr_simulation
"""

from __future__ import annotations

import itertools

import numpy as np
import torch

from benchmarks.record import record
from data.simulation import simulate
from experiment import device
from experiment.timing import interleaved
from lr_simulation import Simulation, parse

ITERATIONS = 2000


class NumpyLoop:
    """SGLD-SA on one chain, the equations written down one after the other, in float32."""

    def __init__(self, seed: int, v0: float = 0.1, sd: float = 1.0):
        data = simulate(seed)
        self.x, self.y = data.x.astype(np.float32), data.y.astype(np.float32)
        self.n, self.p = self.x.shape
        self.rng = np.random.default_rng(seed)
        self.v0, self.v1, self.sigma2 = np.float32(v0), np.float32(10), np.float32(sd**2)
        self.beta = 0.1 * self.rng.standard_normal(self.p, dtype=np.float32)
        self.rho, self.delta = np.full(self.p, 0.5, np.float32), np.float32(0.5)
        self.kappa0, self.kappa1 = np.ones(self.p, np.float32), np.ones(self.p, np.float32)
        self.k = 0

    def run(self) -> None:
        for _ in range(ITERATIONS):
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


def program(seeds: int, compiled: str) -> tuple[Simulation, int]:
    _, args = parse(["-seeds", str(seeds), "-compile", compiled])
    cells = list(itertools.product(args.c, args.v0, args.sd))
    simulation = Simulation(args, cells, [simulate(args.seed + s) for s in range(seeds)])
    return simulation, seeds * len(cells)


def main() -> None:
    torch.set_grad_enabled(False)
    device.prepare()
    loop = NumpyLoop(1)
    programs = {
        f"{12 * seeds} chains, {kind}": program(seeds, compiled)
        for seeds in (1, 10)
        for kind, compiled in (("compiled", "1"), ("eager", "0"))
    }

    def advance(name: str) -> None:
        simulation, _ = programs[name]
        for _ in range(ITERATIONS // simulation.args.thin):
            simulation.epoch()

    alternatives = {"NumPy loop, 1 chain": loop.run}
    alternatives |= {name: lambda name=name: advance(name) for name in programs}
    seconds = interleaved(alternatives)
    rates = {name: (programs[name][1] if name in programs else 1) * ITERATIONS / s for name, s in seconds.items()}
    record("lr_simulation", "chain-iterations/s", rates)


if __name__ == "__main__":
    main()
