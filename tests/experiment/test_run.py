"""The run folder: whole files only, exact checkpoints, and refusal of what is damaged or another run's."""

import contextlib
import json
import os
import pickle
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import save_file

from experiment.run import Run, RunError, environment, joined, part, plain, replace_file

SETTINGS = {"lr": 0.1, "sd": [1.0, 2.0], "v0": None, "resume": 0, "save_every": 10.0, "data_dir": None}


def opened(folder, **changed) -> Run:
    return Run("script", "name", SETTINGS | {"out": str(folder)} | changed)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_replaced_files_are_whole(tmp_path):
    path = tmp_path / "file"
    replace_file(path, lambda temporary: temporary.write_text("first"))

    def fails(temporary):
        temporary.write_text("half of the sec")
        raise RuntimeError("killed here")

    with pytest.raises(RuntimeError, match="killed here"):
        replace_file(path, fails)
    assert contents(tmp_path) == {"file": b"first"}
    replace_file(path, lambda temporary: temporary.write_text("second"))
    assert contents(tmp_path) == {"file": b"second"}


def test_readers_see_the_old_file_while_the_new_one_is_written(tmp_path):
    path = tmp_path / "file"
    path.write_text("old")

    def write(temporary):
        temporary.write_text("new")
        assert path.read_text() == "old" and temporary.parent == path.parent  # so that the rename is atomic

    replace_file(path, write)
    assert path.read_text() == "new"


def test_an_interrupt_waits_until_the_file_is_whole(tmp_path):
    path = tmp_path / "file"
    before = signal.signal(signal.SIGINT, signal.default_int_handler)

    def write(temporary):
        with contextlib.suppress(KeyboardInterrupt):  # as a library might
            os.kill(os.getpid(), signal.SIGINT)
        temporary.write_text("all of it")

    try:
        with pytest.raises(KeyboardInterrupt):
            replace_file(path, write)
        assert contents(tmp_path) == {"file": b"all of it"}
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)


def test_files_are_written_from_any_thread(tmp_path):
    with ThreadPoolExecutor(1) as pool:
        pool.submit(replace_file, tmp_path / "file", lambda temporary: temporary.write_text("all of it")).result()
    assert contents(tmp_path) == {"file": b"all of it"}


def tensors() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    single = torch.randn(3, 4, generator=generator)
    single[0] = torch.tensor([torch.inf, -torch.inf, torch.nan, -0.0])
    return {
        "float32": single,
        "float64": torch.randn(5, generator=generator, dtype=torch.float64) * 1e-310,
        "int64": torch.tensor([[2**62, -1]]),
        "bool": torch.tensor([True, False]),
        "uint8": generator.get_state(),
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 3),
        "view": torch.arange(12.0).view(3, 4).T[1:],
        "parameter": torch.nn.Parameter(torch.ones(3)),
    }


def test_a_checkpoint_is_exact(tmp_path):
    saved = tensors()
    opened(tmp_path).save(saved, {"done": 3, "name": "é"}, [{"epoch": 1}])
    loaded, state, _ = opened(tmp_path, resume=1).load()
    assert loaded.keys() == saved.keys()
    for name, x in saved.items():
        assert loaded[name].dtype == x.dtype and loaded[name].shape == x.shape
        assert loaded[name].numpy().tobytes() == x.detach().contiguous().numpy().tobytes()
    assert state["done"] == 3 and state["name"] == "é"


def test_metrics_are_exact(tmp_path):
    values = np.random.default_rng(0).normal(size=2000) * 10.0 ** np.random.default_rng(1).integers(-300, 300, 2000)
    rows = [{"epoch": i, "method": "sa", "rmse": float(x), "chains": 3} for i, x in enumerate(values)]
    opened(tmp_path).save({}, {}, rows)
    _, _, loaded = opened(tmp_path, resume=1).load()
    assert loaded == rows
    assert all(isinstance(row["epoch"], int) and isinstance(row["method"], str) for row in loaded)


def test_saving_what_was_loaded_writes_the_same_metrics(tmp_path):
    values = np.random.default_rng(0).normal(size=500)
    opened(tmp_path).save({}, {}, [{"epoch": i, "rmse": x, "sigma": np.nan} for i, x in enumerate(values)])
    before = (tmp_path / "metrics.csv").read_bytes()
    run = opened(tmp_path, resume=1)
    run.save({}, {}, run.load()[2])
    assert (tmp_path / "metrics.csv").read_bytes() == before


