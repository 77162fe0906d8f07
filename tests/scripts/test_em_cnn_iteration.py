"""EM-MCMC as em_cnn.py runs it, against the same epochs written down again in NumPy and float64.

Only the gradient of the mean loss comes from torch. Everything after it is evaluated here from the equations, with the
same normal numbers; and every term is checked to matter: the oracle without it must disagree.
"""

import copy
import functools
import math

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch import nn
from torch.nn.functional import cross_entropy

import em_cnn
from data import images
from data.image_sets import ImageData
from model.resnet import ResNet
from sampler.noise import stream

IMAGES, SEED = 24, 3
FLAGS = ["-data", "digits", "-model", "resnet20", "-aug", "0", "-train", "12"]  # 2 iterations an epoch
FLAGS += ["-sn", "4", "-cycles", "2", "-samples_per_cycle", "1", "-lr", "0.5", "-momentum", "0.2", "-eta", "0.3"]
FLAGS += ["-eps0", "0.05", "-eps1", "0.01", "-soft", "0.006", "-hard", "0.37", "-warmup", "1", "-device", "cpu"]
WARM = [*FLAGS, "-temperature", "0.03"]
SQUARE = [*WARM, "-rule", "square"]
CASES = {
    "kernels, range": WARM,
    "kernels, square": [*SQUARE, "-hard", "0.003"],
    "filters, square": [*SQUARE, "-hard", "0.0037", "-group", "filter"],
    "channels, range": [*WARM, "-group", "channel"],
    "channels, square": [*SQUARE, "-hard", "0.0037", "-group", "channel"],
    "temperature 1/N, images left over": [*FLAGS, "-train", "11"],
    "cold": [*FLAGS, "-temperature", "0"],
    "without preconditioner": [*WARM, "-eta", "0"],
    "no warm-up": [*WARM, "-warmup", "0"],
    "dense": [*WARM, "-dense", "1"],
}


@functools.cache
def few_digits() -> ImageData:
    data = images.load("digits")
    return ImageData(data.classes, data.train.subset(torch.arange(IMAGES)), data.test.subset(torch.arange(10)))


@functools.cache
def pixels() -> tuple[torch.Tensor, torch.Tensor]:
    x = few_digits().train.x.float() * np.float32(1 / 255)
    return ((x - torch.tensor(0.3)) / torch.tensor(0.38)).double(), few_digits().train.y


def small_network(args, data: ImageData) -> ResNet:
    """In float64, that rounding may hide nothing."""
    net = ResNet(8, data.shape, 10).double()
    net.register_forward_pre_hook(lambda _, inputs: (inputs[0].double(),))
    return net


@pytest.fixture
def chain_of(monkeypatch):
    """chain_of(flags): the script's chain on a few digits."""
    monkeypatch.setattr(em_cnn, "network", small_network)
    return lambda flags: em_cnn.Chain(em_cnn.parse(flags)[1], few_digits(), SEED)


