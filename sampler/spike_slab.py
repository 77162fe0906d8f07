"""The spike-and-slab Gaussian-Laplace (SSGL) prior and its latent variables, Eq. (5)-(8).

    beta_lj | sigma^2, gamma_lj ~ (1 - gamma_lj) Laplace(0, scale sigma v0)
                                  + gamma_lj Normal(0, variance sigma^2 v1)
    gamma_lj ~ Bernoulli(delta_l),  delta_l ~ Beta(a, b),  sigma^2 ~ InvGamma(nu/2, nu lambda/2)

Source: Deng, Zhang, Liang, Lin, "An Adaptive Empirical Bayesian Method for Sparse Deep Learning",
NeurIPS 2019. v0 is a scale, v1 a variance.

The equations are pure functions. Weights of a layer have any number of leading chain dimensions;
a latent variable that a chain or a layer has one of broadcasts against them: a tensor of shape
(*chains, 1, ...), or a Python number where that is allowed.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .flat import Flat

Latent = float | Tensor


def per_chain(latent: Latent, beta: Tensor) -> Latent:
    """`latent` (*chains) with trailing dimensions of size 1, to broadcast against beta (*chains, ...)."""
    if not isinstance(latent, Tensor):
        return latent
    return latent.view(latent.shape + (1,) * (beta.ndim - latent.ndim))


def layer_sum(x: Tensor, chain_dims: int) -> Tensor:
    """Sum over all dimensions behind the chains', which stay with size 1."""
    return x.sum(tuple(range(chain_dims, x.ndim)), keepdim=True)


def inclusion_log_odds(beta: Tensor, delta: Tensor, v0: Tensor, v1: Latent, sigma: Latent = 1.0) -> Tensor:
    """log A - log B of Eq. (5): slab N(beta; 0, sigma^2 v1) delta against spike
    Laplace(beta; 0, sigma v0) (1 - delta).

    Works on log densities, because the densities underflow to 0/0 in float32 for ordinary
    weights. sigma cancels between the two normalising constants.
    """
    size = beta.abs()
    constant = delta.logit() + (v0 * (2 / (math.pi * v1)) ** 0.5).log()
    # in place: on large layers a fresh tensor costs more than the arithmetic on it
    slope = (size * (-0.5 / (v1 * sigma * sigma))).add_((sigma * v0).reciprocal())
    return slope.mul_(size).add_(constant)


def inclusion_probability(beta: Tensor, delta: Tensor, v0: Tensor, v1: Latent, sigma: Latent = 1.0) -> Tensor:
    """Eq. (5): rho~ = P(gamma = 1 | beta, delta) = A / (A + B), shape of beta, in [0, 1]."""
    return inclusion_log_odds(beta, delta, v0, v1, sigma).sigmoid_()


def penalties(rho: Tensor, v0: Latent, v1: Latent) -> tuple[Tensor, Tensor]:
    """Eq. (6): kappa0~ = (1 - rho) / v0 weighs |beta|, kappa1~ = rho / v1 weighs beta^2."""
    return (1 - rho).div_(v0), rho / v1


def inclusion_rate(total: Tensor, weights: Latent, a: float, b: float) -> Tensor:
    """Eq. (8): delta~ = (sum_j rho_j + a - 1) / (a + b + p - 2), of the total sum_j rho_j of a layer of p weights."""
    return (total + (a - 1)) / (a + b + weights - 2)


def penalty_sums(beta: Tensor, kappa0: Tensor, kappa1: Tensor, chain_dims: int = 0) -> tuple[Tensor, Tensor]:
    """sum |kappa0 beta| and sum kappa1 beta^2 of one layer."""
    size = beta.abs()
    l1 = layer_sum(kappa0 * size, chain_dims)
    return l1, layer_sum(size.square_().mul_(kappa1), chain_dims)


def sigma_root(quadratic: float, linear: Tensor, constant: Tensor) -> Tensor:
    """Eq. (7): the positive root sigma~ of R_a sigma^2 - R_b sigma - R_c = 0."""
    half = linear / (2 * quadratic)
    return half + torch.addcmul(constant / quadratic, half, half).sqrt()


