"""Posterior predictive of regressions, as running sums over the kept samples."""

from __future__ import annotations

import math

import torch
from torch import Tensor


class GaussianMixturePredictive:
    """The mixture (1/S) sum_s N(f_s(x), variance_s) of S kept samples, at fixed test points.

    Memory does not grow with S: only the sums of f_s, of the density at y and of the distribution
    function at y are kept, in float64 (the density in log space).

    Args:
        y: test targets (*lead, n), broadcastable to the predictions (*chains, n).
        shape: (*chains, n).
    """

    def __init__(self, y: Tensor, shape: tuple[int, ...]):
        self.y = y.double()
        self.samples = 0
        self.sum_prediction = torch.zeros(shape, dtype=torch.float64)
        self.sum_cdf = torch.zeros(shape, dtype=torch.float64)
        self.log_sum_density = torch.full(shape, -torch.inf, dtype=torch.float64)

    def update(self, prediction: Tensor, variance: Tensor) -> None:
        """Add one sample: prediction (*chains, n), noise variance (*chains)."""
        prediction, sd = prediction.double(), variance.double().sqrt()[..., None]
        z = (self.y - prediction) / sd
        self.samples += 1
        self.sum_prediction += prediction
        self.sum_cdf += torch.special.ndtr(z)
        log_density = -0.5 * z * z - sd.log() - 0.5 * math.log(2 * math.pi)
        self.log_sum_density = torch.logaddexp(self.log_sum_density, log_density)

    def rmse(self) -> Tensor:
        """Root mean squared error of the posterior mean, (*chains)."""
        return (self.sum_prediction / self.samples - self.y).square().mean(-1).sqrt()

    def nll(self) -> Tensor:
        """Mean negative log density of the targets, (*chains), in nats per point."""
        return (math.log(max(self.samples, 1)) - self.log_sum_density).mean(-1)

    def coverage(self, level: float = 0.95) -> Tensor:
        """Share of targets inside the central interval of the mixture, (*chains), in 0..1."""
        tail = (1 - level) / 2
        cdf = self.sum_cdf / self.samples
        return ((cdf >= tail) & (cdf <= 1 - tail)).double().mean(-1)

    def state_dict(self) -> dict[str, Tensor]:
        return {
            "samples": torch.tensor(self.samples),
            "sum_prediction": self.sum_prediction,
            "sum_cdf": self.sum_cdf,
            "log_sum_density": self.log_sum_density,
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.samples = int(state["samples"])
        self.sum_prediction = state["sum_prediction"]
        self.sum_cdf = state["sum_cdf"]
        self.log_sum_density = state["log_sum_density"]
