"""What bayes_cnn.py refuses, and what it says when a chain diverges."""

import json
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import bayes_cnn
from model.resnet import ResNet

SCRIPT = "bayes_cnn.py"
TINY = ("-data", "digits", "-depth", 8, "-sn", 2, "-train", 100)  # 14 iterations an epoch


def text(flags) -> str:
    return " ".join(map(str, flags))


@pytest.fixture
def network(tmp_path):
    """network(depth, shape, classes): the file of a network that nobody has trained."""

    def make(depth: int = 8, shape=(1, 8, 8), classes: int = 10) -> Path:
        path = tmp_path / f"resnet{depth}.safetensors"
        save_file(ResNet(depth, shape, classes).state_dict(), path)
        return path

    return make


@pytest.mark.parametrize(
    "flags, words",
    [
        (("-sparse", 0.999), ("-sparse", "0.999", "cannot be reached", "0.94")),
        (("-sparse", 0.95), ("-sparse", "0.95", "cannot be reached")),
        (("-momentum", 0.999, "-lr", 0.01), ("-momentum", "0.999", "0.01")),
        (("-scale_to", 10**12), ("-momentum", "too large for the step size")),
    ],
    ids=text,
)
def test_bad_input_of_a_sparse_run(refused, network, flags, words):
    message = refused(bayes_cnn, *TINY, "-prune", 1, "-pretrained", network(), *flags)
    assert all(word in message for word in words), message


@pytest.mark.parametrize("flags", [(), ("-resume", 1), ("-out", "elsewhere"), ("-seed", 3, "-c", "em")], ids=text)
def test_a_sparse_run_without_its_dense_run_says_how_to_make_it(refused, flags):
    message = refused(bayes_cnn, *TINY, "-prune", 1, *flags)
    seed = 3 if "-seed" in flags else 1
    assert "-pretrained" in message and f"runs/bayes_cnn/dense_digits_resnet8_seed{seed}" in message
    assert f"-prune 0 -data digits -depth 8 -seed {seed}`" in message and "python bayes_cnn.py -lr 2e-6" in message


def test_the_command_that_it_says_makes_it(start, refused):
    message = refused(bayes_cnn, *TINY, "-prune", 1)
    command = message.split("`")[1].removeprefix("python bayes_cnn.py ").split()
    start(*command, "-sn", 1, "-train", 400, out=None)
    start(*TINY, "-sn", 1, "-train", 400, "-prune", 1, out=None)


def test_a_dense_run_that_is_not_finished_is_not_started_from(start, refused, tmp_path, infinite_at):
    infinite_at(20)
    start(*TINY, "-save_every", 0, code=3, out=None)
    assert (tmp_path / "empty/runs/bayes_cnn/dense_digits_resnet8_seed1/checkpoint.safetensors").exists()
    assert "no dense network" in refused(bayes_cnn, *TINY, "-prune", 1)


@pytest.mark.parametrize("resume", [0, 1])
def test_a_sparse_run_in_the_folder_of_a_dense_one_is_refused(start, refused, network, resume):
    dense = start(*TINY, "-sn", 1)
    flags = ("-sn", 1, "-prune", 1, "-pretrained", network(), "-out", dense.folder, "-resume", resume)
    message = refused(bayes_cnn, *TINY, *flags)
    assert dense.folder in message and "holds a run with -" in message


def damaged(path: Path) -> Path:
    path.write_bytes(path.read_bytes()[:-100])
    return path


def emptied(path: Path) -> Path:
    path.write_bytes(b"")
    return path


def without(path: Path, name: str) -> Path:
    save_file({key: x for key, x in load_file(path).items() if key != name}, path)
    return path


WEIGHTS = {
    "another depth": (lambda make: make(14), ("layer1.1", "another model")),
    "another number of classes": (lambda make: make(classes=9), ("fc.", "(9", "(10")),
    "colour images": (lambda make: make(shape=(3, 8, 8)), ("conv1.weight", "(16, 3, 3, 3)", "(16, 1, 3, 3)")),
    "damaged": (lambda make: damaged(make()), ("holds no weights",)),
    "empty": (lambda make: emptied(make()), ("holds no weights",)),
    "missing": (lambda make: make().with_name("nowhere.safetensors"), ("does not exist",)),
    "a folder without a network": (lambda make: make().parent, ("model.safetensors",)),
    "a parameter missing": (lambda make: without(make(), "fc.bias"), ("fc.bias",)),
}


