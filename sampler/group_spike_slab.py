"""EM over a spike-and-slab prior on groups of weights: it switches their decay, and prunes for good (Ke and Fan 2022).

Every group of weights has one of two Gaussian priors of mean zero, the slab with the small weight decay eps1 or the
spike with the large one eps0 > eps1. The (hard) E step gives a group to the spike where that is the more probable one;
the sampler then goes on under the decay that was chosen. Weights that stay small are set to zero for good, in the same
run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .magnitude_pruning import Mask


@dataclass(frozen=True)
class Groups:
    """Groups of the weights of a layer: a group spans some dimensions, and the others tell the groups apart.

    spans: dimensions from the end, so that chains may lead.  All results keep them, with size 1.
    """

    name: str
    spans: tuple[int, ...]

    def mean_square(self, weight: Tensor) -> Tensor:
        """Mean of the squared weights of every group."""
        return weight.detach().square().mean(self.spans, keepdim=True)

    def range(self, weight: Tensor) -> Tensor:
        """Largest minus smallest weight of every group."""
        weight = weight.detach()
        return weight.amax(self.spans, keepdim=True) - weight.amin(self.spans, keepdim=True)


# of a convolution (out, in, height, width)
KERNEL = Groups("kernel", (-2, -1))
FILTER = Groups("filter", (-3, -2, -1))  # the weights of an output channel
CHANNEL = Groups("channel", (-4, -2, -1))  # the weights that leave an input channel
# of a fully connected layer (out, in)
NEURON = Groups("neuron", (-1,))  # the weights of an output unit
INPUT_UNIT = Groups("input unit", (-2,))  # the weights that leave an input unit: the paper's columns

Rule = Callable[[Tensor, float], Tensor]


def switch(mean_square: Tensor, soft: float, eps0: float, eps1: float) -> Tensor:
    """The decay of groups after the E step: eps0 where the mean square is under the soft threshold, else eps1.

    The threshold stands for the prior odds: with variances 1 / lam0 and 1 / lam1, lam = N eps, of the d weights of a
    group the spike is the more probable one where

        mean square < [log(lam0 / lam1) + (2 / d) log(P(spike) / P(slab))] / (lam0 - lam1) = soft.
    """
    return torch.full_like(mean_square, eps1).masked_fill(mean_square < soft, eps0)


def keep_large(groups: Groups) -> Rule:
    """Pruning rule: groups whose mean square is not under the hard threshold stay."""
    return lambda weight, hard: (groups.mean_square(weight) >= hard).expand_as(weight)


def keep_wide(weight: Tensor, hard: float) -> Tensor:
    """Pruning rule of convolutions: a channel goes, on the output or the input side, when the range of its weights is
    under the hard threshold."""
    return ((FILTER.range(weight) >= hard) & (CHANNEL.range(weight) >= hard)).expand_as(weight)


class GroupSpikeSlab:
    """Decays and permanent masks of the layers that may be pruned.

    Args:
        layers: their weights.  total: parameters of the whole network, in one chain.
        groups: what is switched together.  rule: what stays.
        eps0, eps1: decay under the spike and under the slab, eps0 >= eps1; all other parameters have eps1.
        soft: threshold of the mean square of a group for the switch.  hard: of the pruning rule.
        chain_dims: leading chain dimensions of the weights.

    `update` is the EM step, once an epoch after the warm-up; before its first call all groups are in the slab.
    `decay` is what the sampler asks for, `prune` sets the masked weights to zero after each of its steps.

    Raises:
        ValueError: eps0 < eps1, or too large for the dtype of the weights.
    """

    def __init__(
        self,
        layers: Sequence[Tensor],
        total: int,
        *,
        groups: Groups,
        rule: Rule,
        eps0: float,
        eps1: float,
        soft: float,
        hard: float,
        chain_dims: int = 0,
    ):
        if eps0 < eps1:
            raise ValueError(f"the spike's decay eps0 = {eps0} is smaller than the slab's eps1 = {eps1}")
        if any(eps0 > torch.finfo(w.dtype).max for w in layers):
            raise ValueError(f"the spike's decay eps0 = {eps0} overflows the weights' dtype")
        self.layers, self.groups, self.rule = list(layers), groups, rule
        self.eps0, self.eps1, self.soft, self.hard = eps0, eps1, soft, hard
        self.mask = Mask.dense(self.layers, total, chain_dims)
        self._places = {w: i for i, w in enumerate(self.layers)}
        self.decays = [torch.full_like(groups.mean_square(w), eps1) for w in self.layers]

    def decay(self, p: Tensor) -> float | Tensor:
        """eps of a parameter: one number per group, or eps1."""
        return self.decays[self._places[p]] if p in self._places else self.eps1

    @torch.no_grad()
    def update(self) -> None:
        """EM: switch the decays, and let the masks shrink."""
        for i, w in enumerate(self.layers):
            self.decays[i] = switch(self.groups.mean_square(w), self.soft, self.eps0, self.eps1)
            self.mask.keep[i] = self.mask.keep[i] & self.rule(w, self.hard)

    def prune(self) -> None:
        """Set the masked weights to zero."""
        self.mask.apply_(self.layers)

    @torch.no_grad()
    def summary(self) -> dict[str, float]:
        """Shares of all groups: `spike` of those left, `pruned`."""
        left = torch.cat([(self.groups.mean_square(keep.float()) > 0).flatten() for keep in self.mask.keep])
        spike = torch.cat([(d > self.eps1).flatten() for d in self.decays])
        return {
            "spike": float((spike & left).sum() / left.sum().clamp(min=1)),
            "pruned": float((~left).double().mean()),
        }

    def state_dict(self) -> dict[str, Tensor]:
        return self.mask.state_dict() | {f"decay.{i}": x for i, x in enumerate(self.decays)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.mask.load_state_dict(state)
        self.decays = [state[f"decay.{i}"] for i in range(len(self.decays))]
