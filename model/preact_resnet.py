"""Residual networks with pre-activation: ResNet18 (He et al. 2016, "Identity Mappings in Deep Residual Networks") and
WideResNet (Zagoruyko and Komodakis 2016), without dropout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .lenet import scaled

SMALL = 64  # images with a side up to this get the stem of the CIFAR networks, larger ones that of ImageNet's


def stem(shape: tuple[int, int, int], width: int) -> tuple[nn.Conv2d, nn.Module]:
    """First convolution and pool: 3x3 and none for small images, else 7x7 and 3x3, each with stride 2."""
    if min(shape[1:]) <= SMALL:
        return nn.Conv2d(shape[0], width, 3, padding=1, bias=False), nn.Identity()
    return nn.Conv2d(shape[0], width, 7, stride=2, padding=3, bias=False), nn.MaxPool2d(3, stride=2, padding=1)


def initialise(net: nn.Module) -> None:
    """Kaiming normal weights, by fan-out, for all convolutions."""
    for module in net.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


def activation(channels: int) -> nn.Sequential:
    """Batch norm and ReLU."""
    return nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU(inplace=True))


class PreActBlock(nn.Module):
    """Two 3x3 convolutions, each behind its activation; a 1x1 shortcut, also behind the first one, where shapes differ.

    Args:
        channels, width: of the input and of the output.  stride: of the whole block.
        activated: the input comes out of an activation.
    """

    def __init__(self, channels: int, width: int, stride: int, activated: bool = False):
        super().__init__()
        self.act1 = nn.Identity() if activated else activation(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
        self.act2 = activation(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        differs = stride != 1 or channels != width
        self.shortcut, self.stride = nn.Conv2d(channels, width, 1, bias=False) if differs else None, stride

    def forward(self, x: Tensor) -> Tensor:
        """x (n, channels, h, w) -> (n, width, h / stride, w / stride), rounded up."""
        a = self.act1(x)
        y = self.conv2(self.act2(self.conv1(a)))
        if self.shortcut is None:
            return y + x
        # as a 1x1 convolution with this stride, whose gradient in oneDNN writes past its memory for channels_last maps
        # of few channels (uxlfoundation/oneDNN issue 6035)
        return y + self.shortcut(F.max_pool2d(a, 1, self.stride))


class PreActResNet(nn.Module):
    """Stem, stages of pre-activation blocks of which each but the first halves the sides, activation, mean, linear.

    The stem's convolution is activated before its pool and before the first block splits, so that this block has no
    activation of its own (He et al. 2016).

    Args:
        shape: (channels, height, width) of an image.  classes: number of classes.
        blocks: per stage.  widths: channels of each stage.  stem_width: channels of the first convolution.
    """

    def __init__(self, shape: tuple[int, int, int], classes: int, blocks: int, widths: Sequence[int], stem_width: int):
        super().__init__()
        self.conv1, self.pool = stem(shape, stem_width)
        self.act1 = activation(stem_width)
        self.stages, channels = nn.Sequential(), stem_width
        for stage, width in enumerate(widths):
            first = PreActBlock(channels, width, stride=2 if stage else 1, activated=stage == 0)
            self.stages.append(nn.Sequential(first, *(PreActBlock(width, width, stride=1) for _ in range(blocks - 1))))
            channels = width
        self.act2 = activation(channels)
        self.fc = nn.Linear(channels, classes)
        initialise(self)

    def forward(self, x: Tensor) -> Tensor:
        """x (n, channels, height, width) -> logits (n, classes)."""
        x = self.stages(self.pool(self.act1(self.conv1(x))))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(self.act2(x), 1), 1))


def preact_resnet18(shape: tuple[int, int, int], classes: int, scale: float = 1.0) -> PreActResNet:
    """64-128-256-512 channels with two blocks each; scale: of all of them."""
    widths = [scaled(width, scale) for width in (64, 128, 256, 512)]
    return PreActResNet(shape, classes, 2, widths, widths[0])


def wide_resnet(shape: tuple[int, int, int], classes: int, depth: int = 28, widen: float = 10) -> PreActResNet:
    """16-32-64 channels, widened, with (depth - 4) / 6 blocks each, behind a stem of 16.

    Raises:
        ValueError: a depth that is not 6 n + 4.
    """
    if depth < 10 or (depth - 4) % 6:
        raise ValueError(f"the depth must be 6 n + 4 (10, 16, 22, 28, 40), not {depth}")
    return PreActResNet(shape, classes, (depth - 4) // 6, [scaled(width, widen) for width in (16, 32, 64)], 16)
