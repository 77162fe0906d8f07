"""The L2 rate of stochastic approximation and the weak convergence of the samples, in small."""

import numpy as np
import pytest
import torch

import sa_convergence
from experiment.progress import progress
from sampler.noise import stream
from sampler.schedules import Constant, RobbinsMonro

OMEGA = RobbinsMonro(1.0, 10.0, 0.7)


def run(lr, omega, iterations=4000, count=500):
    model = sa_convergence.Conjugate(seed=1)
    with torch.no_grad(), progress(iterations, 0, "it", "test") as bar:
        k, theta, beta = sa_convergence.chains(model, lr, omega, iterations, count, stream(1, "test"), bar)
    return model, k.numpy(), (theta - model.fixed_point(lr)).numpy(), beta


def test_the_closed_form_is_the_fixed_point():
    """theta* solves E[h(theta)] = theta with exact draws of beta from its conditional."""
    model = sa_convergence.Conjugate(seed=1)
    beta = model.mean + model.theta**0.5 * torch.randn(200_000, 10, dtype=torch.float64)
    energy = (model.y - beta @ model.x.T).square().sum(1) + beta.square().sum(1) / sa_convergence.V1
    new = (energy + 1) / (sa_convergence.OBSERVATIONS + sa_convergence.WEIGHTS + 1)
    z = (new.mean() - model.theta) / (new.std() / len(new) ** 0.5)
    assert abs(z) < 5


def test_mean_squared_error_falls_in_proportion_to_omega():
    _, k, error, _ = run(0.1, OMEGA)
    late = k >= 300
    slope, se = sa_convergence.slope(OMEGA(torch.tensor(k[late])).numpy(), error[late], np.random.default_rng(0))
    assert se < 0.1
    assert abs(slope - 1) < 5 * se
    _, _, em, _ = run(0.1, Constant(1.0), iterations=1000)
    assert np.square(em[-1]).mean() > 10 * np.square(error[-1]).mean()  # EM keeps its noise


def test_samples_converge_to_the_posterior_at_theta_star():
    """Variance of beta_k over chains: theta*_eps / (1 - eps/2), which tends to theta* with eps."""
    for lr in (0.4, 0.1):
        model, _, _, beta = run(lr, OMEGA, iterations=2000)
        standard = (beta[-1] - model.mean).square()
        expected = model.fixed_point(lr) / (1 - lr / 2)
        # theta_k is still random; its relative sd at k = 2000 is a few percent and enters squared
        assert standard.mean().item() == pytest.approx(expected, rel=5 * (2 / standard.numel()) ** 0.5 + 0.01)
