"""Image augmentation of whole minibatches, every image with its own random numbers.

The transformations are functions of images and parameters, the random parameters are drawn from a
generator of the images' device, so that a run is repeatable and nothing leaves the device.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor


def crop(x: Tensor, offsets: Tensor, padding: int) -> Tensor:
    """Pad with zeros by `padding` on all sides and cut the original size out at (top, left).

    x: (n, c, h, w).  offsets: (n, 2) in 0..2 padding.
    """
    n, _, h, w = x.shape
    padded = F.pad(x.permute(0, 2, 3, 1), (0, 0, padding, padding, padding, padding))  # (n, h', w', c)
    windows = padded.unfold(1, h, 1).unfold(2, w, 1)  # (n, 2p+1, 2p+1, c, h, w), a view
    rows = torch.arange(n, device=x.device)
    return windows.permute(0, 1, 2, 4, 5, 3)[rows, offsets[:, 0], offsets[:, 1]].permute(0, 3, 1, 2)


def flip(x: Tensor, flipped: Tensor) -> Tensor:
    """Mirror the images (n, c, h, w) for which `flipped` (n) is true, left to right."""
    return torch.where(flipped[:, None, None, None], x.flip(-1), x)


def rotate(x: Tensor, degrees: Tensor) -> Tensor:
    """Rotate the images (n, c, h, w), float, about their centre, counter-clockwise by degrees (n).

    Nearest neighbour, black outside, as torchvision's RandomRotation.
    """
    h, w = x.shape[-2:]
    angle = degrees.deg2rad()
    cos, sin, zero = angle.cos(), angle.sin(), torch.zeros_like(angle)
    # output position -> input position, in coordinates where the image is [-1, 1]^2
    theta = torch.stack([cos, -sin * (h / w), zero, sin * (w / h), cos, zero], dim=-1).view(-1, 2, 3)
    grid = F.affine_grid(theta, list(x.shape), align_corners=False)
    return F.grid_sample(x, grid, mode="nearest", padding_mode="zeros", align_corners=False)


def erase(x: Tensor, boxes: Tensor, value: Tensor) -> Tensor:
    """Fill the box (top, left, height, width) of every image (n, c, h, w) with `value`, (c, 1, 1)."""
    top, left, height, width = (side[:, None] for side in boxes.unbind(-1))  # (n, 1) each
    y = torch.arange(x.shape[-2], device=x.device)
    x_ = torch.arange(x.shape[-1], device=x.device)
    inside_y = (y >= top) & (y < top + height)  # (n, h)
    inside_x = (x_ >= left) & (x_ < left + width)  # (n, w)
    inside = inside_y[:, None, :, None] & inside_x[:, None, None, :]  # (n, 1, h, w)
    return torch.where(inside, value, x)


def erasing_boxes(
    n: int,
    h: int,
    w: int,
    generator: torch.Generator,
    probability: float = 0.5,
    area: tuple[float, float] = (0.02, 0.4),
    aspect: tuple[float, float] = (0.3, 1 / 0.3),
    attempts: int = 10,
) -> Tensor:
    """Boxes (n, 4) = (top, left, height, width) of random erasing (Zhong et al. 2017).

    Area (as a share of the image) and aspect ratio are uniform; a box that does not fit is drawn
    again, up to `attempts` times. No erasing is a box of size 0.
    """
    u = torch.rand(5, n, attempts, generator=generator, device=generator.device)
    pixels = (area[0] + (area[1] - area[0]) * u[0]) * (h * w)
    ratio = aspect[0] + (aspect[1] - aspect[0]) * u[1]
    height, width = (pixels * ratio).sqrt().round().long(), (pixels / ratio).sqrt().round().long()
    fits = (height < h) & (width < w)
    first = fits.int().argmax(-1, keepdim=True)  # the first attempt that fits
    erased = fits.any(-1, keepdim=True) & (u[2, :, :1] < probability)
    height, width = height.gather(-1, first), width.gather(-1, first)
    top = (u[3, :, :1] * (h - height + 1)).long()
    left = (u[4, :, :1] * (w - width + 1)).long()
    return torch.cat([top, left, height * erased, width * erased], dim=-1)


def shade(x: Tensor, brightness: Tensor, contrast: Tensor) -> Tensor:
    """Add brightness (n) to the images (n, c, h, w), then scale what differs from a channel's mean by contrast (n).

    As TensorFlow's random_brightness and random_contrast: nothing is clipped.
    """
    mean = x.mean((-2, -1), keepdim=True)
    return (x - mean) * contrast[:, None, None, None] + (mean + brightness[:, None, None, None])


def standardise(x: Tensor) -> Tensor:
    """(x - mean) / max(sd, 1 / sqrt(pixels)) of every image (n, c, h, w) by itself, over all its channels.

    As TensorFlow's per_image_standardization, whose images have pixels in [0, 255], for pixels in [0, 1].
    """
    pixels = x[0].numel()
    sd, mean = torch.std_mean(x, (1, 2, 3), correction=0, keepdim=True)
    return (x - mean) / sd.clamp(min=1 / (255 * pixels**0.5))


@dataclass(frozen=True)
class Recipe:
    """What happens to a minibatch: crop, flip, shade, rotate, normalise, erase, in this order.

    padding: of the random crop.  degrees: rotation is uniform in +-degrees.  flip: mirror with
    probability 1/2.  mean, sd: of a channel, for pixels in [0, 1].  erase: the value, on the scale
    of normalised pixels, that fills the erased box of every channel; () never erases.  brightness:
    is added, uniform in +-brightness.  contrast: uniform between the two factors.
    standardise: normalise every image by its own mean and standard deviation instead.
    """

    padding: int = 0
    degrees: float = 0.0
    flip: bool = False
    mean: tuple[float, ...] = (0.0,)
    sd: tuple[float, ...] = (1.0,)
    erase: tuple[float, ...] = ()
    brightness: float = 0.0
    contrast: tuple[float, float] = (1.0, 1.0)
    standardise: bool = False

    def normalise(self, x: Tensor) -> Tensor:
        """(x - mean) / sd for pixels x (n, c, h, w) in [0, 1]."""
        if self.standardise:
            return standardise(x)
        if (self.mean, self.sd) == (RAW.mean, RAW.sd):
            return x
        return (x - _per_channel(self.mean, x.device)) / _per_channel(self.sd, x.device)

    def augment(self, x: Tensor, generator: torch.Generator, rank: int = 0, world: int = 1) -> Tensor:
        """uint8 images (n, c, h, w) -> augmented, normalised float32 images, channels_last.

        generator: of the images' device.  rank, world: x are the images rank, rank + world, ... of a minibatch
        of n world, and get the random numbers that they would get in the whole.
        """
        n, (h, w), mine = len(x) * world, x.shape[-2:], slice(rank, None, world)
        uniform = {"generator": generator, "device": x.device}
        if self.padding:
            x = crop(x, torch.randint(2 * self.padding + 1, (n, 2), **uniform)[mine], self.padding)
        if self.flip:
            x = flip(x, torch.rand(n, **uniform)[mine] < 0.5)
        x = to_unit(x)
        if self.brightness or self.contrast != RAW.contrast:
            low, high = self.contrast
            brightness, contrast = torch.rand(2, n, **uniform)[:, mine]
            x = shade(x, self.brightness * (2 * brightness - 1), low + (high - low) * contrast)
        if self.degrees:
            x = rotate(x, self.degrees * (2 * torch.rand(n, **uniform)[mine] - 1))
        x = self.normalise(x)
        if self.erase:
            x = erase(x, erasing_boxes(n, h, w, generator)[mine], _per_channel(self.erase, x.device))
        return x.contiguous(memory_format=torch.channels_last)


@functools.cache  # a fresh tensor for every minibatch would make a GPU wait for the host
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    return torch.tensor(values, device=device).view(-1, 1, 1)


def to_unit(x: Tensor) -> Tensor:
    """uint8 pixels 0..255 -> float32 in [0, 1], channels_last."""
    return x.to(torch.float32, memory_format=torch.channels_last).mul_(1 / 255)


RAW = Recipe()
_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
RECIPES = {
    "mnist": Recipe(padding=4, degrees=15, mean=(0.1307,), sd=(0.3081,)),
    "fmnist": Recipe(padding=4, flip=True, mean=(0.1307,), sd=(0.3081,), erase=(0.4914,)),
    "cifar10": Recipe(4, 0.0, True, *_CIFAR, erase=_CIFAR[0]),
    "cifar100": Recipe(4, 0.0, True, *_CIFAR, erase=_CIFAR[0]),
    "digits": Recipe(padding=1, degrees=15, mean=(0.3,), sd=(0.38,)),
    "folder": Recipe(4, 0.0, True, (0.5,), (0.25,)),
}
