"""em_cnn.py on two processes of a CPU, started as torchrun starts them, against one process."""

import itertools
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

SCRIPT = "em_cnn.py"
FEW = ("-model", "resnet20", "-sn", 2, "-cycles", 2, "-samples_per_cycle", 1, "-train", 20, "-lr", 0.01)
SETTINGS = {
    "em": ("-eps0", 0.05, "-hard", 0.37, "-soft", 0.005, "-warmup", 1),
    "narrow": ("-model", "preact_resnet18", "-scale", 0.1, "-hard", 0.5, "-warmup", 1, "-aug", 0, "-speed", 0),
    "sgd": ("-c", "sgd", "-lr", 1e-5, "-speed", 0),
}

pytestmark = pytest.mark.slow


def close(one: Path, other: Path) -> None:
    """Weights, the sampler's state and metrics up to the rounding of float32, hardly another mask or decay; the same
    random numbers and images.

    Gradients of batch norm itself are sums that nearly cancel, and agree less. What is pruned has no momentum that
    matters: behind a channel of zeros batch norm divides by almost nothing.
    """
    a, b = (load_file(folder / "checkpoint.safetensors") for folder in (one, other))
    assert a.keys() == b.keys()
    for name, x in a.items():
        if name.startswith("random.") or name in ("own.iterations", "own.finite") or name.endswith(".noise"):
            assert torch.equal(x, b[name]), name
        elif name.startswith("pruner."):
            assert (x != b[name]).float().mean() < 0.02, name
        elif not name.startswith("own."):
            weight = a.get(f"net.{name.removeprefix('optimizer.').rpartition('.')[0]}")
            left = 1 if weight is None or not name.startswith("optimizer.") else weight != 0
            error, size = ((x - b[name]) * left).double().norm(), (x * left).double().norm()
            assert error <= (0.02 if x.ndim > 1 else 0.2) * size + 1e-3, (name, error, size)
    tables = [pd.read_csv(folder / "metrics.csv") for folder in (one, other)]
    exact = ["epoch", "iterations", "samples", "lr"]
    pd.testing.assert_frame_equal(*(table[exact] for table in tables))
    for name in set(tables[0]) - {*exact} - {name for name in tables[0] if name.startswith(("accuracy", "ece"))}:
        assert tables[0][name].to_numpy() == pytest.approx(tables[1][name].to_numpy(), rel=0.02, nan_ok=True), name


def test_two_processes_compute_what_one_does(two_ranks, slow_disk, start, pictures, snapshot, tmp_path):
    """Of two processes the first one writes, and may be slower at that than the second one reads; and it speaks."""
    flags = (*FEW, "-data", "folder", "-data_dir", pictures())
    more = {"em": ("-tensorboard", 1, "-export", tmp_path / "exported")}
    commands = [
        (*flags, *asked, *more.get(name, ()), "-device", "cpu", "-out", tmp_path / f"two_{name}", "then")
        for name, asked in SETTINGS.items()
    ]
    two = two_ranks(slow_disk("model.safetensors", "members.csv", "summary.json"), *itertools.chain(*commands))
    assert two.code == 0, two.stderr
    assert two.stdout.count("results: ") == 3 and "Traceback" not in two.stderr
    for name, asked in SETTINGS.items():
        one, other = Path(start(*flags, *asked, "-speed", 0, out=f"one_{name}").folder), tmp_path / f"two_{name}"
        close(one, other)
        assert (pd.read_csv(one / "table.csv")["sparsity"].item() > 0) == (name != "sgd")
        found = [{file for file in snapshot(folder) if "events" not in file} for folder in (one, other)]
        assert found[1] - {"speed.csv"} == found[0] and ("speed.csv" in found[1]) == (name == "em")
    assert len([*(tmp_path / "two_em").rglob("events.out*")]) == 1
    assert {path.name for path in (tmp_path / "exported").iterdir()} == {"network.pt2", "network.onnx"}


def test_two_processes_go_on_with_the_run_of_one(two_processes, start, interrupted, pictures, tmp_path):
    """Interrupted after the first epoch, before the EM step."""
    flags = (*FEW, "-data", "folder", "-data_dir", pictures(), *SETTINGS["em"], "-speed", 0)
    start(*flags, out="one")
    assert len(pd.read_csv(interrupted(*flags, at=5, out="two") / "metrics.csv")) == 1
    result = two_processes(*flags, "-resume", 1, out=tmp_path / "two")
    assert result.code == 0, result.stderr
    close(tmp_path / "one", tmp_path / "two")


def test_a_minibatch_that_two_processes_cannot_share_is_refused(two_processes, pictures, tmp_path):
    flags = (*FEW, "-data", "folder", "-data_dir", pictures(), "-train", 9)
    result = two_processes(*flags, out=tmp_path / "run")
    assert result.code != 0 and not (tmp_path / "run").exists()
    lines = {line for line in result.stderr.splitlines() if line.startswith("em_cnn.py: error: ")}
    assert lines == {"em_cnn.py: error: argument -train: 9 images cannot be shared evenly by 2 processes"}
