"""The VGG-like network of CIFAR10 (Zagoruyko 2015) as a chain of layers."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn

from .lenet import scaled

BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))  # a 2x2 pool ends each
CONVOLUTIONS = sum(map(len, BLOCKS))
HIDDEN = 512
DROPOUT = {  # of the dense network, behind these layers
    "relu1": 0.3,
    **{f"relu{i}": 0.4 for i in (3, 5, 6, 8, 9, 11, 12)},
    "pool5": 0.5,
    "relu14": 0.5,
}


def vgglike(shape: tuple[int, int, int], classes: int, scale: float = 1.0, dropout: bool = False) -> nn.Sequential:
    """13 convolutions 3x3 with bias and batch norm, one hidden linear layer with batch norm.

    scale: of the layers' widths.  dropout: as the dense network is trained.

    Raises:
        ValueError: images are too small for it.
    """
    channels, *sides = shape
    if min(sides) < 32:
        raise ValueError(f"vgglike needs images of at least 32 x 32, not {sides[0]} x {sides[1]}")
    layers, number = OrderedDict(), 0

    def add(name: str, layer: nn.Module) -> None:
        layers[name] = layer
        if dropout and name in DROPOUT:
            layers[f"dropout_{name}"] = nn.Dropout(DROPOUT[name])

    for block, widths in enumerate(BLOCKS, 1):
        for width in (scaled(width, scale) for width in widths):
            number += 1
            add(f"conv{number}", nn.Conv2d(channels, width, 3, padding=1))
            add(f"bn{number}", nn.BatchNorm2d(width))
            add(f"relu{number}", nn.ReLU())
            channels = width
        add(f"pool{block}", nn.MaxPool2d(2))
    add("flatten", nn.Flatten())
    hidden, positions = scaled(HIDDEN, scale), (sides[0] // 32) * (sides[1] // 32)
    add("fc1", nn.Linear(channels * positions, hidden))
    add("bn14", nn.BatchNorm1d(hidden))
    add("relu14", nn.ReLU())
    add("fc2", nn.Linear(hidden, classes))
    return nn.Sequential(layers)
