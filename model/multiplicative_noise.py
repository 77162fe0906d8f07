"""Structured Bayesian pruning by log-normal multiplicative noise (Neklyudov et al., NIPS 2017).

Noise theta multiplies the output of a unit, a neuron or a channel. In log space its prior is uniform and its
variational posterior a truncated normal:

    p(theta) = LogUniform on [e^a, e^b]                                               a = -20, b = 0
    q(theta | mu, sigma) = LogNormal(mu, sigma^2) truncated to [e^a, e^b]

A unit whose signal-to-noise ratio E theta / sd theta is below 1 is removed. All functions are elementwise in mu and
log sigma, for mu and log sigma in [-20, 5], values and gradients, in float32.

The paper's closed forms divide differences of distribution functions that overflow and cancel, for mu > b and for
large and for small sigma. Here KL, mean and SNR are integrals of positive functions by one Gauss-Legendre rule, on the
interval that holds the mass: no special cases, and nothing to cancel.
"""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

A, B = -20.0, 0.0  # log theta lies in [A, B]
BOUNDS = (-20.0, 5.0)  # of mu and of log sigma
INIT_MU, INIT_LOG_SIGMA = 0.0, -5.0
# nodes of the quadrature, and its cut: where the density has fallen to e^-cut of its mode, the integrals end. What they
# leave out is less than each precision rounds off
RULES = {torch.float32: (28, 22.0), torch.float64: (48, 34.0)}
TAIL = -3.0  # beta below which samples are drawn from the tail's own formula
NEWTON = 3  # steps to its inverse, which is then exact up to rounding in either precision


@cache
def _rule(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor, float]:
    """Nodes and weights of Gauss-Legendre quadrature on [0, 1], and the cut."""
    nodes, cut = RULES[dtype]
    x, w = np.polynomial.legendre.leggauss(nodes)
    return *(torch.tensor(v, dtype=dtype, device=device) for v in ((x + 1) / 2, w / 2)), cut


