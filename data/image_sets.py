"""The two kinds of image sets, in memory and on disk, that hand out minibatches in the same way.

Small sets live in memory as one uint8 tensor that can be moved to the device; folders that do not
fit are read from disk by worker processes.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .files import DataError


class MemoryImages:
    """Images as one tensor.

    x: (n, channels, height, width) uint8.  y: (n) int64 class indices.
    """

    streamed = False

    def __init__(self, x: Tensor, y: Tensor):
        # a channels_last copy: what the augmentation gathers and the convolutions read
        self.x, self.y = x.contiguous(memory_format=torch.channels_last), y.long()

    def __len__(self) -> int:
        return len(self.y)

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width)"""
        return tuple(self.x.shape[1:])

    def subset(self, index: Tensor) -> MemoryImages:
        index = index.to(self.x.device)
        return MemoryImages(self.x[index], self.y[index])

    def to(self, device: torch.device) -> MemoryImages:
        return MemoryImages(self.x.to(device), self.y.to(device))

    def batches(self, order: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Minibatches of `size` in the given order; the last one may be smaller."""
        for rows in order.to(self.x.device).split(size):
            yield self.x[rows], self.y[rows]


def _cores() -> int:
    """Cores on which this process may run."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _open(file: str):
    """A PIL image, decoded; raises DataError, naming the file, where that fails."""
    from PIL import Image

    try:
        with Image.open(file) as image:
            image.load()
            return image
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # PIL raises all of them
        raise DataError(f"corrupt image {file}: {str(error).replace(repr(file), '').strip()}") from error


class _Files(Dataset):
    """Decodes one image file to a uint8 tensor (channels, height, width)."""

    def __init__(self, files: Sequence[str], shape: tuple[int, int, int], size: int | None):
        self.files, self.shape, self.size = files, shape, size

    def __len__(self) -> int:
        return len(self.files)

    def read(self, i: int) -> Tensor:
        """Raises DataError, naming the file, where it cannot be decoded or has another size."""
        from PIL import Image, ImageOps

        image = _open(self.files[i])
        if image.mode == "I;16":  # PIL would clip, not scale
            image = Image.fromarray((np.array(image) >> 8).astype(np.uint8))
        if "transparency" in image.info:
            image = image.convert("RGBA")
        image = image.convert("L" if self.shape[0] == 1 else "RGB")
        if self.size is not None:  # the central square, scaled
            image = ImageOps.fit(image, (self.size, self.size), Image.Resampling.BILINEAR)
        pixels = torch.from_numpy(np.array(image))
        pixels = pixels.view(*pixels.shape[:2], self.shape[0]).permute(2, 0, 1)
        if pixels.shape != self.shape:
            raise DataError(
                f"{self.files[i]} is {image.width} x {image.height}, the first image {self.shape[2]} x "
                f"{self.shape[1]}; -size scales all images"
            )
        return pixels

    def __getitem__(self, i: int) -> Tensor | DataError:
        try:
            return self.read(i)
        except DataError as error:
            return error  # an exception that leaves a worker process loses its one-line message


class FolderImages:
    """Images that stay on disk and are decoded by worker processes, batch by batch.

    files: paths.  y: (n) class indices.  shape: (channels, height, width).  size: scale every image
    to size x size, or None.  workers: processes, no more of them than cores.
    """

    streamed = True

    def __init__(self, files: Sequence[str], y: Tensor, shape: tuple[int, int, int], size: int | None, workers: int):
        self.files, self.y, self.shape, self.size, self.workers = list(files), y.long(), shape, size, workers

    def __len__(self) -> int:
        return len(self.files)

    def _like(self, files: Sequence[str], y: Tensor) -> FolderImages:
        return FolderImages(files, y, self.shape, self.size, self.workers)

    def subset(self, index: Tensor) -> FolderImages:
        return self._like([self.files[i] for i in index.tolist()], self.y[index.to(self.y.device)])

    def to(self, device: torch.device) -> FolderImages:
        return self._like(self.files, self.y.to(device))

    def _stack(self, images: list[Tensor | DataError]) -> Tensor | DataError:
        for image in images:
            if isinstance(image, DataError):
                return image
        return torch.stack(images).contiguous(memory_format=torch.channels_last)

    def batches(self, order: Tensor, size: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Minibatches of `size` in the given order; the last one may be smaller."""
        files = _Files(self.files, self.shape, self.size)
        rows = [part.tolist() for part in order.split(size)]
        device = self.y.device
        loader = DataLoader(
            files,
            batch_sampler=rows,
            num_workers=min(self.workers, _cores()),  # torch warns of more
            collate_fn=self._stack,
            pin_memory=device.type == "cuda",
        )
        for index, x in zip(rows, loader, strict=True):
            if isinstance(x, DataError):
                raise x
            yield x.to(device, non_blocking=True), self.y[torch.tensor(index, device=device)]

    def load(self) -> MemoryImages:
        """All of them in one tensor."""
        files = _Files(self.files, self.shape, self.size)
        x = torch.empty(len(files), *self.shape, dtype=torch.uint8)
        for i in range(len(files)):
            x[i] = files.read(i)
        return MemoryImages(x, self.y)


Images = MemoryImages | FolderImages


@dataclass(frozen=True)
class ImageData:
    """A data set: the names of its classes, and its two parts."""

    classes: tuple[str, ...]
    train: Images
    test: Images

    @property
    def shape(self) -> tuple[int, int, int]:
        """(channels, height, width) of an image."""
        return self.train.shape

    def to(self, device: torch.device) -> ImageData:
        return ImageData(self.classes, self.train.to(device), self.test.to(device))


def hold_out(data: ImageData, share: float, seed: int) -> ImageData:
    """The data set with a stratified share of its training part in the place of the test part."""
    from sklearn.model_selection import train_test_split

    rows = np.arange(len(data.train))
    try:
        kept, held = train_test_split(rows, test_size=share, random_state=seed, stratify=data.train.y.cpu().numpy())
    except ValueError as error:
        raise DataError(f"a stratified share of {len(rows)} images cannot be held out: {error}") from error
    kept, held = torch.from_numpy(np.sort(kept)), torch.from_numpy(np.sort(held))
    return ImageData(data.classes, data.train.subset(kept), data.train.subset(held))


def random_labels(data: ImageData, seed: int) -> ImageData:
    """The data set with labels that say nothing of the images: uniform, in both parts."""
    generator = torch.Generator().manual_seed(seed)

    def relabelled(images: Images) -> Images:
        images = copy.copy(images)
        images.y = torch.randint(len(data.classes), images.y.shape, generator=generator).to(images.y.device)
        return images

    return ImageData(data.classes, relabelled(data.train), relabelled(data.test))


def read_folder(root: Path, size: int | None, memory: int, workers: int) -> ImageData:
    """The tree {train,test}/<class>/*.{png,jpg}; arguments and errors as of `images.load`."""
    from torchvision.datasets.folder import find_classes, make_dataset

    layout = f"{root} must hold train/<class>/*.png or *.jpg and test/<class>/*.png or *.jpg"

    def files(part: str, classes: dict[str, int]) -> list[tuple[str, int]]:
        try:
            return make_dataset(str(root / part), classes, extensions=(".png", ".jpg", ".jpeg"))
        except (FileNotFoundError, ValueError) as error:
            raise DataError(f"{layout}: {error}".splitlines()[0]) from error

    try:
        classes, index = find_classes(str(root / "train"))
        tested, _ = find_classes(str(root / "test"))
    except (FileNotFoundError, NotADirectoryError) as error:
        raise DataError(f"{layout}: {error}") from error
    if unknown := sorted(set(tested) - set(classes)):
        raise DataError(f"{root}: class {unknown[0]} is in test only")
    train, test = files("train", index), files("test", {name: index[name] for name in tested})
    first = _open(train[0][0])
    shape = (1 if first.mode in ("1", "L", "I;16") else 3, size or first.height, size or first.width)
    parts = [
        FolderImages([file for file, _ in part], torch.tensor([y for _, y in part]), shape, size, workers)
        for part in (train, test)
    ]
    if sum(len(part) for part in parts) * int(np.prod(shape)) <= memory:
        parts = [part.load() for part in parts]
    return ImageData(tuple(classes), *parts)
