"""SGLD and SGHMC against their exact stationary laws on quadratic potentials, and against SGD."""

import math
from copy import deepcopy

import numpy as np
import pytest
import torch
from scipy.linalg import solve_discrete_lyapunov

from sampler import SGHMC, SGLD, ChainNoise, FlatNoise
from sampler.noise import stream
from sampler.sgmcmc import sgld, sgld_noise_scale
from sampler.temperature import configurational_temperature, kinetic_temperature

COORDINATES = 100_000
STEPS = 60


def linear_system(name: str, lr: float, curvature: float, momentum: float, invT: float):
    """State transition A and noise covariance Q of one step on U = curvature beta^2 / 2."""
    if name == "sgld":
        return np.array([[1 - lr * curvature]]), np.array([[2 * lr / invT]])
    q = 2 * lr * (1 - momentum - lr / 2) / invT
    # state (beta, v): v' = m v - lr curvature beta + noise, beta' = beta + v'
    a = np.array([[1 - lr * curvature, momentum], [-lr * curvature, momentum]])
    return a, q * np.ones((2, 2))


def run(name: str, lr: float, curvature: float, momentum: float, invT: float, seed: int = 0):
    """Start in the stationary law, take STEPS steps; returns (beta, v, A, exact covariance)."""
    a, q = linear_system(name, lr, curvature, momentum, invT)
    covariance = solve_discrete_lyapunov(a, q)
    start = np.random.default_rng(seed).multivariate_normal(np.zeros(len(a)), covariance, COORDINATES)
    beta = torch.nn.Parameter(torch.tensor(start[:, 0]))
    noise = FlatNoise(torch.Generator().manual_seed(seed))
    if name == "sgld":
        sampler = SGLD([beta], lr=lr, invT=invT, noise=noise)
    else:
        sampler = SGHMC([beta], lr=lr, momentum=momentum, invT=invT, noise=noise)
        sampler.state[beta]["velocity"] = torch.tensor(start[:, 1])
    for _ in range(STEPS):
        beta.grad = curvature * beta.detach()
        sampler.step()
    velocity = sampler.state[beta]["velocity"] if name == "sghmc" else None
    return beta.detach(), velocity, covariance


def z_score(sample: torch.Tensor, variance: float) -> float:
    """z of a sample variance of independent Gaussians with mean zero."""
    return (sample.square().mean().item() / variance - 1) / math.sqrt(2 / len(sample))


@pytest.mark.parametrize("lr, curvature, invT", [(0.1, 1.0, 1.0), (0.5, 2.0, 7.0), (0.01, 20.0, 0.3)])
def test_sgld_keeps_its_discrete_stationary_variance(lr, curvature, invT):
    beta, _, covariance = run("sgld", lr, curvature, 0.0, invT)
    assert covariance[0, 0] == pytest.approx(1 / (invT * curvature * (1 - lr * curvature / 2)))  # as documented
    assert abs(z_score(beta, covariance[0, 0])) < 5


@pytest.mark.parametrize(
    "lr, curvature, momentum, invT", [(0.05, 1.0, 0.9, 1.0), (0.1, 3.0, 0.5, 4.0), (0.01, 10.0, 0.9, 0.2)]
)
def test_sghmc_keeps_its_lyapunov_covariance(lr, curvature, momentum, invT):
    beta, velocity, covariance = run("sghmc", lr, curvature, momentum, invT)
    assert abs(z_score(beta, covariance[0, 0])) < 5
    assert abs(z_score(velocity, covariance[1, 1])) < 5
    cross = (beta * velocity).mean().item() - covariance[0, 1]
    spread = math.sqrt((covariance[0, 0] * covariance[1, 1] + covariance[0, 1] ** 2) / COORDINATES)
    assert abs(cross / spread) < 5
    # the factor that the docstring gives for both variances
    factor = (1 - lr / 2 / (1 - momentum)) / (1 - lr * curvature / (2 * (1 + momentum)))
    assert covariance[0, 0] == pytest.approx(factor / (invT * curvature))
    assert covariance[1, 1] == pytest.approx(factor * 2 * lr / (invT * (1 + momentum)))


def test_the_lyapunov_test_sees_a_two_percent_error_of_the_noise():
    beta, _, covariance = run("sgld", 0.5, 1.0, 0.0, 1.0)
    assert abs(z_score(beta * 1.02, covariance[0, 0])) > 5


