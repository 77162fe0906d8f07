"""Image data sets by name: MNIST, Fashion-MNIST, CIFAR10/100, digits, and folders of images."""

from __future__ import annotations

import os
import tarfile
import tempfile
import zlib
from pathlib import Path

import torch
from torch import Tensor

from .files import DataError, RemoteFile, data_folder, locate
from .image_sets import ImageData, MemoryImages, hold_out, random_labels, read_folder

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


def load(
    name: str, data_dir: str | None = None, size: int | None = None, memory: int = MEMORY, workers: int = 2
) -> ImageData:
    """A data set by name.

    name: one of NAMES, or one with "-random" behind it, for random labels; "folder" reads the tree
        {train,test}/<class>/*.{png,jpg} at `data_dir`.
    size: scale a folder's images to size x size; None demands that they all have one size.
    memory: bytes of pixels above which a folder is read from disk by `workers` processes.

    Raises:
        DataError: a file is missing, damaged, or the folder has another layout.
    """
    if name.endswith("-random"):
        return random_labels(load(name.removesuffix("-random"), data_dir, size, memory, workers), seed=0)
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
    return read_folder(Path(data_dir), size, memory, workers)


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
            return read_folder(root / name, size, memory, workers)
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
