"""Several layers seen as one vector: one operation on a million weights is much cheaper than many on a few."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor


class Flat:
    """The weights of the layers, one behind the other in the order in which memory holds them.

    Written for P weights in L layers. A layer of shape (*chains, ...) takes P_l places of (*chains, P).

    Args:
        layers: shapes and memory formats.  chain_dims: leading chain dimensions.
    """

    def __init__(self, layers: Sequence[Tensor], chain_dims: int = 0):
        self.chain_dims = chain_dims
        chains, self._orders, self._inverses, self._shapes = tuple(range(chain_dims)), [], [], []
        for w in layers:
            inner = sorted(range(chain_dims, w.ndim), key=w.stride, reverse=True)  # channels_last stays a view
            order = (*chains, *inner)
            self._orders.append(order)
            self._inverses.append(sorted(range(w.ndim), key=order.__getitem__))
            self._shapes.append([w.shape[d] for d in inner])
        self.sizes = [math.prod(shape) for shape in self._shapes]

    def gather(self, tensors: Sequence[Tensor]) -> Tensor:
        """Tensors of the layers' shapes -> (*chains, P), a copy."""
        inner = [x.permute(order).flatten(self.chain_dims) for x, order in zip(tensors, self._orders, strict=True)]
        return torch.cat(inner, -1)

    def split(self, flat: Tensor) -> list[Tensor]:
        """(*chains, P) -> views of the layers' shapes and memory formats."""
        parts = zip(flat.split(self.sizes, -1), self._shapes, self._inverses, strict=True)
        return [part.unflatten(-1, shape).permute(inverse) for part, shape, inverse in parts]

    def expand(self, x: Tensor) -> Tensor:
        """One number per layer (*chains, L) -> one per weight (*chains, P)."""
        columns = zip(x.split(1, -1), self.sizes, strict=True)
        return torch.cat([column.expand(*x.shape[:-1], size) for column, size in columns], -1)

    def sums(self, flat: Tensor) -> Tensor:
        """Sum over each layer, (*chains, P) -> (*chains, L)."""
        return torch.stack([part.sum(-1) for part in flat.split(self.sizes, -1)], -1)
