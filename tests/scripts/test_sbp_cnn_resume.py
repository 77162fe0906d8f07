"""Runs of sbp_cnn.py that are stopped and go on: in the plain network before, in the method's part, in fine-tuning."""

import random
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import sbp_cnn

SCRIPT = "sbp_cnn.py"
SHORT = ("-data", "digits", "-train", 200, "-speed", 0)  # 7 iterations an epoch
TINY = (*SHORT, "-scale", 0.05, "-sn", 3, "-dense_sn", 2)
REMOVING = ("-noise_lr", 300, "-kl_weight", 0.1, "-lr", 3e-3)  # some of the units go
SETTINGS = {
    "sbp": (*TINY, *REMOVING, "-finetune", 2, "-threshold_sweep", 2, "-aug", 1, "-warmup", 2),
    "sbpa": (*TINY, *REMOVING, "-finetune", 2, "-c", "sbpa", "-val", 0.03, "-amp", 1),
    "sparsevd": (*TINY, "-finetune", 2, "-c", "sparsevd", "-l2", 1),
    "ssl": (*TINY, "-finetune", 2, "-c", "ssl", "-decay", 1),
}
VGG = ("-data", "folder", "-model", "vgglike", "-scale", 0.05, "-train", 20, "-sn", 2, "-dense_sn", 2, "-speed", 0)
TIMED = {"summary.json", "environment.json", "command.sh", "checkpoint.safetensors"}


@pytest.fixture
def same_run(snapshot):
    """same_run(a, b): two run folders hold the same to the last bit, and their checkpoints the same tensors."""

    def check(a, b) -> None:
        # a kill may leave the temporary file that it interrupted, ours or that of safetensors in it: .tmpXXXXXX
        one, other = ({name: x for name, x in snapshot(f).items() if Path(name).name[0] != "."} for f in (a, b))
        assert one.keys() == other.keys()
        for name in one:
            if Path(name).name not in TIMED:
                assert one[name] == other[name], name
            elif name.endswith("checkpoint.safetensors"):
                ours, theirs = (load_file(Path(folder) / name) for folder in (a, b))
                assert ours.keys() == theirs.keys()
                assert {key for key in ours if not torch.equal(ours[key], theirs[key])} == set(), name

    return check


def epochs_of(folder: Path) -> list[int | None]:
    """Epochs in the metrics of the plain network, of the method, and of the fine-tuning."""
    paths = [Path(folder) / part / "metrics.csv" for part in ("dense", "", "finetune")]
    return [len(pd.read_csv(path)) if path.exists() else None for path in paths]


@pytest.mark.parametrize("setting", SETTINGS)
def test_an_interrupted_run_goes_on_bit_for_bit(start, interrupted, tmp_path, same_run, setting):
    """Interrupted in each of its parts; 7 iterations an epoch, 6 with -val."""
    flags, per_epoch = SETTINGS[setting], 6 if "-val" in SETTINGS[setting] else 7
    whole = start(*flags, out="whole")
    moments = [(4, [None, None, None]), (per_epoch + 4, [1, None, None]), (2 * per_epoch + 4, [2, 1, None])]
    moments += [(2 * per_epoch + per_epoch + 4, [2, 3, 1])]  # what is left of the method's part, and an epoch
    for at, done in moments:
        interrupted(*flags, at=at)
        assert epochs_of(tmp_path / "pieces") == done
    result = start(*flags, "-resume", 1, out="pieces")
    assert epochs_of(result.folder) == [2, 3, 2]
    same_run(result.folder, whole.folder)


@pytest.mark.parametrize("c", ["dense", "sbp", "sparsevd"])
def test_dropout_and_running_statistics_go_on_bit_for_bit(start, interrupted, pictures, same_run, c):
    flags = (*VGG, "-data_dir", pictures(side=32), "-c", c)
    whole = start(*flags, out="whole")
    for at in (5, 5) if c != "dense" else (5,):
        interrupted(*flags, at=at)
    same_run(start(*flags, "-resume", 1, out="pieces").folder, whole.folder)
    state = load_file(whole / "checkpoint.safetensors")
    assert any(name.endswith("running_var") for name in state) and "random.global" in state


