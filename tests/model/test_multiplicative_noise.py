"""Log-normal multiplicative noise against its closed forms in 100 digits, its law, and layers computed by hand."""

import math
from copy import deepcopy
from functools import cache
from itertools import product

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrize
from torchvision.models import resnet18

from model import multiplicative_noise as module
from model.multiplicative_noise import BOUNDS, LogNormalNoise, Noise, add_noise, fold_noise, kl, mean, sample, snr

DIGITS = 100
FUNCTIONS = {"kl": kl, "mean": mean, "snr": snr}
DTYPES = [torch.float32, torch.float64]
MU = (-20.0, -19.9, -10.0, -0.5, 0.0, 0.01, 2.0, 5.0)
LOG_SIGMA = (-20.0, -12.0, -5.0, -3.0, -1.0, 0.0, 0.5, 1.0, 2.0, 5.0)
MIXED = [(-3.0, -1.0), (-1e-5, -12.0), (1e-5, -12.0), (-19.99999, -12.0), (0.3, -8.0), (-7.0, 3.0), (0.15, -3.0)]
U = (0.0, 2.0**-24, 1e-3, 0.3, 0.5, 0.9, 0.999, 1 - 2.0**-24)


def exact(x) -> list:
    """Numbers that float32 holds too: every precision computes at the same point."""
    return torch.tensor(x, dtype=torch.float32).double().tolist()


GRID = exact([*product(MU, LOG_SIGMA), *MIXED])
US = exact(U)


def phi(x):
    return mpmath.erfc(-x / mpmath.sqrt(2)) / 2


def between(lo, hi):
    """Phi(hi) - Phi(lo) from the complements, which do not cancel."""
    return phi(-lo) - phi(-hi) if lo >= 0 else phi(hi) - phi(lo)


def closed_forms(mu, log_sigma):
    """KL, E theta and SNR of the specification."""
    sigma = mpmath.exp(log_sigma)
    alpha, beta = (-20 - mu) / sigma, -mu / sigma
    z = between(alpha, beta)
    ends = (alpha * mpmath.npdf(alpha) - beta * mpmath.npdf(beta)) / (2 * z)
    first = mpmath.exp(mu + sigma**2 / 2) * between(alpha - sigma, beta - sigma) / z
    second = mpmath.exp(2 * (mu + sigma**2)) * between(alpha - 2 * sigma, beta - 2 * sigma) / z
    entropy = mpmath.log(sigma * z * mpmath.sqrt(2 * mpmath.pi * mpmath.e)) + ends
    return mpmath.log(20) - entropy, first, first / mpmath.sqrt(second - first**2)


@cache
def oracle() -> dict[str, torch.Tensor]:
    """Value, d / d mu and d / d log sigma of every function, (points of GRID, 3)."""
    found = {name: [] for name in FUNCTIONS}
    with mpmath.workdps(DIGITS):
        for point in GRID:
            values = closed_forms(*map(mpmath.mpf, point))
            for i, name in enumerate(FUNCTIONS):
                slopes = [mpmath.diff(lambda m, s, i=i: closed_forms(m, s)[i], point, n) for n in ((1, 0), (0, 1))]
                found[name].append([float(x) for x in (values[i], *slopes)])
    return {name: torch.tensor(rows, dtype=torch.float64) for name, rows in found.items()}


def quantile(mu, log_sigma, u):
    """log theta at probability u, and its derivatives in mu and log sigma by those of the distribution function."""
    sigma = mpmath.exp(log_sigma)

    def level(m, s):
        return phi((-20 - m) / mpmath.exp(s)) * (1 - u) + phi(-m / mpmath.exp(s)) * u

    p = level(mu, log_sigma)
    x = normal_quantile(p) if p < 0.5 else -normal_quantile(1 - p)
    y = mu + sigma * x
    slopes = [
        mpmath.diff(lambda m, s: level(m, s) - phi((y - m) / mpmath.exp(s)), (mu, log_sigma), n)
        for n in ((1, 0), (0, 1))
    ]
    return [float(v) for v in (y, *(slope * sigma / mpmath.npdf(x) for slope in slopes))]


def normal_quantile(p):
    """Phi^-1(p) for p < 1/2 of any size, by Newton's method on log Phi."""
    x = mpmath.mpf(float(special.ndtri_exp(float(mpmath.log(p)))))
    for _ in range(6):
        step = mpmath.log(phi(x) / p) * phi(x) / mpmath.npdf(x)
        x -= step
    assert abs(step) < mpmath.mpf(10) ** -25 * (1 + abs(x))
    return x


