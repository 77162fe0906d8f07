"""R-hat, effective sample size and saved draws, against ArviZ."""

import numpy as np
import pytest

from experiment.diagnostics import convergence, effective_sample_size, save_netcdf, split_rhat


@pytest.fixture(scope="module")
def arviz():
    import arviz

    return arviz


def autoregressive(chains: int, n: int, rho: float, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    draws = rng.standard_normal((chains, n))
    for k in range(1, n):
        draws[:, k] = rho * draws[:, k - 1] + np.sqrt(1 - rho**2) * draws[:, k]
    return draws


@pytest.mark.parametrize("chains", [2, 4])
@pytest.mark.parametrize("n", [10, 200])
@pytest.mark.parametrize("shift", [0.0, 3.0])
def test_split_rhat_is_that_of_arviz(arviz, chains, n, shift):
    draws = autoregressive(chains, n, 0.5) + shift * np.arange(chains)[:, None]
    assert split_rhat(draws) == pytest.approx(float(arviz.rhat(draws, method="split")), rel=1e-12)


def test_one_chain_that_drifts_is_seen():
    still = autoregressive(1, 1000, 0.0)
    assert abs(split_rhat(still) - 1) < 0.02
    assert split_rhat(still + np.linspace(0, 5, 1000)) > 1.5


def test_an_odd_number_of_draws():
    draws = autoregressive(3, 201, 0.5)
    assert split_rhat(draws) == pytest.approx(split_rhat(draws[:, :200]), rel=1e-12)


def test_effective_sample_size_is_that_of_arviz(arviz):
    draws = autoregressive(2, 500, 0.8)
    size = effective_sample_size(draws)
    assert size == pytest.approx(float(arviz.ess(draws, method="bulk")), rel=1e-12)
    assert 20 < size < 500  # in theory 1000 / 9


def test_a_constant_has_neither():
    assert np.isnan(split_rhat(np.full((2, 50), 3.0)))
    assert np.isnan(effective_sample_size(np.full((1, 50), 3.0)))


def test_convergence_names_every_quantity():
    draws = np.stack([autoregressive(2, 100, 0.3), np.ones((2, 100))], -1)
    found = convergence(draws, ("beta1", "sigma"))
    assert found["rhat"]["beta1"] == split_rhat(draws[..., 0]) and np.isnan(found["rhat"]["sigma"])
    assert found["ess"]["beta1"] == effective_sample_size(draws[..., 0]) and np.isnan(found["ess"]["sigma"])


def test_saved_draws_open_in_arviz(arviz, tmp_path):
    beta = np.random.default_rng(0).normal(size=(2, 30, 4, 5)).astype(np.float32)
    variables = {"beta": beta, "sigma": beta[..., 0]}
    coords = {"cell": ["sa", "em", "sgld", "x"]}
    save_netcdf(tmp_path / "draws.nc", variables, {"beta": ["cell", "coefficient"], "sigma": ["cell"]}, coords)
    posterior = arviz.from_netcdf(str(tmp_path / "draws.nc")).posterior
    assert posterior["beta"].dims == ("chain", "draw", "cell", "coefficient")
    assert posterior["sigma"].dims == ("chain", "draw", "cell")
    assert posterior["cell"].values.tolist() == coords["cell"]
    assert np.array_equal(posterior["beta"].values, beta)
    posterior.close()