def test_both_temperatures_agree_with_the_claimed_one():
    lr, curvature, momentum, invT = 0.01, 1.0, 0.9, 4.0
    beta, velocity, _ = run("sghmc", lr, curvature, momentum, invT)
    bias = (1 - lr / 2 / (1 - momentum)) / (1 - lr * curvature / (2 * (1 + momentum)))
    tolerance = 5 * math.sqrt(2 / COORDINATES) / invT
    assert kinetic_temperature([velocity], lr, momentum).item() == pytest.approx(bias / invT, abs=tolerance)
    configurational = configurational_temperature([beta], [curvature * beta]).item()
    assert configurational == pytest.approx(bias / invT, abs=tolerance)


def test_temperatures_are_per_chain_and_average_over_all_parameters():
    v = [torch.randn(3, 2, 5, dtype=torch.float64), torch.randn(3, 2, 4, 6, dtype=torch.float64)]
    expected = torch.cat([x.flatten(2) for x in v], -1).square().mean(-1) * 1.9 / 2 / 0.3
    assert torch.allclose(kinetic_temperature(v, 0.3, 0.9, chain_dims=2), expected)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_zero_temperature_is_torch_sgd(momentum):
    torch.manual_seed(0)
    x, y = torch.randn(20, 4), torch.randn(20, 1)
    ours = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    theirs = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
    theirs.load_state_dict(ours.state_dict())
    if momentum:
        sampler = SGHMC(ours.parameters(), lr=0.02, momentum=momentum, invT=math.inf)
    else:
        sampler = SGLD(ours.parameters(), lr=0.02, invT=math.inf)
    sgd = torch.optim.SGD(theirs.parameters(), lr=0.02, momentum=momentum)
    for _ in range(50):
        for net, optimizer in ((ours, sampler), (theirs, sgd)):
            optimizer.zero_grad()
            (net(x) - y).square().sum().backward()
            optimizer.step()
    for a, b in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_the_functional_step_is_the_optimizer():
    beta = torch.randn(50, dtype=torch.float64)
    p = torch.nn.Parameter(beta.clone())
    p.grad = torch.randn(50, dtype=torch.float64)
    noise = torch.randn(50, dtype=torch.float64)
    SGLD([p], lr=0.1, invT=3.0, noise=lambda params: [noise]).step()
    expected = sgld(beta, p.grad, noise * sgld_noise_scale(0.1, 3.0), torch.tensor(0.1, dtype=torch.float64))
    torch.testing.assert_close(p.detach(), expected)


def test_gradient_noise_adds_its_variance():
    assert sgld_noise_scale(0.1, 2.0, gradient_sd=3.0) ** 2 == pytest.approx(2 * 0.1 / 2.0 + (0.1 * 3.0) ** 2)


@pytest.mark.parametrize("make", [lambda p, t, n: SGLD([p], 0.1, t, n), lambda p, t, n: SGHMC([p], 0.1, 0.9, t, n)])
def test_a_temperature_per_chain(make):
    """Chain c of a batch moves as it would alone at its own temperature."""
    noise = torch.randn(1, 1, 4)
    temperatures = torch.tensor([[1.0, 5.0, math.inf]])
    batch = torch.nn.Parameter(torch.zeros(1, 3, 4))
    batch.grad = torch.ones_like(batch)
    make(batch, temperatures, lambda params: [noise]).step()
    for c, invT in enumerate(temperatures[0].tolist()):
        alone = torch.nn.Parameter(torch.zeros(4))
        alone.grad = torch.ones_like(alone)
        make(alone, invT, lambda params: [noise[0, 0]]).step()
        torch.testing.assert_close(batch.detach()[0, c], alone.detach())


def test_schedulers_and_state_dict_work_as_on_any_optimizer():
    p = torch.nn.Parameter(torch.ones(3))
    sampler = SGHMC([p], lr=0.1, momentum=0.5, invT=math.inf)
    scheduler = torch.optim.lr_scheduler.StepLR(sampler, 1, gamma=0.1)
    p.grad = torch.ones(3)
    sampler.step()
    scheduler.step()
    assert sampler.param_groups[0]["lr"] == pytest.approx(0.01)
    q = torch.nn.Parameter(p.detach().clone())
    copy = SGHMC([q], lr=0.1, momentum=0.5, invT=math.inf)
    copy.load_state_dict(deepcopy(sampler.state_dict()))
    q.grad = torch.ones(3)
    sampler.step()
    copy.step()
    assert torch.equal(p, q)