@pytest.mark.parametrize("prune", [0, 1])
@pytest.mark.parametrize("kind", WEIGHTS)
def test_a_network_that_cannot_be_started_from_is_refused(refused, network, kind, prune):
    make, words = WEIGHTS[kind]
    path = make(network)
    message = refused(bayes_cnn, *TINY, "-prune", prune, "-pretrained", path)
    assert "-pretrained" in message and str(path) in message
    assert all(word in message for word in words), message


def test_a_dense_run_of_another_kind_of_image_is_refused(start, refused, pictures, tmp_path):
    """The dense run in the default place may have seen other images."""
    flags = ("-data", "folder", "-depth", 8, "-sn", 1, "-train", 20)
    start(*flags, "-data_dir", pictures(), out=None)
    three = {"cat": 30, "dog": 30, "emu": 30}
    message = refused(bayes_cnn, *flags, "-data_dir", pictures(train=three, root="other"), "-prune", 1)
    assert "fc." in message and "dense_folder_resnet8_seed1" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
@pytest.mark.parametrize("flags", [("-gpu", 0), ("-device", "cuda"), ("-gpu", 2)], ids=text)
def test_a_gpu_that_is_not_there_is_refused(refused, flags):
    message = refused(bayes_cnn, *TINY, *flags)
    assert flags[0] in message and "0 GPUs" in message


@pytest.mark.parametrize(
    "flags", [("-lr", 0.19), ("-lr", 0.01, "-wdecay", 1), ("-prune", 1, "-lr", 0.1, "-c", "em")], ids=text
)
def test_a_diverged_run_stops(start, network, flags):
    result = start(*TINY, "-pretrained", network(), *flags, "-sn", 4, code=3)
    assert result.stdout == "" and "Traceback" not in result.stderr
    *_, last = result.stderr.splitlines()
    assert last.startswith("diverged: digits ") and "at iteration " in last
    iteration, advice = last.split("at iteration ")[1].split("; ")
    assert 1 <= int(iteration) <= 4 * 14 + 1 and float(advice.removeprefix("use a smaller step: -lr ")) > 0
    assert not (result / "summary.json").exists() and not (result / "table.csv").exists()


@pytest.mark.parametrize("prune", [0, 1])
def test_a_diverged_run_names_the_iteration_and_keeps_its_last_good_checkpoint(start, network, infinite_at, prune):
    infinite_at(20)
    result = start(*TINY, "-save_every", 0, "-lr", 1e-9, "-prune", prune, "-pretrained", network(), code=3)
    method = "sa" if prune else "dense"
    assert result.stderr.splitlines()[-1].startswith(f"diverged: digits {method} seed 1 at iteration 20; ")
    assert pd.read_csv(result / "metrics.csv")["epoch"].tolist() == [1]
    with safe_open(result / "checkpoint.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["state"])["done"] == 1
        assert all(file.get_tensor(name).isfinite().all() for name in file.keys())  # noqa: SIM118, not a dict


def test_the_advised_step_is_smaller_than_the_one_that_was_asked_for(start, network, infinite_at):
    infinite_at(3)
    result = start(*TINY, "-lr", 1e-6, "-pretrained", network(), code=3)
    assert result.stderr.endswith("at iteration 3; use a smaller step: -lr 1e-07\n")


def test_the_advice_to_a_squeezed_run_is_about_its_flag(start, network, infinite_at):
    """-lr is scaled by -scale_to: what it says must be smaller than what was asked for, not than its product."""
    infinite_at(3)
    flags = ("-prune", 1, "-lr", 1e-12, "-scale_to", 50000)
    result = start(*TINY, *flags, "-pretrained", network(), code=3)
    assert float(result.stderr.split("-lr ")[-1]) < 1e-12


def test_when_one_seed_diverges_the_others_finish(start, network, infinite_at):
    flags = (*TINY, "-pretrained", network())
    alone = start(*flags, "-seed", 2, out="alone")
    infinite_at(3)
    result = start(*flags, "-seeds", 2, code=3)
    *_, last = result.stderr.splitlines()
    assert last.startswith("diverged: digits dense seed 1 at iteration 3; ") and "seed 2" not in last
    assert not (result / "seed1/table.csv").exists()
    assert (result / "seed2/table.csv").read_bytes() == (alone / "table.csv").read_bytes()
    assert result.table["seed"].tolist() == [2] and result.summary["seeds"] == 1