def sigma_regression(
    l1: Tensor, l2: Tensor, residual: Tensor, observations: int, weights: int, nu: float, lamda: float
) -> Tensor:
    """Eq. (7), regression: R_a = N + sum_l p_l + nu, R_b = l1, R_c = I + J + nu lambda.

    l1: sum |kappa0 beta|;  l2: J = sum kappa1 beta^2;  residual: I = (N/n) sum_batch (y - f(x))^2;
    observations: N;  weights: sum_l p_l, all over the sparse layers.
    """
    return sigma_root(observations + weights + nu, l1, residual + l2 + nu * lamda)


def sigma_classification(l1: Tensor, l2: Tensor, weights: int, nu: float, lamda: float) -> Tensor:
    """Eq. (7), classification: C_a = sum_l p_l + nu + 2, C_b = l1, C_c = J + nu lambda."""
    return sigma_root(weights + nu + 2, l1, l2 + nu * lamda)


def potential(beta: Tensor, kappa0: Tensor, kappa1: Tensor, sigma: Latent, chain_dims: int = 0) -> Tensor:
    """The prior's part of U: sum kappa0 |beta| / sigma + kappa1 beta^2 / (2 sigma^2) of one layer."""
    l1, l2 = penalty_sums(beta, kappa0, kappa1, chain_dims)
    return l1 / sigma + l2 / (2 * sigma * sigma)


def potential_grad(beta: Tensor, kappa0: Tensor, kappa1: Tensor, sigma: Tensor) -> Tensor:
    """Gradient of `potential`: kappa0 sign(beta) / sigma + kappa1 beta / sigma^2, 0 at beta = 0."""
    inverse = sigma.reciprocal()
    return beta.sign().mul_(kappa0).addcmul_(kappa1, beta * inverse).mul_(inverse)


def average(theta: Tensor, proposal: Tensor, omega: Latent) -> Tensor:
    """theta <- (1 - omega) theta + omega theta~, exact at omega = 0 and omega = 1."""
    return torch.lerp(theta, proposal, omega)