@cache
def sample_oracle() -> tuple[torch.Tensor, torch.Tensor]:
    """The points (mu, log sigma, u), and log theta with its two derivatives, of GRID times U."""
    points = [(*point, max(u, 2.0**-25)) for point, u in product(GRID, US)]  # float32 has no smaller u but 0
    with mpmath.workdps(60):
        rows = [quantile(*map(mpmath.mpf, point)) for point in points]
    return torch.tensor(points, dtype=torch.float64), torch.tensor(rows, dtype=torch.float64)


def with_gradients(function, *columns: torch.Tensor, dtype: torch.dtype) -> list[torch.Tensor]:
    """Value, d / d mu and d / d log sigma in the dtype, as float64."""
    mu, log_sigma, *rest = (x.to(dtype) for x in columns)
    mu.requires_grad_(), log_sigma.requires_grad_()
    value = function(mu, log_sigma, *rest)
    assert value.dtype == dtype
    return [x.detach().double() for x in (value, *torch.autograd.grad(value.sum(), (mu, log_sigma)))]


def worst(found: torch.Tensor, expected: torch.Tensor, scale=0.0) -> float:
    """The largest error in units of |expected| + scale; infinite where something is not finite."""
    error = (found.double() - expected).abs() / (expected.abs() + scale)
    return error.where(found.isfinite(), math.inf).max().item()


def columns(points) -> tuple[torch.Tensor, ...]:
    return torch.tensor(points, dtype=torch.float64).unbind(-1)


# KL, mean and SNR


@pytest.mark.parametrize(
    "mu, log_sigma", [*product((-20.0, 0.0, 5.0), (-20.0, 5.0)), (0.01, -3.0), (2.0, 0.5), (-19.9, 1.0)]
)
def test_the_closed_forms_are_the_integrals(mu, log_sigma):
    with mpmath.workdps(DIGITS):
        values = closed_forms(mpmath.mpf(mu), mpmath.mpf(log_sigma))
    with mpmath.workdps(40):
        sigma, mode = mpmath.exp(log_sigma), min(max(mpmath.mpf(mu), -20), 0)
        kappa = (mode - mpmath.mpf(mu)) / sigma
        unit = 1 / (abs(kappa) + 1)  # in sigmas, how fast the density falls from its mode
        ends = max((-20 - mode) / sigma / unit, -120), min(-mode / sigma, 120 * unit + 2 * sigma) / unit
        knots = mpmath.linspace(*ends, 25)
        scale = mpmath.expm1(min(1, sigma * unit))

        def integral(f):
            """Over log theta = mode + sigma v, v = unit t, of f(v) and the density; quad wants numbers around 1."""
            return mpmath.quad(lambda t: f(unit * t) * mpmath.exp(-unit * t * (unit * t / 2 + kappa)), knots)

        mass = integral(lambda v: 1)
        first = integral(lambda v: mpmath.expm1(sigma * v) / scale) / mass
        variance = integral(lambda v: (mpmath.expm1(sigma * v) / scale - first) ** 2) / mass
        energy = integral(lambda v: v * (v / 2 + kappa)) / mass
        expected = (
            mpmath.log(20 / (sigma * mass * unit)) - energy,
            mpmath.exp(mode) * (1 + scale * first),
            (1 + scale * first) / (scale * mpmath.sqrt(variance)),
        )
        assert all(abs(a - b) < mpmath.mpf(10) ** -15 * abs(b) for a, b in zip(values, expected, strict=True))


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-9)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_values(name, dtype, tolerance):
    value, *_ = with_gradients(FUNCTIONS[name], *columns(GRID), dtype=dtype)
    assert worst(value, oracle()[name][:, 0], scale=float(name == "kl")) < tolerance


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-9)])
@pytest.mark.parametrize("name", FUNCTIONS)
def test_gradients(name, dtype, tolerance):
    mu, log_sigma = columns(GRID)
    _, d_mu, d_log_sigma = with_gradients(FUNCTIONS[name], mu, log_sigma, dtype=dtype)
    value, in_mu, in_log_sigma = oracle()[name].unbind(-1)
    sigma = log_sigma.exp()
    narrow = sigma.clamp(max=1)
    units = {"kl": (1 / narrow, 1.0), "mean": (value, value * narrow), "snr": (value / narrow, value)}[name]
    assert worst(d_mu, in_mu, scale=0.1 * units[0]) < tolerance
    assert worst(d_log_sigma, in_log_sigma, scale=0.1 * units[1]) < tolerance


