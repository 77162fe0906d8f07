"""Large-p-small-n linear regression, the first experiment of Deng et al. (2019)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy.signal import lfilter
from torch import Tensor

TRUE_MEAN = (3.0, 2.0, 1.0)  # of beta_1, beta_2, beta_3; all others are zero
TRUE_SD = 0.2
NOISE_VARIANCE = 3.0
TEST_POINTS = 50


@dataclass(frozen=True)
class LinearData:
    """y = X beta + eta. x (n, p), y (n,), x_test (50, p), y_test (50,), beta (p,), float64."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    beta: np.ndarray


def _design(rng: np.random.Generator, rows: int, p: int, corr: float) -> np.ndarray:
    """Rows N(0, Sigma) with Sigma_ij = corr^|i-j|, as an AR(1) process along the columns."""
    z = rng.standard_normal((rows, p))
    z[:, 1:] *= np.sqrt(1 - corr**2)
    return lfilter([1.0], [1.0, -corr], z, axis=1)


def simulate(seed: int, n: int = 100, p: int = 1000, corr: float = 0.6) -> LinearData:
    """One data set.

    X ~ N(0, Sigma), Sigma_ij = corr^|i-j|; beta_1..3 ~ N((3, 2, 1), 0.2^2) drawn once, all others
    zero; eta ~ N(0, 3 I). The 50 test points have the same beta and the same noise.

    Raises:
        ValueError: p < 3, n < 1 or corr outside (-1, 1).
    """
    if p < 3 or n < 1 or not -1 < corr < 1:
        raise ValueError(f"the simulation needs p >= 3, n >= 1, -1 < corr < 1; got p={p}, n={n}, corr={corr}")
    rng = np.random.default_rng([seed, 0x51D])
    beta = np.zeros(p)
    beta[:3] = rng.normal(TRUE_MEAN, TRUE_SD)
    x, x_test = _design(rng, n, p, corr), _design(rng, TEST_POINTS, p, corr)
    y = x @ beta + rng.normal(0, np.sqrt(NOISE_VARIANCE), n)
    y_test = x_test @ beta + rng.normal(0, np.sqrt(NOISE_VARIANCE), TEST_POINTS)
    return LinearData(x, y, x_test, y_test, beta)


def minibatches(
    x: Tensor, y: Tensor, generators: Sequence[torch.Generator], steps: int, size: int
) -> tuple[Tensor, Tensor]:
    """Rows of every data set, drawn without replacement by its generator, for `steps` steps.

    x (group, n, p), y (group, 1, n) -> (group, step, size, p), (group, step, 1, size).
    """
    rows = [torch.rand(steps, x.shape[1], generator=g).topk(size).indices for g in generators]
    batch_x = torch.stack([each[i] for each, i in zip(x, rows, strict=True)])
    batch_y = torch.stack([each[0, i] for each, i in zip(y, rows, strict=True)])
    return batch_x, batch_y[:, :, None]
