"""LeNet-fc and LeNet5 as chains of layers (Neklyudov et al., NIPS 2017)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

import torch
from torch import Tensor, nn


class Centre(nn.Module):
    """x - mean, with the mean training image as a buffer, so that a saved network holds its own preprocessing."""

    def __init__(self, shape: tuple[int, int, int]):
        super().__init__()
        self.register_buffer("mean", torch.zeros(shape))

    def forward(self, x: Tensor) -> Tensor:
        return x - self.mean


def centre(net: nn.Sequential, batches: Iterable[tuple[Tensor, Tensor]]) -> None:
    """Set the mean image of a LeNet to that of uint8 images (n, c, h, w)."""
    total, n = 0, 0
    for x, _ in batches:
        total, n = total + x.sum(0, dtype=torch.float64), n + len(x)
    net.centre.mean.copy_(total / (255 * n))


def scaled(width: int, scale: float) -> int:
    """A layer's width in a network whose layers are `scale` times as wide, at least 1."""
    return max(1, round(scale * width))


def lenet_fc(shape: tuple[int, int, int], classes: int, scale: float = 1.0) -> nn.Sequential:
    """784-500-300-10 on MNIST.

    shape: (channels, height, width) of an image, with pixels in [0, 1].  scale: of the hidden layers' widths.
    """
    inputs, (first, second) = int(torch.Size(shape).numel()), (scaled(width, scale) for width in (500, 300))
    return nn.Sequential(
        OrderedDict(
            centre=Centre(shape),
            flatten=nn.Flatten(),
            fc1=nn.Linear(inputs, first),
            relu1=nn.ReLU(),
            fc2=nn.Linear(first, second),
            relu2=nn.ReLU(),
            fc3=nn.Linear(second, classes),
        )
    )


def lenet5(shape: tuple[int, int, int], classes: int, scale: float = 1.0) -> nn.Sequential:
    """20-50-800-500 on MNIST: two convolutions 5x5 without padding, each with 2x2 pooling, two linear layers.

    Raises:
        ValueError: images are too small for it.
    """
    channels, *sides = shape
    first, second, hidden = (scaled(width, scale) for width in (20, 50, 500))
    height, width = (((side - 4) // 2 - 4) // 2 for side in sides)
    if min(height, width) < 1:
        raise ValueError(f"lenet5 needs images of at least 16 x 16, not {sides[0]} x {sides[1]}")
    return nn.Sequential(
        OrderedDict(
            centre=Centre(shape),
            conv1=nn.Conv2d(channels, first, 5),
            relu1=nn.ReLU(),
            pool1=nn.MaxPool2d(2),
            conv2=nn.Conv2d(first, second, 5),
            relu2=nn.ReLU(),
            pool2=nn.MaxPool2d(2),
            flatten=nn.Flatten(),
            fc1=nn.Linear(second * height * width, hidden),
            relu3=nn.ReLU(),
            fc2=nn.Linear(hidden, classes),
        )
    )