@pytest.mark.parametrize("name", FUNCTIONS)
def test_the_quadrature_of_float32_leaves_out_less_than_float32_rounds_off(name, monkeypatch):
    monkeypatch.setattr(module, "_rule", module._rule.__wrapped__)
    monkeypatch.setitem(module.RULES, torch.float64, module.RULES[torch.float32])
    mu, log_sigma = columns(GRID)
    found = with_gradients(FUNCTIONS[name], mu, log_sigma, dtype=torch.float64)
    value, in_mu, in_log_sigma = oracle()[name].unbind(-1)
    narrow, eps = log_sigma.exp().clamp(max=1), torch.finfo(torch.float32).eps
    units = {"kl": (1 / narrow, 1.0), "mean": (value, value * narrow), "snr": (value / narrow, value)}[name]
    assert worst(found[0], value, scale=float(name == "kl")) < eps
    assert worst(found[1], in_mu, scale=units[0]) < eps
    assert worst(found[2], in_log_sigma, scale=units[1]) < eps


def test_the_specification_in_float64_where_it_is_well_conditioned():
    mu, log_sigma = columns(list(product((-14.0, -9.0, -4.0, -1.0, -0.2), (-1.5, -0.5, 0.0, 0.4))))
    m, s = mu.numpy(), log_sigma.exp().numpy()
    alpha, beta = (-20 - m) / s, -m / s
    z = special.ndtr(beta) - special.ndtr(alpha)
    ends = (alpha * stats.norm.pdf(alpha) - beta * stats.norm.pdf(beta)) / (2 * z)
    expected = math.log(20) - np.log(s) - np.log(z) - math.log(math.sqrt(2 * math.pi * math.e)) - ends
    np.testing.assert_allclose(kl(mu, log_sigma).numpy(), expected, rtol=1e-11)
    expected = np.exp(m + s**2 / 2) * (special.ndtr(s - alpha) - special.ndtr(s - beta)) / z
    np.testing.assert_allclose(mean(mu, log_sigma).numpy(), expected, rtol=1e-11)
    second = np.exp(2 * m + 2 * s**2) * (special.ndtr(2 * s - alpha) - special.ndtr(2 * s - beta)) / z
    np.testing.assert_allclose(snr(mu, log_sigma).numpy(), expected / np.sqrt(second - expected**2), rtol=1e-10)


@pytest.mark.parametrize("sigma", [1e-6, 0.01, 0.3, math.sqrt(math.log(2)), 1.0])
@pytest.mark.parametrize("mu", [-10.0, -11.0])
def test_snr_far_from_the_bounds_is_that_of_a_log_normal(mu, sigma):
    found = snr(*columns([mu, math.log(sigma)])).item()
    assert found == pytest.approx(1 / math.sqrt(math.expm1(sigma**2)), rel=1e-9)


def test_snr_crosses_one_at_sigma_squared_log_two():
    log_sigma = 0.5 * math.log(math.log(2)) + torch.tensor([-1e-5, 0.0, 1e-5])
    below, at, above = snr(torch.full((3,), -10.0), log_sigma).tolist()
    assert below > 1 > above and at == pytest.approx(1, abs=1e-6)


def test_a_wide_posterior_is_the_prior():
    """KL vanishes, and the moments are those of the log-uniform law."""
    at = columns([-10.0, 5.0])
    first, second = -math.expm1(-20) / 20, -math.expm1(-40) / 40
    assert kl(*at).item() == pytest.approx(0, abs=1e-6)
    assert mean(*at).item() == pytest.approx(first, rel=0.01)
    assert snr(*at).item() == pytest.approx(first / math.sqrt(second - first**2), rel=0.01)


def test_any_shape_and_every_element_alone():
    mu, log_sigma = (x[:80].reshape(4, 5, 4) for x in columns(GRID))
    for function in FUNCTIONS.values():
        alone = [function(m, s).item() for m, s in zip(mu.flatten(), log_sigma.flatten(), strict=True)]
        together = function(mu, log_sigma)
        assert together.shape == mu.shape
        torch.testing.assert_close(together.flatten(), torch.tensor(alone, dtype=mu.dtype), rtol=1e-12, atol=0)


bounded = st.floats(*BOUNDS, width=32)


