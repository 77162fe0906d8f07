"""EM-MCMC's sampler against the paper's formulas, its exact stationary law, and SGD."""

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from scipy.linalg import solve_discrete_lyapunov
from torch.nn import Parameter

from sampler import ChainNoise, FlatNoise, PreconditionedSGHMC
from sampler.noise import stream
from sampler.preconditioned import INIT_MOMENTUM, noise_scale

COORDINATES = 100_000
STEPS = 60
SHAPES = ((4, 3), (5,), (2, 3, 2, 2))
STATE = ("rho", "momentum", "noise")
SETTING = {"lr": 0.3, "observations": 7.0, "temperature": 0.6, "momentum": 0.4, "eta": 0.25}  # every term counts
DECAYS = (0.8, np.linspace(0.1, 2, 5), np.array([0.5, 3.0]).reshape(2, 1, 1, 1))


def paper(theta, g, eps, rho, m, z, new_z, *, lr, observations, temperature, momentum, eta, without=""):
    """The specification's step of one parameter, line by line, perhaps without one of its terms."""
    c, N, T, beta0 = math.sqrt(lr), observations, temperature, momentum
    sigmoid = lambda x: 1 / (1 + np.exp(-x))  # noqa: E731
    terms = {
        "decay of rho": T**2 * c**3 * eps * sigmoid(rho),
        "gradient of rho": T * c**1.5 * z * g,
        "entropy": -1 / (sigmoid(rho) * N),
        "friction": beta0 * m,
        "gradient": -(c**2) * g,
        "decay": -(c**2) * eps * theta,
        "noise": math.sqrt(2 + 2 * beta0**2) * c**1.5 * T * new_z,
    }
    if without:
        terms[without] = 0.0
    rho = rho - eta * (terms["decay of rho"] + terms["gradient of rho"] + terms["entropy"])
    m = terms["friction"] + terms["gradient"] + terms["decay"] + terms["noise"]
    return {"theta": theta + sigmoid(rho) * m, "rho": rho, "momentum": m, "noise": new_z}


TERMS = {  # and what they change
    "decay of rho": {"theta", "rho"},
    "gradient of rho": {"theta", "rho"},
    "entropy": {"theta", "rho"},
    "friction": {"theta", "momentum"},
    "gradient": {"theta", "momentum"},
    "decay": {"theta", "momentum"},
    "noise": {"theta", "momentum"},
}


@pytest.fixture(scope="module")
def step():
    """One step from a random state: (before, after), arrays of every parameter."""
    rng = np.random.default_rng(0)
    before = [
        {name: rng.normal(size=shape) for name in ("theta", "g", "rho", "m", "z", "new_z")} | {"eps": eps}
        for shape, eps in zip(SHAPES, DECAYS, strict=True)
    ]
    params = [Parameter(torch.tensor(x["theta"])) for x in before]
    decays = {p: eps if isinstance(eps, float) else torch.tensor(eps) for p, eps in zip(params, DECAYS, strict=True)}
    new_z = [torch.tensor(x["new_z"]) for x in before]
    sampler = PreconditionedSGHMC(params, **SETTING, decay=decays.__getitem__, noise=lambda params: new_z)
    for p, x in zip(params, before, strict=True):
        p.grad = torch.tensor(x["g"])
        sampler.state[p].update(
            {name: torch.tensor(x[key]) for name, key in zip(STATE, ("rho", "m", "z"), strict=True)}
        )
    sampler.step()
    after = [{"theta": p.detach().numpy()} | {name: sampler.state[p][name].numpy() for name in STATE} for p in params]
    return before, after


def test_a_step_is_the_papers(step):
    for x, after in zip(*step, strict=True):
        for name, value in paper(**x, **SETTING).items():
            np.testing.assert_allclose(after[name], value, rtol=1e-13, atol=1e-14, err_msg=name)


@pytest.mark.parametrize("term", TERMS)
def test_every_term_of_the_step_counts(step, term):
    for x, after in zip(*step, strict=True):
        other = paper(**x, **SETTING, without=term)
        changed = {name for name, value in other.items() if not np.allclose(after[name], value, rtol=1e-9)}
        assert changed == TERMS[term]


