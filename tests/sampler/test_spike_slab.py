"""Eq. (5)-(8) against mpmath and numpy, at extreme arguments, and the reductions of SSGLPrior."""

import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sampler import SSGLPrior
from sampler.schedules import Constant, RobbinsMonro
from sampler.spike_slab import (
    average,
    inclusion_log_odds,
    inclusion_probability,
    inclusion_rate,
    penalties,
    penalty_sums,
    potential,
    potential_grad,
    sigma_classification,
    sigma_regression,
    sigma_root,
)

scales = st.floats(1e-4, 10)
variances = st.floats(1e-5, 100)
sigmas = st.floats(1e-2, 50)
weights = st.floats(-1e3, 1e3)
rates = st.floats(1e-6, 1 - 1e-6)


def exact_rho(beta, delta, v0, v1, sigma):
    """Eq. (5) from the two densities, with 60 digits and no logarithms."""
    with mpmath.workdps(60):
        beta, delta, v0, v1, sigma = map(mpmath.mpf, (beta, delta, v0, v1, sigma))
        slab = mpmath.exp(-(beta**2) / (2 * sigma**2 * v1)) / mpmath.sqrt(2 * mpmath.pi * sigma**2 * v1) * delta
        spike = mpmath.exp(-abs(beta) / (sigma * v0)) / (2 * sigma * v0) * (1 - delta)
        return float(slab / (slab + spike))


@given(weights, rates, scales, variances, sigmas)
@settings(max_examples=400, deadline=None)
def test_rho_equals_the_ratio_of_densities(beta, delta, v0, v1, sigma):
    arguments = [torch.tensor(x, dtype=torch.float64) for x in (beta, delta, v0, v1, sigma)]
    assert inclusion_probability(*arguments).item() == pytest.approx(
        exact_rho(beta, delta, v0, v1, sigma), rel=1e-6, abs=1e-12
    )


@given(weights, rates, st.floats(1e-4, 1), variances, sigmas)
@settings(max_examples=300, deadline=None)
def test_rho_is_a_probability_in_float32(beta, delta, v0, v1, sigma):
    rho = inclusion_probability(torch.tensor([beta]), torch.tensor([delta]), torch.tensor([v0]), v1, sigma)
    assert 0 <= rho.item() <= 1


def test_rho_where_the_released_arithmetic_gives_nan():
    beta, delta, v0 = torch.tensor([0.6, 1e3, -1e3, 0.0]), torch.tensor([0.5]), torch.tensor([1e-4])
    slab = torch.exp(-(beta**2) / (2 * 1e-5)) * delta
    spike = torch.exp(-beta.abs() / v0) * (1 - delta)
    assert torch.isnan(slab / (slab + spike))[:3].all()  # the defect
    rho = inclusion_probability(beta, delta, v0, 1e-5)
    assert torch.isfinite(rho).all() and rho[3] < 1 and rho[0] == 0  # v1 = 1e-5 is the narrower law here
    assert torch.equal(inclusion_probability(beta, delta, v0, 10.0)[:3], torch.ones(3))


@pytest.mark.parametrize("delta, expected", [(0.0, 0.0), (1.0, 1.0)])
def test_rho_at_the_ends_of_delta(delta, expected):
    rho = inclusion_probability(torch.tensor([0.0, 1.0, 50.0]), torch.tensor([delta]), torch.tensor([0.1]), 10.0)
    assert torch.equal(rho, torch.full((3,), expected))


@given(rates, scales, variances)
@settings(deadline=None)
def test_penalties(rho, v0, v1):
    kappa0, kappa1 = penalties(torch.tensor([rho], dtype=torch.float64), v0, v1)
    assert kappa0.item() == pytest.approx((1 - rho) / v0) and kappa1.item() == pytest.approx(rho / v1)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=30), st.floats(1, 50), st.floats(1, 500))
@settings(deadline=None)
def test_inclusion_rate_is_the_mode_of_its_beta_posterior(rho, a, b):
    """delta~ maximises Q2 = sum rho log(delta/(1-delta)) + (a-1) log delta + (p+b-1) log(1-delta)."""
    if a + b + len(rho) - 2 < 0.5:
        return
    delta = inclusion_rate(torch.tensor(rho, dtype=torch.float64).sum(), len(rho), a, b).item()
    assert 0 <= delta <= 1
    assert delta == pytest.approx((math.fsum(rho) + a - 1) / (a + b + len(rho) - 2), abs=1e-12)
    if 1e-3 < delta < 1 - 1e-3:
        on, off = math.fsum(rho) + a - 1, len(rho) + b - 1 - math.fsum(rho)
        assert on / delta == pytest.approx(off / (1 - delta), rel=1e-6)  # stationary point


@given(st.floats(1, 1e6), st.floats(0, 1e6), st.floats(1e-6, 1e6))
@settings(max_examples=300, deadline=None)
def test_sigma_is_the_positive_root(quadratic, linear, constant):
    root = sigma_root(quadratic, *(torch.tensor(x, dtype=torch.float64) for x in (linear, constant))).item()
    roots = np.roots([quadratic, -linear, -constant])
    assert root > 0 and root == pytest.approx(max(roots.real), rel=1e-8)


