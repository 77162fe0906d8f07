"""Runs of bayes_cnn.py that are stopped and go on, dense and sparse."""

import random
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import bayes_cnn
from model.resnet import ResNet

SCRIPT = "bayes_cnn.py"
TINY = ("-data", "digits", "-depth", 8, "-sn", 3, "-train", 200)  # 7 iterations an epoch
SPARSE = ("-prune", 1, "-sparse", 0.5, "-cut", 0.5, "-gap", 4, "-v0", 0.1, "-v1", 5e-4)
SETTINGS = {
    "dense": ("-prune", 0, "-average", 2),
    "cold dense": ("-prune", 0, "-aug", 0, "-val", 0.1, "-invT", 1e30, "-anneal", 2),
    "sa": (*SPARSE, "-average", 2),
    "rho": (*SPARSE, "-pruning", "rho"),
    "unit": (*SPARSE, "-pruning", "unit", "-c", "em", "-scale_to", 100),
    "sghmc": (*SPARSE, "-c", "sghmc", "-fix_scale", 1),
}


@pytest.fixture
def untrained(tmp_path):
    """The file of a network to start from."""
    torch.manual_seed(3)
    save_file(ResNet(8, (1, 8, 8), 10).state_dict(), tmp_path / "untrained.safetensors")
    return tmp_path / "untrained.safetensors"


@pytest.fixture
def same_numbers(same_numbers):
    """The same, and all that the checkpoints hold."""

    def check(a, b) -> None:
        same_numbers(a, b)
        one, other = (load_file(Path(folder) / "checkpoint.safetensors") for folder in (a, b))
        assert one.keys() == other.keys()
        for name, x in one.items():
            assert torch.equal(x, other[name]), name

    return check


@pytest.mark.parametrize("setting", SETTINGS)
def test_an_interrupted_run_goes_on_bit_for_bit(start, interrupted, untrained, tmp_path, same_numbers, setting):
    """Interrupted before its first checkpoint, and between two samples of the average."""
    flags = (*TINY, *SETTINGS[setting], "-pretrained", untrained)
    whole = start(*flags, out="whole")
    for at, done in ((4, None), (9, 1), (9, 2)):
        path = interrupted(*flags, at=at) / "metrics.csv"
        assert (len(pd.read_csv(path)) if path.exists() else None) == done
    same_numbers(start(*flags, "-resume", 1, out="pieces").folder, whole.folder)


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_checkpoint_holds_what_the_setting_changes(interrupted, untrained, setting):
    """Else the test above could pass without it: velocities, latent variables, masks, averages, dense scores."""
    flags = (*TINY, *SETTINGS[setting], "-pretrained", untrained)
    state = load_file(interrupted(*flags, at=17) / "checkpoint.safetensors")
    sparse, adapted = "-prune" in flags and flags[flags.index("-prune") + 1], "sghmc" not in flags
    assert (state["optimizer.conv1.weight.velocity"] != 0).any()
    assert bool((state["prior.rho.0"] != 0.5).any()) == bool(sparse and adapted)
    assert bool((~state["pruner.keep.0"]).any()) == bool(sparse)
    assert state["own.iterations"] == state["pruner.k"] == state["prior.k"] > 0
    assert bool((state["average.sum_probabilities"] != 0).any()) == ("-average" in flags)
    net = ResNet(8, (1, 8, 8), 10)
    assert {f"optimizer.{name}.velocity" for name, _ in net.named_parameters()} < state.keys()
    assert {f"dense.{name}" for name in ("accuracy", "nll", "ece", "brier")} < state.keys()


def test_several_seeds_go_on_bit_for_bit(start, interrupted, untrained, tmp_path, same_numbers):
    flags = (*TINY, *SPARSE, "-pretrained", untrained, "-seeds", 2)
    whole = start(*flags, out="whole")
    interrupted(*flags, at=21 + 9)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "pieces/seed1").iterdir() if path.is_file()}
    assert (tmp_path / "pieces/seed1/summary.json") in times and not (tmp_path / "pieces/seed2/table.csv").exists()
    result = start(*flags, "-resume", 1, out="pieces")
    assert {path: path.stat().st_mtime_ns for path in times} == times  # a finished seed is left alone
    for seed in (1, 2):
        same_numbers(result / f"seed{seed}", whole / f"seed{seed}")
    assert (result / "table.csv").read_bytes() == (whole / "table.csv").read_bytes()


