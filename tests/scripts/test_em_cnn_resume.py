"""Runs of em_cnn.py that are stopped and go on: before the first EM step, between two of them, in the baseline."""

import random
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import em_cnn

SCRIPT = "em_cnn.py"
FEW = ("-model", "resnet20", "-sn", 4, "-cycles", 2, "-samples_per_cycle", 1, "-train", 20, "-speed", 0)
PRUNING = ("-eps0", 0.05, "-hard", 0.37, "-soft", 0.005)
SETTINGS = {  # 3 iterations an epoch, 2 with -val
    "range": (*PRUNING, "-warmup", 2),
    "square": ("-rule", "square", "-group", "filter", "-hard", 0.0037, "-warmup", 1, "-samples_per_cycle", 2),
    "cold": (*PRUNING, "-warmup", 2, "-temperature", 0, "-eta", 0, "-aug", 0, "-val", 0.2),
    "dense": ("-dense", 1, "-samples_per_cycle", 2),
    "sgd": ("-c", "sgd"),
}
TIMED = {"summary.json", "environment.json", "command.sh", "checkpoint.safetensors"}


@pytest.fixture
def flags(pictures):
    """flags(*more): of a run on the pictures."""
    folder = pictures()
    return lambda *more: (*FEW, "-data", "folder", "-data_dir", folder, *more)


@pytest.fixture
def same_run(snapshot):
    """same_run(a, b): two run folders hold the same to the last bit, and their checkpoints the same tensors."""

    def check(a, b) -> None:
        # a kill may leave the temporary file that it interrupted, or that of safetensors
        one, other = ({k: x for k, x in snapshot(f).items() if not Path(k).name.startswith(".")} for f in (a, b))
        assert one.keys() == other.keys() and {"members.csv", "layers.csv"} <= {Path(name).name for name in one}
        for name in one:
            if Path(name).name not in TIMED:
                assert one[name] == other[name], name
            elif name.endswith("checkpoint.safetensors"):
                ours, theirs = (load_file(Path(folder) / name) for folder in (a, b))
                assert ours.keys() == theirs.keys()
                assert {key for key in ours if not torch.equal(ours[key], theirs[key])} == set(), name

    return check


@pytest.mark.parametrize("setting", SETTINGS)
def test_an_interrupted_run_goes_on_bit_for_bit(start, interrupted, flags, same_run, setting):
    """Interrupted before its first checkpoint, before and after the first EM step, and between two members."""
    asked = flags(*SETTINGS[setting])
    whole, per_epoch = start(*asked, out="whole"), 2 if "-val" in asked else 3
    for at, done in ((2, None), (per_epoch + 2, 1), (per_epoch + 1, 2), (per_epoch + 2, 3)):
        path = interrupted(*asked, at=at) / "metrics.csv"
        assert (len(pd.read_csv(path)) if path.exists() else None) == done
    same_run(start(*asked, "-resume", 1, out="pieces").folder, whole.folder)
    assert whole.table["sparsity"].item() > 0 or setting in ("dense", "sgd")


@pytest.mark.parametrize("setting", SETTINGS)
def test_the_checkpoint_holds_what_the_setting_changes(interrupted, flags, setting):
    """Else the test above could pass without it."""
    asked = flags(*SETTINGS[setting])
    state = load_file(interrupted(*asked, at=8 if "-val" in asked else 11) / "checkpoint.safetensors")
    sparse, cold = setting not in ("dense", "sgd"), setting == "cold"
    assert any(bool((~x).any()) for name, x in state.items() if name.startswith("pruner.keep.")) == sparse
    decays = [x for name, x in state.items() if name.startswith("pruner.decay.")]
    assert any(bool((x > 6e-4).any()) for x in decays) == sparse and len(decays) == 21
    kept = {name.rpartition(".")[2] for name in state if name.startswith("optimizer.")}
    assert kept == ({"momentum_buffer"} if setting == "sgd" else {"rho", "momentum", "noise"})
    if setting != "sgd":
        assert bool((state["optimizer.conv1.weight.rho"] != 0).any()) != cold
    assert {f"random.{name}" for name in ("order", "augment", "noise", "global")} < state.keys()
    assert state["own.iterations"] == state["own.finite"] == (6 if "-val" in asked else 9)
    members = {"range": 0, "square": 2, "cold": 0, "dense": 3, "sgd": 1}[setting]
    assert len(state["own.sample_scores"]) == members and bool(state["average.sum_probabilities"].any()) == (
        members > 0
    )