def test_sigma_coefficients_of_regression_and_classification():
    l1, l2, residual = (torch.tensor(x, dtype=torch.float64) for x in (3.0, 5.0, 7.0))
    regression = sigma_regression(l1, l2, residual, observations=100, weights=1000, nu=2.0, lamda=3.0).item()
    assert regression == pytest.approx(max(np.roots([100 + 1000 + 2, -3, -(7 + 5 + 6)]).real))
    classification = sigma_classification(l1, l2, weights=1000, nu=2.0, lamda=3.0).item()
    assert classification == pytest.approx(max(np.roots([1000 + 2 + 2, -3, -(5 + 6)]).real))


def test_gradient_is_the_potentials():
    torch.manual_seed(0)
    beta = torch.randn(2, 3, 7, dtype=torch.float64, requires_grad=True)
    kappa0, kappa1 = torch.rand(2, 3, 7, dtype=torch.float64), torch.rand(2, 3, 7, dtype=torch.float64)
    sigma = torch.rand(2, 3, 1, dtype=torch.float64) + 0.1
    potential(beta, kappa0, kappa1, sigma, chain_dims=2).sum().backward()
    torch.testing.assert_close(potential_grad(beta.detach(), kappa0, kappa1, sigma), beta.grad)
    assert potential_grad(torch.zeros(1), torch.ones(1), torch.ones(1), torch.ones(1)).item() == 0


def test_prior_potential_is_the_expected_log_prior():
    """With rho at 0 or 1 the potential is -log of the Laplace or normal density, up to constants."""
    beta = torch.linspace(-3, 3, 13, dtype=torch.float64)
    sigma, v0, v1 = 1.7, 0.3, 2.5
    for rho, law in (
        (0.0, torch.distributions.Laplace(0, sigma * v0)),
        (1.0, torch.distributions.Normal(0, sigma * v1**0.5)),
    ):
        kappa0, kappa1 = penalties(torch.full_like(beta, rho), v0, v1)
        ours = torch.stack([potential(b, k0, k1, sigma) for b, k0, k1 in zip(beta, kappa0, kappa1, strict=True)])
        theirs = -law.log_prob(beta)
        torch.testing.assert_close((ours - ours[0]).flatten(), theirs - theirs[0])


@pytest.mark.parametrize("omega, expected", [(0.0, 0), (1.0, 1)])
def test_average_is_exact_at_the_ends(omega, expected):
    pair = torch.randn(2, 1000) * 1e5
    assert torch.equal(average(pair[0], pair[1], omega), pair[expected])
    assert torch.equal(average(pair[0], pair[1], torch.full((1000,), omega)), pair[expected])


V0 = 0.1


def make_prior(omega, chains=(), residual=True, seed=0, **settings):
    generator = torch.Generator().manual_seed(seed)
    layers = [torch.nn.Parameter(torch.randn(*chains, *shape, generator=generator)) for shape in ((4, 5), (5, 1))]
    bias = torch.nn.Parameter(torch.randn(*chains, 5, generator=generator))
    defaults = {
        "v0": V0, "v1": 10.0, "a": 1.0, "b": 10.0, "nu": 1.0, "lamda": 1.0, "sigma": 2.0,
        "kappa0": 1e-4, "kappa1": 1e-4, "observations": 30 if residual else 0,
    }  # fmt: skip
    return SSGLPrior(layers, omega=omega, chains=chains, gaussian=[bias], precision=0.5, **defaults | settings)


def independent_update(prior, omega, residual):
    """Algorithm 1's latent update in float64 numpy, written from the specification alone."""
    s2 = prior.sigma2.double().numpy()
    out, rb, j, weights = {"rho": [], "delta": [], "kappa0": [], "kappa1": []}, 0.0, 0.0, 0
    v0, v1 = V0, prior.v1
    for i, layer in enumerate(prior.layers):
        beta = layer.detach().double().numpy().ravel()
        state = {k: getattr(prior, k)[i].double().numpy().ravel() for k in out}
        delta = state["delta"][0]
        a = np.exp(-(beta**2) / (2 * v1)) / np.sqrt(2 * np.pi * v1) * delta
        b = np.exp(-np.abs(beta) / v0) / (2 * v0) * (1 - delta)
        rho = (1 - omega) * state["rho"] + omega * a / (a + b)
        kappa0 = (1 - omega) * state["kappa0"] + omega * (1 - rho) / v0
        kappa1 = (1 - omega) * state["kappa1"] + omega * rho / v1
        new = (rho.sum() + prior.a - 1) / (prior.a + prior.b + rho.size - 2)
        for k, x in (("rho", rho), ("kappa0", kappa0), ("kappa1", kappa1)):
            out[k].append(x)
        out["delta"].append((1 - omega) * delta + omega * new)
        rb, j, weights = rb + np.abs(kappa0 * beta).sum(), j + (kappa1 * beta**2).sum(), weights + rho.size
    if residual is None:
        coefficients = [weights + prior.nu + 2, -rb, -(j + prior.nu * prior.lamda)]
    else:
        coefficients = [prior.observations + weights + prior.nu, -rb, -(residual + j + prior.nu * prior.lamda)]
    out["sigma2"] = (1 - omega) * s2 + omega * max(np.roots(coefficients).real) ** 2
    return out


