"""Algorithm 1 as bayes_cnn.py runs it, against the same iterations written down again in NumPy and float64.

Only the gradient of the log likelihood comes from torch. Everything after it is evaluated here from the equations,
with the same normal numbers; and every term is checked to matter: the oracle without it must disagree.
"""

from __future__ import annotations

import copy
import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import pytest
import torch
from scipy.special import expit
from torch import nn
from torch.nn.functional import cross_entropy

import bayes_cnn
from data import images
from data.image_sets import ImageData
from sampler.noise import stream

FLAGS = [
    *("-data", "digits", "-depth", "8", "-aug", "0", "-train", "24", "-N", "40", "-device", "cpu"),
    *("-lr", "0.01", "-invT", "500", "-anneal", "1.5", "-milestones", "2", "-wdecay", "0.05"),
    *("-v0", "0.1", "-v1", "0.02", "-a", "300", "-b", "900", "-nu", "5", "-lamda", "700", "-sd", "1.3"),
    *("-dc", "1", "-da", "2", "-dalpha", "0.8", "-sparse", "0.6", "-cut", "0.7", "-gap", "3"),
]
LATENT = ("rho", "kappa0", "kappa1")
IMAGES, SEED = 24, 3


def sparse(*flags: str) -> list[str]:
    return [*FLAGS, "-prune", "1", *flags]


CASES = {
    "sa": sparse("-c", "sa"),
    "em": sparse("-c", "em"),
    "sghmc": sparse("-c", "sghmc"),
    "sa with fixed scale": sparse("-c", "sa", "-fix_scale", "1"),
    "em with fixed scale": sparse("-c", "em", "-fix_scale", "1"),
    "sa with theta": sparse("-c", "sa", "-theta", "0.03"),
    "sa without momentum": sparse("-c", "sa", "-momentum", "0"),
    "sa at the size of the data": [x for x in sparse("-c", "sa") if x not in ("-N", "40")],
    "sa in two minibatches": [*sparse("-c", "sa"), "-train", "11"],
    "sa by filters": sparse("-c", "sa", "-pruning", "unit"),
    "sa by rho": sparse("-c", "sa", "-pruning", "rho"),
    "em by rho": sparse("-c", "em", "-pruning", "rho"),
    "dense": [*FLAGS, "-prune", "0"],
    "dense, another method": [*FLAGS, "-prune", "0", "-c", "em"],
}


@functools.cache
def few_digits() -> ImageData:
    data = images.load("digits")
    return ImageData(data.classes, data.train.subset(torch.arange(IMAGES)), data.test.subset(torch.arange(10)))


def arguments(flags: list[str]):
    return bayes_cnn.parse(flags)[1]


def chain_of(flags: list[str], monkeypatch, double: bool) -> bayes_cnn.Chain:
    """The script's chain; `double` gives it a network in float64, that rounding may hide nothing."""
    if not double:
        return bayes_cnn.Chain(arguments(flags), few_digits(), seed=SEED)
    plain = bayes_cnn.network
    with monkeypatch.context() as patch:
        patch.setattr(bayes_cnn, "network", lambda args, data: plain(args, data).double())
        chain = bayes_cnn.Chain(arguments(flags), few_digits(), seed=SEED)
    chain.forward = lambda x: chain.net(x.double())
    return chain


@dataclass
class Oracle:
    """State of the oracle: a network for its likelihood only, and arrays by the names of the parameters."""

    net: nn.Module
    beta: dict[str, np.ndarray]
    velocity: dict[str, np.ndarray]
    sigma2: float
    rho: dict[str, np.ndarray] = field(default_factory=dict)
    kappa0: dict[str, np.ndarray] = field(default_factory=dict)
    kappa1: dict[str, np.ndarray] = field(default_factory=dict)
    delta: dict[str, float] = field(default_factory=dict)
    keep: dict[str, np.ndarray] = field(default_factory=dict)


def at_the_start(chain: bayes_cnn.Chain, args, wrong: str) -> Oracle:
    net = copy.deepcopy(chain.net).double()
    beta = {name: p.detach().numpy().copy() for name, p in net.named_parameters()}
    scale = args.N or IMAGES
    kappa = args.wdecay * (scale if wrong == "kappa times N" else 1)
    state = Oracle(net, beta, {name: np.zeros_like(w) for name, w in beta.items()}, args.sd**2)
    for name in net.sparse_layers:
        state.rho[name] = np.full(beta[name].shape, 0.5)
        state.kappa0[name], state.kappa1[name] = (np.full(beta[name].shape, kappa) for _ in range(2))
        state.delta[name] = 0.5 if wrong == "theta of one half" else args.theta
        state.keep[name] = np.ones(beta[name].shape, bool)
    return state