def test_the_first_step_starts_from_the_papers_state():
    """rho = 0, momentum 0.001 N(0, 1) and noise N(0, 1), three tensors in all; the first two draws are the state's."""
    p = Parameter(torch.zeros(COORDINATES, dtype=torch.float64))
    p.grad = torch.full_like(p, 1e-3)
    sampler = PreconditionedSGHMC([p], **SETTING, noise=FlatNoise(stream(0, "noise")))
    assert torch.equal(sampler.tau(p), torch.full_like(p, 0.5))
    sampler.step()
    draws = FlatNoise(stream(0, "noise"))
    m, z, new_z = (draws([p])[0].numpy() for _ in range(3))
    start = {"theta": np.zeros(COORDINATES), "g": p.grad.numpy(), "eps": 0.0, "rho": np.zeros(COORDINATES)}
    expected = paper(**start, m=INIT_MOMENTUM * m, z=z, new_z=new_z, **SETTING)
    assert set(sampler.state[p]) == set(STATE)
    for name, x in {"theta": p.detach(), **sampler.state[p]}.items():
        np.testing.assert_allclose(x.numpy(), expected[name], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(sampler.tau(p).numpy(), 1 / (1 + np.exp(-expected["rho"])), rtol=1e-12)


def zeros(params):
    return [torch.zeros_like(p) for p in params]


def network() -> torch.nn.Sequential:
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1)).double()


def descend(net: torch.nn.Module, optimizer: torch.optim.Optimizer, steps: int = 30) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    x, y = (torch.randn(20, n, dtype=torch.float64, generator=generator) for n in (4, 1))
    for _ in range(steps):
        optimizer.zero_grad()
        (net(x) - y).square().mean().backward()
        optimizer.step()
    return [p.detach() for p in net.parameters()]


