"""Sparse variational dropout (Molchanov, Ashukha, Vetrov, ICML 2017).

Every weight has the posterior N(w, alpha w^2) under the log-uniform prior, in the additive parametrisation sigma^2 =
alpha w^2, whose gradients stay small at large alpha. Weights with log alpha > 3 are removed.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

INIT_LOG_SIGMA2 = -10.0
LOG_ALPHA = (-8.0, 8.0)  # log alpha is clipped to it
THRESHOLD = 3.0  # on log alpha
K1, K2, K3 = 0.63576, 1.87320, 1.48695
EPS = 1e-8  # under square roots and logarithms


def kl(log_alpha: Tensor) -> Tensor:
    """KL(q || p) of every weight, in nats, by the approximation of Molchanov et al. 2017, Eq. 14.

    k1 - k1 sigmoid(k2 + k3 log alpha) + log(1 + 1 / alpha) / 2
    """
    return K1 * torch.sigmoid(-(K2 + K3 * log_alpha)) + 0.5 * F.softplus(-log_alpha)


class _SparseVD(nn.Module):
    """What both layers share. `randn(x)` draws their noise, standard normals like x."""

    def __init__(self, layer: nn.Module):
        super().__init__()
        self.weight, self.bias, self.randn = layer.weight, layer.bias, torch.randn_like
        self.log_sigma2 = nn.Parameter(torch.full_like(layer.weight, INIT_LOG_SIGMA2))

    def log_alpha(self) -> Tensor:
        """log alpha = log sigma^2 - log w^2 of every weight, clipped."""
        return (self.log_sigma2 - (self.weight.square() + EPS).log()).clamp(*LOG_ALPHA)

    def kept(self, threshold: float = THRESHOLD) -> Tensor:
        """Which weights stay."""
        return self.log_alpha() <= threshold

    def kl(self) -> Tensor:
        """KL(q || p) summed over the weights, in nats."""
        return kl(self.log_alpha()).sum()

    def forward(self, x: Tensor) -> Tensor:
        """In training a sample of the outputs (local reparametrisation), in evaluation the network of the kept weights.

        N(W x + b, (sigma^2) x^2), drawn for every image and output anew.
        """
        if not self.training:
            return self.linear(x, self.weight * self.kept(), self.bias)
        mean = self.linear(x, self.weight, self.bias)
        variance = self.linear(x.square(), self.weight.square() * self.log_alpha().exp(), None)
        return mean + (variance + EPS).sqrt() * self.randn(mean)


class SparseVDLinear(_SparseVD):
    """Takes the weight and the bias of a linear layer."""

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, weight, bias)

    def folded(self, threshold: float = THRESHOLD) -> nn.Linear:
        """The ordinary layer of the kept weights."""
        layer = nn.Linear(*self.weight.shape[::-1], bias=self.bias is not None)
        return _filled(layer, self, threshold)


class SparseVDConv2d(_SparseVD):
    """Takes the weight and the bias of a convolution."""

    def __init__(self, layer: nn.Conv2d):
        super().__init__(layer)
        self.settings = {
            name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups", "padding_mode")
        }
        for name, value in self.settings.items():
            setattr(self, name, value)
        self._reversed_padding_repeated_twice = layer._reversed_padding_repeated_twice

    def linear(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return nn.Conv2d._conv_forward(self, x, weight, bias)

    def folded(self, threshold: float = THRESHOLD) -> nn.Conv2d:
        """The ordinary layer of the kept weights."""
        out, into, *kernel = self.weight.shape
        groups = self.settings["groups"]
        layer = nn.Conv2d(into * groups, out, kernel, bias=self.bias is not None, **self.settings)
        return _filled(layer, self, threshold)


@torch.no_grad()
def _filled(layer: nn.Module, source: _SparseVD, threshold: float) -> nn.Module:
    layer = layer.to(source.weight.device, source.weight.dtype)
    layer.weight.copy_(source.weight * source.kept(threshold))
    if source.bias is not None:
        layer.bias.copy_(source.bias)
    return layer


def add_sparse_vd(net: nn.Module) -> dict[str, _SparseVD]:
    """Replace every linear layer and convolution of any network; returns the new layers by name."""
    kinds = {nn.Linear: SparseVDLinear, nn.Conv2d: SparseVDConv2d}
    found = {name: kinds[type(module)](module) for name, module in net.named_modules() if type(module) in kinds}
    for name, layer in found.items():
        net.set_submodule(name, layer)
    return found


def fold_sparse_vd(net: nn.Module, threshold: float = THRESHOLD) -> None:
    """The inverse: ordinary layers of the kept weights."""
    layers = {name: module for name, module in net.named_modules() if isinstance(module, _SparseVD)}
    for name, layer in layers.items():
        net.set_submodule(name, layer.folded(threshold))
