"""Magnitude pruning (Algorithm 1) and the masks it makes.

After the latent update of iteration k the bottom s_k fraction of every sparse layer is set to
zero. Zeroed weights may regrow in the next step; the mask is computed anew every time.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from .schedules import sparsity_schedule


class Mask:
    """Which weights are kept: one boolean tensor (True = kept) per pruned layer.

    keep: shapes (*chains, ...) of the layers; total: parameters of the WHOLE network in one chain,
    so that sparsity is zeros / all parameters.
    """

    def __init__(self, keep: Sequence[Tensor], total: int, chain_dims: int = 0):
        self.keep, self.total, self.chain_dims = list(keep), total, chain_dims

    @classmethod
    def dense(cls, layers: Sequence[Tensor], total: int, chain_dims: int = 0) -> Mask:
        """A mask that keeps everything."""
        return cls([torch.ones_like(w, dtype=torch.bool) for w in layers], total, chain_dims)

    @property
    def sparsity(self) -> Tensor:
        """Pruned weights / all parameters of the network, per chain, in 0..1."""
        pruned = sum((~k).flatten(self.chain_dims).sum(-1) for k in self.keep)
        return pruned / self.total

    @property
    def density(self) -> Tensor:
        """1 - sparsity."""
        return 1 - self.sparsity

    @torch.no_grad()
    def apply_(self, layers: Sequence[Tensor]) -> None:
        """Set the pruned weights of the layers to zero, in place."""
        for w, keep in zip(layers, self.keep, strict=True):
            w.masked_fill_(~keep, 0.0)

    def state_dict(self) -> dict[str, Tensor]:
        return {f"keep.{i}": keep for i, keep in enumerate(self.keep)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.keep = [state[f"keep.{i}"] for i in range(len(self.keep))]


def keep_largest(beta: Tensor, fraction: float, chain_dims: int = 0) -> Tensor:
    """Boolean mask that drops the floor(fraction p) weights of smallest magnitude of a layer.

    The threshold is the exact k-th smallest |beta|; weights equal to it are dropped too, so every
    kept weight is larger than every pruned one.
    """
    size = beta.detach().abs()
    flat = size.flatten(chain_dims)
    k = math.floor(fraction * flat.shape[-1])
    if k == 0:
        return torch.ones_like(beta, dtype=torch.bool)
    return size > _smallest(flat, k).view(*size.shape[:chain_dims], *[1] * (size.ndim - chain_dims))


def keep_largest_units(beta: Tensor, fraction: float) -> Tensor:
    """Boolean mask that drops the floor(fraction units) output units (filters) of smallest Euclidean norm."""
    keep = keep_largest(beta.detach().flatten(1).norm(dim=1), fraction)
    return keep.view(-1, *[1] * (beta.ndim - 1)).expand_as(beta)


def keep_likeliest(beta: Tensor, rho: Tensor, fraction: float) -> Tensor:
    """Boolean mask that drops the floor(fraction p) weights of smallest inclusion probability rho.

    Among equal probabilities (many are exactly 0 or 1) the smaller weight goes first.
    """
    by_size = beta.detach().abs().flatten().argsort(stable=True)
    order = by_size[rho.flatten()[by_size].argsort(stable=True)]
    keep = torch.ones(beta.numel(), dtype=torch.bool, device=beta.device)
    keep[order[: math.floor(fraction * beta.numel())]] = False
    return keep.view(beta.shape)


def _smallest(x: Tensor, k: int) -> Tensor:
    """The k-th smallest value along the last dimension, which stays with size 1."""
    if x.device.type != "cpu":
        return x.kthvalue(k, dim=-1, keepdim=True).values
    # the same number ten times faster
    return torch.from_numpy(np.partition(x.numpy(), k - 1)[..., k - 1 : k])


def layer_target(sparsity: float, total: int, prunable: int) -> float:
    """S* = floor_to_0.001(S * all parameters / parameters in sparse layers).

    The fraction of each sparse layer to prune so that the whole network reaches sparsity S.

    Raises:
        ValueError: the sparse layers are too small for S.
    """
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must lie in [0, 1), not {sparsity}")
    # the tiny offset keeps an exact multiple of 0.001 from being floored one step too far
    target = math.floor(sparsity * total / prunable * 1000 + 1e-9) / 1000
    if target > 1:
        raise ValueError(
            f"sparsity {sparsity} cannot be reached: the sparse layers hold only {prunable} of {total} "
            f"parameters, at most {math.floor(1000 * prunable / total) / 1000}"
        )
    return target


class MagnitudePruner:
    """Prunes the layers to s_k = S* (1 - cut^(k/gap)) at iteration k = 1, 2, ...

    Args:
        layers: weights of the sparse layers, each (*chains, ...).
        total: parameters of the whole network in one chain.
        sparsity: target S of the whole network in [0, 1); 0 never prunes.
        cut, gap: shape of the schedule.
        offset: iteration k uses s_(k + offset). The authors' CNN code counts from k + 1.
        rule: (index of the layer, weights, fraction) -> mask, instead of `keep_largest`.
    """

    def __init__(
        self,
        layers: Sequence[Tensor],
        total: int,
        sparsity: float,
        cut: float = 0.99,
        gap: float = 50,
        offset: int = 0,
        chain_dims: int = 0,
        rule: Callable[[int, Tensor, float], Tensor] | None = None,
    ):
        if not 0 < cut < 1 or not gap > 0:
            raise ValueError(f"the pruning schedule needs 0 < cut < 1 and gap > 0, got cut={cut}, gap={gap}")
        self.layers, self.cut, self.gap, self.offset = list(layers), cut, gap, offset
        prunable = sum(math.prod(w.shape[chain_dims:]) for w in self.layers)
        self.target = layer_target(sparsity, total, prunable)
        self.mask = Mask.dense(self.layers, total, chain_dims)
        self.rule = rule or (lambda _, beta, fraction: keep_largest(beta, fraction, chain_dims))
        self.k = 0

    def step(self) -> None:
        """Advance the schedule by one iteration, compute the mask, zero the pruned weights."""
        self.k += 1
        if self.target == 0:
            return
        fraction = sparsity_schedule(self.target, self.cut, self.gap, self.k + self.offset)
        keep = [self.rule(i, w, fraction) for i, w in enumerate(self.layers)]
        self.mask = Mask(keep, self.mask.total, self.mask.chain_dims)
        self.mask.apply_(self.layers)

    def state_dict(self) -> dict[str, Tensor]:
        return self.mask.state_dict() | {"k": torch.tensor(self.k)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.k = int(state["k"])
        self.mask.load_state_dict(state)