def test_several_seeds_go_on_bit_for_bit(start, interrupted, flags, tmp_path, same_run):
    asked = flags(*SETTINGS["range"], "-seeds", 2)
    whole = start(*asked, out="whole")
    interrupted(*asked, at=12 + 8)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "pieces/seed1").rglob("*") if path.is_file()}
    assert (tmp_path / "pieces/seed1/summary.json") in times and not (tmp_path / "pieces/seed2/table.csv").exists()
    result = start(*asked, "-resume", 1, out="pieces")
    assert {path: path.stat().st_mtime_ns for path in times} == times  # a finished seed is left alone
    same_run(result.folder, whole.folder)


@pytest.mark.parametrize(
    "missing", [["summary.json"], ["summary.json", "table.csv", "members.csv", "model.safetensors"]], ids=len
)
def test_a_run_stopped_before_its_last_files_is_completed(start, flags, tmp_path, same_run, missing):
    asked = flags(*SETTINGS["range"])
    finished = start(*asked, out="finished")
    copy = shutil.copytree(finished.folder, tmp_path / "copy")
    for name in missing:
        (copy / name).unlink()
    again = start(*asked, "-resume", 1, out=copy)
    same_run(copy, finished.folder)
    assert {**again.summary, "seconds": 0} == {**finished.summary, "seconds": 0}


def test_a_finished_run_prints_its_table_and_stays(start, flags, snapshot):
    asked = flags(*SETTINGS["range"])
    finished = start(*asked)
    before = snapshot(finished.folder)
    again = start(*asked, "-resume", 1)
    assert again.stderr == "" and again.stdout == finished.stdout
    assert snapshot(finished.folder) == before


TENSORS = ("net.conv1.weight", "net.bn1.running_var", "pruner.keep.0", "pruner.decay.3", "average.sum_probabilities")
TENSORS += tuple(f"optimizer.layer1.0.conv1.weight.{name}" for name in ("rho", "momentum", "noise"))
TENSORS += ("random.order", "random.augment", "random.noise", "own.iterations")


def test_a_checkpoint_that_does_not_fit_is_a_one_line_error(interrupted, in_process, flags, tmp_path, one_line):
    """Without one of its tensors, or cut short."""
    asked = flags(*SETTINGS["range"])
    path = interrupted(*asked, at=8) / "checkpoint.safetensors"
    whole = path.read_bytes()
    with safe_open(path, framework="pt") as file:
        header, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a dict
    for name in TENSORS:
        save_file({key: x for key, x in tensors.items() if key != name}, path, header)
        result = in_process(em_cnn, *asked, "-resume", 1, out=tmp_path / "pieces")
        one_line(result, str(path.parent), "checkpoint", "does not fit")
    path.write_bytes(whole[:-100])
    one_line(in_process(em_cnn, *asked, "-resume", 1, out=tmp_path / "pieces"), str(path.parent), "damaged")


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["square", "sgd"])
def test_a_killed_run_goes_on_bit_for_bit(killed, start, flags, tmp_path, same_run, setting):
    """Killed three times, each at a random moment of its training: before and after the first EM step."""
    asked, pieces = flags(*SETTINGS[setting], "-sn", 12, "-warmup", 5), tmp_path / "pieces"
    whole, wait, done = start(*asked, out="whole"), random.Random(), []
    for after in (1, 4, 7):
        done.append(killed(*asked, out=pieces, after=after, wait=wait.uniform(0, 0.3)))
        assert not (pieces / "table.csv").exists() or done[-1] == 12
    assert done == sorted(done) and done[0] >= 1
    same_run(start(*asked, "-resume", 1, out="pieces").folder, whole.folder)