def test_the_checkpoint_holds_what_the_setting_changes(start):
    """Else the tests above could pass without it."""
    for c, names in (("sbp", ("mu", "log_sigma")), ("sparsevd", ("log_sigma2",))):
        state = load_file(start(*TINY, "-c", c, out=c) / "checkpoint.safetensors")
        for name in names:
            found = [key for key in state if key.startswith("optimizer.") and key.split(".")[-2] == name]
            assert {key.rpartition(".")[2] for key in found} == {"exp_avg", "exp_avg_sq", "step"}
            assert all((state[key] != 0).any() for key in found)
        assert {f"random.{name}" for name in ("order", "augment", "noise", "global")} < state.keys()
        assert state["own.iterations"] == state["own.finite"] == 21


def test_several_seeds_go_on_bit_for_bit(start, interrupted, tmp_path, same_run):
    flags = (*TINY, *REMOVING, "-seeds", 2)
    whole = start(*flags, out="whole")
    interrupted(*flags, at=35 + 14 + 9)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "pieces/seed1").rglob("*") if path.is_file()}
    assert (tmp_path / "pieces/seed1/summary.json") in times and not (tmp_path / "pieces/seed2/table.csv").exists()
    result = start(*flags, "-resume", 1, out="pieces")
    assert {path: path.stat().st_mtime_ns for path in times} == times  # a finished seed is left alone
    same_run(result.folder, whole.folder)


@pytest.fixture
def finished(start):
    return start(*TINY, out="finished")


@pytest.mark.parametrize(
    "missing",
    [
        ["summary.json"],
        ["summary.json", "table.csv", "units.csv", "cut.safetensors"],
        ["summary.json", "table.csv", "model.safetensors", "predictions.safetensors"],
        ["dense/summary.json", "dense/table.csv", "dense/model.safetensors", "summary.json"],
        ["dense/summary.json", "summary.json", "checkpoint.safetensors", "metrics.csv"],
    ],
    ids=lambda names: names[-1],
)
def test_a_run_stopped_before_its_last_files_is_completed(finished, start, tmp_path, same_run, missing):
    copy = shutil.copytree(finished.folder, tmp_path / "copy")
    for name in missing:
        (copy / name).unlink()
    again = start(*TINY, "-resume", 1, out=copy)
    same_run(copy, finished.folder)
    assert {**again.summary, "seconds": 0} == {**finished.summary, "seconds": 0}


def test_a_finished_run_prints_its_table_and_stays(finished, start, snapshot):
    before = snapshot(finished.folder)
    again = start(*TINY, "-resume", 1, out="finished")
    assert again.stderr == "" and again.stdout == finished.stdout
    assert snapshot(finished.folder) == before


def test_without_resume_a_run_starts_again(finished, start, snapshot):
    before = snapshot(finished.folder)
    again = start(*TINY, out="finished")
    assert again.stderr.count("0/2") >= 1 and again.stderr.count("0/3") >= 1
    after = snapshot(finished.folder)
    assert after.keys() == before.keys()
    assert all(after[name] == before[name] for name in after if Path(name).name not in TIMED)


def test_a_run_that_starts_again_leaves_nothing_of_the_old_one(start, interrupted, pictures, same_run):
    """Not even where it is stopped before it comes to the fine-tuning, or to the plain network of another seed."""
    flags = ("-data", "folder", "-scale", 0.04, "-sn", 1, "-dense_sn", 1, "-finetune", 1, "-train", 20, "-seeds", 2)
    old = (*flags, "-speed", 0, "-data_dir", pictures())
    new = (*flags, "-speed", 0, "-data_dir", pictures(train={"cat": 31, "dog": 35}, root="new"))
    whole = start(*new, out="whole")
    start(*old, out="pieces")
    interrupted(*new, at=5, resume=0)  # in the method's part of the first seed
    same_run(start(*new, "-resume", 1, out="pieces").folder, whole.folder)


