"""What the tests of the image script share: small image data sets on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

CLASSES = {"cat": 30, "dog": 30}
FEW = {"cat": 8, "dog": 8}


@pytest.fixture
def pictures(tmp_path):
    """pictures(train, test, side, root): {train,test}/<class>/*.png with so many grey images of every class."""

    def make(train: dict = CLASSES, test: dict = FEW, side: int = 12, root: str = "pictures") -> Path:
        rng = np.random.default_rng(0)
        for part, counts in (("train", train), ("test", test)):
            for level, (name, count) in enumerate(sorted(counts.items()), 1):
                folder = tmp_path / root / part / name
                folder.mkdir(parents=True)
                for i in range(count):
                    Image.fromarray(rng.integers(80 * level, size=(side, side), dtype=np.uint8)).save(
                        folder / f"{i:03d}.png"
                    )
        return tmp_path / root

    return make


@pytest.fixture
def idx_files(tmp_path):
    """A data folder with 300 + 100 images of 28 x 28 pixels in the place of MNIST and of Fashion-MNIST."""
    rng = np.random.default_rng(0)
    for name, noise in (("MNIST", 60), ("FashionMNIST", 200)):
        folder = tmp_path / "idx" / name / "raw"
        folder.mkdir(parents=True)
        for part, count in (("train", 300), ("t10k", 100)):
            y = np.arange(count) % 10
            x = rng.integers(noise, size=(count, 28, 28), dtype=np.uint8)
            for i, label in enumerate(y):  # a bright stroke whose place is the class
                x[i, 4 + 2 * label : 6 + 2 * label, 4:24] = 255
            for file, array in ((f"{part}-images-idx3-ubyte", x), (f"{part}-labels-idx1-ubyte", y.astype(np.uint8))):
                header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
                (folder / file).write_bytes(header + array.tobytes())
    return tmp_path / "idx"
