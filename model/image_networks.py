"""Convolutional networks by name, for small images and for those of ImageNet's size.

| name | network | parameters at 3 x 32 x 32 and 10 classes | smallest image |
|---|---|---|---|
| resnet18, resnet34 | torchvision's | 11,173,962, 21,282,122 | any |
| resnet20 | model/resnet.py; its stem is the small one at every size | 272,474 | any |
| wrn28-10 | WideResNet-28-10 | 36,479,194 | any |
| preact_resnet18 | ResNet18 with pre-activation | 11,172,170 | any |
| densenet | torchvision's, as DenseNet-BC-100-12 (Huang et al. 2017) | 769,162 | 4 x 4 |

Images with a side of at most SMALL pixels get a 3x3 convolution without pooling as their stem. Every network is trained
on at least two images at a time where its last maps are of one pixel: batch norm has nothing to average there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn

from .lenet import scaled
from .preact_resnet import SMALL, initialise, preact_resnet18, stem, wide_resnet
from .resnet import ResNet

# torchvision doubles the time in which a script starts: imported by the networks that are its own


def published_resnet(name: str, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """torchvision's ResNet of this name (He et al. 2016, "Deep Residual Learning"), with a stem for the images."""
    from torchvision import models

    net = models.get_model(name, num_classes=classes)
    net.conv1, net.maxpool = stem(shape, net.conv1.out_channels)
    initialise(net.conv1)
    return net


def densenet(shape: tuple[int, int, int], classes: int, scale: float = 1.0) -> nn.Module:
    """DenseNet-BC-100-12: three blocks of 16 layers, each adding 12 channels, scaled, behind a stem of twice as many.

    Raises:
        ValueError: images are too small for the two halvings between its blocks.
    """
    from torchvision.models import DenseNet

    _, height, width = shape
    if min(height, width) < 4:
        raise ValueError(f"densenet needs images of at least 4 x 4, not {height} x {width}")
    growth = scaled(12, scale)
    net = DenseNet(growth, (16, 16, 16), 2 * growth, num_classes=classes)
    net.features.conv0, net.features.pool0 = stem(shape, 2 * growth)
    if min(height, width) <= SMALL:  # published without them on CIFAR
        net.features.norm0, net.features.relu0 = nn.Identity(), nn.Identity()
    initialise(net)  # by fan-out, as published; torchvision's own weights go by fan-in
    return net


def wrn28_10(shape: tuple[int, int, int], classes: int, scale: float = 1.0) -> nn.Module:
    """WideResNet-28-10, with the factor 10 scaled: WideResNet-28-1 at 0.1."""
    return wide_resnet(shape, classes, widen=10 * scale)


MODELS: dict[str, Callable[..., nn.Module]] = {
    "resnet18": partial(published_resnet, "resnet18"),
    "resnet34": partial(published_resnet, "resnet34"),
    "resnet20": partial(ResNet, 20),
    "wrn28-10": wrn28_10,
    "preact_resnet18": preact_resnet18,
    "densenet": densenet,
}
SCALABLE = ("wrn28-10", "preact_resnet18", "densenet")  # take a third argument, the scale


def build(name: str, shape: tuple[int, int, int], classes: int, width: float = 1.0) -> nn.Module:
    """The network with its initial weights.

    Args:
        name: of MODELS.  shape: (channels, height, width) of an image.  classes: number of classes.
        width: factor of the channels, for runs on a CPU.

    Raises:
        ValueError: no such network, a width that it does not have, or images that are too small for it.
    """
    if name not in MODELS:
        raise ValueError(f"no network {name!r}: one of {', '.join(MODELS)}")
    if width == 1:
        return MODELS[name](shape, classes)
    if name not in SCALABLE or not width > 0:
        raise ValueError(f"{name} has no width {width:g}; {', '.join(SCALABLE)} have any above 0")
    return MODELS[name](shape, classes, width)