@given(bounded, bounded, st.integers(0, 2**24 - 1))
@settings(max_examples=300, deadline=None)
def test_everything_is_finite_and_in_its_range_within_the_bounds(mu, log_sigma, i):
    at = [torch.tensor([x], dtype=torch.float64) for x in (mu, log_sigma)]
    results = {name: with_gradients(function, *at, dtype=torch.float32) for name, function in FUNCTIONS.items()}
    results["sample"] = with_gradients(sample, *at, torch.tensor([i / 2**24]), dtype=torch.float32)
    assert all(x.isfinite().all() for found in results.values() for x in found), results
    assert results["kl"][0] >= -1e-5 and 0 <= results["mean"][0] <= 1 and results["snr"][0] >= 0
    assert torch.tensor(-20.0).exp() <= results["sample"][0] <= 1


# samples

# log theta must survive exp: its scale, sigma or sigma^2 / mu, well above float64's resolution of theta
LAWS = [
    (0.0, -5.0), (0.0, -15.0), (0.0, 5.0), (-10.0, -20.0), (-20.0, -20.0), (-20.0, 5.0), (-20.0, 0.0), (-19.9, 1.0),
    (5.0, 5.0), (5.0, 0.0), (5.0, -3.0), (2.0, 0.5), (0.01, -3.0), (0.02, -5.0), (0.0203, -5.0), (-3.0, 1.0),
]  # fmt: skip


@pytest.mark.parametrize("mu, log_sigma", LAWS)
def test_samples_follow_the_truncated_law(mu, log_sigma):
    u = torch.rand(20_000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    theta = sample(torch.full_like(u, mu), torch.full_like(u, log_sigma), u)
    sigma = math.exp(log_sigma)
    low, high = (-20 - mu) / sigma, -mu / sigma

    def cdf(z: np.ndarray) -> np.ndarray:
        """Of (log theta - mu) / sigma; ratios to Phi(high) do not underflow."""
        at, lowest = (np.exp(special.log_ndtr(x) - special.log_ndtr(high)) for x in (z, low))
        return (at - lowest) / (1 - lowest)

    assert stats.kstest((theta.log().numpy() - mu) / sigma, cdf).pvalue > 1e-4


@pytest.mark.parametrize("beta", [-3.0, -5.0, -100.0, -1e5, -5 / math.exp(-20)])
def test_tail_samples_follow_the_tail(beta):
    """Where theta rounds to 1, in the variable z = (b - log theta) / sigma: P(Z > z) = Phi(beta - z) / Phi(beta)."""
    u = torch.rand(20_000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    z = module._tail(torch.full_like(u, beta), u).numpy()

    def cdf(z: np.ndarray) -> np.ndarray:
        mills = special.erfcx((z - beta) / math.sqrt(2)) / special.erfcx(-beta / math.sqrt(2))
        return 1 - np.exp(-z * (z / 2 - beta)) * mills

    assert stats.kstest(z, cdf).pvalue > 1e-4


@pytest.mark.parametrize("dtype, relative", [(torch.float32, 1e-5), (torch.float64, 1e-11)])
def test_the_tail_is_inverted(dtype, relative):
    points = [
        (-k, u) for k in exact([3, 3.5, 5, 10, 100, 1e4, 2.4e9]) for u in [2.0**-25, *US[1:]] + [2.0**-53] * (k < 1e5)
    ]
    beta, u = columns(points)
    with mpmath.workdps(60):
        expected = [b - normal_quantile(phi(mpmath.mpf(b)) * p) for b, p in points]
    expected = torch.tensor([float(x) for x in expected], dtype=torch.float64)
    found = module._tail(beta.to(dtype), u.to(dtype))
    assert worst(found, expected, scale=-0.1 / beta) < relative  # about -1 / beta is the scale of the tail


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-11)])
def test_samples_are_the_inverse_transform(dtype, tolerance):
    points, expected = sample_oracle()
    theta, *_ = with_gradients(sample, *points.unbind(-1), dtype=dtype)
    assert worst(theta, expected[:, 0].exp()) < tolerance


@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-4), (torch.float64, 1e-6)])
def test_gradients_of_samples(dtype, tolerance):
    """Those of log theta: in mu they are at most 1, in log sigma of the size of sigma, or of 1 if that is less."""
    points, expected = sample_oracle()
    theta, d_mu, d_log_sigma = with_gradients(sample, *points.unbind(-1), dtype=dtype)
    mu, sigma = points[:, 0], points[:, 1].exp()
    assert worst(d_mu / theta, expected[:, 1], scale=1.0) < tolerance
    unit = torch.where(mu > 3 * sigma, 1, sigma.clamp(max=1))  # in the tail theta hardly moves
    assert worst(d_log_sigma / theta, expected[:, 2], scale=unit) < tolerance