def likelihood_gradient(state: Oracle, x: np.ndarray, y: np.ndarray) -> dict[str, np.ndarray]:
    """Of the mean cross-entropy, batch norm in training mode."""
    params = dict(state.net.named_parameters())
    with torch.no_grad():
        for name, p in params.items():
            p.copy_(torch.from_numpy(state.beta[name]))
    loss = cross_entropy(state.net.train()(torch.from_numpy(x).double()), torch.from_numpy(y))
    grads = torch.autograd.grad(loss, list(params.values()))
    return {name: g.numpy() for name, g in zip(params, grads, strict=True)}


def move(state: Oracle, args, grad: dict, normals: torch.Generator, lr: float, tau: float, dtype, wrong: str) -> None:
    """Potential and SGHMC step: v <- m v - eps grad U + N(0, 2 eps (alpha - b) / tau), beta <- beta + v."""
    scale = args.N or IMAGES
    if wrong == "N of the minibatch":
        scale = args.train
    z = torch.randn(sum(w.size for w in state.beta.values()), generator=normals, dtype=dtype).double().numpy()
    friction = (1 - args.momentum) - (0 if wrong == "no b" else lr / 2)
    start = 0
    sigma = math.sqrt(state.sigma2)
    for name, beta in state.beta.items():
        g = grad[name] * (0 if wrong == "no likelihood" else scale)
        if args.prune and name in state.rho:
            l1 = state.kappa0[name] * np.sign(beta) / (1 if wrong == "L1 without sigma" else sigma)
            l2 = state.kappa1[name] * beta / (sigma if wrong == "L2 with sigma" else sigma**2)
            g = g + (0 if wrong == "no L1" else l1) + (0 if wrong == "no L2" else l2)
        elif not (wrong == "no decay" or (wrong == "no decay of sparse layers" and name in state.rho)):
            g = g + args.wdecay * (1 if wrong == "decay without N" else scale) * beta
        noise = math.sqrt(2 * lr * friction / tau) * z[start : start + beta.size].reshape(beta.shape)
        start += beta.size
        velocity = (1 if wrong == "no friction" else args.momentum) * state.velocity[name] - lr * g
        state.velocity[name] = velocity + (0 if wrong == "no noise" else noise)
        state.beta[name] = beta + state.velocity[name]


def adapt(state: Oracle, args, k: int, wrong: str) -> None:
    """Eq. (5), (6), (8), (7) with omega_(k+1); s = 1 in Eq. (5), and sigma^2 is averaged."""
    fixed = args.fix_scale and wrong != "scale not fixed"
    counter = k + (0 if wrong == "omega of k" else 1)
    omega = {"sa": args.dc / (args.da + counter) ** args.dalpha, "em": 1.0, "sghmc": 0.0}[args.c]

    def mixed(old, new):
        return (1 - omega) * old + omega * new

    s = math.sqrt(state.sigma2) if wrong == "sigma in rho" else 1.0
    l1 = l2 = 0.0
    for name in state.rho:
        b, delta, old = state.beta[name], state.delta[name], (state.rho[name], state.kappa0[name], state.kappa1[name])
        slab = -(b**2) / (2 * s**2 * args.v1) - 0.5 * math.log(2 * math.pi * s**2 * args.v1) + math.log(delta)
        spike = -np.abs(b) / (s * args.v0) - math.log(2 * s * args.v0) + math.log1p(-delta)
        state.rho[name] = mixed(old[0], expit(slab - spike))
        rho = old[0] if wrong == "kappa of the old rho" else state.rho[name]
        state.kappa0[name], state.kappa1[name] = mixed(old[1], (1 - rho) / args.v0), mixed(old[2], rho / args.v1)
        ones = (0, 0) if wrong == "delta without -1 -2" else (1, 2)
        total = (old[0] if wrong == "delta of the old rho" else state.rho[name]).sum()
        rate = (total + args.a - ones[0]) / (args.a + args.b + b.size - ones[1])
        state.delta[name] = delta if fixed else mixed(delta, rate)
        kappa0, kappa1 = old[1:] if wrong == "sigma of the old kappa" else (state.kappa0[name], state.kappa1[name])
        l1, l2 = l1 + np.abs(kappa0 * b).sum(), l2 + (kappa1 * b**2).sum()
    weights = sum(w.size for w in state.rho.values())
    c_a, c_c = weights + args.nu + (0 if wrong == "sigma without 2" else 2), l2 + args.nu * args.lamda
    new = (l1 + math.sqrt(l1**2 + 4 * c_a * c_c)) / (2 * c_a)
    if wrong == "sigma averaged, not sigma^2":
        state.sigma2 = mixed(math.sqrt(state.sigma2), new) ** 2
    elif not fixed:
        state.sigma2 = mixed(state.sigma2, new**2)


