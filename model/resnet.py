"""Residual networks for small images (He et al. 2016, Section 4.2), as in the CIFAR experiment of Deng et al. 2019.

Parameter names are those of the authors' published checkpoint: conv1, bn1, layerS.B.convK, layerS.B.bnK,
layerS.B.downsample.0 and .1, fc.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

BOTTLENECK_FROM = 44  # depths from here on are built of bottleneck blocks, as released


def batch_norm(conv: nn.Conv2d) -> nn.BatchNorm2d:
    """The batch norm of a convolution's output."""
    return nn.BatchNorm2d(conv.out_channels)


class Block(nn.Module):
    """Convolutions conv1, conv2, ... with batch norm, added to the identity or to a 1x1 shortcut.

    Args:
        convs: the convolutions in their order.  stride: of the whole block.
    """

    def __init__(self, *convs: nn.Conv2d, stride: int):
        super().__init__()
        self.depth, channels, out = len(convs), convs[0].in_channels, convs[-1].out_channels
        for i, conv in enumerate(convs, 1):
            self.add_module(f"conv{i}", conv)
            self.add_module(f"bn{i}", batch_norm(conv))
        self.downsample = nn.Identity()
        if stride != 1 or channels != out:
            conv = nn.Conv2d(channels, out, 1, stride, bias=False)
            self.downsample = nn.Sequential(conv, batch_norm(conv))

    def forward(self, x: Tensor) -> Tensor:
        """x (n, channels, h, w) -> (n, channels out, h / stride, w / stride)."""
        y = x
        for i in range(1, self.depth + 1):
            y = getattr(self, f"bn{i}")(getattr(self, f"conv{i}")(y))
            y = F.relu(y, inplace=True) if i < self.depth else y
        return F.relu(y + self.downsample(x), inplace=True)


def basic(channels: int, width: int, stride: int) -> Block:
    """Two 3x3 convolutions: channels -> width -> width."""
    first = nn.Conv2d(channels, width, 3, stride, padding=1, bias=False)
    return Block(first, nn.Conv2d(width, width, 3, padding=1, bias=False), stride=stride)


def bottleneck(channels: int, width: int, stride: int) -> Block:
    """1x1, 3x3 and 1x1 convolutions: channels -> width -> width -> 4 width."""
    first, last = nn.Conv2d(channels, width, 1, bias=False), nn.Conv2d(width, 4 * width, 1, bias=False)
    return Block(first, nn.Conv2d(width, width, 3, stride, padding=1, bias=False), last, stride=stride)


def blocks_per_stage(depth: int) -> int:
    """n of the depth 6 n + 2; raises ValueError for another depth."""
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"the depth must be 6 n + 2 (8, 14, 20, 32, 44, 56, 110), not {depth}")
    return (depth - 2) // 6


class ResNet(nn.Module):
    """Three stages of 16, 32 and 64 channels with (depth - 2) / 6 blocks each; ResNet20 has 272,474 parameters at
    3 channels and 10 classes, 267,264 of them in its sparse layers.

    `sparse_layers` names what gets the spike-and-slab prior: all convolutions but conv1 and the shortcuts.

    Args:
        depth: 6 n + 2; bottleneck blocks (three convolutions, not two) from 44 on, as released.
        shape: (channels, height, width) of an image.  classes: number of classes.

    Raises:
        ValueError: another depth.
    """

    def __init__(self, depth: int, shape: tuple[int, int, int], classes: int):
        super().__init__()
        blocks_each = blocks_per_stage(depth)
        block, expansion = (bottleneck, 4) if depth >= BOTTLENECK_FROM else (basic, 1)
        self.conv1 = nn.Conv2d(shape[0], 16, 3, padding=1, bias=False)
        self.bn1 = batch_norm(self.conv1)
        channels = 16
        for stage, width in enumerate((16, 32, 64), 1):
            blocks = []
            for i in range(blocks_each):
                blocks.append(block(channels, width, stride=2 if stage > 1 and i == 0 else 1))
                channels = width * expansion
            self.add_module(f"layer{stage}", nn.Sequential(*blocks))
        self.fc = nn.Linear(channels, classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                fan_out = module.kernel_size[0] ** 2 * module.out_channels
                nn.init.normal_(module.weight, std=math.sqrt(2 / fan_out))
        convs = [name for name, module in self.named_modules() if isinstance(module, nn.Conv2d)]
        self.sparse_layers = tuple(f"{c}.weight" for c in convs if c != "conv1" and "downsample" not in c)

    def forward(self, x: Tensor) -> Tensor:
        """x (n, channels, height, width) -> logits (n, classes)."""
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        x = self.layer3(self.layer2(self.layer1(x)))
        return self.fc(torch.flatten(F.adaptive_avg_pool2d(x, 1), 1))