@pytest.mark.parametrize("length", range(1, 60, 7))
def test_loaded_tensors_are_aligned_like_fresh_ones(tmp_path, length):
    """Whatever lies before them in the file: matrix products round differently at other addresses."""
    run = opened(tmp_path)
    run.save({"a": torch.randn(33), "b": torch.randn(7, 5)}, {"done": 1, "note": "x" * length}, [])
    tensors, _, _ = run.load()
    assert all(x.data_ptr() % 64 == 0 for x in tensors.values())


def test_a_checkpoint_before_the_first_row_of_metrics(tmp_path):
    opened(tmp_path).save({"x": torch.ones(2)}, {"done": 10}, [])
    loaded, state, rows = opened(tmp_path, resume=1).load()
    assert torch.equal(loaded["x"], torch.ones(2)) and state["done"] == 10 and rows == []


def test_rows_beyond_the_checkpoint_are_dropped(tmp_path):
    run = opened(tmp_path)
    rows = [{"epoch": i, "rmse": 0.5 * i} for i in range(5)]
    run.save({}, {}, rows[:3])
    pd.DataFrame(rows).to_csv(tmp_path / "metrics.csv", index=False)  # killed between the two files
    assert opened(tmp_path, resume=1).load()[2] == rows[:3]


def test_no_checkpoint_is_none(tmp_path):
    assert opened(tmp_path, resume=1).load() is None


class Bomb:
    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (self.path,))


def damage(path: Path, how: str) -> None:
    content = path.read_bytes()
    if how == "truncated":
        path.write_bytes(content[:-10])
    elif how == "header cut":
        path.write_bytes(content[:20])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(len(content)))
    elif how == "header length":
        path.write_bytes(b"\xff" * 8 + content[8:])
    elif how == "no state":
        save_file({"x": torch.ones(3)}, path)
    elif how == "state is no JSON":
        save_file({"x": torch.ones(3)}, path, metadata={"state": "{"})
    elif how == "state without metrics":
        save_file({"x": torch.ones(3)}, path, metadata={"state": "{}"})
    elif how == "pickle":
        path.write_bytes(pickle.dumps(Bomb(path.with_name("executed"))))
    elif how == "torch.save":
        torch.save(Bomb(path.with_name("executed")), path)


@pytest.mark.parametrize(
    "how",
    [
        "truncated", "header cut", "empty", "noise", "header length", "no state", "state is no JSON",
        "state without metrics", "pickle", "torch.save",
    ],
)  # fmt: skip
def test_a_damaged_checkpoint_is_an_error_and_never_executed(tmp_path, how):
    opened(tmp_path).save({"x": torch.ones(300)}, {"done": 1}, [{"epoch": 1}])
    damage(tmp_path / "checkpoint.safetensors", how)
    run = opened(tmp_path, resume=1)
    with pytest.raises(RunError) as error:
        run.load()
    message = str(error.value)
    assert str(tmp_path) in message and "damaged" in message and "\n" not in message
    assert not (tmp_path / "executed").exists()


def test_lost_metrics_come_back_with_the_checkpoint(tmp_path):
    rows = [{"epoch": 1, "rmse": 0.1}, {"epoch": 2, "rmse": float("nan")}]
    opened(tmp_path).save({}, {}, rows)
    before = (tmp_path / "metrics.csv").read_bytes()
    (tmp_path / "metrics.csv").unlink()
    run = opened(tmp_path, resume=1)
    run.save({}, {}, run.load()[2])
    assert (tmp_path / "metrics.csv").read_bytes() == before


@pytest.mark.parametrize(
    "changed, flag, values",
    [
        ({"lr": 0.2}, "-lr", ("0.1", "0.2")),
        ({"sd": [1.0]}, "-sd", ("[1.0, 2.0]", "[1.0]")),
        ({"v0": 0.1}, "-v0", ("None", "0.1")),
    ],
)
@pytest.mark.parametrize("resume", [0, 1])
def test_another_run_in_the_folder_is_an_error_that_names_the_flag(tmp_path, changed, flag, values, resume):
    opened(tmp_path).save({"x": torch.ones(3)}, {"done": 1}, [{"epoch": 1}])
    before = contents(tmp_path)
    with pytest.raises(RunError) as error:
        opened(tmp_path, resume=resume, **changed)
    assert f"{flag} " in str(error.value) and all(value in str(error.value) for value in values)
    assert contents(tmp_path) == before


