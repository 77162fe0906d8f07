"""Step sizes, sparsity and temperature as functions of the iteration k = 1, 2, ...

Every schedule takes a number or a tensor of iterations and returns the same.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

Number = float | Tensor


@dataclass(frozen=True)
class RobbinsMonro:
    """Stochastic approximation step size omega_k = min(cap, C / (A + k)^alpha).

    Convergence needs 0 < alpha <= 1 and, for the L2 rate, alpha > 1/2 (sum omega = inf, sum
    omega^2 < inf) and that the cap binds for finitely many k only.

    Raises:
        ValueError: omega_k could leave (0, 1].
    """

    C: float
    A: float
    alpha: float
    cap: float = 1.0

    def __post_init__(self):
        if not (self.C > 0 and self.A >= 0 and 0 < self.alpha <= 1 and 0 < self.cap <= 1):
            raise ValueError(
                "omega_k = min(cap, C/(A+k)^alpha) needs C > 0, A >= 0, 0 < alpha <= 1, 0 < cap <= 1; "
                f"got C={self.C}, A={self.A}, alpha={self.alpha}, cap={self.cap}"
            )

    def __call__(self, k: Number) -> Number:
        omega = self.C / (self.A + k) ** self.alpha
        return omega.clamp(max=self.cap) if isinstance(omega, Tensor) else min(self.cap, omega)


@dataclass(frozen=True)
class Constant:
    """omega_k = value: 1 is EM, 0 keeps the prior fixed."""

    value: float

    def __call__(self, k: Number) -> Number:
        return torch.full_like(k, self.value) if isinstance(k, Tensor) else self.value


def adaptation(method: str, sa: RobbinsMonro) -> RobbinsMonro | Constant:
    """The one thing that -c chooses: omega_k of "sa", "em", or a fixed prior ("sgld", "sghmc")."""
    return {"sa": sa, "em": Constant(1.0), "sgld": Constant(0.0), "sghmc": Constant(0.0)}[method]


def polynomial_decay(lr: float, power: float, k: Number) -> Number:
    """Sampler step size eps_k = lr k^(-power)."""
    return lr * k ** (-power)


def stepwise(lr: float, milestones: Sequence[int], done: int) -> float:
    """Step size lr / 10^m after `done` epochs, of which m milestones are passed."""
    return lr * 0.1 ** sum(done >= milestone for milestone in milestones)


def linear_decay(lr: float, start: int, end: int, k: int) -> float:
    """Step size of iteration k = 1, 2, ..., end: lr up to `start`, then linearly down, to reach 0 after `end`."""
    return lr * min(1.0, (end + 1 - k) / (end + 1 - start))


def annealed(invT: Number, anneal: Number, k: Number) -> Number:
    """Inverse temperature invT * anneal^k after k annealing events; infinite where that overflows."""
    try:
        return invT * anneal**k
    except OverflowError:
        return math.inf


def sparsity_schedule(target: float, cut: float, gap: float, k: Number) -> Number:
    """s_k = S* (1 - cut^(k / gap)), from 0 towards the target S* (Algorithm 1)."""
    return target * (1 - cut ** (k / gap))


def cosine_cycle(lr: float, total: int, cycles: int, k: int) -> float:
    """Step size lr (1 + cos(pi (t mod P) / P)) / 2 of iteration t = k - 1, with P = total / cycles: from lr towards 0,
    again in every one of the cycles."""
    phase = (k - 1) * cycles % total / total  # whole numbers: a broken P would miss its restarts by rounding
    return lr * (1 + math.cos(math.pi * phase)) / 2
