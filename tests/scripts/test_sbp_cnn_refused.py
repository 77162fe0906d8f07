"""What sbp_cnn.py refuses, and what it says when a network diverges."""

import json
from pathlib import Path

import pandas as pd
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import sbp_cnn

SCRIPT = "sbp_cnn.py"
TINY = (
    "-data",
    "digits",
    "-scale",
    0.05,
    "-train",
    128,
    "-sn",
    3,
    "-dense_sn",
    2,
    "-speed",
    0,
)  # 11 iterations an epoch


def text(flags) -> str:
    return " ".join(map(str, flags))


@pytest.fixture
def network(tmp_path):
    """network(scale, shape, classes): the file of a LeNet-fc that nobody has trained."""

    def make(scale: float = 0.05, shape=(1, 8, 8), classes: int = 10) -> Path:
        save_file(sbp_cnn.MODELS["lenet-fc"](shape, classes, scale).state_dict(), tmp_path / "network.safetensors")
        return tmp_path / "network.safetensors"

    return make


def test_images_too_small_for_the_network_are_refused(refused, idx_files):
    message = refused(sbp_cnn, "-data", "mnist", "-data_dir", idx_files, "-model", "vgglike", "-train", 100)
    assert all(word in message for word in ("-model", "vgglike", "32 x 32", "28 x 28"))


@pytest.mark.parametrize("damage", ["truncated", "missing"])
def test_damaged_images_are_refused(refused, idx_files, damage):
    file = idx_files / "MNIST/raw/train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-100])
    if damage == "missing":
        file.unlink()
        file.mkdir()  # and cannot be downloaded to that place
    assert str(file) in refused(sbp_cnn, "-data", "mnist-random", "-data_dir", idx_files, "-train", 100)


def damaged(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-100])
    return path


