"""Predictions of networks and of mixtures of networks on a whole data set."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call

from data.augment import Recipe, to_unit
from data.image_sets import Images

from .adversarial import Member
from .predictive import CategoricalMixturePredictive


def member(net: nn.Module, recipe: Recipe, weights: dict[str, Tensor] | None = None, amp: bool = False) -> Member:
    """Pixels in [0, 1] -> log-probabilities in float64, of a network in evaluation mode.

    weights: parameters and buffers to use instead of the network's own.  amp: compute in bfloat16.
    """

    def log_probabilities(x: Tensor) -> Tensor:
        net.eval()
        with torch.autocast(x.device.type, torch.bfloat16, enabled=amp):
            x = recipe.normalise(x)
            logits = net(x) if weights is None else functional_call(net, weights, (x,))
        return logits.double().log_softmax(-1)

    return log_probabilities


@torch.no_grad()
def predict(predictor: Member, images: Images, batch: int = 1000) -> Tensor:
    """Log-probabilities (n, classes), float64, of all images in their order."""
    order = torch.arange(len(images))
    return torch.cat([predictor(to_unit(x)) for x, _ in images.batches(order, batch)])


def predictive(members: Sequence[Member], images: Images, classes: int) -> CategoricalMixturePredictive:
    """The mixture of the members on all images, built one member at a time."""
    mixture = CategoricalMixturePredictive(len(images), classes, images.y.device)
    for each in members:
        mixture.update(predict(each, images))
    return mixture
