"""SGLD and SGHMC as torch optimizers.

Both sample from the density proportional to exp(-invT * U(beta)), where the gradient found in
`p.grad` is an unbiased estimate of grad U on the scale of the whole data set. They never rescale
it: the N/n of a minibatch belongs to the potential, the temperature to the sampler only.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from .noise import FlatNoise
from .spike_slab import per_chain

Scale = float | Tensor


def _root(variance: Scale) -> Scale:
    return variance.sqrt() if isinstance(variance, Tensor) else math.sqrt(variance)


def sgld_noise_scale(lr: Scale, invT: Scale, gradient_sd: float = 0.0) -> Scale:
    """Standard deviation of one SGLD step's noise: sqrt(2 lr / invT + (lr gradient_sd)^2).

    gradient_sd: standard deviation of artificial Gaussian noise on the gradient. A sum of two
    Gaussians is one Gaussian, so it costs no second draw.
    """
    return _root(2 * lr / invT + (lr * gradient_sd) ** 2)


def sgld(beta: Tensor, grad: Tensor, noise: Tensor, lr: Tensor) -> Tensor:
    """One SGLD step, Eq. (1): beta - lr grad U + noise, noise of sd `sgld_noise_scale`."""
    return torch.addcmul(beta + noise, grad, lr, value=-1)


def sghmc_noise_scale(lr: float, momentum: float, invT: Scale) -> Scale:
    """Standard deviation of one SGHMC step's noise: sqrt(2 lr (alpha - b) / invT).

    alpha = 1 - momentum is the friction, b = lr/2 the estimate of the gradient noise.
    """
    return _root(2 * lr * (1 - momentum - lr / 2) / invT)


def check_sghmc(lr: float, momentum: float) -> None:
    """Raise ValueError unless 0 <= momentum < 1, lr > 0 and the friction exceeds lr/2."""
    if not lr > 0 or not math.isfinite(lr):
        raise ValueError(f"lr must be positive, not {lr}")
    if not 0 <= momentum < 1:
        raise ValueError(f"momentum must lie in [0, 1), not {momentum}")
    if lr / 2 > 1 - momentum:
        raise ValueError(
            f"momentum {momentum} is too large for the step size {lr}: "
            f"the friction 1 - momentum must be at least lr/2 = {lr / 2}"
        )


class Langevin(Optimizer):
    """What the samplers share: hyperparameters, noise, the walk over parameter groups.

    A sampler of your own defines `update`, and `check` for its hyperparameters. self.noise(params) gives standard
    normals, one tensor per parameter; defaults are the hyperparameters of a group.
    """

    def __init__(self, params, defaults: dict, noise: Callable[[Sequence[Tensor]], list[Tensor]] | None):
        super().__init__(params, defaults)
        self.noise = noise if noise is not None else FlatNoise()
        for group in self.param_groups:
            self.check(group)

    def check(self, group: dict) -> None:
        """Raise ValueError where a hyperparameter has no meaning."""

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            params = [p for p in group["params"] if p.grad is not None]
            if params:
                self.update(group, params, [p.grad for p in params])
        return loss

    def update(self, group: dict, params: list[Tensor], grads: list[Tensor]) -> None:
        """One step of the parameters of a group, in place, from their gradients; called without autograd."""
        raise NotImplementedError

    def add_noise(self, targets: list[Tensor], params: list[Tensor], scale: Scale) -> None:
        """Add noise of standard deviation `scale`; at zero temperature nothing is drawn."""
        if isinstance(scale, Tensor):
            for x, z in zip(targets, self.noise(params), strict=True):
                x.addcmul_(z, per_chain(scale.to(x.dtype), x))
        elif scale > 0:
            torch._foreach_add_(targets, self.noise(params), alpha=scale)


def check_invT(invT: Scale) -> None:
    """Raise ValueError unless the inverse temperature is positive."""
    if not torch.all(torch.as_tensor(invT) > 0):
        raise ValueError(f"invT must be positive, not {invT}")


class SGLD(Langevin):
    r"""Stochastic gradient Langevin dynamics (Welling and Teh 2011; Eq. 1 of Deng et al. 2019).

    .. math:: \beta \leftarrow \beta - \epsilon \nabla U(\beta) + N(0, 2 \epsilon / \tau)

    Leaves invariant, as lr -> 0, the density proportional to exp(-invT U). At a constant lr and a
    quadratic U of curvature lam the stationary variance is 1 / (invT lam (1 - lr lam / 2)).

    Args:
        params: parameters or parameter groups; p.grad must hold the gradient of U.
        lr: step size epsilon, in units of beta^2 per unit of U.
        invT: inverse temperature tau; a float, or a tensor with the leading chain dimensions of
            the parameters. math.inf gives gradient descent.
        noise: source of standard normals; default one flat draw from torch's global generator.

    Differs from the paper: the paper writes the gradient of the log posterior L, here U = -L.
    """

    def __init__(self, params, lr: float, invT: Scale = 1.0, noise=None):
        super().__init__(params, {"lr": lr, "invT": invT}, noise)

    def check(self, group: dict) -> None:
        check_invT(group["invT"])
        check_sghmc(group["lr"], 0.0)

    def update(self, group: dict, params: list[Tensor], grads: list[Tensor]) -> None:
        torch._foreach_add_(params, grads, alpha=-group["lr"])
        self.add_noise(params, params, sgld_noise_scale(group["lr"], group["invT"]))


class SGHMC(Langevin):
    r"""Stochastic gradient Hamiltonian Monte Carlo (Chen, Fox, Guestrin 2014; Eq. 3 of Deng et al.
    2019), discretised as by Saatci and Wilson (2017).

    .. math::
        v &\leftarrow m v - \epsilon \nabla U(\beta) + N(0, 2 \epsilon (\alpha - b) / \tau) \\
        \beta &\leftarrow \beta + v

    with friction alpha = 1 - m and gradient-noise estimate b = lr / 2.

    Leaves invariant, as lr -> 0, the density proportional to exp(-invT U) for beta and, for v,
    N(0, 2 lr / (invT (1 + m))). At a constant lr and a quadratic U of curvature lam both stationary
    variances carry the same factor (1 - b/alpha) / (1 - lr lam / (2 (1 + m))).

    At invT = inf and a constant lr the step is torch.optim.SGD(lr, momentum): the velocity is
    -lr times SGD's momentum buffer.

    Args:
        params: parameters or parameter groups; p.grad must hold the gradient of U.
        lr: step size epsilon.
        momentum: m in [0, 1).
        invT: inverse temperature tau; a float, or a tensor with the leading chain dimensions of
            the parameters.
        noise: source of standard normals; default one flat draw from torch's global generator.

    Raises:
        ValueError: momentum outside [0, 1), or friction below lr/2 (negative noise variance).

    Differs from the paper: the paper's continuous-time friction C and noise estimate B-hat become
    alpha and lr/2 per step.
    """

    def __init__(self, params, lr: float, momentum: float = 0.9, invT: Scale = 1.0, noise=None):
        super().__init__(params, {"lr": lr, "momentum": momentum, "invT": invT}, noise)

    def check(self, group: dict) -> None:
        check_invT(group["invT"])
        check_sghmc(group["lr"], group["momentum"])

    def velocity(self, p: Tensor) -> Tensor:
        """The velocity v of a parameter, zero before its first step."""
        state = self.state[p]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(p)
        return state["velocity"]

    def update(self, group: dict, params: list[Tensor], grads: list[Tensor]) -> None:
        lr, momentum = group["lr"], group["momentum"]
        velocities = [self.velocity(p) for p in params]
        torch._foreach_mul_(velocities, momentum)
        torch._foreach_add_(velocities, grads, alpha=-lr)
        self.add_noise(velocities, params, sghmc_noise_scale(lr, momentum, group["invT"]))
        torch._foreach_add_(params, velocities)