@pytest.fixture
def unfinished(interrupted, tmp_path):
    """A run with a checkpoint after the second epoch of its method."""
    interrupted(*TINY, at=14 + 17, out="unfinished")
    return tmp_path / "unfinished"


@pytest.mark.parametrize("part", ["", "dense"])
def test_a_damaged_checkpoint_is_a_one_line_error(unfinished, in_process, snapshot, one_line, part):
    path = unfinished / part / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    if part:
        (unfinished / "dense/summary.json").unlink()
    before = snapshot(unfinished)
    result = in_process(sbp_cnn, *TINY, "-resume", 1, out=unfinished)
    one_line(result, str(unfinished / part), "damaged")
    assert result.stdout == "" and snapshot(unfinished).keys() == before.keys()
    for name in ("", "dense/"):
        assert snapshot(unfinished)[f"{name}checkpoint.safetensors"] == before[f"{name}checkpoint.safetensors"]


def test_a_damaged_checkpoint_of_the_fine_tuning_is_a_one_line_error(interrupted, in_process, tmp_path, one_line):
    interrupted(*TINY, "-finetune", 2, at=14 + 21 + 9)
    path = tmp_path / "pieces/finetune/checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    result = in_process(sbp_cnn, *TINY, "-finetune", 2, "-resume", 1, out=tmp_path / "pieces")
    one_line(result, str(path.parent), "damaged")


def test_a_damaged_plain_network_is_a_one_line_error(unfinished, in_process, one_line):
    path = unfinished / "dense/model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    result = in_process(sbp_cnn, *TINY, "-resume", 1, out=unfinished)
    one_line(result, str(unfinished / "dense"))


TENSORS = ("net.fc1.parametrizations.weight.original", "net.fc2.parametrizations.weight.0.mu", "net.centre.mean")
TENSORS += ("optimizer.fc1.parametrizations.weight.1.log_sigma.exp_avg_sq", "optimizer.fc3.bias.step")
TENSORS += ("random.order", "random.augment", "random.noise", "own.iterations")


@pytest.mark.parametrize("name", TENSORS)
def test_a_checkpoint_that_does_not_fit_is_a_one_line_error(unfinished, in_process, one_line, name):
    """Without one of its tensors."""
    path = unfinished / "checkpoint.safetensors"
    with safe_open(path, framework="pt") as file:
        header, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a dict
    del tensors[name]
    save_file(tensors, path, header)
    result = in_process(sbp_cnn, *TINY, "-resume", 1, out=unfinished)
    one_line(result, str(unfinished), "checkpoint", "does not fit")


KILLED = {"sbp": ("dense", "finetune"), "sparsevd": ("",), "plain": ("",)}


@pytest.mark.slow
@pytest.mark.parametrize("setting", KILLED)
def test_a_killed_run_goes_on_bit_for_bit(killed, start, pictures, tmp_path, same_run, setting):
    """Killed once in each of some of its parts, soon after a checkpoint."""
    if setting == "plain":  # with dropout
        flags = (*VGG, "-data_dir", pictures(side=32), "-c", "dense", "-sn", 9)
    else:
        flags = (*SETTINGS[setting], "-sn", 9, "-dense_sn", 9, "-finetune", 9)
    whole, pieces, wait = start(*flags, out="whole"), tmp_path / "pieces", random.Random()
    for part in KILLED[setting]:
        done = killed(*flags, out=pieces, part=part, after=2, wait=wait.uniform(0, 0.1))
        assert 2 <= done <= 9 and not (pieces / "summary.json").exists()
    same_run(start(*flags, "-resume", 1, out="pieces").folder, whole.folder)
