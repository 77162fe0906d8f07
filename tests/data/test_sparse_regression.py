"""The simulated regressions have the law that their docstrings give."""

import math

import numpy as np
import pytest
from scipy.stats import kstest, norm

from data import sparse_regression
from data.sparse_regression import EXAMPLES, TEST, TRAIN, simulate

PARTS = ("x", "y", "x_test", "y_test")


@pytest.mark.parametrize("number, p, relevant", [(1, 1000, 5), (2, 2000, 5), (3, 1000, 4)])
def test_shapes(number, p, relevant):
    data = simulate(number, 0, train=7, test=5)
    assert [getattr(data, part).shape for part in PARTS] == [(7, p), (7,), (5, p), (5,)]
    assert all(getattr(data, part).dtype == np.float32 for part in PARTS)
    assert EXAMPLES[number].relevant == relevant and (TRAIN, TEST) == (10_240, 1_024)


def test_there_are_three_examples():
    with pytest.raises(KeyError):
        simulate(4, 0, 2, 2)


def test_the_seed_and_the_example_decide():
    first, again = simulate(1, 3, 20, 30), simulate(1, 3, 20, 30)
    others = simulate(1, 4, 20, 30), simulate(3, 3, 20, 30)
    for part in PARTS:
        assert np.array_equal(getattr(first, part), getattr(again, part))
    pairs = [(getattr(first, part), getattr(other, part)) for part in ("x", "x_test") for other in others]
    for a, b in [*pairs, (first.x_test, simulate(1, 3, 30, 5).x)]:
        assert np.isclose(a, b).mean() < 0.01


@pytest.fixture(scope="module")
def rows() -> np.ndarray:
    """(20,000, 1000), of both parts."""
    data = simulate(1, 1, 10_000, 10_000)
    return np.concatenate([data.x, data.x_test]).astype(np.float64)


def test_every_two_columns_have_correlation_one_half(rows):
    """A product x_i x_j of two standard normals with correlation r has mean r and variance 1 + r^2."""
    x = rows[:, [*range(10), *range(500, 505), *range(995, 1000)]]
    expected = (1 + np.eye(x.shape[1])) / 2
    z = (x.T @ x / len(x) - expected) / np.sqrt((1 + expected**2) / len(x))
    assert np.abs(z).max() < 5
    assert np.abs(x.mean(0)).max() * math.sqrt(len(x)) < 5


def test_a_row_is_one_common_and_many_own_normals(rows):
    """Differences of two columns have lost the common part; the mean of all columns is the common part, nearly."""
    for sample, variance in ((rows[:, 0] - rows[:, 1], 1), (rows.mean(1), 0.5 + 0.5 / 1000), (rows[:, 2], 1)):
        assert kstest(sample / math.sqrt(variance), norm.cdf).pvalue > 1e-6


def test_the_normals_are_truncated(monkeypatch):
    """At 10 nobody sees it, at 1 everybody does."""
    bound = math.sqrt(2) * 10
    assert np.abs(simulate(1, 0, 2000, 5).x).max() < bound == math.sqrt(2) * sparse_regression.BOUND
    monkeypatch.setattr(sparse_regression, "BOUND", 1.0)
    x = simulate(1, 0, 2000, 5).x.astype(np.float64)
    assert 1.3 < np.abs(x).max() <= math.sqrt(2) + 1e-6
    variance = 1 - 2 * norm.pdf(1) / (norm.cdf(1) - norm.cdf(-1))  # of a truncated normal
    assert abs((x[:, 0] - x[:, 1]).var() / variance - 1) / math.sqrt(2 / len(x)) < 5


def formula(number: int, row: np.ndarray) -> float:
    """The paper's f, in plain Python."""
    x1, x2, x3, x4, x5 = (float(value) for value in row[:5])
    if number == 1:
        first = math.tanh(2 * math.tanh(2 * x1 - x2))
        return first + 2 * math.tanh(math.tanh(x3 - 2 * x4)) - math.tanh(2 * x5)
    if number == 2:
        return 5 * x2 / (1 + x1 * x1) + 5 * math.sin(x3 * x4) + 2 * x5
    return math.exp(x1) + x2 * x2 + 5 * math.sin(x3 * x4) - 3


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize("seed", [0, 1])
def test_regressions_are_their_formula_and_standard_noise(number, seed):
    data = simulate(number, seed, 2000, 1000)
    for x, y in ((data.x, data.y), (data.x_test, data.y_test)):
        noise = y - np.array([formula(number, row) for row in x])
        assert kstest(noise, norm.cdf).pvalue > 1e-6
        assert abs(noise.var() - 1) / math.sqrt(2 / len(noise)) < 5
    assert data.floor == pytest.approx((noise**2).mean(), rel=1e-5)  # of the test part
    assert abs(np.corrcoef(noise, data.x_test[:, :5].T)[0, 1:]).max() * math.sqrt(len(noise)) < 5


def test_classes_are_where_the_formula_is_positive():
    data = simulate(3, 0, 1000, 500)
    for x, y in ((data.x, data.y), (data.x_test, data.y_test)):
        assert set(y.tolist()) == {0.0, 1.0}
        f = np.array([formula(3, row) for row in x])
        assert np.array_equal(y, f > 0)
    assert data.floor == 0


def test_the_classes_are_of_similar_size():
    """The share of class 1 by independent draws of the four variables."""
    r = np.random.default_rng(99).standard_normal((40_000, 5))
    x1, x2, x3, x4 = ((r[:, :4] + r[:, 4:]) / math.sqrt(2)).T
    share = (np.exp(x1) + x2**2 + 5 * np.sin(x3 * x4) - 3 > 0).mean()
    ours = simulate(3, 5).y.mean()
    assert 0.3 < share < 0.7
    assert abs(ours - share) / math.sqrt(share * (1 - share) * (1 / TRAIN + 1 / 40_000)) < 5


@pytest.mark.parametrize("number", EXAMPLES)
def test_every_relevant_variable_matters(number):
    example = EXAMPLES[number]
    x = np.random.default_rng(0).normal(size=(50, example.relevant))
    for j in range(example.relevant):
        moved = x.copy()
        moved[:, j] += 0.5
        assert np.median(np.abs(example.f(x) - example.f(moved))) > 0.01