class SSGLPrior:
    """State of the SSGL prior on some layers, and the Gaussian prior on the others.

    One step of Algorithm 1 calls `add_grad()` between backward and the sampler's step, and
    `update()` after it. `omega` decides between stochastic approximation, EM and a fixed prior.

    Args:
        layers: weights of the sparse layers, each (*chains, ...).
        v0, v1: scale of the spike, variance of the slab; numbers or (*chains).
        a, b: Beta prior of delta_l.  nu, lamda: inverse-gamma prior of sigma^2.
        omega: k -> omega_k, a number or (*chains) (see schedules.py).
        sigma, kappa0, kappa1, delta: initial values, numbers or (*chains).
        chains: leading chain dimensions.
        observations: N of a regression, where `update` gets a residual; 0 for classification.
        fix_scale: keep delta and sigma^2 at their initial values.
        gaussian, precision: parameters with the prior N(0, 1/precision), and that precision.

    The scale s of Eq. (5) is 1, as released for networks. sigma^2 is averaged, where the paper
    averages sigma (as released).
    """

    def __init__(
        self,
        layers: Sequence[Tensor],
        *,
        v0: Latent,
        v1: Latent,
        a: float,
        b: float,
        nu: float,
        lamda: float,
        omega: Callable[[int], Latent],
        sigma: Latent,
        kappa0: Latent,
        kappa1: Latent,
        delta: Latent = 0.5,
        chains: tuple[int, ...] = (),
        observations: int = 0,
        fix_scale: bool = False,
        gaussian: Sequence[Tensor] = (),
        precision: float = 0.0,
    ):
        self.layers, self.gaussian, self.precision = list(layers), list(gaussian), precision
        self.v1, self.a, self.b, self.nu, self.lamda = v1, a, b, nu, lamda
        self.omega, self.chains, self.observations, self.fix_scale = omega, chains, observations, fix_scale
        self.k = 0
        self._flat = Flat(self.layers, len(chains))
        first = self.layers[0]

        def filled(value: Latent, size: int) -> Tensor:
            value = torch.as_tensor(value, dtype=first.dtype, device=first.device)
            return value[..., None].expand(*chains, size).clone()

        self._weights = sum(self._flat.sizes)  # sum_l p_l
        self._rho, self._kappa0, self._kappa1 = (filled(value, self._weights) for value in (0.5, kappa0, kappa1))
        self._v0 = filled(v0, 1)
        self._sizes = first.new_tensor(self._flat.sizes)  # p_l
        self.delta = filled(delta, len(self.layers))  # (*chains, layers)
        self.sigma2 = filled(sigma, 1).squeeze(-1) ** 2

    @property
    def rho(self) -> list[Tensor]:
        """Inclusion probabilities, views of the layers' shapes."""
        return self._flat.split(self._rho)

    @property
    def kappa0(self) -> list[Tensor]:
        """Weights of the L1 penalty, views of the layers' shapes."""
        return self._flat.split(self._kappa0)

    @property
    def kappa1(self) -> list[Tensor]:
        """Weights of the L2 penalty, views of the layers' shapes."""
        return self._flat.split(self._kappa1)

    @torch.no_grad()
    def add_grad(self) -> None:
        """Add the gradient of the negative log priors to p.grad."""
        sigma = self.sigma2.sqrt()[..., None]
        grad = potential_grad(self._flat.gather(self.layers), self._kappa0, self._kappa1, sigma)
        torch._foreach_add_([w.grad for w in self.layers], self._flat.split(grad))
        if self.gaussian:
            torch._foreach_add_([p.grad for p in self.gaussian], self.gaussian, alpha=self.precision)

    @torch.no_grad()
    def update(self, residual: Tensor | None = None) -> None:
        """Eq. (5), (6), (8), (7) in this order, at the weights after the sampler's step.

        residual: I = (N/n) sum_batch (y - f(x))^2, shape (*chains); None for classification.
        """
        self.k += 1
        chain_omega, dims = self.omega(self.k), len(self.chains)
        if not isinstance(chain_omega, Tensor) and chain_omega == 0:
            return  # a fixed prior
        beta = self._flat.gather(self.layers)  # (*chains, P)
        v1, omega = per_chain(self.v1, beta), per_chain(chain_omega, beta)
        delta = self._flat.expand(self.delta)
        self._rho.lerp_(inclusion_probability(beta, delta, self._v0, v1), omega)
        kappa0, kappa1 = penalties(self._rho, self._v0, v1)
        self._kappa0.lerp_(kappa0, omega)
        self._kappa1.lerp_(kappa1, omega)
        if self.fix_scale:
            return
        rate = inclusion_rate(self._flat.sums(self._rho), self._sizes, self.a, self.b)
        self.delta = average(self.delta, rate, omega)
        l1, l2 = (x.squeeze(-1) for x in penalty_sums(beta, self._kappa0, self._kappa1, dims))
        if residual is None:
            sigma = sigma_classification(l1, l2, self._weights, self.nu, self.lamda)
        else:
            sigma = sigma_regression(l1, l2, residual, self.observations, self._weights, self.nu, self.lamda)
        self.sigma2 = average(self.sigma2, sigma * sigma, chain_omega)

    def summary(self, levels: Sequence[float] = (0.05, 0.5, 0.95)) -> dict[str, float]:
        """Quantiles of rho, kappa0, kappa1 over all sparse layers, mean delta, sigma; of a single chain."""
        row = {}
        for name, values in (("rho", self._rho), ("kappa0", self._kappa0), ("kappa1", self._kappa1)):
            for level in levels:
                row[f"{name}_q{round(100 * level):02d}"] = float(values.kthvalue(1 + int(level * (len(values) - 1)))[0])
        return row | {"delta": float(self.delta.mean()), "sigma": float(self.sigma2.sqrt())}

    def state_dict(self) -> dict[str, Tensor]:
        """All latent variables and the iteration, as a flat dict of tensors."""
        state = {"sigma2": self.sigma2, "delta": self.delta, "k": torch.tensor(self.k)}
        for name in ("rho", "kappa0", "kappa1"):
            state |= {f"{name}.{i}": x for i, x in enumerate(getattr(self, name))}
        return state

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.sigma2, self.delta, self.k = state["sigma2"], state["delta"], int(state["k"])
        for name in ("rho", "kappa0", "kappa1"):
            for i, x in enumerate(getattr(self, name)):
                x.copy_(state[f"{name}.{i}"])
