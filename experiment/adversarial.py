r"""Adversarial images in the L-infinity ball of radius zeta, against a mixture of networks.

A Bayesian classifier is attacked as it predicts: through the average over its posterior samples,
:math:`p(y | x) = \frac1S \sum_s p(y | x, \theta_s)`. One network is the case S = 1.

`members` are functions of pixels in [0, 1], (n, c, h, w) -> log-probabilities (n, classes). They should
be computed from the logits in float64: in float32 the gradient of a confident network is mostly
rounding, and the attack seems to fail.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid

from data.augment import to_unit
from data.image_sets import Images

ATTACKS = ("fgsm_predicted", "fgsm_true", "pgd")
Member = Callable[[Tensor], Tensor]


@torch.no_grad()
def log_mixture(members: Sequence[Member], x: Tensor) -> Tensor:
    """log p(y | x) of the mixture, (n, classes)."""
    total = None
    for member in members:
        log_p = member(x)
        total = log_p if total is None else torch.logaddexp(total, log_p)
    return total - torch.tensor(float(len(members)), dtype=total.dtype).log()


def gradient(members: Sequence[Member], x: Tensor, y: Tensor) -> Tensor:
    """Gradient with respect to x of log p(y | x) of the mixture, shape of x.

    grad log sum_s p_s = sum_s (p_s / sum p) grad log p_s, so that memory holds one network at a time.
    """
    grads, log_ps = [], []
    for member in members:
        with torch.enable_grad():
            pixels = x.detach().requires_grad_()
            every = member(pixels)
            label = every.gather(-1, y[:, None]).squeeze(-1)  # (n)
            others = every.scatter(-1, y[:, None], -torch.inf).logsumexp(-1)
            log_p = logsigmoid(label - others)  # log p_y again, whose derivative 1 - p_y is not lost by rounding
            (grad,) = torch.autograd.grad(log_p.sum(), pixels)
        grads.append(grad)
        log_ps.append(log_p.detach())
    share = torch.stack(log_ps).softmax(0).to(x.dtype)  # (members, n)
    return torch.einsum("sn,sn...->n...", share, torch.stack(grads))


def fgsm(x: Tensor, grad: Tensor, zeta: float) -> Tensor:
    """Fast gradient sign method (Goodfellow et al. 2015): clip(x - zeta sign grad, 0, 1).

    grad: of log p(y | x) at x; y is the class whose probability the attack lowers: the predicted class
    in Deng et al. 2019, or the true one.
    """
    return (x - zeta * grad.sign()).clamp(0, 1)


def pgd(
    members: Sequence[Member], x: Tensor, y: Tensor, zeta: float, steps: int, generator: torch.Generator | None = None
) -> Tensor:
    """Projected gradient descent on log p(y | x) (Madry et al. 2018), step size 2.5 zeta / steps.

    generator: of a CPU; draws a uniform start in the ball. None starts at x.
    """
    low, high = (x - zeta).clamp(min=0), (x + zeta).clamp(max=1)
    attacked = x
    if generator is not None:
        start = torch.rand(x.shape, generator=generator).to(x)
        attacked = torch.clamp(x + zeta * (2 * start - 1), low, high)
    for _ in range(steps):
        step = fgsm(attacked, gradient(members, attacked, y), 2.5 * zeta / steps)
        attacked = torch.clamp(step, low, high)
    return attacked


def accuracy_curves(
    members: Sequence[Member], images: Images, zetas: Sequence[float], steps: int, pgd_images: int, seed: int
) -> tuple[list[dict], Tensor]:
    """Accuracy in percent under every attack at every zeta.

    FGSM on the predicted and on the true class sees all images, PGD (true class, random start) the
    first `pgd_images`.

    Returns rows {attack, zeta, n, accuracy}, and the first image under FGSM on the predicted class
    at every zeta, (zetas, c, h, w).
    """
    correct = torch.zeros(3, len(zetas), dtype=torch.int64)
    counts, example = [0, 0, 0], None
    start = torch.Generator().manual_seed(seed)

    def hits(attacked: Tensor, y: Tensor) -> int:
        return int((log_mixture(members, attacked).argmax(-1) == y).sum())

    for x, y in images.batches(torch.arange(len(images)), 500):
        x, some = to_unit(x), slice(0, max(0, pgd_images - counts[0]))
        grads = [gradient(members, x, label) for label in (log_mixture(members, x).argmax(-1), y)]
        if example is None:
            example = torch.cat([fgsm(x[:1], grads[0][:1], zeta) for zeta in zetas]).cpu().contiguous()
        for j, zeta in enumerate(zetas):
            for i, grad in enumerate(grads):
                correct[i, j] += hits(fgsm(x, grad, zeta), y)
            if len(y[some]):
                correct[2, j] += hits(pgd(members, x[some], y[some], zeta, steps, start), y[some])
        counts = [counts[0] + len(y), counts[1] + len(y), counts[2] + len(y[some])]
    rows = [
        {"attack": attack, "zeta": zeta, "n": counts[i], "accuracy": 100 * int(correct[i, j]) / counts[i]}
        for i, attack in enumerate(ATTACKS)
        for j, zeta in enumerate(zetas)
        if counts[i]
    ]
    return rows, example
