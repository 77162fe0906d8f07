"""The parts of one training step of bayes_cnn.py beside the network: sampler and latent variables of ResNet20.

    python -m benchmarks -only latent_update

The sampler's step and the prior's two calls are timed against the step of torch.optim.SGD; those two, which see all
layers as one vector, also against the same equations layer by layer.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from bayes_cnn import Chain
from benchmarks.bayes_cnn import SHAPE, flags
from benchmarks.plain_loop import fake, finished
from benchmarks.record import Bench
from experiment import device
from sampler import SSGLPrior
from sampler import spike_slab as ssgl


class LayerByLayer:
    """What SSGLPrior does for classification, one layer after the other, from the state of a prior."""

    def __init__(self, prior: SSGLPrior):
        self.prior, self.layers, self.k = prior, prior.layers, prior.k
        self.rho, self.kappa0, self.kappa1 = ([x.clone() for x in xs] for xs in (prior.rho, prior.kappa0, prior.kappa1))
        self.delta, self.sigma2 = list(prior.delta.unbind()), prior.sigma2
        self.v0 = prior.sigma2.new_tensor(float(prior._v0))

    @torch.no_grad()
    def add_grad(self) -> None:
        sigma = self.sigma2.sqrt()
        for w, kappa0, kappa1 in zip(self.layers, self.kappa0, self.kappa1, strict=True):
            w.grad += ssgl.potential_grad(w, kappa0, kappa1, sigma)
        for p in self.prior.gaussian:
            p.grad += self.prior.precision * p

    @torch.no_grad()
    def update(self) -> None:
        prior, sums = self.prior, []
        self.k += 1
        omega = prior.omega(self.k)
        for i, w in enumerate(self.layers):
            rho = ssgl.inclusion_probability(w, self.delta[i], self.v0, prior.v1)
            self.rho[i] = ssgl.average(self.rho[i], rho, omega)
            kappa0, kappa1 = ssgl.penalties(self.rho[i], self.v0, prior.v1)
            self.kappa0[i] = ssgl.average(self.kappa0[i], kappa0, omega)
            self.kappa1[i] = ssgl.average(self.kappa1[i], kappa1, omega)
            rate = ssgl.inclusion_rate(self.rho[i].sum(), w.numel(), prior.a, prior.b)
            self.delta[i] = ssgl.average(self.delta[i], rate, omega)
            sums.append(torch.stack([x.squeeze() for x in ssgl.penalty_sums(w, self.kappa0[i], self.kappa1[i])]))
        weights = sum(w.numel() for w in self.layers)
        sigma = ssgl.sigma_classification(*sum(sums), weights, prior.nu, prior.lamda)
        self.sigma2 = ssgl.average(self.sigma2, sigma * sigma, omega)


def chain(where: torch.device) -> Chain:
    """bayes_cnn.py -prune 1 -c sa with gradients, latent variables and velocities as after two minibatches of four."""
    made = Chain(flags("-train", 4, "-prune", 1, "-gap", 1), fake(8, SHAPE).to(where), seed=1)
    made.epoch()
    return made


def repeated(calls: int, *functions: Callable[[], object]) -> Callable[[], None]:
    """The functions in turn, often enough to time."""

    def run() -> None:
        for _ in range(calls):
            for function in functions:
                function()

    return run


def main(bench: Bench) -> None:
    device.prepare()
    where = device.resolve("auto")
    sampled = chain(where)
    prior, params = sampled.prior, list(sampled.net.parameters())
    sgd = torch.optim.SGD(params, lr=1e-12, momentum=0.9, weight_decay=5e-4)
    by_layer, calls = LayerByLayer(prior), bench.size(20, 1)
    parts = {
        "torch.optim.SGD.step, momentum": [sgd.step],
        "SGHMC.step": [sampled.sampler.step],
        "SSGLPrior.add_grad": [prior.add_grad],
        "SSGLPrior.update": [prior.update],
        "layer by layer": [by_layer.add_grad, by_layer.update],
        "SSGLPrior": [prior.add_grad, prior.update],
    }
    runs = {name: finished(repeated(calls, *functions), where) for name, functions in parts.items()}
    seconds = bench.seconds(runs, rounds=25)
    ms = {name: 1000 * s / calls for name, s in seconds.items()}
    *step, by_layer, whole = ms
    bench.record(f"parts of a step, ResNet20, {where.type}", "ms", {name: ms[name] for name in step})
    bench.record(f"add_grad and update, ResNet20, {where.type}", "ms", {name: ms[name] for name in (by_layer, whole)})
