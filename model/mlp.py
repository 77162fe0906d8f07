"""Many one-hidden-layer networks at once, for the UCI regressions."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn


class ChainMLP(nn.Module):
    """f(x) = w2' relu(W1' x + b1) + b2 for every chain of a grid (group, cell).

    The cells of a group start from the same weights, drawn from the group's generator with
    torch.nn.Linear's law U(-1/sqrt(fan_in), 1/sqrt(fan_in)).

    Args:
        generators: one per group.  cells: chains in each group.
        features, hidden: sizes of the input and of the hidden layer.
    """

    sparse_layers = ("weight1", "weight2")

    def __init__(self, generators: Sequence[torch.Generator], cells: int, features: int, hidden: int = 50):
        super().__init__()
        shapes = {
            "weight1": (features, hidden),
            "bias1": (1, hidden),
            "weight2": (hidden, 1),
            "bias2": (1, 1),
        }
        fan_in = {"weight1": features, "bias1": features, "weight2": hidden, "bias2": hidden}
        for name, shape in shapes.items():
            bound = 1 / math.sqrt(fan_in[name])
            groups = torch.stack([torch.empty(shape).uniform_(-bound, bound, generator=g) for g in generators])
            chains = groups[:, None].expand(-1, cells, *shape).clone()
            self.register_parameter(name, nn.Parameter(chains))

    def forward(self, x: Tensor) -> Tensor:
        """x (group, rows, features) -> (group, cell, rows)."""
        # in place: a fresh tensor of this size costs more than the arithmetic on it
        hidden = torch.matmul(x[:, None], self.weight1).add_(self.bias1).relu_()  # (group, cell, rows, hidden)
        return (torch.matmul(hidden, self.weight2) + self.bias2).squeeze(-1)

    def parameters_per_chain(self) -> int:
        return sum(math.prod(p.shape[2:]) for p in self.parameters())
