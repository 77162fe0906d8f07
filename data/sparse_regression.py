"""Simulated regressions in which a few of very many correlated variables matter (Ke and Fan 2022, Examples 1 to 3)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

TRAIN, TEST = 10_240, 1_024  # rows
BOUND = 10.0  # of the normals behind the variables


@dataclass(frozen=True)
class Example:
    """What y is, given x (rows, p): f(x) + N(0, 1), or, of a classification, 1 where f(x) > 0.

    p: number of variables.  relevant: how many of them, the first ones, f depends on.
    """

    p: int
    relevant: int
    classification: bool
    f: Callable[[np.ndarray], np.ndarray]  # of the relevant ones, float64


def _first(x: np.ndarray) -> np.ndarray:
    x1, x2, x3, x4, x5 = x.T
    return np.tanh(2 * np.tanh(2 * x1 - x2)) + 2 * np.tanh(np.tanh(x3 - 2 * x4)) - np.tanh(2 * x5)


def _second(x: np.ndarray) -> np.ndarray:
    x1, x2, x3, x4, x5 = x.T
    return 5 * x2 / (1 + x1**2) + 5 * np.sin(x3 * x4) + 2 * x5


def _third(x: np.ndarray) -> np.ndarray:
    x1, x2, x3, x4 = x.T
    return np.exp(x1) + x2**2 + 5 * np.sin(x3 * x4) - 3


EXAMPLES = {
    1: Example(1000, 5, False, _first),
    2: Example(2000, 5, False, _second),
    3: Example(1000, 4, True, _third),
}


@dataclass(frozen=True)
class SparseData:
    """x (n, p), y (n,), x_test (m, p), y_test (m,), float32; of a classification y is 0 or 1.

    floor: mean loss of f itself on the test part, which no estimate can be expected to beat.
    """

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray
    floor: float


def _normals(rng: np.random.Generator, *shape: int) -> np.ndarray:
    """Standard normals truncated to [-BOUND, BOUND], float32."""
    r = rng.standard_normal(shape, dtype=np.float32)
    while (far := np.abs(r) > BOUND).any():
        r[far] = rng.standard_normal(int(far.sum()), dtype=np.float32)
    return r


def _rows(example: Example, rng: np.random.Generator, rows: int) -> tuple[np.ndarray, np.ndarray, float]:
    """x_j = (r_0 + r_j) / sqrt 2, so that every two columns have correlation 1/2; y; mean squared noise of y."""
    x = (_normals(rng, rows, example.p) + _normals(rng, rows, 1)) / np.sqrt(np.float32(2))
    f = example.f(x[:, : example.relevant].astype(np.float64))
    noise = 0 if example.classification else rng.standard_normal(rows)
    y = f > 0 if example.classification else f + noise
    return x, y.astype(np.float32), float(np.mean(np.square(noise)))


def simulate(number: int, seed: int, train: int = TRAIN, test: int = TEST) -> SparseData:
    """One data set of an example, 1 to 3.

    Raises:
        KeyError: no such example.
    """
    example, rng = EXAMPLES[number], np.random.default_rng([seed, number, 0x5E1])
    x, y, _ = _rows(example, rng, train)
    return SparseData(x, y, *_rows(example, rng, test))


class ChainRows:
    """The data of chains: several chains may share a data set, and each sees those variables that it still uses.

    of_data: which of the data sets a chain has, (chain).

    `columns` (chain, variables) are the variables that the chains see, at first all of them; `x_test` (chain, rows,
    variables) and `y`, `y_test` (chain, rows) are what belongs to them.
    """

    def __init__(self, data: Sequence[SparseData], of_data: Tensor):
        self.of_data = of_data
        self._x, self._x_test, y, y_test = (
            torch.from_numpy(np.stack([getattr(d, name) for d in data])) for name in ("x", "x_test", "y", "y_test")
        )
        self.y, self.y_test = y[of_data], y_test[of_data]
        self.floor = torch.tensor([d.floor for d in data])[of_data]
        self.observations, self.p = self._x.shape[1:]
        self.see(torch.arange(self.p).expand(len(of_data), self.p))

    def see(self, columns: Tensor) -> None:
        """Let the chains see these variables only."""
        self.columns = columns
        if torch.equal(columns, torch.arange(self.p).expand(len(columns), self.p)):  # shared, not copied for each chain
            x, x_test, owner = self._x, self._x_test[self.of_data], self.of_data
        else:
            pairs, owner = list(zip(self.of_data, columns, strict=True)), torch.arange(len(columns))
            x, x_test = (torch.stack([of[d][:, c] for d, c in pairs]) for of in (self._x, self._x_test))
        self._rows, self._first, self.x_test = x.flatten(0, 1), owner[:, None] * self.observations, x_test

    def batch(self, rows: Tensor) -> tuple[Tensor, Tensor]:
        """Training rows (chain, n) of every chain's own data: x (chain, n, variables) and y (chain, n)."""
        x = self._rows.index_select(0, (rows + self._first).flatten())
        return x.unflatten(0, rows.shape), self.y.gather(1, rows)
