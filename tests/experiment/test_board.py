"""TensorBoard reads what was added."""

import sys

import numpy as np
import pytest

from experiment.board import Board

ROWS = [{"epoch": epoch, "accuracy": 90 + epoch / 3, "lr": 1e-6} for epoch in (1, 2, 3)]


def scalars(folder) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(folder / "tensorboard")).Reload()
    return {name: [(event.step, event.value) for event in read.Scalars(name)] for name in read.Tags()["scalars"]}


def test_rows_are_read_by_tensorboard(tmp_path):
    board = Board(tmp_path)
    for row in ROWS:
        board.add(row, row["epoch"])
    assert [path.name for path in tmp_path.iterdir()] == ["tensorboard"]
    found = scalars(tmp_path)
    assert found.keys() == ROWS[0].keys()
    for name, events in found.items():
        assert [step for step, _ in events] == [1, 2, 3]
        np.testing.assert_allclose([value for _, value in events], [row[name] for row in ROWS], rtol=1e-6)


def test_a_row_can_be_read_while_the_run_goes_on(tmp_path):
    board = Board(tmp_path)
    for done, row in enumerate(ROWS, 1):
        board.add(row, row["epoch"])
        assert len(scalars(tmp_path)["accuracy"]) == done


def test_without_a_folder_nothing_is_written_or_needed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    Board(None).add(ROWS[0], 1)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("missing", ["torch.utils.tensorboard", "tensorboard"])
def test_without_tensorboard_the_flag_is_refused(tmp_path, monkeypatch, missing):
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, missing, None)
    with pytest.raises(ValueError, match=r"argument -tensorboard: .*pip install tensorboard"):
        Board(tmp_path)
    assert list(tmp_path.iterdir()) == []
