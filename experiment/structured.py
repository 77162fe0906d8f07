"""The methods that remove units: what each adds to a chain, to its objective and to its steps.

The objective of all of them is the potential N x cross entropy + the method's penalty.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from model import group_lasso, variational_dropout
from model.multiplicative_noise import Noise, add_noise, fold_noise
from model.surgery import Removal, Site, removal, shapes, sites

from . import distributed


class Dense:
    """The plain network; every other method starts from one.

    Args:
        net: a chain of layers, changed in place.
        generator: of the method's noise, on the network's device.
    """

    threshold = 0.0  # units with smaller scores are removed

    def __init__(self, net: nn.Sequential, generator: torch.Generator):
        self.net, self.generator, self.shapes = net, generator, shapes(net)
        self.attach()

    def attach(self) -> None:
        """Change the network."""

    def train(self) -> None:
        """Set the network's mode."""
        self.net.train()

    def penalty(self) -> Tensor | float:
        """The term of this step beside the likelihood; draws the noise of the step."""
        return 0.0

    def project(self) -> None:
        """Put parameters back into their range, after a step."""

    def noise_parameters(self) -> list[nn.Parameter]:
        """The parameters of the noise, which may have a step size of their own."""
        return []

    def parameter_groups(self) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
        """The weights, which may decay, the other parameters of the network, and those of the noise."""
        noise = self.noise_parameters()
        others = {name: p for name, p in self.net.named_parameters() if not any(p is q for q in noise)}
        weights = [p for name, p in others.items() if p.ndim > 1 and not name.endswith("log_sigma2")]
        return weights, [p for p in others.values() if not any(p is q for q in weights)], noise

    def scores(self) -> dict[Site, Tensor]:
        """The score of every unit at the sites that the method knows."""
        return {}

    def plain(self) -> nn.Sequential:
        """An ordinary network with the outputs of this one at test time."""
        return copy.deepcopy(self.net).eval()

    @torch.no_grad()
    def removal(self, threshold: float | None = None) -> Removal:
        """The units that go, by default at the method's own threshold."""
        return removal(self.shapes, self.scores(), self.threshold if threshold is None else threshold)


class SBP(Dense):
    """Structured Bayesian pruning (Neklyudov et al. 2017): log-normal noise on units, removed at SNR < 1.

    noisy: the sites with noise.  weights: of the KL of the first of them, 1 for the others.  Batch norm keeps the
    dense network's statistics.
    """

    threshold = 1.0

    def __init__(self, net, generator, noisy: tuple[Site, ...], weights: tuple[float, ...] = ()):
        self.noisy, self.weights = noisy, torch.tensor([*weights, *[1.0] * len(noisy)][: len(noisy)])
        super().__init__(net, generator)

    def attach(self) -> None:
        self.noise = Noise({site: add_noise(self.net.get_submodule(site[0]), site[1]) for site in self.noisy})
        self.weights = self.weights.to(self.generator.device)

    def train(self) -> None:
        self.net.train()
        for module in self.net.modules():
            if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
                module.eval()

    def penalty(self) -> Tensor:
        return (self.weights * self.noise.draw(self.generator)).sum()

    def project(self) -> None:
        self.noise.clip()

    def noise_parameters(self) -> list[nn.Parameter]:
        return [p for layer in self.noise.layers.values() for p in layer.parameters()]

    @torch.no_grad()
    def scores(self) -> dict[Site, Tensor]:
        return {site: layer.snr() for site, layer in self.noise.layers.items()}

    def plain(self) -> nn.Sequential:
        self.noise.forget()
        net = super().plain()
        fold_noise(net)
        return net


class SparseVD(Dense):
    """Sparse variational dropout (Molchanov et al. 2017): a unit is removed with all its incoming or outgoing weights.

    The score of a unit is minus the smallest log alpha of its weights.
    """

    threshold = -variational_dropout.THRESHOLD

    def attach(self) -> None:
        self.layers = variational_dropout.add_sparse_vd(self.net)
        rank, world, generator = distributed.rank(), distributed.world(), self.generator

        def randn(x: Tensor) -> Tensor:  # this process's part of the noise of the whole minibatch
            shape = (len(x) * world, *x.shape[1:])
            return torch.randn(shape, generator=generator, device=x.device, dtype=x.dtype)[rank::world]

        for layer in self.layers.values():
            layer.randn = randn

    def penalty(self) -> Tensor:
        return sum(layer.kl() for layer in self.layers.values())

    def noise_parameters(self) -> list[nn.Parameter]:
        return [layer.log_sigma2 for layer in self.layers.values()]

    @torch.no_grad()
    def scores(self) -> dict[Site, Tensor]:
        log_alpha = {name: layer.log_alpha() for name, layer in self.layers.items()}
        return {(name, dim): -log_alpha[name].transpose(0, dim).flatten(1).amin(1) for name, dim in sites(self.shapes)}

    def plain(self) -> nn.Sequential:
        net = super().plain()
        variational_dropout.fold_sparse_vd(net, -self.threshold)
        return net


class SSL(Dense):
    """Structured sparsity learning (Wen et al. 2016): group lasso over the weights of every unit, in and out."""

    threshold = group_lasso.THRESHOLD

    def attach(self) -> None:
        self.weights = {site: self.net.get_submodule(site[0]).weight for site in sites(self.shapes)}

    def penalty(self) -> Tensor:
        return sum(group_lasso.group_norms(weight, dim).sum() for (_, dim), weight in self.weights.items())

    @torch.no_grad()
    def scores(self) -> dict[Site, Tensor]:
        return {site: group_lasso.group_norms(weight, site[1]) for site, weight in self.weights.items()}