def prune(state: Oracle, args, k: int, wrong: str) -> None:
    """The bottom s_(k+1) of every sparse layer becomes zero."""
    every, few = (sum(w.size for w in some.values()) for some in (state.beta, state.rho))
    target = math.floor(1000 * args.sparse * every / few) / 1000
    if wrong == "target not floored":
        target = args.sparse * every / few
    if wrong == "target of the layers":
        target = args.sparse
    fraction = target * (1 - args.cut ** ((k + (0 if wrong == "pruning of k" else 1)) / args.gap))
    for name in state.rho:
        beta = state.beta[name]
        rank = {  # what has the smallest number goes first
            "weight": np.abs(beta),
            "unit": np.sqrt((beta**2).sum((1, 2, 3))),
            "rho": state.rho[name],
        }[args.pruning]
        keep = np.ones(rank.size, bool)
        keep[np.argsort(rank.ravel())[: math.floor(fraction * rank.size)]] = False
        state.keep[name] = np.broadcast_to(keep.reshape(rank.shape + (1,) * (4 - rank.ndim)), beta.shape)
        state.beta[name] = state.beta[name] * state.keep[name]
        if wrong == "velocity pruned":
            state.velocity[name] = state.velocity[name] * state.keep[name]


def agree_on_ties(state: Oracle, chain: bayes_cnn.Chain, before: dict[str, np.ndarray]) -> None:
    """Weights that float32 has put on the other side of the threshold follow the chain, if they are next to it."""
    for name, kept in zip(state.rho, chain.pruner.mask.keep, strict=True):
        other = kept.numpy() != state.keep[name]
        if other.any():
            size = np.abs(before[name])
            threshold = size[~state.keep[name]].max()
            assert np.abs(size[other] - threshold).max() < 1e-3 * size.max()
            state.keep[name] = kept.numpy()
            state.beta[name] = before[name] * state.keep[name]


