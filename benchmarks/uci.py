"""Chain-steps per second of uci_run.py (20 splits x 3 methods) against a plain one-chain torch loop.

    python -m benchmarks -only uci

The data are random numbers of the shape of Boston housing, so that no download is needed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from benchmarks.record import Bench
from data import uci
from uci_run import METHODS, Cell, Regression, parse

ROWS, FEATURES = 506, 13


class TorchLoop:
    """SGHMC-SA on one network, as a plain torch training loop."""

    def __init__(self, split: uci.Split):
        self.x, self.y = torch.tensor(split.x).float(), torch.tensor(split.y).float()
        self.net = nn.Sequential(nn.Linear(FEATURES, 50), nn.ReLU(), nn.Linear(50, 1))
        self.params = list(self.net.parameters())
        self.velocity = [torch.zeros_like(p) for p in self.params]
        self.layers = [self.net[0].weight, self.net[2].weight]
        self.rho = [torch.full_like(w, 0.5) for w in self.layers]
        self.kappa0 = [torch.full_like(w, 1e-4) for w in self.layers]
        self.kappa1 = [torch.full_like(w, 1e-4) for w in self.layers]
        self.delta, self.sigma, self.k = [0.5, 0.5], 10.0, 0

    def run(self, epochs: int) -> None:
        lr, momentum, n, v0, v1, a, b = 1e-5, 0.9, len(self.x), 0.1, 10.0, 1.0, 10.0
        weights = sum(w.numel() for w in self.layers)
        for _ in range(epochs):
            order = torch.randperm(n)
            for rows in order[: n // 50 * 50].split(50):
                self.k += 1
                omega, invT = (100 + self.k) ** -0.7, 1.003**self.k
                self.net.zero_grad()
                loss = n / 50 * (self.net(self.x[rows]).squeeze(-1) - self.y[rows]).square().sum()
                loss.backward()
                with torch.no_grad():
                    for w, k0, k1 in zip(self.layers, self.kappa0, self.kappa1, strict=True):
                        w.grad += k0 * w.sign() / self.sigma + k1 * w / self.sigma**2
                    for p, v in zip(self.params, self.velocity, strict=True):
                        if p.ndim == 1:
                            p.grad += 1e-4 * p
                        v.mul_(momentum).add_(p.grad, alpha=-lr)
                        v.add_(torch.randn_like(p), alpha=math.sqrt(2 * lr * (1 - momentum - lr / 2) / invT))
                        p.add_(v)
                    linear, constant = 0.0, loss.item() + 1
                    for i, w in enumerate(self.layers):
                        delta = self.delta[i]
                        odds = math.log(delta / (1 - delta) * 2 * v0 / math.sqrt(2 * math.pi * v1))
                        odds = odds + w.abs() / v0 - w**2 / (2 * v1)
                        self.rho[i] = (1 - omega) * self.rho[i] + omega * torch.sigmoid(odds)
                        self.kappa0[i] = (1 - omega) * self.kappa0[i] + omega * (1 - self.rho[i]) / v0
                        self.kappa1[i] = (1 - omega) * self.kappa1[i] + omega * self.rho[i] / v1
                        rate = (self.rho[i].sum().item() + a - 1) / (a + b + w.numel() - 2)
                        self.delta[i] = (1 - omega) * delta + omega * rate
                        linear += (self.kappa0[i] * w.abs()).sum().item()
                        constant += (self.kappa1[i] * w**2).sum().item()
                    quadratic = n + weights + 1
                    root = (linear + math.sqrt(linear**2 + 4 * quadratic * constant)) / (2 * quadratic)
                    self.sigma = math.sqrt((1 - omega) * self.sigma**2 + omega * root**2)


def random_splits(count: int) -> list[uci.Split]:
    """Train-test splits of random numbers in the shape of Boston housing."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((ROWS, FEATURES))
    y = 22 + x @ rng.normal(0, 3, FEATURES) + rng.normal(0, 3, ROWS)
    return [uci.split(x, y, seed) for seed in range(count)]


def program(splits: list[uci.Split], methods: Sequence[str] = METHODS) -> Regression:
    """A chain of every method on every split."""
    _, args = parse(["-data", "boston", "-seeds", str(len(splits))])
    return Regression(args, "boston", [Cell(method, 1.003) for method in methods], splits)


def advance(regression: Regression, epochs: int) -> None:
    for _ in range(epochs):
        regression.epoch()


def main(bench: Bench) -> None:
    torch.set_num_threads(1)  # as uci_run.py does; the loop is no slower for it
    splits, epochs = random_splits(20), bench.size(20, 1)
    regression, loop = program(splits), TorchLoop(splits[0])
    alternatives = {"torch loop, 1 chain": lambda: loop.run(epochs), "60 chains": lambda: advance(regression, epochs)}
    seconds = bench.seconds(alternatives, rounds=7)
    chains, steps = {"torch loop, 1 chain": 1, "60 chains": 60}, epochs * regression.batches
    bench.record("uci_run", "chain-steps/s", {name: chains[name] * steps / s for name, s in seconds.items()})
