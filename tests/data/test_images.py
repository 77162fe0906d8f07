"""Image data sets: files made here, sound and damaged, in every layout; in memory and streamed alike."""

import gzip
import hashlib
import io
import os
import pickle
import struct
import tarfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from scipy import stats
from sklearn.datasets import load_digits
from torchvision import datasets

from data import images
from data.files import DataError
from data.image_sets import FolderImages, ImageData, MemoryImages, hold_out, random_labels
from data.images import NAMES, load

REAL = Path(os.environ.get("BSDL_DATA", "nowhere"))
IDX_FOLDERS = {"mnist": "MNIST", "fmnist": "FashionMNIST"}
BATCHES = {"cifar10": "cifar-10-batches-py", "cifar100": "cifar-100-python"}
workers_0_and_2 = pytest.mark.parametrize("workers", [0, 2])


def noise(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def refusal(function, *args, **kwargs) -> str:
    """The one line of the DataError."""
    with pytest.raises(DataError) as error:
        function(*args, **kwargs)
    message = str(error.value)
    assert message and "\n" not in message
    return message


def same(part, x, y) -> bool:
    return torch.equal(part.x, torch.as_tensor(x)) and torch.equal(part.y, torch.as_tensor(y))


def test_digits_are_a_stratified_partition():
    data = load("digits")
    x = torch.cat([data.train.x, data.test.x])
    y = torch.cat([data.train.y, data.test.y])
    assert (len(data.train), len(data.test)) == (1437, 360)
    assert data.shape == data.test.shape == (1, 8, 8)
    assert x.dtype == torch.uint8 and y.dtype == torch.int64
    assert data.classes == tuple("0123456789") and y.unique().tolist() == list(range(10))
    share = data.test.y.bincount() - 0.2 * y.bincount()
    assert share.abs().max() <= 1
    # no image is in both parts, none is lost
    digits = load_digits()
    rows = {row.tobytes() for row in x.numpy()}
    assert len(rows) == 1797 == len(digits.images)
    pixels = {
        np.rint(image * 255 / 16).astype(np.uint8).tobytes(): y
        for image, y in zip(digits.images, digits.target, strict=True)
    }
    assert pixels == {row.numpy().tobytes(): int(label) for row, label in zip(x, y, strict=True)}


def test_digits_are_always_the_same():
    np.random.seed(0)
    first = load("digits")
    np.random.seed(1)
    second = load("digits")
    for part in ("train", "test"):
        assert same(getattr(first, part), getattr(second, part).x, getattr(second, part).y)


def test_digits_need_no_file(tmp_path, monkeypatch):
    monkeypatch.setenv("BSDL_DATA", str(tmp_path / "nowhere"))
    load("digits", str(tmp_path / "neither"))
    assert list(tmp_path.iterdir()) == []


def idx(array: np.ndarray, kind: int = 8) -> bytes:
    """An IDX file. kind: 8 for uint8, 12 for int32."""
    return struct.pack(f">{1 + array.ndim}I", 256 * kind + array.ndim, *array.shape) + array.tobytes()


def idx_files(train: int = 30, test: int = 12) -> dict[str, bytes]:
    files = {}
    for seed, (part, n) in enumerate((("train", train), ("t10k", test))):
        files[f"{part}-images-idx3-ubyte"] = idx(noise(n, 5, 4, seed=seed))
        files[f"{part}-labels-idx1-ubyte"] = idx((np.arange(n) % 10).astype(np.uint8))
    return files


def write_idx(folder: Path, name: str, files: dict[str, bytes]) -> Path:
    raw = folder / IDX_FOLDERS[name] / "raw"
    raw.mkdir(parents=True)
    for file, content in files.items():
        (raw / file).write_bytes(content)
    return raw


@pytest.mark.parametrize("name", IDX_FOLDERS)
def test_idx_files_are_read_as_they_are(tmp_path, capsys, name):
    raw = write_idx(tmp_path, name, idx_files())
    data = load(name, str(tmp_path))
    assert same(data.train, noise(30, 1, 5, 4, seed=0), np.arange(30) % 10)
    assert same(data.test, noise(12, 1, 5, 4, seed=1), np.arange(12) % 10)
    assert data.shape == (1, 5, 4) and not data.train.streamed
    assert len(data.classes) == 10
    out, err = capsys.readouterr()
    notes = err.splitlines()
    assert out == "" and len(notes) == 4
    for file in raw.iterdir():
        assert sum(str(file) in note for note in notes) == 1
    assert all(note.startswith("note: ") for note in notes)


def test_the_classes_of_mnist_and_fashion(tmp_path):
    for name in IDX_FOLDERS:
        write_idx(tmp_path, name, idx_files())
    assert load("mnist", str(tmp_path)).classes == tuple("0123456789")
    clothes = load("fmnist", str(tmp_path)).classes
    assert [name.lower() for name in clothes[:2]] == ["t-shirt", "trouser"] and clothes[9] == "ankle boot"


@pytest.mark.parametrize("name", IDX_FOLDERS)
@pytest.mark.parametrize(
    "damage",
    [
        lambda content: b"",
        lambda content: content[:3],
        lambda content: content[:6],
        lambda content: content[:8],
        lambda content: content[: len(content) // 2],
        lambda content: content[:-1],
        lambda content: content + b"\0",
        lambda content: b"\0\0\7" + content[3:],  # no such type
        lambda content: b"\0\0\12" + content[3:],  # a gap among the types
        lambda content: b"\0\0\11" + content[3:],  # int8
        lambda content: content[:3] + b"\0" + content[4:],
        lambda content: content[:3] + b"\4" + content[4:],
        lambda content: b"<html><p>Not found</p></html>\n",
        lambda content: idx(np.zeros((3, 2), np.uint8)),
        lambda content: idx(np.zeros(12, np.int32), kind=12),
        lambda content: idx(np.zeros((12, 5, 4), np.int32), kind=12),
        lambda content: content[:4] + b"\xff" * 4 + content[8:],
        lambda content: content[:4] + b"\0" * 4,
    ],
    ids=[
        "empty", "no-magic", "no-shape", "no-data", "half", "short", "long", "type-7", "type-10", "int8", "0-d",
        "4-d", "html", "2-d", "int32-1-d", "int32-3-d", "huge", "none",
    ],
)  # fmt: skip
def test_a_file_that_is_no_whole_idx_file_is_named(tmp_path, name, damage):
    files = idx_files()
    for i, file in enumerate(files):
        folder = tmp_path / str(i)
        raw = write_idx(folder, name, files | {file: damage(files[file])})
        assert str(raw / file) in refusal(load, name, str(folder))


def test_images_are_no_labels_and_labels_no_images(tmp_path):
    files = idx_files()
    swapped = {"t10k-labels-idx1-ubyte": files["t10k-images-idx3-ubyte"]}
    raw = write_idx(tmp_path / "labels", "mnist", files | swapped)
    assert str(raw / "t10k-labels-idx1-ubyte") in refusal(load, "mnist", str(tmp_path / "labels"))
    swapped = {"train-images-idx3-ubyte": files["train-labels-idx1-ubyte"]}
    raw = write_idx(tmp_path / "images", "mnist", files | swapped)
    assert str(raw / "train-images-idx3-ubyte") in refusal(load, "mnist", str(tmp_path / "images"))


@pytest.mark.parametrize("part", ["train", "t10k"])
@pytest.mark.parametrize(
    "labels",
    [np.arange(11), np.full(12, 10), np.arange(13) % 10, np.r_[np.zeros(11), 255]],
    ids=["fewer", "ten", "more", "255"],
)
@pytest.mark.parametrize("name", IDX_FOLDERS)
def test_labels_that_do_not_fit_the_images(tmp_path, name, part, labels):
    files = idx_files(12, 12) | {f"{part}-labels-idx1-ubyte": idx(labels.astype(np.uint8))}
    raw = write_idx(tmp_path, name, files)
    message = refusal(load, name, str(tmp_path))
    assert str(raw.parent) in message and part in message


@pytest.mark.parametrize("name", IDX_FOLDERS)
def test_the_published_files(capsys, name):
    if not (REAL / IDX_FOLDERS[name] / "raw" / "train-images-idx3-ubyte").is_file():
        pytest.skip("BSDL_DATA names no folder with the real files")
    data = load(name)
    assert capsys.readouterr() == ("", "")  # the checksums are right
    assert data.train.x.shape == (60000, 1, 28, 28) and data.test.x.shape == (10000, 1, 28, 28)
    assert data.train.x.dtype == torch.uint8 and data.train.y.dtype == torch.int64
    first = {"mnist": [5, 0, 4, 1, 9, 2, 1, 3, 1, 4], "fmnist": [9, 0, 0, 3, 0, 2, 7, 2, 5, 5]}
    assert data.train.y[:10].tolist() == first[name]
    assert (
        data.test.y.bincount().tolist()
        == {
            "mnist": [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009],
            "fmnist": [1000] * 10,
        }[name]
    )
    mean, sd = {"mnist": (0.1307, 0.3081), "fmnist": (0.2860, 0.3530)}[name]
    pixels = data.train.x.double() / 255
    assert float(pixels.mean()) == pytest.approx(mean, abs=1e-4)
    assert float(pixels.std()) == pytest.approx(sd, abs=1e-4)


class Trap:
    """A pickle that leaves a file behind when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


class Batches:
    """The files of CIFAR in torchvision's layout, smaller ones."""

    def __init__(self, name: str, monkeypatch):
        self.name = name
        kind = {"cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]
        parts = [file for file, _ in kind.train_list + kind.test_list]
        number = 10 if name == "cifar10" else 100
        self.classes = tuple(f"class {i}" for i in range(number))
        self.x = {part: noise(4, 3, 32, 32, seed=i) for i, part in enumerate(parts)}
        self.y = {part: (np.arange(4) * 7 + i) % number for i, part in enumerate(parts)}
        key = "labels" if name == "cifar10" else "fine_labels"
        contents = {part: {"data": self.x[part].reshape(4, -1), key: self.y[part].tolist()} for part in parts}
        contents[kind.meta["filename"]] = {kind.meta["key"]: list(self.classes)}
        if name == "cifar100":
            for part in parts:
                contents[part]["coarse_labels"] = [0] * 4
            contents["meta"]["coarse_label_names"] = ["coarse"]
        self.files = {file: pickle.dumps(content, protocol=2) for file, content in contents.items()}
        md5 = {file: hashlib.md5(content).hexdigest() for file, content in self.files.items()}
        monkeypatch.setattr(kind, "train_list", [[file, md5[file]] for file, _ in kind.train_list])
        monkeypatch.setattr(kind, "test_list", [[file, md5[file]] for file, _ in kind.test_list])
        monkeypatch.setattr(kind, "meta", kind.meta | {"md5": md5[kind.meta["filename"]]})

    def write(self, root: Path) -> Path:
        folder = root / BATCHES[self.name]
        folder.mkdir(parents=True)
        for file, content in self.files.items():
            (folder / file).write_bytes(content)
        return folder

    def archive(self, path: Path) -> Path:
        with tarfile.open(path, "w:gz") as tar:
            for file, content in self.files.items():
                add(tar, f"{BATCHES[self.name]}/{file}", content)
        return path

    def check(self, data: ImageData) -> None:
        test = ["test_batch"] if self.name == "cifar10" else ["test"]
        train = [part for part in self.x if part not in test]
        for part, files in ((data.train, train), (data.test, test)):
            x = np.concatenate([self.x[file] for file in files])
            assert same(part, x, np.concatenate([self.y[file] for file in files]))
            assert part.x.dtype == torch.uint8 and part.y.dtype == torch.int64
        assert data.classes == self.classes and data.shape == (3, 32, 32)


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


@pytest.fixture(params=BATCHES)
def batches(request, monkeypatch) -> Batches:
    return Batches(request.param, monkeypatch)


@pytest.fixture
def no_download(monkeypatch):
    def locate(remote, data_dir=None):
        raise AssertionError(f"{remote.path} was asked for")

    monkeypatch.setattr(images, "locate", locate)


def test_cifar_batches_are_read_as_they_are(batches, tmp_path, no_download, capsys):
    batches.write(tmp_path)
    batches.check(load(batches.name, str(tmp_path)))
    assert capsys.readouterr() == ("", "")


def test_the_environment_names_the_folder_of_cifar(batches, tmp_path, no_download, monkeypatch):
    monkeypatch.setenv("BSDL_DATA", str(tmp_path))
    batches.write(tmp_path)
    batches.check(load(batches.name))


def test_a_batch_with_another_checksum_is_never_unpickled(batches, tmp_path, no_download):
    for i, file in enumerate(batches.files):
        root, created = tmp_path / str(i), tmp_path / f"created-{i}"
        folder = batches.write(root)
        (folder / file).write_bytes(pickle.dumps(Trap(created)))
        assert str(folder) in refusal(load, batches.name, str(root))
        assert not created.exists()
        pickle.loads((folder / file).read_bytes())
        assert created.exists()  # the trap works


@pytest.mark.parametrize("damage", [lambda content: content[:-1], lambda content: b""])
def test_a_damaged_batch_is_an_error(batches, tmp_path, no_download, damage):
    for i, (file, content) in enumerate(batches.files.items()):
        folder = batches.write(tmp_path / str(i))
        (folder / file).write_bytes(damage(content))
        assert str(folder) in refusal(load, batches.name, str(tmp_path / str(i)))


def test_a_missing_batch_is_an_error(batches, tmp_path, no_download):
    for i, file in enumerate(batches.files):
        folder = batches.write(tmp_path / str(i))
        (folder / file).unlink()
        assert str(folder) in refusal(load, batches.name, str(tmp_path / str(i)))


def test_a_tree_of_images_in_the_place_of_the_batches(batches, tmp_path, no_download):
    tree = write_tree(tmp_path / batches.name, {"train": {"cat": 3, "dog": 2}, "test": {"dog": 2}}, (32, 32, 3))
    data = load(batches.name, str(tmp_path))
    assert data.classes == ("cat", "dog") and data.shape == (3, 32, 32)
    assert same(data.train, tree.x("train"), [0, 0, 0, 1, 1])
    assert same(data.test, tree.x("test"), [1, 1])
    assert load(batches.name, str(tmp_path), size=8).shape == (3, 8, 8)
    assert load(batches.name, str(tmp_path), memory=0).train.streamed


def test_the_batches_go_before_the_tree(batches, tmp_path, no_download):
    write_tree(tmp_path / batches.name, {"train": {"cat": 1}, "test": {"cat": 1}}, (32, 32, 3))
    batches.write(tmp_path)
    batches.check(load(batches.name, str(tmp_path)))


def test_the_archive_is_unpacked_once(batches, tmp_path, monkeypatch):
    archive, asked, root = batches.archive(tmp_path / "archive.tar.gz"), [], tmp_path / "root"

    def locate(remote, data_dir=None):
        asked.append((remote.path, data_dir))
        return archive

    monkeypatch.setattr(images, "locate", locate)
    for _ in range(2):
        batches.check(load(batches.name, str(root)))
    name = {"cifar10": "cifar-10-python.tar.gz", "cifar100": "cifar-100-python.tar.gz"}[batches.name]
    assert asked == [(name, str(root))]
    found = {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}
    assert found == {f"{BATCHES[batches.name]}/{file}" for file in batches.files}


@pytest.mark.parametrize("damage", ["empty", "html", "half", "zeros", "plain-gzip", "other"])
def test_a_damaged_archive_is_an_error(batches, tmp_path, monkeypatch, damage):
    path = batches.archive(tmp_path / "archive.tar.gz")
    content = path.read_bytes()
    middle = len(content) // 2
    if damage == "other":
        with tarfile.open(path, "w:gz") as tar:
            add(tar, "readme.txt", b"nothing\n")
    else:
        path.write_bytes(
            {
                "empty": b"",
                "html": b"<html><p>Not found</p></html>\n",
                "half": content[:middle],
                "zeros": content[:middle] + bytes(1000) + content[middle + 1000 :],
                "plain-gzip": gzip.compress(b"no archive\n" * 100),
            }[damage]
        )
    monkeypatch.setattr(images, "locate", lambda remote, data_dir=None: path)
    root = tmp_path / "root"
    message = refusal(load, batches.name, str(root))
    assert str(path) in message or str(root / BATCHES[batches.name]) in message


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.7, 0.9])
def test_an_archive_damaged_in_its_middle_is_an_error(batches, tmp_path, monkeypatch, share):
    rng = np.random.default_rng(0)
    batches.files = {file: rng.integers(0, 16, 12_000, np.uint8).tobytes() for file in batches.files}  # compressible
    path = batches.archive(tmp_path / "archive.tar.gz")
    content = path.read_bytes()
    monkeypatch.setattr(images, "locate", lambda remote, data_dir=None: path)
    first = int(share * len(content))
    for i in range(first, first + 1000, 100):
        path.write_bytes(content[:i] + b"\xff" * 40 + content[i + 40 :])
        root = tmp_path / str(i)
        message = refusal(load, batches.name, str(root))
        assert str(path) in message or str(root / BATCHES[batches.name]) in message


def test_an_archive_writes_nothing_outside_the_data_folder(batches, tmp_path, monkeypatch):
    path = tmp_path / "archive.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        add(tar, "../escaped", b"outside\n")
    monkeypatch.setattr(images, "locate", lambda remote, data_dir=None: path)
    assert str(path) in refusal(load, batches.name, str(tmp_path / "root"))
    assert not (tmp_path / "escaped").exists()


def test_a_bad_archive_does_not_hide_a_good_one(batches, tmp_path, monkeypatch):
    """What was unpacked of the bad one is not taken for the data set."""
    good = batches.archive(tmp_path / "good.tar.gz")
    bad = tmp_path / "bad.tar.gz"
    bad.write_bytes(good.read_bytes()[:-2000])
    monkeypatch.setattr(images, "locate", lambda remote, data_dir=None: bad)
    refusal(load, batches.name, str(tmp_path / "root"))
    monkeypatch.setattr(images, "locate", lambda remote, data_dir=None: good)
    batches.check(load(batches.name, str(tmp_path / "root")))


class Tree:
    """A folder of images and what they hold, in the order of their names."""

    def __init__(self, root: Path):
        self.root = root
        self.images: dict[str, list[tuple[Path, np.ndarray]]] = {"train": [], "test": []}

    def x(self, part: str) -> np.ndarray:
        """(n, channels, height, width)"""
        stack = np.stack([pixels for _, pixels in self.images[part]])
        return stack[:, None] if stack.ndim == 3 else stack.transpose(0, 3, 1, 2)

    def files(self, part: str) -> list[Path]:
        return [path for path, _ in self.images[part]]


def write_tree(root: Path, counts: dict[str, dict[str, int]], shape, suffix: str = ".png") -> Tree:
    """shape: (height, width) for grey images, (height, width, 3) for colour."""
    tree = Tree(root)
    for part, classes in counts.items():
        for name in sorted(classes):
            folder = root / part / name
            folder.mkdir(parents=True)
            for i in range(classes[name]):
                path = folder / f"{i}{suffix}"
                seed = sum(map(len, tree.images.values()))
                Image.fromarray(noise(*shape, seed=seed)).save(path)
                with Image.open(path) as image:  # JPEG changes the pixels
                    tree.images[part].append((path, np.array(image)))
    return tree


COUNTS = {"train": {"ant": 5, "bee": 4, "cow": 2}, "test": {"ant": 1, "bee": 3, "cow": 3}}
LABELS = {"train": [0] * 5 + [1] * 4 + [2] * 2, "test": [0] + [1] * 3 + [2] * 3}
shapes = pytest.mark.parametrize("shape", [(7, 5), (6, 9, 3)], ids=["grey", "colour"])


@shapes
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".jpeg", ".PNG", ".JPG"])
def test_a_folder_is_read_as_it_is(tmp_path, shape, suffix):
    tree = write_tree(tmp_path, COUNTS, shape, suffix)
    (tmp_path / "train" / "ant" / "notes.txt").write_text("no image\n")
    data = load("folder", str(tmp_path))
    assert data.classes == ("ant", "bee", "cow")
    assert data.shape == data.test.shape == (3 if len(shape) == 3 else 1, *shape[:2])
    for part in ("train", "test"):
        images = getattr(data, part)
        assert not images.streamed and images.x.dtype == torch.uint8 and images.y.dtype == torch.int64
        assert images.x.is_contiguous(memory_format=torch.channels_last)
        assert same(images, tree.x(part), LABELS[part])