@pytest.mark.parametrize("beta0", [0.0, 0.1, 0.9])
def test_without_temperature_and_eta_it_is_torch_sgd_of_half_the_step(beta0):
    ours, theirs, start = network(), network(), list(network().parameters())
    sampler = PreconditionedSGHMC(
        ours.parameters(), 0.2, observations=20, temperature=0, momentum=beta0, eta=0, decay=0.03, noise=zeros
    )
    sgd = torch.optim.SGD(theirs.parameters(), 0.1, momentum=beta0, weight_decay=0.03)
    for a, b, before in zip(descend(ours, sampler), descend(theirs, sgd), start, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
        assert (a - before).abs().max() > 0.01


def test_without_temperature_it_is_sgd_with_a_scale_that_grows():
    """rho + eta / (tau N), from 0: the same number for every weight, whatever the gradients."""
    ours, theirs, eta, n, lr, beta0, eps = network(), network(), 0.5, 20, 0.2, 0.3, 0.03
    setting = {"observations": n, "temperature": 0, "momentum": beta0, "eta": eta, "decay": eps}
    sampler = PreconditionedSGHMC(ours.parameters(), lr, **setting, noise=zeros)
    sgd = torch.optim.SGD(theirs.parameters(), 1.0, momentum=beta0, weight_decay=eps)
    rho, velocities = 0.0, [torch.zeros_like(p) for p in theirs.parameters()]

    def step():
        nonlocal rho
        rho += eta * (1 + math.exp(-rho)) / n
        for p, v in zip(theirs.parameters(), velocities, strict=True):
            v.mul_(beta0).sub_(lr * (p.grad + eps * p.detach()))
            p.data += v / (1 + math.exp(-rho))

    sgd.step = step
    for a, b in zip(descend(ours, sampler), descend(theirs, sgd), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-13)
    assert rho > 1
    for p in ours.parameters():
        torch.testing.assert_close(sampler.state[p]["rho"], torch.full_like(p, rho), rtol=1e-12, atol=0)


def linear_system(lr: float, curvature: float, eps: float, beta0: float, T: float, tau: float):
    """Transition A and noise covariance Q of (theta, m) in one step at fixed tau, where g = curvature theta."""
    pull = lr * (curvature + eps)  # m' = beta0 m - pull theta + noise, theta' = theta + tau m'
    q = (2 + 2 * beta0**2) * lr**1.5 * T**2
    a = np.array([[1 - tau * pull, tau * beta0], [-pull, beta0]])
    return a, q * np.array([[tau**2, tau], [tau, 1]])


def run(lr: float, curvature: float, eps: float, beta0: float, T: float, tau: float):
    """Start in the stationary law, take STEPS steps; returns (theta, m, exact covariance)."""
    covariance = solve_discrete_lyapunov(*linear_system(lr, curvature, eps, beta0, T, tau))
    start = np.random.default_rng(0).multivariate_normal(np.zeros(2), covariance, COORDINATES)
    theta, m = Parameter(torch.tensor(start[:, 0])), torch.tensor(start[:, 1])
    setting = {"observations": 1, "temperature": T, "momentum": beta0, "eta": 0, "decay": eps}
    sampler = PreconditionedSGHMC([theta], lr, **setting, noise=FlatNoise(stream(0, "noise")))
    rho = torch.full_like(m, math.log(tau / (1 - tau)))
    sampler.state[theta].update(rho=rho, momentum=m, noise=torch.zeros_like(m))
    for _ in range(STEPS):
        theta.grad = curvature * theta.detach()
        sampler.step()
    return theta.detach(), m, covariance


def z_scores(theta, m, covariance) -> list[float]:
    """z of the sample variances and of the sample covariance of centred Gaussians."""
    spread = math.sqrt((covariance[0, 0] * covariance[1, 1] + covariance[0, 1] ** 2) / len(theta))
    variances = [
        (x.square().mean().item() / covariance[i, i] - 1) / math.sqrt(2 / len(x)) for i, x in enumerate((theta, m))
    ]
    return [*variances, ((theta * m).mean().item() - covariance[0, 1]) / spread]


LAWS = [(0.5, 1.0, 0.0, 0.1, 1.0, 0.5), (0.1, 3.0, 2.0, 0.6, 0.03, 0.5), (1.0, 0.5, 0.3, 0.9, 4.0, 0.2)]


@pytest.mark.parametrize("lr, curvature, eps, beta0, T, tau", LAWS)
def test_it_keeps_its_lyapunov_covariance(lr, curvature, eps, beta0, T, tau):
    assert np.abs(z_scores(*run(lr, curvature, eps, beta0, T, tau))).max() < 5


def test_the_lyapunov_test_sees_a_two_percent_error_of_the_noise(monkeypatch):
    monkeypatch.setattr("sampler.preconditioned.noise_scale", lambda *setting: 1.02 * noise_scale(*setting))
    z = z_scores(*run(*LAWS[0]))
    assert z[0] > 5 and z[1] > 5


@pytest.mark.parametrize("beta0, T, tau, curvature, eps", [(0.1, 1.0, 0.5, 1.0, 0.0), (0.7, 0.01, 0.3, 5.0, 2.0)])
def test_the_limit_of_small_steps_is_the_documented_one(beta0, T, tau, curvature, eps):
    errors = []
    for lr in (1e-2, 1e-3, 1e-4):
        covariance = solve_discrete_lyapunov(*linear_system(lr, curvature, eps, beta0, T, tau))
        limit = (1 + beta0**2) / (1 - beta0) * math.sqrt(lr) * tau * T**2 / (curvature + eps)
        errors.append(abs(covariance[0, 0] / limit - 1))
    assert errors[0] < 0.1 and errors[1:] == pytest.approx([errors[0] / 10, errors[0] / 100], rel=0.1)


@pytest.mark.parametrize("temperature, observations", [(1e-4, 1e4), (1e-2, 1e4)])
def test_the_law_is_far_colder_than_the_posterior(temperature, observations):
    covariance = solve_discrete_lyapunov(*linear_system(1.0, 1.0, 0.0, 0.1, temperature, 0.5))
    assert (covariance[0, 0] < 0.001 / observations) == (temperature == 1 / observations)


BAD = {
    "lr": (0.0, -1.0, math.inf, math.nan),
    "observations": (0, -5, math.nan, math.inf),
    "temperature": (-0.1, math.nan, math.inf),
    "momentum": (-0.1, 1.0, math.nan),
    "eta": (-0.1, math.nan, math.inf),
}


@pytest.mark.parametrize("name", BAD)
def test_hyperparameters_out_of_range_are_refused(name):
    p = Parameter(torch.zeros(2))
    for value in BAD[name]:
        with pytest.raises(ValueError, match=f"{name} is out of range: {value}"):
            PreconditionedSGHMC([p], **SETTING | {name: value})
        with pytest.raises(ValueError, match=name):
            PreconditionedSGHMC([{"params": [p], name: value}], **SETTING)
    PreconditionedSGHMC([p], **SETTING | {"temperature": 0, "momentum": 0, "eta": 0})  # the ends of their ranges


def moved(params, sampler, steps: int = 3):
    for _ in range(steps):
        for p in params:
            p.grad = 0.3 * p.detach() + 0.1
        sampler.step()
    return params


def test_state_dict_round_trip():
    params = [Parameter(torch.randn(3, 2)), Parameter(torch.randn(4))]
    noise = stream(1, "noise")
    sampler = PreconditionedSGHMC(params, **SETTING, noise=FlatNoise(noise))
    moved(params, sampler)
    copies = [Parameter(p.detach().clone()) for p in params]
    other = PreconditionedSGHMC(copies, **SETTING | {"lr": 1.0}, noise=FlatNoise(noise.clone_state()))
    other.load_state_dict(deepcopy(sampler.state_dict()))
    for a, b in zip(moved(params, sampler), moved(copies, other), strict=True):
        assert torch.equal(a, b)
        assert all(torch.equal(sampler.state[a][name], other.state[b][name]) for name in STATE)


def test_schedulers_of_torch_set_the_step():
    p, q = Parameter(torch.ones(3)), Parameter(torch.ones(3))
    setting = {"observations": 10, "temperature": 0, "eta": 0, "noise": zeros}
    sampler = PreconditionedSGHMC([p], 0.5, **setting)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(sampler, 10)
    moved([p], sampler, 1)
    scheduler.step()
    assert sampler.param_groups[0]["lr"] == pytest.approx(0.25 * (1 + math.cos(math.pi / 10)))
    moved([p], sampler, 1)
    by_hand = PreconditionedSGHMC([q], 0.5, **setting)
    for lr in (0.5, 0.25 * (1 + math.cos(math.pi / 10))):
        by_hand.param_groups[0]["lr"] = lr
        moved([q], by_hand, 1)
    torch.testing.assert_close(p, q)


def test_parameters_in_channels_last_stay_there():
    p = Parameter(torch.randn(4, 3, 2, 2).contiguous(memory_format=torch.channels_last))
    q = Parameter(p.detach().clone().contiguous())
    for x in (p, q):
        moved([x], PreconditionedSGHMC([x], **SETTING, decay=0.1, noise=FlatNoise(stream(1, "noise"))))
    sampler = PreconditionedSGHMC([p], **SETTING, noise=FlatNoise(stream(1, "noise")))
    moved([p], sampler)
    for x in (p, *sampler.state[p].values()):
        assert x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    moved([q], PreconditionedSGHMC([q], **SETTING, noise=FlatNoise(stream(1, "noise"))))
    torch.testing.assert_close(p.contiguous(), q)


def test_parameters_without_a_gradient_stay():
    p, q = Parameter(torch.ones(2)), Parameter(torch.ones(2))
    sampler = PreconditionedSGHMC([p, q], **SETTING)
    p.grad = torch.ones(2)
    sampler.step()
    assert torch.equal(q, torch.ones(2)) and not torch.equal(p, q) and not sampler.state[q]


def test_a_chain_in_a_batch_is_the_chain_alone():
    shapes = ((3, 2), (1, 4))

    def chains(seeds, cells):
        values = [torch.stack([torch.randn(shape, generator=stream(s, "init", i)) for s in seeds])
                  for i, shape in enumerate(shapes)]  # fmt: skip
        params = [Parameter(x[:, None].expand(-1, cells, *x.shape[1:]).clone()) for x in values]
        noise = ChainNoise([stream(s, "noise") for s in seeds])
        sampler = PreconditionedSGHMC(params, **SETTING, decay=0.2, noise=noise)
        return moved(params, sampler, 5), sampler

    (together, batch), (alone, single) = chains((1, 2, 3), 2), chains((2,), 1)
    for a, b in zip(together, alone, strict=True):
        for cell in range(2):
            torch.testing.assert_close(a[1, cell], b[0, 0])
            for name in ("rho", "momentum"):
                x, y = batch.state[a][name], single.state[b][name]
                torch.testing.assert_close(x.expand_as(a)[1, cell], y[0, 0])
        assert not torch.isclose(a[0], a[1]).any()