def test_flags_that_do_not_change_the_numbers_may_change(tmp_path):
    opened(tmp_path).save({"x": torch.ones(3)}, {"done": 1}, [{"epoch": 1}])
    assert opened(tmp_path, resume=1, save_every=0.0, data_dir="elsewhere").load() is not None


def test_without_resume_the_same_run_starts_again(tmp_path):
    run = opened(tmp_path)
    run.save({"x": torch.ones(3)}, {"done": 1}, [{"epoch": 1}])
    run.finish(pd.DataFrame([{"rmse": 1.0}]), {"rmse": 1.0})
    assert opened(tmp_path, resume=1).finished
    again = opened(tmp_path)
    assert not again.finished and again.load() is None
    assert set(contents(tmp_path)) == {"args.json", "command.sh", "environment.json"}


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\xff"])
def test_an_unreadable_args_json_is_an_error(tmp_path, text):
    (tmp_path / "args.json").write_text(text, encoding="latin-1")
    with pytest.raises(RunError) as error:
        opened(tmp_path, resume=1)
    assert str(tmp_path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("below", ["", "a", "a/b"])
def test_an_unwritable_folder_is_an_error(tmp_path, below):
    (tmp_path / "file").write_text("x")
    with pytest.raises(RunError) as error:
        opened(tmp_path / "file" / below)
    assert "-out" in str(error.value) and str(tmp_path / "file" / below) in str(error.value)
    assert contents(tmp_path) == {"file": b"x"}


def test_the_default_folder_is_below_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = Run("script", "name", SETTINGS | {"out": None})
    assert run.folder == Path("runs/script/name") and run.folder.is_dir()


def test_a_folder_records_what_was_asked_for_and_where_it_ran(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/somewhere/script.py", "-out", "a folder", "-lr", "0.1"])
    opened(tmp_path)
    assert json.loads((tmp_path / "args.json").read_text()) == {"lr": 0.1, "sd": [1.0, 2.0], "v0": None}
    assert (tmp_path / "command.sh").read_text() == "python script.py -out 'a folder' -lr 0.1\n"
    where = json.loads((tmp_path / "environment.json").read_text())
    assert where["torch"] == torch.__version__ and where["cores"] == os.cpu_count()


def test_the_environment_without_git(monkeypatch, tmp_path):
    """As in an image that holds an unpacked archive."""
    monkeypatch.setenv("PATH", str(tmp_path))
    assert shutil.which("git") is None
    assert environment()["commit"] is None


def test_seconds_add_up_over_pieces(tmp_path):
    run = opened(tmp_path)
    run._began -= 100
    run.save({}, {}, [{"epoch": 1}])
    later = opened(tmp_path, resume=1)
    assert later.seconds < 50
    later.load()
    assert 100 <= later.seconds < 150


def test_checkpoints_are_due_by_the_clock(tmp_path):
    assert opened(tmp_path, save_every=0.0).due()
    run = opened(tmp_path, save_every=1000.0)
    assert not run.due()
    run._saved -= 1001
    assert run.due()
    run.save({}, {}, [])
    assert not run.due()


def test_a_part_is_a_folder_inside(tmp_path):
    run = opened(tmp_path)
    inner = run.part("boston")
    inner.save({"x": torch.ones(1)}, {"done": 1}, [{"epoch": 1}])
    assert inner.folder == tmp_path / "boston" and run.load() is None
    assert opened(tmp_path, resume=1).part("boston").load()[1]["done"] == 1


def test_plain_values_are_json_without_nan():
    value = {1: [np.float64(0.5), np.nan, (np.inf, np.int64(3))], "x": {"y": np.bool_(True), "z": "text"}, "n": None}
    expected = {"1": [0.5, None, [None, 3]], "x": {"y": True, "z": "text"}, "n": None}
    assert json.loads(json.dumps(plain(value), allow_nan=False)) == expected


def test_a_summary_with_nan_is_valid_json(tmp_path):
    run = opened(tmp_path)
    run.finish(pd.DataFrame([{"rmse": np.nan, "n": 1}]), {"rmse": np.nan, "n": np.int64(1)})
    assert json.loads((tmp_path / "summary.json").read_text(), parse_constant=pytest.fail) == {"rmse": None, "n": 1}
    assert (tmp_path / "table.csv").read_text() == "rmse,n\n,1\n"


def test_parts_of_a_checkpoint_come_apart_again():
    a, b = {"x": torch.ones(1), "net.y": torch.zeros(1)}, {"x": torch.full((1,), 2.0)}
    together = joined({"net": a, "network": b})
    assert len(together) == 3
    assert part("net", together) == a and part("network", together) == b