def test_a_class_may_be_missing_in_the_test_part(tmp_path):
    write_tree(tmp_path, {"train": COUNTS["train"], "test": {"cow": 2}}, (4, 4))
    data = load("folder", str(tmp_path))
    assert data.classes == ("ant", "bee", "cow") and data.test.y.tolist() == [2, 2]


@pytest.mark.parametrize(
    "mode, channels",
    [("L", 1), ("1", 1), ("I;16", 1), ("RGB", 3), ("RGBA", 3), ("P", 3), ("P with transparency", 3)],
)
@pytest.mark.parametrize("memory", [images.MEMORY, 0])
def test_the_modes_of_png(tmp_path, mode, channels, memory):
    """All of them are 0 to 255 on the scale of their own."""
    ramp = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    options = {}
    if mode == "1":
        picture, expected = Image.fromarray(ramp > 127), np.where(ramp > 127, 255, 0)[None]
    elif mode == "I;16":
        picture, expected = Image.fromarray(ramp.astype(np.uint16) * 257), ramp[None]
    elif mode.startswith("P"):
        picture, expected = Image.fromarray(ramp // 4).convert("P"), np.stack([ramp, 255 - ramp, ramp // 2])
        picture.putpalette([value for i in range(64) for value in (4 * i, 255 - 4 * i, 4 * i // 2)])
        options = {"transparency": bytes([255, 128, 0])} if "transparency" in mode else {}
    else:
        picture = Image.fromarray(np.stack([ramp, 255 - ramp, ramp // 2], -1)).convert(mode)
        expected = np.array(picture)[..., :3].transpose(2, 0, 1) if channels == 3 else np.array(picture)[None]
    for part in ("train", "test"):
        (tmp_path / part / "only").mkdir(parents=True)
        picture.save(tmp_path / part / "only" / "0.png", **options)
    data = load("folder", str(tmp_path), memory=memory, workers=0)
    with Image.open(tmp_path / "train" / "only" / "0.png") as image:
        assert image.mode == mode.split()[0]
    assert data.shape == (channels, 8, 8)
    x, _ = next(data.train.batches(torch.arange(1), 1))
    assert (x[0].int() - torch.from_numpy(expected.astype(np.int32))).abs().max() <= 1


@shapes
@pytest.mark.parametrize("size", [4, 12])
def test_size_scales_the_central_square(tmp_path, shape, size):
    tree = write_tree(tmp_path, COUNTS, shape)
    odd = tree.files("train")[3]
    Image.fromarray(noise(11, 13, *shape[2:])).save(odd)  # any size will do
    data = load("folder", str(tmp_path), size=size)
    assert data.shape == (3 if len(shape) == 3 else 1, size, size)
    for part in ("train", "test"):
        for path, x in zip(tree.files(part), getattr(data, part).x, strict=True):
            with Image.open(path) as image:
                expected = np.array(ImageOps.fit(image, (size, size), Image.Resampling.BILINEAR))
            assert np.array_equal(x.permute(1, 2, 0).squeeze(-1).numpy(), expected)


def test_size_of_a_square_image_of_that_size_changes_nothing(tmp_path):
    tree = write_tree(tmp_path, COUNTS, (6, 6, 3))
    assert same(load("folder", str(tmp_path), size=6).train, tree.x("train"), LABELS["train"])


@pytest.mark.parametrize("part, i", [("train", 1), ("train", 10), ("test", 0), ("test", 6)])
@pytest.mark.parametrize("shape", [(5, 7), (7, 6), (6, 5), (14, 10)])
def test_unequal_sizes_are_an_error(tmp_path, part, i, shape):
    tree = write_tree(tmp_path, COUNTS, (7, 5))
    Image.fromarray(noise(*shape)).save(tree.files(part)[i])
    message = refusal(load, "folder", str(tmp_path))
    assert str(tree.files(part)[i]) in message and "-size" in message and "5 x 7" in message


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("i", [0, 4])
@pytest.mark.parametrize("share", [0.0, 0.05, 0.5, 0.9])
def test_a_truncated_image_is_named(tmp_path, suffix, i, share):
    tree = write_tree(tmp_path, COUNTS, (20, 20, 3), suffix)
    path = tree.files("train")[i]
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    assert str(path) in refusal(load, "folder", str(tmp_path))


@pytest.mark.parametrize("mask", [0x04, 0x20, 0xFF])
@pytest.mark.parametrize("suffix", [".png", ".jpg"])
@pytest.mark.parametrize("file", [0, 1])  # the first one tells the shape
def test_a_changed_byte_gives_an_image_or_an_error(tmp_path, suffix, file, mask):
    tree = write_tree(tmp_path, {"train": {"only": 2}, "test": {"only": 1}}, (6, 6, 3), suffix)
    path = tree.files("train")[file]
    content = path.read_bytes()
    escaped, refused = {}, 0
    structure = [*range(45), *range(len(content) - 16, len(content))]  # of a PNG; pixels in between
    for i in structure if suffix == ".png" else range(0, len(content), 11):
        path.write_bytes(content[:i] + bytes([content[i] ^ mask]) + content[i + 1 :])
        try:
            load("folder", str(tmp_path))
        except DataError as error:
            assert "\n" not in str(error) and str(tmp_path) in str(error)
            refused += 1
        except Exception as error:
            escaped[i] = repr(error)
    assert escaped == {}
    assert refused >= 5


@pytest.mark.parametrize("empty", ["train/bee", "test/bee"])
def test_an_empty_class_is_named(tmp_path, empty):
    tree = write_tree(tmp_path, COUNTS, (4, 4))
    for path in tree.files(empty.split("/")[0]):
        if path.parent.name == "bee":
            path.unlink()
    (tmp_path / empty / "notes.txt").write_text("no image\n")
    message = refusal(load, "folder", str(tmp_path))
    assert str(tmp_path) in message and "bee" in message


def test_a_class_in_test_only_is_named(tmp_path):
    write_tree(tmp_path, {"train": {"ant": 1}, "test": {"ant": 1, "zebra": 1}}, (4, 4))
    message = refusal(load, "folder", str(tmp_path))
    assert str(tmp_path) in message and "zebra" in message


@pytest.mark.parametrize("missing", ["train", "test"])
@pytest.mark.parametrize("instead", ["nothing", "file", "empty folder"])
def test_a_folder_without_a_part_says_what_the_layout_is(tmp_path, missing, instead):
    write_tree(tmp_path, {part: classes for part, classes in COUNTS.items() if part != missing}, (4, 4))
    if instead == "file":
        (tmp_path / missing).write_text("")
    elif instead == "empty folder":
        (tmp_path / missing).mkdir()
    message = refusal(load, "folder", str(tmp_path))
    assert str(tmp_path) in message and f"{missing}/<class>" in message


def test_a_folder_that_is_not_there(tmp_path):
    assert str(tmp_path / "nowhere") in refusal(load, "folder", str(tmp_path / "nowhere"))


@pytest.mark.parametrize("data_dir", [None, ""])
def test_a_folder_has_to_be_named(tmp_path, monkeypatch, data_dir):
    write_tree(tmp_path, COUNTS, (4, 4))
    monkeypatch.setenv("BSDL_DATA", str(tmp_path))
    assert "-data_dir" in refusal(load, "folder", data_dir)


@workers_0_and_2
@shapes
@pytest.mark.parametrize("size", [None, 4])
def test_streamed_is_the_same_as_in_memory(tmp_path, workers, shape, size):
    write_tree(tmp_path, COUNTS, shape)
    memory = load("folder", str(tmp_path), size)
    disk = load("folder", str(tmp_path), size, memory=0, workers=workers)
    assert disk.train.streamed and disk.test.streamed
    assert disk.classes == memory.classes and disk.shape == memory.shape
    order = torch.randperm(11, generator=torch.Generator().manual_seed(0))
    pairs = list(zip(memory.train.batches(order, 4), disk.train.batches(order, 4), strict=True))
    assert [len(y) for _, (_, y) in pairs] == [4, 4, 3]
    for (x, y), (x_disk, y_disk) in pairs:
        assert x_disk.dtype == torch.uint8 and y_disk.dtype == torch.int64
        assert x_disk.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(x, x_disk) and torch.equal(y, y_disk)
    loaded = disk.test.load()
    assert same(loaded, memory.test.x, memory.test.y)


@pytest.mark.parametrize("shape, number", [((7, 5), 18 * 35), ((6, 9, 3), 18 * 162)], ids=["grey", "colour"])
def test_the_bytes_of_pixels_decide_what_is_streamed(tmp_path, shape, number):
    write_tree(tmp_path, COUNTS, shape)
    assert not load("folder", str(tmp_path), memory=number).train.streamed
    assert load("folder", str(tmp_path), memory=number - 1).train.streamed
    assert load("folder", str(tmp_path), size=100, memory=number).train.streamed  # after scaling


@workers_0_and_2
@pytest.mark.parametrize("suffix, share", [(".png", 0.5), (".jpg", 0.5), (".png", 0.0)])
def test_a_corrupt_image_is_named_when_met(tmp_path, workers, suffix, share):
    tree = write_tree(tmp_path, COUNTS, (20, 20, 3), suffix)
    path = tree.files("train")[6]
    data = load("folder", str(tmp_path), memory=0, workers=workers)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    batches = data.train.batches(torch.arange(11), 4)
    assert next(batches)[1].tolist() == [0] * 4
    assert str(path) in refusal(next, batches)
    batches.close()


@workers_0_and_2
def test_a_vanished_image_is_named_when_met(tmp_path, workers):
    tree = write_tree(tmp_path, COUNTS, (4, 4))
    data = load("folder", str(tmp_path), memory=0, workers=workers)
    tree.files("train")[6].unlink()
    assert str(tree.files("train")[6]) in refusal(list, data.train.batches(torch.arange(11), 4))


@workers_0_and_2
@pytest.mark.parametrize("batch", [1, 4, 11])
def test_unequal_sizes_are_named_when_met(tmp_path, workers, batch):
    tree = write_tree(tmp_path, COUNTS, (7, 5))
    Image.fromarray(noise(9, 9)).save(tree.files("train")[6])
    data = load("folder", str(tmp_path), memory=0, workers=workers)
    message = refusal(list, data.train.batches(torch.arange(11), batch))
    assert str(tree.files("train")[6]) in message and "-size" in message


@workers_0_and_2
def test_leaving_a_pass_early(tmp_path, workers):
    write_tree(tmp_path, COUNTS, (4, 4))
    data = load("folder", str(tmp_path), memory=0, workers=workers)
    for _ in range(2):
        for _, y in data.train.batches(torch.arange(11), 2):
            assert y.tolist() == [0, 0]
            break


@pytest.fixture(params=["memory", "disk"])
def both(request, tmp_path) -> ImageData:
    """35 training images in classes of 5 to 9, and 5 test images, of either kind."""
    counts = {"train": {f"{i:02}": 5 + i for i in range(5)}, "test": {f"{i:02}": 1 for i in range(5)}}
    write_tree(tmp_path, counts, (3, 4))
    memory = images.MEMORY if request.param == "memory" else 0
    return load("folder", str(tmp_path), memory=memory, workers=0)


def whole(part) -> tuple[torch.Tensor, torch.Tensor]:
    return next(part.batches(torch.arange(len(part)), len(part)))


@pytest.mark.parametrize("size, lengths", [(10, [10, 10, 10, 5]), (35, [35]), (100, [35]), (34, [34, 1])])
def test_batches_cover_the_order(both, size, lengths):
    x, y = whole(both.train)
    order = torch.randperm(35, generator=torch.Generator().manual_seed(1))
    found = list(both.train.batches(order, size))
    assert [len(y) for _, y in found] == lengths == [len(x) for x, _ in found]
    assert torch.equal(torch.cat([x for x, _ in found]), x[order])
    assert torch.equal(torch.cat([y for _, y in found]), y[order])


def test_an_order_may_repeat_and_leave_out(both):
    x, y = whole(both.train)
    order = torch.tensor([3, 3, 30])
    (found,) = both.train.batches(order, 8)
    assert torch.equal(found[0], x[order]) and torch.equal(found[1], y[order])


def test_a_subset(both):
    x, y = whole(both.train)
    index = torch.tensor([34, 0, 7, 7])
    some = both.train.subset(index)
    assert type(some) is type(both.train) and len(some) == 4 and some.shape == both.shape == (1, 3, 4)
    found = whole(some)
    assert torch.equal(found[0], x[index]) and torch.equal(found[1], y[index]) and torch.equal(some.y, y[index])
    assert len(both.train) == 35


def test_to_the_cpu_changes_nothing(both):
    x, y = whole(both.train)
    moved = both.to(torch.device("cpu"))
    assert moved.classes == both.classes
    assert torch.equal(whole(moved.train)[0], x) and torch.equal(whole(moved.train)[1], y)


@pytest.mark.parametrize("some", [False, True], ids=["whole", "subset"])
def test_to_a_device(both, some):
    """Batches, labels, and those of a subset are there."""
    device = torch.device("meta")
    moved = both.to(device).train
    if some:
        moved = moved.subset(torch.arange(12))
    assert moved.y.device == device
    sizes = []
    for x, y in moved.batches(torch.arange(len(moved)), 20):
        assert x.device == y.device == device
        sizes.append(len(x))
    assert sizes == ([12] if some else [20, 15])
    assert whole(both.train)[0].device == torch.device("cpu")


@pytest.mark.parametrize("share", [0.2, 0.5])
def test_hold_out_is_a_stratified_partition(both, share):
    x, y = whole(both.train)
    held = hold_out(both, share, seed=3)
    assert type(held.train) is type(both.train) is type(held.test) and held.classes == both.classes
    parts = [whole(held.train), whole(held.test)]
    assert len(parts[1][1]) == np.ceil(share * 35) == 35 - len(parts[0][1])
    rows = [[(*image.flatten().tolist(), int(label)) for image, label in zip(*part, strict=True)] for part in parts]
    before = [(*image.flatten().tolist(), int(label)) for image, label in zip(x, y, strict=True)]
    assert len(set(before)) == 35
    assert sorted(rows[0] + rows[1]) == sorted(before)
    assert (parts[1][1].bincount() - share * y.bincount()).abs().max() <= 1
    assert not {row for part in rows for row in part} & {
        (*image.flatten().tolist(), int(label)) for image, label in zip(*whole(both.test), strict=True)
    }


def test_the_seed_decides_what_is_held_out(both):
    np.random.seed(0)
    first = whole(hold_out(both, 0.4, seed=0).test)[0]
    np.random.seed(1)
    assert torch.equal(whole(hold_out(both, 0.4, seed=0).test)[0], first)
    assert not torch.equal(whole(hold_out(both, 0.4, seed=1).test)[0], first)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.99, 1.0])
def test_a_share_without_an_image_of_every_class_is_an_error(both, share):
    assert "35 images" in refusal(hold_out, both, share, 0)


def test_a_class_of_one_image_cannot_be_held_out(both):
    assert "cannot be held out" in refusal(
        hold_out, ImageData(both.classes, both.train.subset(torch.arange(6)), both.test), 0.5, 0
    )


def test_memory_images_take_any_layout():
    x = torch.from_numpy(noise(4, 6, 5, 3)).permute(0, 3, 1, 2)
    part = MemoryImages(x, torch.tensor([0, 1, 2, 1], dtype=torch.uint8))
    assert len(part) == 4 and part.shape == (3, 6, 5) and not part.streamed
    assert same(part, x, [0, 1, 2, 1])
    assert part.x.is_contiguous(memory_format=torch.channels_last)


def test_the_names():
    assert set(NAMES) == {"mnist", "fmnist", "cifar10", "cifar100", "digits", "folder"}
    assert FolderImages.streamed and not MemoryImages.streamed


def test_random_labels_change_the_labels_only(both):
    parts = (both.train, both.test)
    before = [tuple(value.clone() for value in whole(part)) for part in parts]
    data = random_labels(both, seed=2)
    assert data.classes == both.classes and data.shape == both.shape
    for part, new, (x, y) in zip(parts, (data.train, data.test), before, strict=True):
        assert type(new) is type(part) and len(new) == len(part)
        assert torch.equal(whole(new)[0], x) and torch.equal(whole(new)[1], new.y)
        assert new.y.dtype == torch.int64 and new.y.shape == y.shape
        assert new.y.min() >= 0 and new.y.max() < len(both.classes)
        assert torch.equal(whole(part)[1], y) and torch.equal(part.y, y)  # the original
    assert not torch.equal(data.train.y, both.train.y)
    some = data.train.subset(torch.tensor([3, 30]))
    assert torch.equal(whole(some)[1], data.train.y[[3, 30]])


def test_the_seed_decides_the_random_labels(both):
    torch.manual_seed(0)
    first = random_labels(both, seed=0)
    torch.manual_seed(1)
    again, other = random_labels(both, seed=0), random_labels(both, seed=1)
    relabelled = random_labels(other, seed=0)  # whatever the labels were
    for part in ("train", "test"):
        y = getattr(first, part).y
        assert torch.equal(getattr(again, part).y, y) and torch.equal(getattr(relabelled, part).y, y)
        assert not torch.equal(getattr(other, part).y, y)


def test_random_labels_are_uniform_and_say_nothing():
    n, classes = 40_000, 10
    old = torch.arange(n) % classes * (torch.arange(n) % 3 > 0)  # the classes have different numbers
    blank = torch.zeros(n, 1, 1, 1, dtype=torch.uint8)
    data = ImageData(tuple("0123456789"), MemoryImages(blank, old), MemoryImages(blank, old))
    labels = random_labels(data, seed=0)
    train, test = labels.train.y, labels.test.y
    for y in (train, test):
        assert stats.chisquare(y.bincount(minlength=classes).numpy()).pvalue > 1e-6
        table = torch.bincount(old * classes + y, minlength=classes**2).view(classes, classes)
        assert stats.chi2_contingency(table.numpy()).pvalue > 1e-6
    both = torch.bincount(train * classes + test, minlength=classes**2)  # two parts, two sequences
    assert stats.chisquare(both.numpy()).pvalue > 1e-6
    after = torch.bincount(train[1:] * classes + train[:-1], minlength=classes**2)
    assert stats.chisquare(after.numpy()).pvalue > 1e-6


def test_random_labels_stay_on_the_device(both):
    device = torch.device("meta")
    data = random_labels(both.to(device), seed=0)
    assert data.train.y.device == data.test.y.device == device
