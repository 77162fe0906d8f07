"""Image classification data sets: MNIST, Fashion-MNIST, CIFAR10/100, digits, and folders of images.

Small sets live in memory as one uint8 tensor that can be moved to the device; folders that do not
fit are read from disk by worker processes. Both kinds hand out minibatches in the same way.
"""

from __future__ import annotations

import os
import tarfile
import tempfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .files import DataError, RemoteFile, data_folder, locate

NAMES = ("mnist", "fmnist", "cifar10", "cifar100", "digits", "folder")
MEMORY = 4 * 2**30  # bytes; a folder with more pixels than that is read from disk

_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com"
IDX = {
    ("mnist", "train-images"): "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ("mnist", "train-labels"): "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ("mnist", "t10k-images"): "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ("mnist", "t10k-labels"): "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ("fmnist", "train-images"): "c59f468a2f672dc815687fe0f83887768d799fd8a3f3276145d20f83aa44d888",
    ("fmnist", "train-labels"): "bad3541b69d912435c50bb6ba87bec294ff4f6a2e1246121d8633921760443d9",
    ("fmnist", "t10k-images"): "5b4141f0afbad91edebe8549f8fcffe087ea10ca49f1dbef5c9a5cd8815ce37b",
    ("fmnist", "t10k-labels"): "0402a96d92fd2663957122ceb108a494c5af83dab82d92729df917d7dec38c34",
}
CLOTHES = ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot")
CIFAR = {
    "cifar10": RemoteFile(
        "cifar-10-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-10-python.tar.gz",
        "6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
    ),
    "cifar100": RemoteFile(
        "cifar-100-python.tar.gz",
        "https://www.cs.toronto.edu/~kriz/cifar-100-python.tar.gz",
        "85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
    ),
}


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
    to size x size, or None.
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
            num_workers=self.workers,
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


def load(
    name: str, data_dir: str | None = None, size: int | None = None, memory: int = MEMORY, workers: int = 2
) -> ImageData:
    """A data set by name.

    name: one of NAMES; "folder" reads the tree {train,test}/<class>/*.{png,jpg} at `data_dir`.
    size: scale a folder's images to size x size; None demands that they all have one size.
    memory: bytes of pixels above which a folder is read from disk by `workers` processes.

    Raises:
        DataError: a file is missing, damaged, or the folder has another layout.
    """
    if name in ("mnist", "fmnist"):
        return _idx(name, data_dir)
    if name in CIFAR:
        return _cifar(name, data_dir, size, memory, workers)
    if name == "digits":
        return _digits()
    if name != "folder":
        raise DataError(f"no data set {name}; there are {', '.join(NAMES)}")
    if not data_dir:
        raise DataError("-data folder needs -data_dir, a folder with train/<class>/ and test/<class>/")
    return _folder(Path(data_dir), size, memory, workers)


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


def _idx(name: str, data_dir: str | None) -> ImageData:
    from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

    folder, address = ("MNIST", _MNIST) if name == "mnist" else ("FashionMNIST", _FASHION)

    def read(part: str, ndim: int) -> Tensor:
        file = f"{part}-idx{ndim}-ubyte"
        path = locate(RemoteFile(f"{folder}/raw/{file}", f"{address}/{file}.gz", IDX[name, part]), data_dir)
        try:
            x = read_sn3_pascalvincent_tensor(str(path))
        except (AssertionError, ValueError, RuntimeError, KeyError, IndexError, OSError) as error:
            raise DataError(f"{path} is not a whole IDX file") from error
        if x.ndim != ndim or x.dtype != torch.uint8:
            raise DataError(f"{path} holds {x.ndim} dimensions of {x.dtype}, not {ndim} of uint8")
        return x

    parts = []
    for part in ("train", "t10k"):
        x, y = read(f"{part}-images", 3), read(f"{part}-labels", 1)
        if len(x) != len(y) or int(y.max()) > 9:
            where = data_folder(data_dir) / folder
            raise DataError(f"{where}: {part} has {len(x)} images, {len(y)} labels, and the largest is {int(y.max())}")
        parts.append(MemoryImages(x[:, None], y))
    return ImageData(tuple("0123456789") if name == "mnist" else CLOTHES, *parts)


def _cifar(name: str, data_dir: str | None, size: int | None, memory: int, workers: int) -> ImageData:
    """torchvision's layout, or the folder tree <data_dir>/<name>/{train,test}; else the archive, downloaded."""
    from torchvision.datasets import CIFAR10, CIFAR100

    kind, root = (CIFAR10 if name == "cifar10" else CIFAR100), data_folder(data_dir)
    if not (root / kind.base_folder).is_dir():
        if (root / name).is_dir():
            return _folder(root / name, size, memory, workers)
        archive = locate(CIFAR[name], data_dir)
        try:
            root.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=root) as folder:  # whole or not at all
                with tarfile.open(archive) as tar:
                    tar.extractall(folder, filter="data")
                os.replace(Path(folder) / kind.base_folder, root / kind.base_folder)
        except (tarfile.TarError, EOFError, zlib.error, OSError) as error:
            raise DataError(f"{archive} cannot be unpacked: {error}".splitlines()[0]) from error
    parts = []
    for train in (True, False):
        try:
            part = kind(str(root), train=train)  # its files are pickles: read only if their checksums are right
        except (RuntimeError, OSError) as error:
            raise DataError(f"{root / kind.base_folder} is damaged; delete it, and it is downloaded anew") from error
        parts.append(MemoryImages(torch.from_numpy(part.data).permute(0, 3, 1, 2), torch.tensor(part.targets)))
    return ImageData(tuple(part.classes), *parts)


def _digits() -> ImageData:
    """1797 digits of 8 x 8 pixels that ship with scikit-learn; a stratified fifth is the test part."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8)[:, None]
    whole = MemoryImages(x, torch.from_numpy(digits.target))
    return hold_out(ImageData(tuple("0123456789"), whole, whole), 0.2, seed=0)


def _folder(root: Path, size: int | None, memory: int, workers: int) -> ImageData:
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