@pytest.mark.parametrize("log_sigma", [-10.0, -5.0, -1.0, 0.5])
def test_gradients_of_samples_are_finite_differences(log_sigma):
    u = torch.linspace(0.01, 0.99, 25, dtype=torch.float64)
    sigma = math.exp(log_sigma)
    for mu in (-20.0 + 2 * sigma, -8.0, -sigma, sigma, 2.9 * sigma):
        at = torch.full_like(u, mu), torch.full_like(u, log_sigma)
        theta, d_mu, d_log_sigma = with_gradients(sample, *at, u, dtype=torch.float64)
        h = 1e-4
        in_mu = (sample(at[0] + h * sigma, at[1], u) - sample(at[0] - h * sigma, at[1], u)) / (2 * h * sigma)
        in_log_sigma = (sample(at[0], at[1] + h, u) - sample(at[0], at[1] - h, u)) / (2 * h)
        assert worst(d_mu / theta, in_mu / theta, scale=1.0) < 1e-5
        assert worst(d_log_sigma / theta, in_log_sigma / theta, scale=min(1, sigma)) < 1e-5


@pytest.mark.parametrize("dtype, eps, tolerance", [(torch.float32, 1e-6, 1e-4), (torch.float64, 1e-11, 1e-8)])
@pytest.mark.parametrize("log_sigma", [-20.0, -8.0, -3.0, -1.0, 0.0, 0.5])
def test_samples_are_continuous_where_the_tail_takes_over(log_sigma, dtype, eps, tolerance):
    u = torch.tensor(US[1:], dtype=torch.float64)
    sigma = torch.tensor(log_sigma, dtype=dtype).exp().double()
    sides = []
    for factor in (1 - eps, 1 + eps):
        mu = torch.full_like(u, 3 * sigma * factor)
        at = [x.to(dtype) for x in (mu, torch.full_like(u, log_sigma))]
        assert bool((-at[0] / at[1].exp() < module.TAIL).all()) == (factor > 1)
        sides.append(with_gradients(sample, mu, at[1].double(), u, dtype=dtype))
    for a, b in zip(*sides, strict=True):
        assert worst(a, b, scale=1.0) < tolerance
    below, above = (side[2] / sigma.clamp(max=1) for side in sides)  # d / d log sigma is of the size of sigma
    assert worst(below, above, scale=1.0) < tolerance


@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_at_the_ends_of_u_lie_in_the_interval(dtype):
    points, _ = sample_oracle()
    for u in (0.0, 1 - 2.0**-24, 1 - 2.0**-53, 1.0):
        at = [*points[:, :2].unbind(-1), torch.full((len(points),), u, dtype=torch.float64)]
        found = with_gradients(sample, *at, dtype=dtype)
        assert all(x.isfinite().all() for x in found)
        theta = found[0]
        assert torch.all(theta >= torch.tensor(-20, dtype=dtype).exp()) and torch.all(theta <= 1)


