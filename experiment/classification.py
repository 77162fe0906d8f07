"""How good predicted class probabilities are: accuracy, likelihood, calibration, out-of-distribution.

Probabilities are (n, classes), labels (n). A label's probability of zero counts as the smallest
positive number of float64, so that one certain error does not make the likelihood infinite.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

BINS = 15  # of the reliability diagram and the expected calibration error (Guo et al. 2017)


def accuracy(probabilities: Tensor, labels: Tensor) -> float:
    """Share of labels that are the most probable class, in percent."""
    return 100 * float((probabilities.argmax(-1) == labels).double().mean())


def log_likelihood(probabilities: Tensor, labels: Tensor) -> Tensor:
    """log p(y | x) of every image, (n), float64, in nats."""
    of_label = probabilities.gather(-1, labels[:, None]).squeeze(-1).double()
    return of_label.clamp(min=torch.finfo(torch.float64).tiny).log()


def nll(probabilities: Tensor, labels: Tensor) -> float:
    """Mean negative log-likelihood -log p(y | x), in nats."""
    return -float(log_likelihood(probabilities, labels).mean())


def brier(probabilities: Tensor, labels: Tensor) -> float:
    """Mean over the images of sum_c (p_c - 1[c = y])^2, in 0..2."""
    one_hot = torch.nn.functional.one_hot(labels, probabilities.shape[-1])
    return float((probabilities.double() - one_hot).square().sum(-1).mean())


def reliability(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> tuple[Tensor, Tensor, Tensor]:
    """Per bin of confidence ((i-1)/bins, i/bins]: share of the images, mean confidence, share correct."""
    confidence, predicted = probabilities.double().max(-1)
    correct = (predicted == labels).double()
    index = (confidence * bins).ceil().long().clamp(1, bins) - 1
    count = torch.zeros(bins, dtype=torch.float64, device=index.device)
    sums = [count.index_add(0, index, x) for x in (torch.ones_like(correct), confidence, correct)]
    return sums[0] / len(labels), sums[1] / sums[0].clamp(min=1), sums[2] / sums[0].clamp(min=1)


def ece(probabilities: Tensor, labels: Tensor, bins: int = BINS) -> float:
    """Expected calibration error: sum over bins of share * |mean confidence - share correct|."""
    share, confidence, correct = reliability(probabilities, labels, bins)
    return float((share * (confidence - correct).abs()).sum())


def scores(probabilities: Tensor, labels: Tensor) -> dict[str, float]:
    """accuracy (percent), nll, ece, brier."""
    return {metric.__name__: metric(probabilities, labels) for metric in (accuracy, nll, ece, brier)}


def entropy(probabilities: Tensor) -> Tensor:
    """H = -sum_c p_c log p_c of every row, in nats."""
    return -torch.xlogy(probabilities, probabilities).sum(-1)


def mutual_information(probabilities: Tensor, mean_entropy: Tensor) -> Tensor:
    """H(mean over samples of p) - mean over samples of H(p): what the samples disagree about, in nats."""
    return (entropy(probabilities) - mean_entropy).clamp(min=0)


def detection(inside: np.ndarray, outside: np.ndarray) -> dict[str, float]:
    """How well a score tells inputs from outside the distribution (positives, larger) from those inside.

    auroc, and fpr95: the share of inside inputs above the largest threshold that detects at least 95%
    of the outside ones.
    """
    from sklearn.metrics import roc_auc_score, roc_curve

    label = np.concatenate([np.zeros(len(inside)), np.ones(len(outside))])
    score = np.concatenate([inside, outside])
    false, true, _ = roc_curve(label, score, drop_intermediate=False)
    return {"auroc": float(roc_auc_score(label, score)), "fpr95": float(false[true >= 0.95][0])}
