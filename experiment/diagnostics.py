"""Convergence of the draws of one scalar, by ArviZ."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np


def _arviz():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # its once-a-day announcement of version 1
        import arviz
    return arviz


def split_rhat(draws: np.ndarray) -> float:
    """Split-R-hat of draws (chain, draw); every chain counts as two halves, so one chain suffices."""
    chains, n = draws.shape
    if np.ptp(draws) == 0:
        return np.nan  # a quantity that the method keeps fixed
    halves = draws[:, : n - n % 2].reshape(2 * chains, n // 2)
    return float(_arviz().rhat(np.ascontiguousarray(halves), method="identity"))


def effective_sample_size(draws: np.ndarray) -> float:
    """Bulk effective sample size of draws (chain, draw)."""
    if np.ptp(draws) == 0:
        return np.nan
    return float(_arviz().ess(np.ascontiguousarray(draws), method="bulk"))


def convergence(draws: np.ndarray, names: Sequence[str]) -> dict[str, dict[str, float]]:
    """{"ess": {name: ...}, "rhat": {name: ...}} of draws (chain, draw, name)."""
    columns = {name: draws[..., j] for j, name in enumerate(names)}
    return {
        "ess": {name: effective_sample_size(x) for name, x in columns.items()},
        "rhat": {name: split_rhat(x) for name, x in columns.items()},
    }


def save_netcdf(path, variables: dict[str, np.ndarray], dims: dict[str, list[str]], coords: dict) -> None:
    """Draws as the posterior group of a NetCDF file that arviz.from_netcdf opens.

    variables: arrays (chain, draw, *dims).  dims: names of the dimensions behind chain and draw.
    """
    _arviz().from_dict(posterior=variables, dims=dims, coords=coords).to_netcdf(str(path))
