"""bayes_cnn.py on two processes of a CPU, started as torchrun starts them, against one process."""

import itertools
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy

import bayes_cnn
from model.resnet import ResNet

SCRIPT = "bayes_cnn.py"
TINY = ("-data", "digits", "-depth", 8, "-sn", 2, "-train", 480, "-aug", 1)  # 2 iterations an epoch
SPARSE = ("-prune", 1, "-sparse", 0.5, "-cut", 0.5, "-gap", 2, "-v0", 0.1, "-v1", 5e-4, "-lr", 1e-6, "-c", "sa")
SPARSE += ("-dc", 2, "-da", 3)  # an omega that is felt
FILES = {"args.json", "command.sh", "environment.json", "metrics.csv", "checkpoint.safetensors", "table.csv"}
FILES |= {"summary.json", "predictions.safetensors", "model.safetensors"}

pytestmark = pytest.mark.slow


@pytest.fixture
def untrained(tmp_path):
    """The file of a network to start from."""
    torch.manual_seed(3)
    save_file(ResNet(8, (1, 8, 8), 10).state_dict(), tmp_path / "untrained.safetensors")
    return tmp_path / "untrained.safetensors"


def close(one: Path, other: Path) -> None:
    """Weights, latent variables, velocities and metrics up to the rounding of float32, and hardly another mask.

    The noise and the order of the images are the same to the last bit. Gradients agree to 1%: the batch norm of one
    process sums in float32, image by image in channels_last, and its own gradients are that far from float64's.
    """
    a, b = (load_file(folder / "checkpoint.safetensors") for folder in (one, other))
    assert a.keys() == b.keys()
    for name, x in a.items():
        if name.startswith("pruner.keep"):
            assert (x != b[name]).float().mean() < 1e-3, name
        elif name.startswith("random.") or name in ("own.iterations", "own.finite", "pruner.k", "prior.k"):
            assert torch.equal(x, b[name]), name
        else:
            error, size = (x - b[name]).double().norm(), x.double().norm()
            assert error <= 0.01 * size + 1e-6, (name, error, size)
    tables = [pd.read_csv(folder / "metrics.csv") for folder in (one, other)]
    exact = ["epoch", "iterations", "samples", "lr", "temperature_claimed", "sparsity"]
    pd.testing.assert_frame_equal(*(table[exact] for table in tables))
    for name in ("nll", "brier", "temperature_kinetic", "delta", "sigma"):
        assert tables[0][name].to_numpy() == pytest.approx(tables[1][name].to_numpy(), rel=0.01), name
    assert tables[0]["accuracy"].to_numpy() == pytest.approx(tables[1]["accuracy"].to_numpy(), abs=1)


@pytest.mark.parametrize("flags", [("-prune", 0, "-lr", 2e-6), (*SPARSE, "-average", 1)], ids=["dense", "sparse"])
def test_two_processes_compute_what_one_does(two_processes, in_process, untrained, tmp_path, flags):
    """Of two processes the first one writes and speaks."""
    flags = (*TINY, *flags, "-pretrained", untrained)
    one = in_process(bayes_cnn, *flags, out=tmp_path / "one")
    assert one.code == 0, one.stderr
    two = two_processes(*flags, "-tensorboard", 1, out=tmp_path / "two")
    assert two.code == 0, two.stderr
    close(tmp_path / "one", tmp_path / "two")
    found = {str(path.relative_to(tmp_path / "two")) for path in (tmp_path / "two").rglob("*") if path.is_file()}
    events = {name for name in found if name.startswith("tensorboard")}
    assert found - events == FILES and len(events) == 1
    assert two.stdout.count("results: ") == 1 and two.stderr.count("100%") <= 1
    assert "Warning" not in two.stderr and "Traceback" not in two.stderr


def test_two_processes_go_on_with_the_run_of_one(two_processes, in_process, untrained, tmp_path, monkeypatch):
    """With -save_every 0 a checkpoint is written after every epoch."""
    flags, calls = (*TINY, *SPARSE, "-pretrained", untrained, "-save_every", 0), itertools.count(1)
    assert in_process(bayes_cnn, *flags, out=tmp_path / "one").code == 0

    def potential(logits, y):
        if next(calls) == 4:
            raise KeyboardInterrupt
        return cross_entropy(logits, y)

    with monkeypatch.context() as stopping:
        stopping.setattr(bayes_cnn, "cross_entropy", potential)
        assert in_process(bayes_cnn, *flags, out=tmp_path / "two").code == 130
    assert len(pd.read_csv(tmp_path / "two/metrics.csv")) == 1
    first = (tmp_path / "two/metrics.csv").read_text()
    result = two_processes(*flags, "-resume", 1, out=tmp_path / "two")
    assert result.code == 0, result.stderr
    assert (tmp_path / "two/metrics.csv").read_text().startswith(first)
    close(tmp_path / "one", tmp_path / "two")


def test_a_minibatch_that_two_processes_cannot_share_is_refused(two_processes, tmp_path):
    result = two_processes(*TINY, "-train", 99, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    lines = {line for line in result.stderr.splitlines() if line.startswith("bayes_cnn.py: error: ")}
    assert lines == {"bayes_cnn.py: error: argument -train: 99 images cannot be shared evenly by 2 processes"}
    assert result.code == 2 and "Traceback" not in result.stderr


def test_the_second_process_may_be_faster_than_the_first(untrained, torchrun, slow_disk, tmp_path):
    """Which still writes the last files when the second process asks whether the run is finished."""
    flags = (*TINY, "-sn", 1, "-pretrained", untrained, "-device", "cpu", "-out", tmp_path / "run")
    result = torchrun(slow_disk("table.csv", "summary.json"), *flags)
    assert result.code == 0, result.stderr
    assert (tmp_path / "run/summary.json").exists() and result.stdout.count("results: ") == 1