def iterate(chain: bayes_cnn.Chain, flags: list[str], epochs: int, double: bool, wrong: str = ""):
    """The oracle after each epoch; the chain runs beside it."""
    args, data = arguments(flags), few_digits()
    state, before = at_the_start(chain, args, wrong), {}
    dtype = torch.float64 if double else torch.float32
    order, normals, k = stream(SEED, "order"), stream(SEED, "noise"), 0
    pixels = data.train.x.numpy().astype(np.float32) * np.float32(1 / 255)
    pixels, labels = (pixels - np.float32(0.3)) / np.float32(0.38), data.train.y.numpy()
    for epoch in range(epochs):
        lr = args.lr * (1 if wrong == "no milestone" else 0.1 ** sum(epoch >= m for m in args.milestones))
        tau = args.invT * args.anneal ** {"no annealing": 0, "annealed one epoch early": epoch + 1}.get(wrong, epoch)
        rows = torch.randperm(IMAGES, generator=order)[: IMAGES // args.train * args.train].numpy()
        for mine in rows.reshape(-1, args.train):
            k += 1
            move(state, args, likelihood_gradient(state, pixels[mine], labels[mine]), normals, lr, tau, dtype, wrong)
            if args.prune:
                for part in (prune, adapt) if wrong == "pruned before adapting" else (adapt, prune):
                    before = dict(state.beta) if part is prune else before
                    part(state, args, k, wrong)
        chain.epoch()
        if args.prune and not double:
            agree_on_ties(state, chain, before)
        yield state


def arrays(state: Oracle) -> dict[str, np.ndarray]:
    """All numbers of the oracle by name."""
    found = {f"beta {name}": w for name, w in state.beta.items()}
    found |= {f"velocity {name}": w for name, w in state.velocity.items()}
    for latent in (*LATENT, "keep"):
        found |= {f"{latent} {name}": w for name, w in getattr(state, latent).items()}
    found |= {f"delta {name}": np.array(x) for name, x in state.delta.items()}
    buffers = {f"buffer {name}": x.numpy() for name, x in state.net.named_buffers()}
    return found | buffers | {"sigma2": np.array(state.sigma2)}


def chain_arrays(chain: bayes_cnn.Chain) -> dict[str, np.ndarray]:
    """The same numbers of the chain."""
    params, sparse_layers = dict(chain.net.named_parameters()), chain.net.sparse_layers
    found = {f"beta {name}": p.detach() for name, p in params.items()}
    found |= {f"velocity {name}": chain.sampler.velocity(p) for name, p in params.items()}
    for latent in LATENT:
        found |= {f"{latent} {n}": x for n, x in zip(sparse_layers, getattr(chain.prior, latent), strict=True)}
    found |= {f"keep {n}": x for n, x in zip(sparse_layers, chain.pruner.mask.keep, strict=True)}
    found |= {f"delta {n}": x for n, x in zip(sparse_layers, chain.prior.delta, strict=True)}
    found |= {f"buffer {name}": x for name, x in chain.net.named_buffers()}
    return {name: x.numpy() for name, x in (found | {"sigma2": chain.prior.sigma2}).items()}


def differences(state: Oracle, chain: bayes_cnn.Chain, dense: bool) -> dict[str, float]:
    """Largest difference of every array, in units of the largest number of the oracle's."""
    expected, found = arrays(state), chain_arrays(chain)
    assert expected.keys() == found.keys()
    names = [name for name in expected if not (dense and name.startswith((*LATENT, "delta", "sigma2")))]
    result = {}
    for name in names:
        a, b = (x[name].astype(np.float64) for x in (expected, found))
        assert a.shape == b.shape and np.isfinite(a).all() and np.isfinite(b).all()
        result[name] = float(np.abs(a - b).max() / max(np.abs(a).max(), 1e-12))
    return result


def disagreement(case: str, monkeypatch, double: bool, wrong: str = "") -> Iterator[dict[str, float]]:
    """Differences after every one of four epochs."""
    chain = chain_of(CASES[case], monkeypatch, double)
    for state in iterate(chain, CASES[case], 4, double, wrong):
        yield differences(state, chain, dense=case.startswith("dense"))
    kept = float(chain.pruner.mask.density)
    assert kept == 1 if case.startswith("dense") else 0.6 < kept < 0.95


@pytest.mark.parametrize("case", CASES)
def test_iterations_are_those_of_the_equations(case, monkeypatch):
    for epoch in disagreement(case, monkeypatch, double=True):
        assert {name: x for name, x in epoch.items() if not x <= 1e-9} == {}


@pytest.mark.parametrize("case", ["sa", "em", "sghmc", "dense"])
def test_in_float32_the_iterations_are_the_same_up_to_rounding(case, monkeypatch):
    epochs = disagreement(case, monkeypatch, double=False)
    for epoch in (next(epochs), next(epochs)):  # later, rectified units at their kink have differed
        assert {name: x for name, x in epoch.items() if not x <= 1e-3} == {}


SAMPLER = ["no likelihood", "N of the minibatch", "no friction", "no noise", "no b", "no milestone", "no annealing"]
SAMPLER += ["annealed one epoch early", "no decay", "decay without N"]
PRIOR = ["no L1", "no L2", "L1 without sigma", "L2 with sigma", "kappa times N"]
PRUNING = ["target not floored", "target of the layers", "pruning of k", "velocity pruned"]
ADAPTATION = [
    *("pruned before adapting", "sigma in rho", "kappa of the old rho", "delta of the old rho"),
    *("sigma of the old kappa", "delta without -1 -2", "sigma without 2"),
]
TERMS = [("sa", term) for term in (*SAMPLER, *PRIOR, *PRUNING, *ADAPTATION)]
TERMS += [("em", term) for term in (*PRIOR[:-1], *ADAPTATION)]
TERMS += [("sghmc", term) for term in (*PRIOR, *PRUNING)]
TERMS += [("dense", term) for term in (*SAMPLER, "no decay of sparse layers")]
TERMS += [("sa", "omega of k"), ("sa", "sigma averaged, not sigma^2"), ("sa with theta", "theta of one half")]
TERMS += [("sa by rho", "pruned before adapting"), ("sa by filters", "pruning of k")]
TERMS += [("sa with fixed scale", "scale not fixed"), ("em with fixed scale", "scale not fixed")]


@pytest.mark.parametrize("case, term", TERMS)
def test_every_term_matters(case, term, monkeypatch):
    """An oracle that has one term wrong disagrees a thousand times more than the test above allows."""
    epochs = disagreement(case, monkeypatch, double=True, wrong=term)
    assert any(max(epoch.values()) > 1e-6 for epoch in epochs)
