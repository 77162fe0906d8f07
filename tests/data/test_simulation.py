"""The simulated regression has the law that its docstring gives."""

import numpy as np
import pytest

from data.simulation import NOISE_VARIANCE, TEST_POINTS, TRUE_MEAN, TRUE_SD, simulate

PARTS = ("x", "y", "x_test", "y_test", "beta")


def test_shapes():
    data = simulate(0, n=7, p=11)
    assert [getattr(data, part).shape for part in PARTS] == [(7, 11), (7,), (50, 11), (50,), (11,)]
    assert all(getattr(data, part).dtype == np.float64 for part in PARTS)


def test_the_seed_decides():
    first, again, other = simulate(3, 20, 30), simulate(3, 20, 30), simulate(4, 20, 30)
    for part in PARTS:
        assert np.array_equal(getattr(first, part), getattr(again, part))
        assert not np.isin(getattr(first, part)[..., :3], getattr(other, part)[..., :3]).any()


@pytest.mark.parametrize("corr", [0.6, 0.0, -0.9])
def test_covariance_of_the_columns(corr):
    """A product x_i x_j of two standard normals with correlation r has mean r and variance 1 + r^2."""
    n, p = 20_000, 12
    x = simulate(1, n, p, corr).x
    expected = float(corr) ** np.abs(np.subtract.outer(np.arange(p), np.arange(p)))
    z = (x.T @ x / n - expected) / np.sqrt((1 + expected**2) / n)
    assert np.abs(z).max() < 5
    assert np.abs(x.mean(0)).max() * np.sqrt(n) < 5


def test_the_test_points_have_the_same_law_and_are_not_the_training_points():
    x = np.concatenate([simulate(seed, 1, 4).x_test for seed in range(400)])
    expected = 0.6 ** np.abs(np.subtract.outer(np.arange(4), np.arange(4)))
    z = (x.T @ x / len(x) - expected) / np.sqrt((1 + expected**2) / len(x))
    assert len(x) == 400 * TEST_POINTS and np.abs(z).max() < 5
    data = simulate(0, n=TEST_POINTS)
    assert not np.isin(data.x_test, data.x).any()


def test_three_coefficients_around_their_means():
    beta = np.array([simulate(seed, 1, 20).beta for seed in range(500)])
    assert (beta[:, 3:] == 0).all() and (beta[:, :3] != 0).all()
    z = (beta[:, :3] - TRUE_MEAN) / TRUE_SD
    assert np.abs(z.mean(0)).max() * np.sqrt(500) < 5
    assert np.abs((z**2).mean() - 1) / np.sqrt(2 / z.size) < 5


@pytest.mark.parametrize("x, y", [("x", "y"), ("x_test", "y_test")])
def test_variance_of_the_noise(x, y):
    noise = np.concatenate(
        [getattr(d, y) - getattr(d, x) @ d.beta for d in (simulate(seed, 50, 30) for seed in range(100))]
    )
    z = ((noise**2).mean() / NOISE_VARIANCE - 1) / np.sqrt(2 / noise.size)
    assert NOISE_VARIANCE == 3 and abs(z) < 5
    assert abs(noise.mean()) / np.sqrt(NOISE_VARIANCE / noise.size) < 5


@pytest.mark.parametrize(
    "arguments", [{"p": 2}, {"n": 0}, {"corr": 1.0}, {"corr": -1.0}, {"corr": 1.5}, {"corr": float("nan")}]
)
def test_impossible_arguments_are_refused(arguments):
    with pytest.raises(ValueError, match="needs p >= 3"):
        simulate(0, **arguments)