@pytest.mark.parametrize("dtype, least", [(torch.float32, 2.0**-24), (torch.float64, 2.0**-53)])
def test_zero_counts_as_half_the_least_other_u(dtype, least):
    points, _ = sample_oracle()
    zero, half = (
        with_gradients(sample, *points[:, :2].unbind(-1), torch.full((len(points),), u), dtype=dtype)
        for u in (0, least / 2)
    )
    assert all(torch.equal(a, b) for a, b in zip(zero, half, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
def test_samples_grow_with_u(dtype):
    u = torch.linspace(0, 1, 1001, dtype=dtype)
    for mu, log_sigma in GRID:
        theta = sample(torch.full_like(u, mu), torch.full_like(u, log_sigma), u)
        assert torch.all(theta[1:] >= theta[:-1] * (1 - 1e-5)), (mu, log_sigma)


def test_samples_have_the_mean_and_the_snr():
    u = torch.arange(0.5, 200_000, dtype=torch.float64) / 200_000  # a midpoint rule
    for mu, log_sigma in [(-20.0, 5.0), (5.0, 5.0), (0.0, -5.0), (-2.0, 0.0), (2.0, 0.5), (0.5, -2.0), (-10.0, 1.0)]:
        at = torch.tensor(mu, dtype=u.dtype), torch.tensor(log_sigma, dtype=u.dtype)
        theta = sample(at[0].expand_as(u), at[1].expand_as(u), u)
        assert theta.mean().item() == pytest.approx(mean(*at).item(), rel=1e-3)
        assert (theta.mean() / theta.std()).item() == pytest.approx(snr(*at).item(), rel=1e-2)


# layers


def spread(noise: LogNormalNoise, seed: int = 0) -> LogNormalNoise:
    """Parameters that are not those of the start."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        noise.mu.uniform_(-2, 0.5, generator=generator)
        noise.log_sigma.uniform_(-2, 0.5, generator=generator)
    return noise


def drawn(noise: LogNormalNoise, seed: int = 0) -> torch.Tensor:
    """A sample that the layer holds from now on."""
    u = torch.rand(len(noise.mu), generator=torch.Generator().manual_seed(seed))
    noise.theta = sample(noise.mu, noise.log_sigma, u.to(noise.mu.dtype)).detach()
    return noise.theta


def tensor(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


LAYERS = {
    "linear": (lambda: nn.Linear(6, 4), (5, 6)),
    "linear on sequences": (lambda: nn.Linear(6, 4), (2, 3, 6)),
    "convolution": (lambda: nn.Conv2d(6, 4, 3, stride=2, padding=1), (5, 6, 8, 7)),
    "without bias": (lambda: nn.Conv2d(6, 4, 3, bias=False), (5, 6, 8, 7)),
}


def plain(layer: nn.Module, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The layer's output with another weight."""
    if isinstance(layer, nn.Linear):
        return F.linear(x, weight, layer.bias)
    return F.conv2d(x, weight, layer.bias, layer.stride, layer.padding)


def before_bias(layer: nn.Module, x: torch.Tensor, weight: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    bias = 0 if layer.bias is None else layer.bias.view(-1, *[1] * (weight.ndim - 2))
    theta = theta.view(-1, *[1] * (weight.ndim - 2))
    return theta * (plain(layer, x, weight) - bias) + bias


def on_inputs(layer: nn.Module, x: torch.Tensor, weight: torch.Tensor, theta: torch.Tensor) -> torch.Tensor:
    return plain(layer, x * theta.view(-1, *[1] * (weight.ndim - 2)), weight)


@pytest.mark.parametrize("kind", ["linear", "convolution", "without bias"])
def test_noise_as_a_layer_multiplies_the_units_of_the_layer_before(kind):
    make, shape = LAYERS[kind]
    layer, x = make(), tensor(*shape)
    noise = spread(LogNormalNoise(4))
    net = nn.Sequential(layer, noise)
    theta = drawn(noise).view(-1, *[1] * (len(shape) - 2))
    torch.testing.assert_close(net(x), layer(x) * theta)
    net.eval()
    torch.testing.assert_close(net(x), layer(x) * mean(noise.mu, noise.log_sigma).view_as(theta))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("dim, by_hand, units", [(0, before_bias, 4), (1, on_inputs, 6)])
def test_noise_on_a_weight_is_noise_on_outputs_or_inputs(kind, dim, by_hand, units):
    make, shape = LAYERS[kind]
    layer, x = make(), tensor(*shape)
    weight = layer.weight.detach().clone()
    noise = spread(add_noise(layer, dim))
    assert noise.mu.shape == noise.log_sigma.shape == (units,)
    expected = by_hand(layer, x, weight, drawn(noise))
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
    layer.eval()
    expected = by_hand(layer, x, weight, mean(noise.mu, noise.log_sigma))
    torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES)
def test_noise_has_the_type_and_the_mode_of_its_layer(dtype):
    layer = nn.Linear(3, 2).to(dtype).eval()
    noise = add_noise(layer, 0)
    assert noise.mu.dtype == noise.log_sigma.dtype == dtype and not noise.training
    x = tensor(4, 3).to(dtype)
    assert layer(x).dtype == dtype and torch.equal(layer(x), layer(x))
    layer.train()
    assert noise.training and not torch.equal(layer(x), layer(x))


def test_a_minibatch_shares_one_fresh_sample_per_unit():
    torch.manual_seed(0)
    noise = LogNormalNoise(4)
    ones = torch.ones(7, 4, 3, 2)
    first, second = noise(ones), noise(ones)
    assert torch.equal(first, first[:1, :, :1, :1].expand_as(first))
    assert torch.all(first[0, :, 0, 0] != second[0, :, 0, 0]) and first[0, :, 0, 0].unique().numel() == 4


def test_both_ends_of_a_layer_may_have_noise():
    layer, x = nn.Linear(6, 4), tensor(5, 6)
    weight = layer.weight.detach().clone()
    outputs, inputs = spread(add_noise(layer, 0), 1), spread(add_noise(layer, 1), 2)
    expected = weight * drawn(outputs, 3)[:, None] * drawn(inputs, 4)
    torch.testing.assert_close(layer(x), plain(layer, x, expected))


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("dim", [0, 1])
def test_a_new_noise_is_close_to_the_identity(kind, dim):
    make, shape = LAYERS[kind]
    torch.manual_seed(0)
    layer, x = make(), tensor(*shape)
    before = layer(x).detach()
    noise = add_noise(layer, dim)
    assert torch.all(noise.mu == 0) and torch.all(noise.log_sigma == -5)
    for training in (True, False):
        layer.train(training)
        assert (layer(x) - before).norm() < 0.02 * before.norm()
    assert torch.all(noise.mean() > 0.99) and torch.all(noise.snr() > 100)


def test_the_layer_gives_the_functions_of_its_parameters():
    noise = spread(LogNormalNoise(5))
    assert torch.equal(noise.mean(), mean(noise.mu, noise.log_sigma))
    assert torch.equal(noise.snr(), snr(noise.mu, noise.log_sigma))
    assert noise.kl().shape == () and noise.kl().item() == pytest.approx(kl(noise.mu, noise.log_sigma).sum().item())


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("dims", [(0,), (1,), (0, 1)], ids=str)
def test_folding_keeps_the_output_and_leaves_an_ordinary_layer(kind, dims):
    make, shape = LAYERS[kind]
    layer, x = make(), tensor(*shape)
    names = {name: p.shape for name, p in layer.named_parameters()}
    for dim in dims:
        drawn(spread(add_noise(layer, dim), dim))
    before = layer.eval()(x).detach()
    fold_noise(layer)
    assert type(layer) is type(make()) and not parametrize.is_parametrized(layer)
    assert {name: p.shape for name, p in layer.named_parameters()} == names
    assert isinstance(layer.weight, nn.Parameter) and layer.weight.requires_grad
    torch.testing.assert_close(layer(x), before, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(layer.train()(x), before, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_folding_a_network_takes_the_means_in_either_mode(training):
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 16, 5))
    spread(add_noise(net[0], 0)), spread(add_noise(net[3], 1))
    x = tensor(2, 3, 6, 6)
    before = net.eval()(x).detach()
    net.train(training)
    fold_noise(net)
    assert net.training == training == net[0].training == net[3].training
    torch.testing.assert_close(net(x), before, rtol=1e-6, atol=1e-6)
    assert set(net.state_dict()) == {"0.weight", "0.bias", "3.weight", "3.bias"}


def test_a_convolution_of_a_torchvision_network():
    net = resnet18(weights=None, num_classes=4).eval()
    names = {name: x.shape for name, x in net.state_dict().items()}
    conv, x = net.layer2[0].conv1, tensor(2, 3, 32, 32)
    weight = conv.weight.detach().clone()
    with torch.no_grad():
        noise = spread(add_noise(conv, 0))
        assert len(noise.mu) == 128
        noisy = net(x)
        fold_noise(net)
        torch.testing.assert_close(net(x), noisy, rtol=1e-6, atol=1e-6)
    assert {name: x.shape for name, x in net.state_dict().items()} == names
    torch.testing.assert_close(conv.weight.detach(), weight * noise.mean().detach()[:, None, None, None])


# all layers of a network together


def network(seed: int = 0) -> tuple[nn.Module, Noise]:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Tanh(), nn.Flatten(), nn.Linear(64, 5), LogNormalNoise(5))
    layers = {"conv": add_noise(net[0], 0), "fc": add_noise(net[3], 1), "last": net[4]}
    for i, noise in enumerate(layers.values()):
        spread(noise, 10 * seed + i)
    return net, Noise(layers)


def test_a_draw_is_that_of_every_layer_alone():
    _, noise = network()
    found = noise.draw(torch.Generator().manual_seed(3))
    u = torch.rand(4 + 64 + 5, generator=torch.Generator().manual_seed(3)).split([4, 64, 5])
    assert found.shape == (3,)
    for layer, part, divergence in zip(noise.layers.values(), u, found, strict=True):
        torch.testing.assert_close(layer.theta, sample(layer.mu, layer.log_sigma, part), rtol=1e-6, atol=0)
        torch.testing.assert_close(divergence, layer.kl(), rtol=1e-6, atol=0)


def test_a_draw_depends_only_on_its_generator():
    net, noise = network()
    thetas = []
    for seed in (0, 1):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        noise.draw(torch.Generator().manual_seed(3))
        assert torch.equal(torch.get_rng_state(), state)
        thetas.append([layer.theta.detach() for layer in noise.layers.values()])
    assert all(torch.equal(a, b) for a, b in zip(*thetas, strict=True))
    x = tensor(2, 3, 6, 6)
    output = net(x)
    assert torch.equal(net(x), output)  # it stays until the next draw
    noise.draw(torch.Generator().manual_seed(4))
    assert not torch.equal(net(x), output)


def test_the_next_draw_of_a_generator_is_another():
    _, noise = network()
    generator = torch.Generator().manual_seed(0)
    thetas = []
    for _ in range(2):
        noise.draw(generator)
        thetas.append(torch.cat([layer.theta for layer in noise.layers.values()]))
    assert torch.all(thetas[0] != thetas[1])


def test_evaluation_ignores_the_draw():
    net, noise = network()
    x = tensor(2, 3, 6, 6)
    before = net.eval()(x)
    noise.draw()
    assert torch.equal(net(x), before)


def test_a_network_that_forgot_its_draw_can_be_copied():
    net, noise = network()
    noise.draw()
    noise.forget()
    assert all(layer.theta is None for layer in noise.layers.values())
    x = tensor(2, 3, 6, 6)
    assert not torch.equal(net(x), net(x))  # every layer draws for itself again
    assert torch.equal(deepcopy(net).eval()(x), net.eval()(x))


def test_gradients_reach_all_parameters():
    net, noise = network()
    generator = torch.Generator().manual_seed(0)
    for part in ("loss", "kl"):
        net.zero_grad()
        divergence = noise.draw(generator)
        (net(tensor(2, 3, 6, 6)).square().sum() if part == "loss" else divergence.sum()).backward()
        for layer in noise.layers.values():
            for p in (layer.mu, layer.log_sigma):
                assert p.grad.isfinite().all() and p.grad.abs().sum() > 0
        weights = [net[0].parametrizations.weight.original, net[3].parametrizations.weight.original]
        assert all((w.grad is not None and w.grad.abs().sum() > 0) == (part == "loss") for w in weights)


def test_the_gradient_of_a_loss_is_that_through_theta():
    """d loss / d mu by the chain rule: d loss / d theta by hand, and d theta / d mu by the function."""
    net, noise = network()
    noise.draw(torch.Generator().manual_seed(0))
    loss = net(tensor(2, 3, 6, 6)).square().sum()
    layers = list(noise.layers.values())
    through = torch.autograd.grad(loss, [layer.theta for layer in layers], retain_graph=True)
    direct = torch.autograd.grad(loss, [layer.mu for layer in layers])
    u = torch.rand(73, generator=torch.Generator().manual_seed(0)).split([4, 64, 5])
    for layer, part, a, b in zip(layers, u, through, direct, strict=True):
        _, d_mu, _ = with_gradients(
            sample, layer.mu.detach().double(), layer.log_sigma.detach().double(), part, dtype=torch.float32
        )
        torch.testing.assert_close(b, a * d_mu.float(), rtol=1e-5, atol=1e-7)


def test_clip_puts_parameters_back_into_the_bounds():
    _, noise = network()
    inside = torch.cat([layer.mu.detach() for layer in noise.layers.values()])
    noise.clip()
    assert torch.equal(torch.cat([layer.mu.detach() for layer in noise.layers.values()]), inside)
    layer = noise.layers["conv"]
    with torch.no_grad():
        layer.mu.copy_(torch.tensor([-30.0, -20.0, 1.0, 6.0]))
        layer.log_sigma.copy_(torch.tensor([7.0, -21.0, 5.0, -math.inf]))
    noise.clip()
    assert layer.mu.tolist() == [-20, -20, 1, 5] and layer.log_sigma.tolist() == [5, -20, 5, -20]
    assert layer.mu.requires_grad and layer.log_sigma.is_leaf


def test_training_lowers_the_divergence():
    _, noise = network()
    params = [p for layer in noise.layers.values() for p in layer.parameters()]
    optimizer = torch.optim.Adam(params, lr=0.1)
    generator = torch.Generator().manual_seed(0)
    divergences = []
    for _ in range(100):
        optimizer.zero_grad()
        divergence = noise.draw(generator).sum()
        divergence.backward()
        optimizer.step()
        noise.clip()
        divergences.append(divergence.item())
    assert divergences[-1] < 0.1 * divergences[0]


def test_a_state_dict_restores_the_network():
    net, noise = network()
    other, _ = network(seed=1)
    x = tensor(2, 3, 6, 6)
    noise.draw(torch.Generator().manual_seed(0))
    state = {name: value.clone() for name, value in net.state_dict().items()}
    assert {name.rsplit(".", 1)[-1] for name in state} == {"bias", "original", "mu", "log_sigma"}  # theta is not kept
    assert not torch.equal(other.eval()(x), net.eval()(x))
    other.load_state_dict(state)
    assert torch.equal(other(x), net(x))