@pytest.mark.parametrize("residual", [12.5, None])
def test_update_against_an_independent_evaluation(residual):
    prior = make_prior(RobbinsMonro(2.0, 5.0, 0.7), residual=residual is not None)
    for k in range(1, 6):
        expected = independent_update(prior, 2.0 / (5.0 + k) ** 0.7, residual)
        prior.update(None if residual is None else torch.tensor(residual))
        for name in ("rho", "delta", "kappa0", "kappa1"):
            for ours, theirs in zip(getattr(prior, name), expected[name], strict=True):
                np.testing.assert_allclose(ours.numpy().ravel(), theirs, rtol=2e-5, atol=1e-7)
        np.testing.assert_allclose(prior.sigma2.numpy(), expected["sigma2"], rtol=1e-5)


def test_omega_one_is_em_and_omega_zero_a_fixed_prior():
    """The proposals alone (EM), or nothing at all, by two different code paths."""
    em, constant = make_prior(Constant(1.0)), make_prior(RobbinsMonro(1e9, 0.0, 0.5, cap=1.0))
    fixed = make_prior(Constant(0.0))
    before = {k: v.clone() for k, v in fixed.state_dict().items() if k != "k"}
    rho = inclusion_probability(em.layers[0].detach(), torch.tensor([[0.5]]), torch.tensor(0.1), 10.0)
    for prior in (em, constant, fixed):
        prior.update(torch.tensor(3.0))
    for name, x in em.state_dict().items():
        assert torch.equal(x, constant.state_dict()[name])
    assert torch.equal(em.rho[0], rho) and torch.equal(em.kappa0[0], (1 - rho) / 0.1)
    for name, x in before.items():
        assert torch.equal(x, fixed.state_dict()[name])


def test_a_batch_of_chains_equals_the_chains_alone():
    omega = torch.tensor([[0.0, 0.3, 1.0]])
    batch = make_prior(lambda k: omega / k, chains=(2, 3))
    residual = torch.rand(2, 3) * 50
    for w in (*batch.layers, *batch.gaussian):
        w.grad = torch.zeros_like(w)
    for _ in range(3):
        batch.update(residual)
    batch.add_grad()
    for s in range(2):
        for c in range(3):
            alone = make_prior(lambda k, c=c: omega[0, c].item() / k)
            for ours, theirs in zip(alone.layers + alone.gaussian, batch.layers + batch.gaussian, strict=True):
                ours.data = theirs.data[s, c].clone()
                ours.grad = torch.zeros_like(ours)
            for _ in range(3):
                alone.update(residual[s, c])
            alone.add_grad()
            torch.testing.assert_close(alone.sigma2, batch.sigma2[s, c])
            torch.testing.assert_close(alone.delta, batch.delta[s, c])
            for ours, theirs in zip(alone.layers + alone.gaussian, batch.layers + batch.gaussian, strict=True):
                torch.testing.assert_close(ours.grad, theirs.grad[s, c])


def test_fix_scale_keeps_delta_and_sigma():
    prior = make_prior(Constant(1.0), fix_scale=True)
    prior.update(torch.tensor(3.0))
    assert prior.sigma2.item() == 4.0 and all((d == 0.5).all() for d in prior.delta)
    assert not torch.equal(prior.rho[0], torch.full_like(prior.rho[0], 0.5))


def test_state_dict_round_trip():
    prior, copy = make_prior(Constant(0.5)), make_prior(Constant(0.5))
    prior.update(torch.tensor(3.0))
    copy.load_state_dict({k: v.clone() for k, v in prior.state_dict().items()})
    prior.update(torch.tensor(1.0))
    copy.update(torch.tensor(1.0))
    assert all(torch.equal(a, copy.state_dict()[k]) for k, a in prior.state_dict().items())


@given(weights, rates, scales, variances, sigmas)
@settings(max_examples=100, deadline=None)
def test_log_odds_are_finite_in_float32(beta, delta, v0, v1, sigma):
    odds = inclusion_log_odds(torch.tensor(beta), torch.tensor(delta), torch.tensor(v0), v1, sigma)
    assert torch.isfinite(odds)


def test_penalty_sums_are_per_chain():
    beta, kappa = torch.randn(2, 3, 4, 5), torch.rand(2, 3, 4, 5)
    l1, l2 = penalty_sums(beta, kappa, kappa, chain_dims=2)
    assert l1.shape == (2, 3, 1, 1)
    torch.testing.assert_close(l1.flatten(), (kappa * beta.abs()).sum((2, 3)).flatten())
    torch.testing.assert_close(l2.flatten(), (kappa * beta**2).sum((2, 3)).flatten())