def emptied(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def changed(path: Path, name: str, change) -> Path:
    """With change(tensor) in the place of a tensor, or without it where that is None."""
    tensors = load_file(path)
    tensors[name] = change(tensors[name])
    save_file({key: x for key, x in tensors.items() if x is not None}, path)
    return path


def of_one_seed(path: Path) -> Path:
    """A run of several seeds, of which one is missing."""
    (path.parent / "runs/seed1").mkdir(parents=True)
    return path.rename(path.parent / "runs/seed1/model.safetensors").parents[1]


WEIGHTS = {
    "another width": (lambda make: make(0.1), ("fc1.", "50", "25", "the network here")),
    "another number of classes": (lambda make: make(classes=9), ("fc3.", "(9", "(10")),
    "other images": (lambda make: make(shape=(1, 9, 9)), ("centre.mean", "(1, 9, 9)", "(1, 8, 8)")),
    "damaged": (lambda make: damaged(make()), ("holds no weights",)),
    "empty": (lambda make: emptied(make()), ("holds no weights",)),
    "missing": (lambda make: make().with_name("nowhere.safetensors"), ("does not exist",)),
    "a folder without a network": (lambda make: make().parent, ("model.safetensors",)),
    "a parameter missing": (lambda make: changed(make(), "fc3.bias", lambda x: None), ("fc3.bias",)),
    "not finite": (lambda make: changed(make(), "fc3.bias", lambda x: x / 0), ("fc3.bias", "not finite")),
    "only one of two seeds": (lambda make: of_one_seed(make()), ("model.safetensors",)),
}


@pytest.mark.parametrize("c", ["dense", "sbp", "sparsevd"])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_network_that_cannot_be_started_from_is_refused(refused, network, kind, c):
    make, words = WEIGHTS[kind]
    path = make(network)
    message = refused(sbp_cnn, *TINY, "-c", c, "-pretrained", path, "-seeds", 2)
    assert "-pretrained" in message and str(path) in message
    assert all(word in message for word in words), message


@pytest.mark.parametrize("c", ["sbp", "sparsevd"])
def test_a_pruned_network_is_no_start(refused, start, network, c):
    run = start(*TINY, "-sn", 1, "-c", c, "-pretrained", network())
    message = refused(sbp_cnn, *TINY, "-c", c, "-pretrained", run.folder)
    assert "-pretrained" in message and run.folder in message and "another model" in message


@pytest.mark.parametrize(
    "flags", [("-lr", 1e30), ("-c", "ssl", "-lr", 1e30), ("-c", "sparsevd", "-lr", 1e25)], ids=text
)
def test_a_diverged_run_stops(start, network, flags):
    result = start(*TINY, "-pretrained", network(), *flags, code=3)
    assert result.stdout == "" and "Traceback" not in result.stderr
    *_, last = result.stderr.splitlines()
    c = flags[1] if "-c" in flags else "sbp"
    assert last.startswith(f"diverged: digits lenet-fc {c} seed 1 at iteration ")
    iteration, advice = last.split("at iteration ")[1].split("; ")
    assert 1 <= int(iteration) <= 12
    assert float(advice.removeprefix("use a smaller step: -lr ")) == pytest.approx(flags[-1] / 10)
    assert not (result / "summary.json").exists() and not (result / "table.csv").exists()


@pytest.mark.parametrize("c", ["sbp", "sparsevd", "dense"])
def test_a_diverged_run_names_the_iteration_and_keeps_its_last_good_checkpoint(start, network, infinite_at, c):
    infinite_at(15)
    result = start(*TINY, "-save_every", 0, "-c", c, "-pretrained", network(), code=3)
    expected = f"diverged: digits lenet-fc {c} seed 1 at iteration 15; use a smaller step: -lr 0.0001"
    assert result.stderr.splitlines()[-1] == expected
    assert pd.read_csv(result / "metrics.csv")["epoch"].tolist() == [1]
    with safe_open(result / "checkpoint.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["state"])["done"] == 1
        assert all(file.get_tensor(name).isfinite().all() for name in file.keys())  # noqa: SIM118, not a dict


def test_the_plain_network_before_may_diverge(start, infinite_at):
    infinite_at(15)
    result = start(*TINY, "-lr", 1e-5, "-save_every", 0, code=3)
    *_, last = result.stderr.splitlines()
    assert last.startswith("diverged: digits lenet-fc dense seed 1 at iteration 15; ")
    assert pd.read_csv(result / "dense/metrics.csv")["epoch"].tolist() == [1]
    assert not (result / "metrics.csv").exists() and not list(Path(result.folder).rglob("summary.json"))


def test_the_fine_tuning_may_diverge(start, network, infinite_at):
    infinite_at(33 + 3)
    result = start(*TINY, "-pretrained", network(), "-finetune", 2, code=3)
    *_, last = result.stderr.splitlines()
    assert last.startswith("diverged: digits lenet-fc dense seed 1 at iteration 3; ")
    assert 0 < float(last.split("-lr ")[1]) < 1e-3
    assert not (result / "summary.json").exists() and len(pd.read_csv(result / "metrics.csv")) == 3


def test_when_one_seed_diverges_the_others_finish(start, infinite_at):
    alone = start(*TINY, "-seed", 2, out="alone")
    infinite_at(3)
    result = start(*TINY, "-seeds", 2, code=3)
    *_, last = result.stderr.splitlines()
    assert last.startswith("diverged: digits lenet-fc dense seed 1 at iteration 3; ") and "seed 2" not in last
    assert not (result / "seed1/table.csv").exists()
    assert (result / "seed2/table.csv").read_bytes() == (alone / "table.csv").read_bytes()
    assert result.table["seed"].tolist() == [2] and result.summary["seeds"] == 1


def test_when_all_seeds_diverge_there_is_no_table(start, network):
    result = start(*TINY, "-pretrained", network(), "-lr", 1e30, "-seeds", 2, code=3)
    *_, last = result.stderr.splitlines()
    assert last.count("at iteration ") == last.count("-lr ") == 2 and "seed 1 " in last and "seed 2 " in last
    assert result.stdout == "" and not list(Path(result.folder).rglob("table.csv"))
