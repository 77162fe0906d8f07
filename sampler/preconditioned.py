"""The sampler of EM-MCMC: SGHMC preconditioned by the scale of a variational posterior (Ke and Fan, arXiv 2210.12957).

Variational Bayes with q(theta) = N(mu, diag(tau^2)), trained by natural gradients, is SGHMC with the preconditioner
tau, which is learned from noise and gradient.

Unlike `sgmcmc`, `p.grad` holds the gradient of the MEAN loss, as in the paper; the size of the data set enters through
the temperature (T = 1/N for images) and through N in the update of tau.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .sgmcmc import Langevin

HYPERPARAMETERS = ("lr", "observations", "temperature", "momentum", "eta")  # lr, N, T, beta0, eta
INIT_MOMENTUM = 1e-3  # standard deviation of the momentum at the start
Decay = float | Tensor


def noise_scale(lr: float, momentum: float, temperature: float) -> float:
    """Standard deviation of the noise of one step of the momentum, sqrt(2 + 2 beta0^2) c^1.5 T, with c = sqrt(lr)."""
    return math.sqrt(2 + 2 * momentum**2) * lr**0.75 * temperature


class PreconditionedSGHMC(Langevin):
    r"""SGHMC with the posterior scale tau as preconditioner (Ke and Fan 2022).

    With c = sqrt(lr), g the gradient of the mean loss, eps the weight decay and z the noise of the step before:

    .. math::
        \rho &\leftarrow \rho - \eta [T^2 c^3 \epsilon \tau + T c^{1.5} z g - 1 / (\tau N)] \\
        \tau &= \mathrm{sigmoid}(\rho), \quad z \sim N(0, 1) \\
        m &\leftarrow \beta_0 m - c^2 (g + \epsilon \theta) + \sqrt{2 + 2 \beta_0^2} c^{1.5} T z \\
        \theta &\leftarrow \theta + \tau m

    Leaves invariant: no density that does not depend on the step size. At fixed tau and a mean loss of curvature k, g =
    k theta, the stationary law is normal; as lr -> 0 its variance is

        (1 + beta0^2) / (1 - beta0) c tau T^2 / (k + eps)        = 1.12 c tau T^2 / (k + eps) at beta0 = 0.1,

    and at a given lr it is the solution of a discrete Lyapunov equation (see the tests). At T = 1/N that is far colder
    than the posterior's 1/(N k): the sampler optimises, and its spread comes from the minibatches and the cycles of lr.
    At T = 0, eta = 0 the step is torch.optim.SGD(lr / 2, momentum=beta0, weight_decay=eps), since tau stays at 1/2.

    Args:
        params: parameters or parameter groups; p.grad must hold the gradient of the mean loss.
        lr: step size c^2; `schedules.cosine_cycle` makes the paper's cycles.
        observations: N, size of the training set.
        temperature: T >= 0; the paper has 1/N for images, 1/sqrt(N) for its simulated regressions.
        momentum: beta0 in [0, 1).
        eta: step size of rho; 0 keeps tau at 1/2.
        decay: eps of a parameter, a float or a tensor that broadcasts to it, for example `GroupSpikeSlab.decay`.
        noise: source of standard normals; default one flat draw from torch's global generator.

    Keeps three tensors per parameter: rho (0 at the start), momentum (0.001 N(0, 1)) and noise z (N(0, 1)).

    Raises:
        ValueError: a hyperparameter outside its range, or a step that overflows the parameters' dtype.

    Differs from the paper: nothing that we know of; masks are applied after the step, by `GroupSpikeSlab.prune`.
    """

    def __init__(
        self,
        params,
        lr: float,
        *,
        observations: float,
        temperature: float,
        momentum: float = 0.1,
        eta: float = 0.1,
        decay: Decay | Callable[[Tensor], Decay] = 0.0,
        noise: Callable[[Sequence[Tensor]], list[Tensor]] | None = None,
    ):
        defaults = {"lr": lr, "observations": observations, "temperature": temperature}
        super().__init__(params, defaults | {"momentum": momentum, "eta": eta}, noise)
        self.decay = decay if callable(decay) else lambda p: decay

    def check(self, group: dict) -> None:
        allowed = {"lr": group["lr"] > 0, "observations": group["observations"] > 0, "eta": group["eta"] >= 0}
        allowed |= {"temperature": group["temperature"] >= 0, "momentum": 0 <= group["momentum"] < 1}
        for name, fine in allowed.items():
            if not fine or not math.isfinite(group[name]):
                raise ValueError(f"{name} is out of range: {group[name]}")
        lr, N, T, beta0, eta = (group[name] for name in HYPERPARAMETERS)
        try:
            factors = lr, eta / N, eta * T**2 * lr**1.5, noise_scale(lr, beta0, T)
        except OverflowError:
            factors = (math.inf,)
        dtype = group["params"][0].dtype
        if max(factors) > torch.finfo(dtype).max:
            raise ValueError(f"the step overflows {dtype} at lr = {lr:g}, temperature = {T:g}, eta = {eta:g}")

    def tau(self, p: Tensor) -> Tensor:
        """The posterior scale of a parameter, in (0, 1); 1/2 before its first step."""
        return torch.sigmoid(self.state[p]["rho"]) if self.state[p] else torch.full_like(p, 0.5)

    def _begin(self, params: list[Tensor]) -> None:
        """State of parameters that have none yet."""
        new = [p for p in params if not self.state[p]]
        if not new:
            return
        for p, m, z in zip(new, self.noise(new), self.noise(new), strict=True):
            fill = torch.zeros_like(p)  # in the memory format of the parameter
            self.state[p].update(rho=fill, momentum=fill + INIT_MOMENTUM * m, noise=fill + z)

    def update(self, group: dict, params: list[Tensor], grads: list[Tensor]) -> None:
        lr, N, T, beta0, eta = (group[name] for name in HYPERPARAMETERS)
        self._begin(params)
        rho, m, z = ([self.state[p][name] for p in params] for name in ("rho", "momentum", "noise"))
        decays = [self.decay(p) for p in params]
        if eta:
            tau = torch._foreach_sigmoid(rho)
            step = torch._foreach_mul(z, grads)
            torch._foreach_mul_(step, -eta * T * lr**0.75)
            torch._foreach_add_(step, torch._foreach_reciprocal(tau), alpha=eta / N)
            if T:
                pull = [t.mul_(eps) for t, eps in zip(tau, decays, strict=True)]
                torch._foreach_add_(step, pull, alpha=-eta * T**2 * lr**1.5)
            torch._foreach_add_(rho, step)
        if T:
            torch._foreach_copy_(z, self.noise(params))
        torch._foreach_mul_(m, beta0)
        torch._foreach_add_(m, grads, alpha=-lr)
        torch._foreach_add_(m, [p * eps for p, eps in zip(params, decays, strict=True)], alpha=-lr)
        if T:
            torch._foreach_add_(m, z, alpha=noise_scale(lr, beta0, T))
        torch._foreach_addcmul_(params, torch._foreach_sigmoid(rho), m)
