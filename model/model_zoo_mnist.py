"""The two convolutional networks of the MNIST and Fashion-MNIST experiments (Deng et al. 2019).

A network names its sparse layers, the parameters that get the spike-and-slab prior and can be
pruned: here the weight of the first fully connected layer, 92% or 83% of all parameters.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvNet(nn.Module):
    """conv 5x5x32, pool, conv 5x5x64, pool, fc 200, fc: 681,506 parameters at 28 x 28 and 10 classes.

    Args:
        shape: (channels, height, width) of an image.  classes: number of classes.
        dropout: probability behind the convolutional part.

    Raises:
        ValueError: the images are smaller than 4 x 4.
    """

    sparse_layers = ("fc1.weight",)

    def __init__(self, shape: tuple[int, int, int], classes: int, dropout: float = 0.0):
        super().__init__()
        channels, h, w = shape
        if min(h, w) < 4:
            raise ValueError(f"the network needs images of at least 4 x 4 pixels, not {h} x {w}")
        self.conv1 = nn.Conv2d(channels, 32, 5, padding=2)
        self.conv2 = nn.Conv2d(32, 64, 5, padding=2)
        self.dropout = nn.Dropout(dropout)
        self.fc1 = nn.Linear(64 * (h // 4) * (w // 4), 200)
        self.fc2 = nn.Linear(200, classes)

    def forward(self, x: Tensor) -> Tensor:
        """x (n, channels, height, width) -> logits (n, classes)."""
        x = F.relu(F.max_pool2d(self.conv1(x), 2))
        x = F.relu(F.max_pool2d(self.conv2(x), 2))
        x = self.dropout(torch.flatten(x, 1))
        return self.fc2(F.relu(self.fc1(x)))


class BatchNormConvNet(nn.Module):
    """The network for augmented data: 493,772 parameters at 28 x 28 and 10 classes.

    Batch norm of the input, conv 4x4x64, pool, dropout 0.1, conv 4x4x64, pool, dropout 0.3, fc 256,
    fc 64 with batch norm, fc.

    Args and errors as for ConvNet; images of at least 9 x 9. `dropout` comes behind the
    convolutional part, after the network's own.
    """

    sparse_layers = ("fc1.weight",)

    def __init__(self, shape: tuple[int, int, int], classes: int, dropout: float = 0.0):
        super().__init__()
        channels, h, w = shape
        if min(h, w) < 9:
            raise ValueError(f"the network needs images of at least 9 x 9 pixels, not {h} x {w}")
        h, w = (((side + 1) // 2 - 3) // 2 for side in (h, w))
        self.bn0 = nn.BatchNorm2d(channels)
        self.conv1 = nn.Conv2d(channels, 64, 4, padding=2)
        self.dropout1 = nn.Dropout(0.1)
        self.conv2 = nn.Conv2d(64, 64, 4)
        self.dropout2 = nn.Dropout(0.3)
        self.dropout = nn.Dropout(dropout)
        self.fc1 = nn.Linear(64 * h * w, 256)
        self.fc2 = nn.Linear(256, 64)
        self.bn2 = nn.BatchNorm1d(64)
        self.fc3 = nn.Linear(64, classes)

    def forward(self, x: Tensor) -> Tensor:
        """x (n, channels, height, width) -> logits (n, classes)."""
        x = self.dropout1(F.relu(F.max_pool2d(self.conv1(self.bn0(x)), 2)))
        x = self.dropout2(F.relu(F.max_pool2d(self.conv2(x), 2)))
        x = F.relu(self.fc1(self.dropout(torch.flatten(x, 1))))
        return self.fc3(F.relu(self.bn2(self.fc2(x))))


MODELS = {"convnet": ConvNet, "convnet-bn": BatchNormConvNet}