class Oracle:
    """A network for its loss only, and arrays by the names of the parameters."""

    def __init__(self, chain: em_cnn.Chain, flags: list[str], wrong: str = ""):
        self.args, self.wrong, self.t = em_cnn.parse(flags)[1], wrong, 0
        self.net = copy.deepcopy(chain.net)
        self.theta = {name: p.detach().numpy().copy() for name, p in self.net.named_parameters()}
        self.convs = [f"{name}.weight" for name, m in self.net.named_modules() if isinstance(m, nn.Conv2d)]
        self.order, self.normals = stream(SEED, "order"), stream(SEED, "noise")
        momentum, self.z = self.draw(), self.draw()
        self.m = {name: 1e-3 * x for name, x in momentum.items()}
        self.rho = {name: np.zeros_like(w) for name, w in self.theta.items()}
        self.eps = {name: np.full_like(w, self.args.eps1) for name, w in self.theta.items()}
        self.mask = {name: np.ones(w.shape, bool) for name, w in self.theta.items()}

    def draw(self) -> dict[str, np.ndarray]:
        flat = torch.randn(
            sum(w.size for w in self.theta.values()), generator=self.normals, dtype=torch.float64
        ).numpy()
        ends = np.cumsum([w.size for w in self.theta.values()])[:-1]
        parts = zip(self.theta.items(), np.split(flat, ends), strict=True)
        return {name: part.reshape(w.shape) for (name, w), part in parts}

    def gradient(self, x: torch.Tensor, y: torch.Tensor) -> dict[str, np.ndarray]:
        params = dict(self.net.named_parameters())
        for name, p in params.items():
            p.data.copy_(torch.from_numpy(self.theta[name]))
        loss = cross_entropy(self.net.train()(x), y)
        return {k: g.numpy() for k, g in zip(params, torch.autograd.grad(loss, list(params.values())), strict=True)}

    def em(self) -> None:
        args, spans = self.args, {"kernel": (2, 3), "filter": (1, 2, 3), "channel": (0, 2, 3)}[self.args.group]
        for name in self.convs if self.wrong != "the first convolution is left alone" else self.convs[1:]:
            w = self.theta[name]
            square = np.broadcast_to((w**2).mean(spans, keepdims=True), w.shape)
            if self.wrong != "decay not switched":
                self.eps[name] = np.where(square < args.soft, args.eps0, args.eps1)
            if args.rule == "square":
                stays = square >= args.hard
            else:
                stays = np.ones(w.shape, bool)
                for i in range(w.shape[0]):
                    stays[i] &= w[i].max() - w[i].min() >= args.hard
                for j in range(w.shape[1] if self.wrong != "range of outputs only" else 0):
                    stays[:, j] &= w[:, j].max() - w[:, j].min() >= args.hard
            self.mask[name] &= stays
            self.theta[name] = w * self.mask[name]

    def step(self, g: dict[str, np.ndarray]) -> None:
        args, n = self.args, IMAGES if self.wrong != "N of the minibatch" else self.args.train
        temperature = args.temperature if args.temperature is not None else 1 / IMAGES
        period = args.sn * (IMAGES // args.train) / (args.cycles if self.wrong != "one cycle" else 1)
        k = self.t if self.wrong != "step size of the iteration before" else self.t - 1
        c2 = args.lr * (1 + math.cos(math.pi * (k % period) / period)) / 2
        c, self.t = math.sqrt(c2), self.t + 1
        fresh = self.draw() if temperature else self.z
        for name, theta in self.theta.items():
            eps, tau = self.eps[name], expit(self.rho[name])
            z = fresh[name] if self.wrong == "the new noise in rho" else self.z[name]
            drift = temperature**2 * c**3 * eps * tau * (self.wrong != "no decay in rho")
            drift = drift + temperature * c**1.5 * z * g[name] * (self.wrong != "no gradient in rho") - 1 / (tau * n)
            self.rho[name] = self.rho[name] - args.eta * drift
            tau = tau if self.wrong == "the old tau" else expit(self.rho[name])
            noise = math.sqrt(2 + 2 * args.momentum**2) * c**1.5 * temperature * fresh[name]
            decayed = theta if self.wrong != "no decay of biases" or theta.ndim > 1 else 0
            self.m[name] = args.momentum * self.m[name] - c2 * (g[name] + eps * decayed)
            self.m[name] = self.m[name] + (noise if self.wrong != "no noise" else 0)
            self.theta[name] = (theta + tau * self.m[name]) * (self.mask[name] if self.wrong != "mask forgotten" else 1)
        self.z = fresh

    def epoch(self) -> None:
        args, batches = self.args, IMAGES // self.args.train
        if not args.dense and self.t // batches >= args.warmup + (self.wrong == "EM an epoch late"):
            self.em()
        (x, y), rows = pixels(), torch.randperm(IMAGES, generator=self.order)[: batches * args.train]
        for mine in rows.split(args.train):
            self.step(self.gradient(x[mine], y[mine]))

    def arrays(self) -> dict[str, np.ndarray]:
        found = {"buffer " + name: x.numpy() for name, x in self.net.named_buffers()}
        for kind in ("theta", "m", "rho", "z"):
            found |= {f"{kind} {name}": x for name, x in getattr(self, kind).items()}
        for kind in ("eps", "mask"):
            found |= {f"{kind} {name}": getattr(self, kind)[name] for name in self.convs}
        return found


def arrays(chain: em_cnn.Chain) -> dict[str, np.ndarray]:
    """The same numbers of the chain."""
    params, state = dict(chain.net.named_parameters()), chain.sampler.state
    found = {"buffer " + name: x for name, x in chain.net.named_buffers()}
    found |= {f"theta {name}": p.detach() for name, p in params.items()}
    for kind, ours in (("m", "momentum"), ("rho", "rho"), ("z", "noise")):
        found |= {f"{kind} {name}": state[p][ours] for name, p in params.items()}
    convs = [name for name, p in params.items() if p.ndim == 4]
    for name, keep in zip(convs, chain.pruner.mask.keep, strict=True):
        found |= {f"eps {name}": chain.pruner.decay(params[name]).expand_as(params[name]), f"mask {name}": keep}
    return {name: x.numpy() for name, x in found.items()}


def differences(chain: em_cnn.Chain, oracle: Oracle) -> dict[str, float]:
    """What differs after an epoch of both, in units of the largest number of each array."""
    chain.epoch()
    oracle.epoch()
    expected, found = oracle.arrays(), arrays(chain)
    assert expected.keys() == found.keys()
    errors = {k: np.abs(a.astype(float) - found[k]).max() / max(np.abs(a).max(), 1e-12) for k, a in expected.items()}
    return {name: float(error) for name, error in errors.items() if not error <= 1e-9}


@pytest.mark.parametrize("case", CASES)
def test_epochs_are_those_of_the_equations(chain_of, case):
    chain = chain_of(CASES[case])
    oracle = Oracle(chain, CASES[case])
    for epoch in range(1, 5):
        assert differences(chain, oracle) == {}
        kept, pruning = float(chain.pruner.mask.density), case != "dense" and epoch > oracle.args.warmup
        assert 0.2 < kept < 0.99 if pruning else kept == 1
    eps = np.concatenate([oracle.eps[name].ravel() for name in oracle.convs])
    assert case == "dense" or 0.05 < (eps == oracle.args.eps0).mean() < 0.95


WRONG = ["the first convolution is left alone", "decay not switched", "range of outputs only", "N of the minibatch"]
WRONG += ["one cycle", "step size of the iteration before", "the new noise in rho", "no decay in rho"]
WRONG += ["no gradient in rho", "the old tau", "no decay of biases", "no noise", "mask forgotten", "EM an epoch late"]


@pytest.mark.parametrize("wrong", WRONG)
def test_every_term_matters(chain_of, wrong):
    flags = CASES["kernels, range"]
    chain = chain_of(flags)
    oracle = Oracle(chain, flags, wrong)
    assert any(differences(chain, oracle) for _ in range(3))


@pytest.mark.parametrize(
    "flags, lr, momentum",
    [(("-dense", "1", "-temperature", "0", "-eta", "0", "-momentum", "0"), 0.25, 0), (("-c", "sgd"), 0.5, 0.2)],
    ids=["cold EM-MCMC", "the baseline"],
)
def test_a_dense_run_can_be_gradient_descent(chain_of, flags, lr, momentum):
    """torch.optim.SGD with its cosine schedule, warm restarts at every cycle and the decay eps1 of all parameters.

    Without noise tau stays at 1/2, and so half of the step.
    """
    chain = chain_of([*FLAGS, "-hard", "10", *flags])
    net, order, (x, y) = copy.deepcopy(chain.net), stream(SEED, "order"), pixels()
    optimizer = torch.optim.SGD(net.parameters(), lr, momentum, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.CosineAnnealingWarmRestarts(optimizer, 4)
    for _ in range(4):
        chain.epoch()
        for rows in torch.randperm(IMAGES, generator=order).split(12):
            optimizer.zero_grad()
            cross_entropy(net.train()(x[rows]), y[rows]).backward()
            optimizer.step()
            schedule.step()
        for name, w in net.state_dict().items():
            torch.testing.assert_close(chain.net.state_dict()[name], w, rtol=1e-9, atol=1e-11)
    assert chain.sparsity() == 0