@pytest.mark.parametrize("gone", [lambda folder: folder.rename("moved"), shutil.rmtree], ids=["moved", "removed"])
def test_a_run_goes_on_without_its_dense_run(start, interrupted, tmp_path, snapshot, same_numbers, gone):
    """The weights and the scores of the dense network are in the checkpoint."""
    flags = (*TINY, *SPARSE)
    start(*TINY, out=None)
    whole = start(*flags, out="whole")
    interrupted(*flags, at=9)
    gone(tmp_path / "empty/runs/bayes_cnn/dense_digits_resnet8_seed1")
    result = start(*flags, "-resume", 1, out="pieces")
    same_numbers(result.folder, whole.folder)
    assert result.table["nll_dense"].item() == whole.table["nll_dense"].item() > 0
    before = snapshot(tmp_path / "pieces")
    assert start(*flags, "-resume", 1, out="pieces").stdout.splitlines()[:-1] == whole.stdout.splitlines()[:-1]
    assert snapshot(tmp_path / "pieces") == before


@pytest.mark.parametrize("what", ["removed", "damaged", "another network"])
def test_a_run_goes_on_without_the_file_it_started_from(start, interrupted, untrained, same_numbers, what):
    flags = (*TINY, *SPARSE, "-pretrained", untrained)
    whole = start(*flags, out="whole")
    interrupted(*flags, at=9)
    untrained.unlink()
    if what == "damaged":
        untrained.write_bytes(b"x")
    if what == "another network":
        save_file(ResNet(14, (1, 8, 8), 10).state_dict(), untrained)
    same_numbers(start(*flags, "-resume", 1, out="pieces").folder, whole.folder)


def test_a_run_that_has_no_checkpoint_yet_starts_from_the_dense_run(start, interrupted, tmp_path, same_numbers):
    flags = (*TINY, *SPARSE)
    start(*TINY, out=None)
    whole = start(*flags, out="whole")
    assert not (interrupted(*flags, at=3) / "checkpoint.safetensors").exists()
    result = start(*flags, "-resume", 1, out="pieces")
    same_numbers(result.folder, whole.folder)
    assert result.table["nll_dense"].item() == pytest.approx(
        pd.read_csv(tmp_path / "empty/runs/bayes_cnn/dense_digits_resnet8_seed1/table.csv")["nll"].item()
    )


@pytest.fixture
def unfinished(interrupted, untrained, tmp_path):
    """A sparse run with a checkpoint after its second epoch."""
    interrupted(*TINY, *SPARSE, "-pretrained", untrained, at=17, out="unfinished")
    return tmp_path / "unfinished"


def test_a_damaged_checkpoint_is_a_one_line_error(unfinished, untrained, in_process, snapshot, one_line):
    path = unfinished / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    before = snapshot(unfinished)
    flags = (*TINY, *SPARSE, "-pretrained", untrained)
    result = in_process(bayes_cnn, *flags, "-resume", 1, out=unfinished)
    one_line(result, str(unfinished), "damaged")
    assert result.stdout == "" and snapshot(unfinished).keys() == before.keys()
    assert snapshot(unfinished)["checkpoint.safetensors"] == before["checkpoint.safetensors"]


TENSORS = ("net.layer1.0.conv1.weight", "net.bn1.running_var", "optimizer.conv1.weight.velocity", "prior.rho.0")
TENSORS += ("prior.kappa0.3", "prior.delta", "prior.sigma2", "pruner.keep.0", "average.sum_probabilities")
TENSORS += ("random.order", "random.augment", "random.noise")


@pytest.mark.parametrize("name", TENSORS)
def test_a_checkpoint_that_does_not_fit_is_a_one_line_error(unfinished, untrained, in_process, one_line, name):
    """Without one of its tensors."""
    path, flags = unfinished / "checkpoint.safetensors", (*TINY, *SPARSE, "-pretrained", untrained)
    with safe_open(path, framework="pt") as file:
        header, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a dict
    del tensors[name]
    save_file(tensors, path, header)
    result = in_process(bayes_cnn, *flags, "-resume", 1, out=unfinished)
    one_line(result, str(unfinished), "checkpoint", "does not fit")


LONG = ("-data", "digits", "-depth", 8, "-sn", 12, "-train", 200)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["dense", "rho"])
def test_a_killed_run_goes_on_bit_for_bit(killed, start, untrained, tmp_path, same_numbers, setting):
    """Killed three times, each at a random moment of its training."""
    flags, pieces = (*LONG, *SETTINGS[setting], "-pretrained", untrained), tmp_path / "pieces"
    whole = start(*flags, out="whole")
    wait = random.Random()
    done = []
    for after in (1, 4, 7):
        done.append(killed(*flags, out=pieces, after=after, wait=wait.uniform(0, 0.3)))
        assert not (pieces / "table.csv").exists() or done[-1] == 12
    assert done == sorted(done) and done[0] >= 1
    same_numbers(start(*flags, "-resume", 1, out="pieces").folder, whole.folder)
