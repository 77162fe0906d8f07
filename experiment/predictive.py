"""Posterior predictives of regressions and classifiers, as running sums over the kept samples."""

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


class CategoricalMixturePredictive:
    """The mixture sum_s w_s p(y | x, theta_s) / sum_s w_s of kept samples of a classifier, at fixed inputs.

    Memory does not grow with the number of samples: only the weighted sums of the probabilities and
    of their entropies are kept, in float64.

    Args:
        inputs, classes: sizes of the predictions.  device: where the sums live.
    """

    def __init__(self, inputs: int, classes: int, device: torch.device | str = "cpu"):
        self.samples = 0
        self.sum_weight = 0.0
        self.sum_probabilities = torch.zeros(inputs, classes, dtype=torch.float64, device=device)
        self.sum_entropy = torch.zeros(inputs, dtype=torch.float64, device=device)

    def update(self, log_probabilities: Tensor, weight: float = 1.0) -> None:
        """Add one sample's log p(y | x, theta), (inputs, classes).

        weight: the step size at which the sample was drawn (Welling and Teh 2011, Eq. 11: a sample
        stands for an interval of that length); at a constant step size all weights are equal.
        """
        log_probabilities = log_probabilities.double()
        probabilities = log_probabilities.exp()
        self.samples += 1
        self.sum_weight += weight
        self.sum_probabilities += weight * probabilities
        self.sum_entropy -= weight * torch.xlogy(probabilities, probabilities).sum(-1)

    def probabilities(self) -> Tensor:
        """p(y | x) of the mixture, (inputs, classes), float64."""
        return self.sum_probabilities / self.sum_weight

    def mean_entropy(self) -> Tensor:
        """Mean over the samples of the entropy of p(y | x, theta), (inputs), in nats."""
        return self.sum_entropy / self.sum_weight

    def state_dict(self) -> dict[str, Tensor]:
        return {
            "samples": torch.tensor(self.samples),
            "sum_weight": torch.tensor(self.sum_weight, dtype=torch.float64),
            "sum_probabilities": self.sum_probabilities,
            "sum_entropy": self.sum_entropy,
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.samples, self.sum_weight = int(state["samples"]), float(state["sum_weight"])
        self.sum_probabilities.copy_(state["sum_probabilities"])
        self.sum_entropy.copy_(state["sum_entropy"])
