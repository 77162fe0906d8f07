"""Many small multilayer perceptrons at once, for the regressions."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class ChainMLP(nn.Module):
    """f(x) = W_L' relu(... relu(W_1' x + b_1) ...) + b_L, one output, for every chain of a grid (group, cell).

    The cells of a group start from the same weights, drawn from the group's generator with
    torch.nn.Linear's law U(-1/sqrt(fan_in), 1/sqrt(fan_in)).

    Args:
        generators: one per group.  cells: chains in each group.
        features: size of the input.  hidden: size of the hidden layer, or sizes of several.

    weight1, bias1, weight2, ... are its parameters, (group, cell, in, out) and (group, cell, 1, out); `sparse_layers`
    names the weights.
    """

    def __init__(
        self, generators: Sequence[torch.Generator], cells: int, features: int, hidden: int | Sequence[int] = 50
    ):
        super().__init__()
        sizes = (features, *([hidden] if isinstance(hidden, int) else hidden), 1)
        self.sparse_layers = tuple(f"weight{i}" for i in range(1, len(sizes)))
        self._layers = [(name, name.replace("weight", "bias")) for name in self.sparse_layers]
        for names, (fan_in, out) in zip(self._layers, pairwise(sizes), strict=True):
            bound = 1 / math.sqrt(fan_in)
            for name, shape in zip(names, ((fan_in, out), (1, out)), strict=True):
                groups = torch.stack([torch.empty(shape).uniform_(-bound, bound, generator=g) for g in generators])
                chains = groups[:, None].expand(-1, cells, *shape).clone()
                self.register_parameter(name, nn.Parameter(chains))

    def forward(self, x: Tensor) -> Tensor:
        """x (group, rows, features) -> (group, cell, rows)."""
        x, last = x[:, None], len(self._layers) - 1  # (group, 1, rows, features), then (group, cell, rows, hidden)
        for i, (weight, bias) in enumerate(self._layers):
            # in place: a fresh tensor of this size costs more than the arithmetic on it
            x = torch.matmul(x, getattr(self, weight)).add_(getattr(self, bias))
            x = x if i == last else x.relu_()
        return x.squeeze(-1)

    def parameters_per_chain(self) -> int:
        return sum(math.prod(p.shape[2:]) for p in self.parameters())
