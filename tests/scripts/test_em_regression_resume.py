"""em_regression.py goes on bit for bit where it was stopped."""

import itertools
import json
import os
import random
import shutil
import signal

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import em_regression

SCRIPT = "em_regression.py"
# 4 iterations an epoch, 3 epochs before the first pruning, by which some variables go and some stay
FLAGS = ("-n", 300, "-test", 64, "-train", 64, "-epochs", 8, "-cycles", 2, "-warmup", 3, "-record", 3)
FLAGS += ("-hard", 1 / 3000, "-seeds", 2, "-restarts", 2)
FIRST_EM = 12  # iterations before it


@pytest.fixture(scope="module")
def whole(shared_run):
    result = shared_run("em_regression", SCRIPT, *FLAGS)
    assert result.code == 0, result.stderr
    assert result.table["selected"].between(6, 994).all()
    return result


@pytest.fixture
def interrupted(in_process, monkeypatch, tmp_path):
    """interrupted(at, resume): the run, interrupted by the user in the iteration `at` of this piece."""

    def run(at: int, resume: int = 1):
        calls, cycle = itertools.count(1), em_regression.cosine_cycle

        def stopping(*arguments):
            if next(calls) == at:
                raise KeyboardInterrupt
            return cycle(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(em_regression, "cosine_cycle", stopping)
            flags = (*FLAGS, "-save_every", 0, "-resume", resume)
            result = in_process(em_regression, *flags, out=tmp_path / "pieces")
        assert result.code == 130 and result.stdout == "" and not (result / "summary.json").exists()
        return result

    return run


def done(folder) -> int:
    with safe_open(folder / "checkpoint.safetensors", framework="pt") as file:
        return json.loads(file.metadata()["state"])["done"]


def same_run(a, b) -> None:
    for name in ("table.csv", "metrics.csv"):
        assert (a / name).read_bytes() == (b / name).read_bytes(), name
    first, second = (load_file(run / "checkpoint.safetensors") for run in (a, b))
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert {**a.summary, "seconds": 0} == {**b.summary, "seconds": 0}


@pytest.mark.parametrize("stops", [(6,), (FIRST_EM + 1,), (FIRST_EM + 10,), (6, 7, 6, 5)], ids=str)
def test_an_interrupted_run_goes_on_bit_for_bit(whole, interrupted, in_process, tmp_path, stops):
    """Before the first pruning, in the epoch that begins with it, after it, and several times."""
    for at in stops:
        interrupted(at)
    assert 0 < done(tmp_path / "pieces") < 8
    same_run(in_process(em_regression, *FLAGS, "-resume", 1, out=tmp_path / "pieces"), whole)


def test_a_checkpoint_holds_the_variables_that_are_left(interrupted, tmp_path):
    for at, fewer in ((6, False), (FIRST_EM + 6, True)):
        interrupted(at, resume=0)
        state = load_file(tmp_path / "pieces/checkpoint.safetensors")
        assert (state["own.columns"].shape[1] < 1000) == fewer
        for name in ("net.weight1", "optimizer.weight1.rho", "prior.keep.0", "prior.decay.0"):
            assert state[name].shape[2] == state["own.columns"].shape[1]


def test_without_resume_a_run_starts_again(whole, interrupted, in_process, tmp_path):
    interrupted(FIRST_EM + 6)
    same_run(in_process(em_regression, *FLAGS, out=tmp_path / "pieces"), whole)


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(script, in_process, tmp_path):
    """Killed once before and once after the first pruning, at any moment."""
    flags = (*FLAGS, "-seeds", 1, "-epochs", 100, "-warmup", 50, "-record", 20)
    whole = in_process(em_regression, *flags, out=tmp_path / "whole")
    pieces, wait = tmp_path / "pieces", random.Random()
    for after, until in ((5 + wait.randrange(10), 50), (54 + wait.randrange(10), 100)):
        killed = script.kill(SCRIPT, *flags, "-save_every", 0, "-resume", 1, out=pieces, after=after)
        assert killed.code == -signal.SIGKILL and after <= done(pieces) < until
        columns = load_file(pieces / "checkpoint.safetensors")["own.columns"]
        assert (columns.shape[1] < 1000) == (after > 50)
    same_run(in_process(em_regression, *flags, "-resume", 1, out=pieces), whole)


@pytest.fixture
def finished(whole, tmp_path):
    return shutil.copytree(whole.folder, tmp_path / "finished")


def snapshot(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_finished_run_prints_its_table_and_stays(whole, finished, in_process):
    before = snapshot(finished)
    again = in_process(em_regression, *FLAGS, "-resume", 1, out=finished)
    assert again.code == 0 and again.stderr == "" and snapshot(finished) == before
    assert again.stdout.splitlines()[:-1] == whole.stdout.splitlines()[:-1]  # the last one names the folder


@pytest.mark.parametrize(
    "missing", [["summary.json"], ["summary.json", "table.csv"], ["figures/em_selection.png"]], ids=" ".join
)
def test_a_run_stopped_before_its_last_file_is_completed(whole, finished, in_process, missing):
    for name in missing:
        (finished / name).unlink()
    again = in_process(em_regression, *FLAGS, "-resume", 1, out=finished)
    assert again.code == 0, again.stderr
    same_run(again, whole)
    assert (finished / "figures/em_selection.png").read_bytes() == (whole / "figures/em_selection.png").read_bytes()


@pytest.mark.parametrize("cut", [100, 10**5])
def test_a_damaged_checkpoint_is_a_one_line_error(finished, in_process, cut):
    (finished / "summary.json").unlink()
    checkpoint = finished / "checkpoint.safetensors"
    os.truncate(checkpoint, checkpoint.stat().st_size - cut)
    again = in_process(em_regression, *FLAGS, "-resume", 1, out=finished)
    assert again.code == 2 and again.stdout == ""
    assert again.stderr.count("\n") == 1 and str(finished) in again.stderr and "damaged" in again.stderr


TENSORS = ("net.weight1", "net.bias3", "optimizer.weight1.rho", "optimizer.bias2.noise", "prior.keep.0")
TENSORS += ("prior.decay.2", "noise.generators", "own.columns", "own.order", "own.finite")


@pytest.mark.parametrize("name", TENSORS)
def test_a_checkpoint_that_does_not_fit_is_a_one_line_error(finished, in_process, name):
    """Without one of its tensors."""
    (finished / "summary.json").unlink()
    path = finished / "checkpoint.safetensors"
    with safe_open(path, framework="pt") as file:
        header = file.metadata()
    tensors = load_file(path)
    del tensors[name]
    save_file(tensors, path, header)
    again = in_process(em_regression, *FLAGS, "-resume", 1, out=finished)
    assert again.code == 2 and again.stdout == "" and again.stderr.count("\n") == 1
    assert str(finished) in again.stderr and "does not fit" in again.stderr
