"""Does a chain run at the temperature that it claims?

Two estimates of 1/invT that must agree with it once the chain is stationary: the first from the
velocities, the second from positions and forces. Both average over all coordinates except the
leading chain dimensions (after the diagnostics of bnn_priors, Fortuin et al. 2021).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor


def _mean_over_coordinates(products: Sequence[Tensor], chain_dims: int) -> Tensor:
    total = sum(x.flatten(chain_dims).sum(-1) for x in products)
    return total / sum(math.prod(x.shape[chain_dims:]) for x in products)


def kinetic_temperature(velocities: Sequence[Tensor], lr: float, momentum: float, chain_dims: int = 0) -> Tensor:
    """(1 + m)/2 * mean(v^2) / lr, the temperature of SGHMC's velocities.

    (1 + m)/2 is the exact factor by which the discrete friction inflates Var(v) above lr/invT.
    Shape: the leading `chain_dims` dimensions of the velocities.
    """
    return (1 + momentum) / 2 * _mean_over_coordinates([v * v for v in velocities], chain_dims) / lr


def configurational_temperature(params: Sequence[Tensor], grads: Sequence[Tensor], chain_dims: int = 0) -> Tensor:
    """mean(beta * grad U), the temperature of the positions.

    By the divergence theorem E[beta . grad U] = d / invT under exp(-invT U), for any origin of
    beta. Gradients may be minibatch estimates; they must be taken at the given parameters.
    """
    return _mean_over_coordinates([p * g for p, g in zip(params, grads, strict=True)], chain_dims)
