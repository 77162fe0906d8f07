"""MagnitudePruner.step on the sparse layers of ResNet20 against other ways to the smallest weights.

    python -m benchmarks -only pruning

The baseline is what the paper's release does: it halves an interval of thresholds until the wanted share of the layer
lies below, and waits for the device every time. torch.nn.utils.prune is PyTorch's own.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.utils.prune import L1Unstructured

from bayes_cnn import network
from benchmarks.bayes_cnn import SHAPE, flags
from benchmarks.latent_update import repeated
from benchmarks.plain_loop import fake, finished
from benchmarks.record import Bench
from experiment import device
from sampler import MagnitudePruner

HALVINGS = 20
SPARSITY = 0.9  # of the whole network


def bisection(beta: Tensor, fraction: float) -> Tensor:
    """Mask of the weights above a threshold found by halving; weights closer together than it sees stay together."""
    size = beta.abs()
    k, low, high = math.floor(fraction * size.numel()), 0.0, float(size.max())
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        below = int((size <= middle).sum())  # waits for the device
        if below == k:
            return size > middle
        low, high = (middle, high) if below < k else (low, middle)
    return size > high


def by_sorting(beta: Tensor, fraction: float) -> Tensor:
    size = beta.abs()
    return size > size.flatten().sort().values[math.floor(fraction * size.numel()) - 1]


def by_torch_prune(beta: Tensor, fraction: float) -> Tensor:
    beta = beta.contiguous()  # it knows no other order of the weights
    return L1Unstructured(math.floor(fraction * beta.numel())).compute_mask(beta, torch.ones_like(beta)).bool()


def masked(layers: Sequence[Tensor], rule: Callable[[Tensor, float], Tensor], fraction: float) -> Callable[[], None]:
    """Zero what the rule drops, layer by layer."""

    def step() -> None:
        for w in layers:
            w.masked_fill_(~rule(w, fraction), 0.0)

    return step


def main(bench: Bench) -> None:
    torch.set_grad_enabled(False)
    device.prepare()
    where = device.resolve("auto")
    net = network(flags(), fake(10, SHAPE).to(where))
    layers, total = [net.get_parameter(name) for name in net.sparse_layers], sum(p.numel() for p in net.parameters())
    pruner = MagnitudePruner(layers, total, SPARSITY, gap=1e-9)  # at its target from the first step on
    rules = {"bisection": bisection, "torch.sort": by_sorting, "torch.nn.utils.prune": by_torch_prune}
    steps = {name: masked(layers, rule, pruner.target) for name, rule in rules.items()}
    steps["MagnitudePruner.step"] = pruner.step
    start, calls = [w.clone() for w in layers], bench.size(5, 1)

    def regrow() -> None:  # as between two steps of a chain
        torch._foreach_copy_(layers, start)

    runs = {name: finished(repeated(calls, regrow, step), where) for name, step in steps.items()}
    seconds = bench.seconds(runs, rounds=25)
    bench.record(f"pruning, ResNet20, {where.type}", "ms", {name: 1000 * s / calls for name, s in seconds.items()})