@pytest.mark.parametrize(
    "arguments, words",
    [
        ({"lr": 0.5, "momentum": 0.9}, "too large for the step size"),
        ({"lr": 0.1, "momentum": 1.0}, "momentum must lie in"),
        ({"lr": 0.0}, "lr must be positive"),
        ({"lr": 0.1, "invT": 0.0}, "invT must be positive"),
    ],
)
def test_impossible_settings_are_refused(arguments, words):
    with pytest.raises(ValueError, match=words):
        SGHMC([torch.nn.Parameter(torch.zeros(1))], **arguments)


def test_chain_noise_depends_on_the_group_only():
    """A group's noise is the same whichever groups and cells run beside it, and in any block size."""

    def draws(seeds, cells, block, steps=5):
        source = ChainNoise([stream(s, "noise") for s in seeds], block=block)
        params = [torch.zeros(len(seeds), cells, 3), torch.zeros(len(seeds), cells, 2, 2)]
        return [[z.clone() for z in source(params)] for _ in range(steps)]

    together, alone = draws([1, 2, 3], 4, 5), draws([2], 1, 5)
    for a, b in zip(together, alone, strict=True):
        assert a[0].shape == (3, 1, 3) and a[1].shape == (3, 1, 2, 2)
        assert torch.equal(a[0][1], b[0][0]) and torch.equal(a[1][1], b[1][0])


def test_chain_noise_resumes_inside_a_block():
    source = ChainNoise([stream(1, "noise"), stream(2, "noise")], block=4)
    params = [torch.zeros(2, 1, 5)]
    for _ in range(6):
        source(params)
    state = {k: v.clone() for k, v in source.state_dict().items()}
    expected = [source(params)[0].clone() for _ in range(7)]
    copy = ChainNoise([stream(9, "noise"), stream(8, "noise")], block=4)
    copy.load_state_dict(state)
    assert all(torch.equal(copy(params)[0], e) for e in expected)


def test_streams_of_different_purposes_differ():
    first = [torch.randn(4, generator=stream(*key)) for key in ((1, "a"), (1, "b"), (2, "a"), (1, "a", 1))]
    assert all(not torch.equal(a, b) for i, a in enumerate(first) for b in first[:i])
    assert torch.equal(first[0], torch.randn(4, generator=stream(1, "a")))


def test_a_padded_group_draws_what_it_draws_alone():
    """The second group needs the first five of its nine values, as if its last parameter had the shape (2, 1)."""
    source, alone = ChainNoise([stream(1, "noise"), stream(2, "noise")], block=2), ChainNoise([stream(2, "noise")], 2)
    source.used = [9, 5]
    whole = ChainNoise([stream(1, "noise")], 2)
    for _ in range(5):
        a, b = source([torch.ones(2, 3, 3), torch.ones(2, 3, 3, 2)])
        assert a.shape == (2, 1, 3) and b.shape == (2, 1, 3, 2)
        c, d = alone([torch.ones(1, 1, 3), torch.ones(1, 1, 1, 2)])
        assert torch.equal(a[1], c[0]) and torch.equal(b[1, :, :1], d[0])
        assert (b[1, :, 1:] == 0).all()
        for x, y in zip((a, b), whole([torch.ones(1, 1, 3), torch.ones(1, 1, 3, 2)]), strict=True):
            assert torch.equal(x[0], y[0]) and (x[0] != 0).all()


def test_a_group_that_needs_nothing_draws_nothing():
    source = ChainNoise([stream(1, "noise"), stream(2, "noise")])
    source.used = [0, 4]
    (z,) = source([torch.ones(2, 1, 4)])
    assert (z[0] == 0).all() and (z[1] != 0).all()
    assert torch.equal(source.generators[0].get_state(), stream(1, "noise").get_state())


@pytest.mark.parametrize("numel", [3, 16, 50, 1000])  # torch.randn has another loop for less than 16
def test_all_used_is_the_same_as_none_said(numel):
    said, silent = (ChainNoise([stream(1, "noise"), stream(2, "noise")]) for _ in range(2))
    said.used = [numel, numel]
    for _ in range(3):
        assert torch.equal(said([torch.ones(2, 1, numel)])[0], silent([torch.ones(2, 1, numel)])[0])


def test_padded_noise_resumes_inside_a_block():
    source = ChainNoise([stream(1, "noise"), stream(2, "noise")], block=4)
    source.used = [3, 5]
    params = [torch.zeros(2, 1, 5)]
    for _ in range(6):
        source(params)
    state = {k: v.clone() for k, v in source.state_dict().items()}
    expected = [source(params)[0].clone() for _ in range(7)]
    copy = ChainNoise([stream(9, "noise"), stream(8, "noise")], block=4)
    copy.used = [3, 5]
    copy.load_state_dict(state)
    assert all(torch.equal(copy(params)[0], e) for e in expected)