def _law(mu: Tensor, log_sigma: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The truncated normal as weighted points: log theta = mode + sigma v.

    Returns the mode, v (..., nodes), energies e = (v^2 + 2 v kappa) / 2 >= 0 with kappa = (mode - mu) / sigma, and the
    weights of exp(-e) dv.
    """
    x, w, cut = _rule(mu.dtype, mu.device)
    sigma = log_sigma.exp()
    mode = mu.clamp(A, B)
    kappa = (mode - mu) / sigma  # 0 inside [A, B], negative above B
    # energies reach the cut at this distance from the mode; to the right E theta^2 lives up to 2 sigma further
    reach = 2 * cut / (kappa.abs() + (kappa.square() + 2 * cut).sqrt())
    left = torch.minimum(reach, (mode - A) / sigma)
    right = torch.minimum(reach + 2 * sigma, (B - mode) / sigma)
    width = (left + right)[..., None]
    v = width * x - left[..., None]
    energy = v * (0.5 * v + kappa[..., None])
    return mode, v, energy, (-energy).exp() * (width * w)


def kl(mu: Tensor, log_sigma: Tensor) -> Tensor:
    """KL(q || p) = log(b - a) - entropy of log theta, in nats.

    In closed form, with alpha = (a - mu) / sigma, beta = (b - mu) / sigma, Z = Phi(beta) -
    Phi(alpha): log(b - a) - log(sigma Z sqrt(2 pi e)) - (alpha phi(alpha) - beta phi(beta)) / (2 Z).

    Its derivatives are moments of the energy e = (log theta - mu)^2 / (2 sigma^2): d / d mu = -Cov(e, log theta) /
    sigma^2 and d / d log sigma = -2 Var(e).
    """
    with torch.no_grad():
        _, v, energy, weight = _law(mu, log_sigma)
        mass = weight.sum(-1)
        weight = weight / mass[..., None]
        mean = (weight * energy).sum(-1)
        value = math.log(B - A) - log_sigma - mass.log() - mean
        weighted = weight * (energy - mean[..., None])
        d_mu = -(weighted * v).sum(-1) / log_sigma.exp()
        d_log_sigma = -2 * (weighted * energy).sum(-1)
    return value + d_mu * (mu - mu.detach()) + d_log_sigma * (log_sigma - log_sigma.detach())


def _relative_moments(mu: Tensor, log_sigma: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """mode, E theta / e^mode - 1, and sd theta / e^mode."""
    mode, v, _, weight = _law(mu, log_sigma)
    weight = weight / weight.sum(-1, keepdim=True)
    excess = torch.expm1(log_sigma.exp()[..., None] * v)  # theta / e^mode - 1
    mean = (weight * excess).sum(-1)
    scale = excess.detach().abs().amax(-1)  # the squares of what is left of it have a normal size
    variance = (weight * ((excess - mean[..., None]) / scale[..., None]).square()).sum(-1)
    return mode, mean, scale * variance.sqrt()


def mean(mu: Tensor, log_sigma: Tensor) -> Tensor:
    """E theta = exp(mu + sigma^2 / 2) (Phi(sigma - alpha) - Phi(sigma - beta)) / Z, the noise at test time."""
    mode, relative, _ = _relative_moments(mu, log_sigma)
    return mode.exp() * (1 + relative)


def snr(mu: Tensor, log_sigma: Tensor) -> Tensor:
    """Signal-to-noise ratio E theta / sd theta."""
    _, relative, sd = _relative_moments(mu, log_sigma)
    return (1 + relative) / sd


def _ndtr(x: Tensor) -> Tensor:
    """Phi(x), whose left tail torch.special.ndtr = (1 + erf) / 2 does not have."""
    return 0.5 * torch.erfc(x * -math.sqrt(0.5))


def sample(mu: Tensor, log_sigma: Tensor, u: Tensor) -> Tensor:
    """theta = exp(mu + sigma Phi^-1(Phi(alpha) + u Z)) for uniform u in (0, 1), differentiable in mu and log sigma.

    The derivative is that of the inverse transform: with v = Phi^-1(...), r_a = (1 - u) phi(alpha) / phi(v) and r_b =
    u phi(beta) / phi(v), d log theta / d mu = 1 - r_a - r_b and d log theta / d sigma = v - alpha r_a - beta r_b.
    """
    with torch.no_grad():
        eps = torch.finfo(mu.dtype).eps
        u, sigma = u.clamp(eps / 4, 1 - eps / 2), log_sigma.exp()  # an exact 0 would be theta = e^a
        alpha, beta = (A - mu) / sigma, (B - mu) / sigma
        lower = torch.lerp(_ndtr(alpha), _ndtr(beta), u)  # Phi(v)
        upper = torch.lerp(_ndtr(-alpha), _ndtr(-beta), u)  # Phi(-v)
        v = torch.special.ndtri(torch.minimum(lower, upper))
        v = torch.where(lower < upper, v, -v).clamp(alpha, beta)
        tail = beta < TAIL
        below = beta - v
        if mu.is_cuda or bool(tail.any()):  # asking would make a GPU wait
            below = torch.where(tail, _tail(beta.clamp(max=TAIL), u), below)
            v = torch.where(tail, beta - below, v)
        log_theta = torch.where(tail, B - sigma * below, mu + sigma * v).clamp(A, B)
        r_a = (1 - u) * (0.5 * (v - alpha) * (v + alpha)).exp()
        r_b = u * (below * (0.5 * below - beta)).exp()
        d_mu = 1 - r_a - r_b
        d_log_sigma = sigma * (torch.where(tail, beta * (1 - r_b) - below, v - beta * r_b) - alpha * r_a)
    return (log_theta + d_mu * (mu - mu.detach()) + d_log_sigma * (log_sigma - log_sigma.detach())).exp()


def _tail(beta: Tensor, u: Tensor) -> Tensor:
    """The z > 0 with Phi(beta - z) / Phi(beta) = u, for beta < -3, where Phi itself underflows.

    With Mills' ratio M(t) = (1 - Phi(t)) / phi(t) and k = -beta: z^2 / 2 + k z - log(M(k + z) / M(k)) = -log u, solved
    by Newton's method from above. (a is so far away that it does not matter here.)
    """

    def mills(t: Tensor) -> Tensor:
        return math.sqrt(math.pi / 2) * torch.special.erfcx(t / math.sqrt(2))

    k, target, first = -beta, -u.log(), mills(-beta)
    z = 2 * target / (k + (k.square() + 2 * target).sqrt())
    for _ in range(NEWTON):
        ratio = mills(k + z)
        z = z - (z * (0.5 * z + k) - (ratio / first).log() - target) * ratio
    return z


class LogNormalNoise(nn.Module):
    """Multiplies every unit of its input by its noise theta: a sample in training, shared by the whole minibatch, and
    E theta in evaluation.

    As a layer, behind any other, with dim=1 it multiplies the units or channels of x (n, units, ...). `add_noise`
    instead registers it as a parametrization of a layer's weight, where dim=0 multiplies the layer's outputs before
    their bias and dim=1 its inputs: the same noise, but on the smaller tensor.

    Args:
        units: number of units.  dim: dimension of the input that they are.

    `mu` and `log_sigma` are its parameters, (units); `clip` keeps them in BOUNDS.
    """

    def __init__(self, units: int, dim: int = 1):
        super().__init__()
        self.dim = dim
        self.mu = nn.Parameter(torch.full((units,), INIT_MU))
        self.log_sigma = nn.Parameter(torch.full((units,), INIT_LOG_SIGMA))
        self.theta: Tensor | None = None  # the current sample, where `Noise` draws for all layers together

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            theta = self.mean()
        elif self.theta is None:
            theta = sample(self.mu, self.log_sigma, torch.rand_like(self.mu))
        else:
            theta = self.theta
        return x * theta.view(-1, *[1] * (x.ndim - self.dim - 1))

    def mean(self) -> Tensor:
        """E theta, (units)."""
        return mean(self.mu, self.log_sigma)

    def snr(self) -> Tensor:
        """E theta / sd theta, (units)."""
        return snr(self.mu, self.log_sigma)

    def kl(self) -> Tensor:
        """KL(q || p) summed over the units, in nats."""
        return kl(self.mu, self.log_sigma).sum()


def add_noise(layer: nn.Linear | nn.Conv2d, dim: int) -> LogNormalNoise:
    """Put noise on the outputs (dim=0, before the bias) or the inputs (dim=1) of a layer of any network."""
    noise = LogNormalNoise(layer.weight.shape[dim], dim).to(layer.weight.device, layer.weight.dtype)
    parametrize.register_parametrization(layer, "weight", noise.eval())  # which calls it: draw nothing
    return noise.train(layer.training)


def fold_noise(net: nn.Module) -> None:
    """Multiply the means E theta into the weights of the layers that `add_noise` changed, for good."""
    for module in list(net.modules()):
        if not parametrize.is_parametrized(module, "weight"):
            continue
        noise = module.parametrizations["weight"].eval()
        if all(isinstance(each, LogNormalNoise) for each in noise):
            weight = module.weight.detach()
            # not remove_parametrizations, which changes the class that copies of the network share
            del module.parametrizations
            module.__class__ = type(module).__base__
            module.weight = nn.Parameter(weight)


class Noise:
    """The noise layers of a network, drawn and evaluated together: a few large operations instead of many small ones.

    layers: by name.
    """

    def __init__(self, layers: dict[str, LogNormalNoise]):
        self.layers = layers
        self._units = [len(layer.mu) for layer in layers.values()]

    def _joined(self) -> tuple[Tensor, Tensor]:
        layers = self.layers.values()
        return torch.cat([layer.mu for layer in layers]), torch.cat([layer.log_sigma for layer in layers])

    def draw(self, generator: torch.Generator | None = None) -> Tensor:
        """Give every layer a new sample theta; returns the KL of every layer, (layers), in nats."""
        mu, log_sigma = self._joined()
        u = torch.rand(mu.shape, generator=generator, device=mu.device, dtype=mu.dtype)
        theta = sample(mu, log_sigma, u).split(self._units)
        for layer, part in zip(self.layers.values(), theta, strict=True):
            layer.theta = part
        return torch.stack([part.sum() for part in kl(mu, log_sigma).split(self._units)])

    def forget(self) -> None:
        """Drop the samples, which a copy of the network cannot take along; the layers then draw for themselves."""
        for layer in self.layers.values():
            layer.theta = None

    @torch.no_grad()
    def clip(self) -> None:
        """Put mu and log sigma back into BOUNDS, after an optimizer's step."""
        for layer in self.layers.values():
            layer.mu.clamp_(*BOUNDS)
            layer.log_sigma.clamp_(*BOUNDS)
