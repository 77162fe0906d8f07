"""Cells run once each, whatever is killed. The script is a stand-in that writes what a script of ours writes."""

from __future__ import annotations

import json
import os
import pickle
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest

from reproduction import engine
from reproduction.cells import Cell, Place
from reproduction.engine import run_cell, run_cells, waves

KILLS = int(os.environ.get("BSDL_KILLS", 3))

# counts its starts in `starts`, works for a while in steps that a later start need not repeat, then finishes
STAND_IN = """
import os, sys, time
from pathlib import Path
flags = dict(zip(sys.argv[1::2], sys.argv[2::2]))
out = Path(flags["-out"])
out.mkdir(parents=True, exist_ok=True)
with (out / "starts").open("a") as file:
    file.write(f"{os.getpid()}\\n")
for i in range(int(flags.get("-steps", 1))):
    if (out / f"step{i}").exists():
        continue
    time.sleep(float(flags.get("-wait", 0)))
    (out / f"step{i}").touch()
print("working\\nthe last line")
if "-fail" in flags:
    sys.exit(int(flags["-fail"]))
(out / ".summary").write_text("{}")
os.replace(out / ".summary", out / "summary.json")
"""


@pytest.fixture
def stand_in(tmp_path):
    """stand_in(name, *flags): a cell whose script is the stand-in."""
    script = tmp_path / "stand_in.py"
    script.write_text(STAND_IN)

    def make(name: str, *flags, table: str = "t", **keys) -> Cell:
        return Cell(table, name, (str(script), *map(str, flags)), keys)

    return make


@pytest.fixture
def place(tmp_path) -> Place:
    return Place(tmp_path / "runs")


def started(cells: list[Cell], place: Place) -> subprocess.Popen:
    """A process that runs cells, two at a time, and prints what became of them."""
    code = (
        "import sys, pickle; from reproduction.engine import run_cells;"
        "cells, place = pickle.loads(bytes.fromhex(sys.argv[1]));"
        "print([o.state for o in run_cells(cells, place, jobs=2)])"
    )
    words = [sys.executable, "-c", code, pickle.dumps((cells, place)).hex()]
    return subprocess.Popen(words, cwd=engine.ROOT, stdout=subprocess.PIPE, text=True)


def starts(place: Place, cell: Cell) -> int:
    file = place.folder(cell) / "starts"
    return len(file.read_text().splitlines()) if file.exists() else 0


def test_a_finished_cell_is_not_run_again(stand_in, place):
    cell = stand_in("a")
    first, second = run_cell(cell, place), run_cell(cell, place)
    assert (first.state, second.state, starts(place, cell)) == ("finished", "finished", 1)
    assert first.seconds > 0 and second.seconds == 0


def test_a_failed_cell_says_why_and_does_not_stop_the_others(stand_in, place):
    bad, good, later = stand_in("bad", "-fail", 2), stand_in("good"), stand_in("later", "-from", "@bad")
    outcomes = {o.id: o for o in run_cells([bad, good, later], place, jobs=1)}
    assert outcomes["t/good"].state == "finished"
    assert (outcomes["t/bad"].state, outcomes["t/bad"].error) == ("failed", "the last line")
    assert (outcomes["t/later"].state, outcomes["t/later"].error) == ("failed", "needs t/bad")
    assert starts(place, later) == 0
    assert (place.state(bad), place.error(bad)) == ("failed", "the last line")


def test_a_failed_cell_is_tried_again(stand_in, place):
    cell = stand_in("a", "-fail", 1)
    run_cell(cell, place)
    run_cell(cell, place)
    assert starts(place, cell) == 2


def test_a_cell_without_its_product_has_failed(stand_in, place):
    cell = stand_in("a", "-fail", 0)
    assert run_cell(cell, place).error == "summary.json is missing"


def test_a_cell_that_diverged_in_part_is_finished(tmp_path, place):
    script = tmp_path / "parts.py"
    script.write_text(STAND_IN + 'print("diverged: 3 of 20 chains"); sys.exit(3)')
    outcome = run_cell(Cell("t", "a", (str(script),)), place)
    assert (outcome.state, outcome.error) == ("finished", "diverged: 3 of 20 chains")


def test_the_data_folder_reaches_the_script(tmp_path, place):
    script = tmp_path / "reads.py"
    script.write_text(STAND_IN + '(out / "data").write_text(os.environ["BSDL_DATA"])')
    cell = Cell("t", "a", (str(script),))
    (outcome,) = run_cells([cell], place, jobs=1, data=tmp_path)
    assert outcome.state == "finished" and (place.folder(cell) / "data").read_text() == str(tmp_path)


def test_cells_wait_for_those_that_they_need():
    dense, sparse, attack = (
        Cell("t", "dense", ("x",)),
        Cell("t", "sparse", ("x", "@dense")),
        Cell("u", "a", ("@t/sparse",)),
    )
    assert list(waves([attack, sparse, dense])) == [[dense], [sparse], [attack]]
    assert list(waves([attack, sparse])) == [[sparse], [attack]]  # dense was finished before


def test_a_folder_with_another_commands_run_is_not_finished(stand_in, place):
    cell = stand_in("a", "-sn", 5, "-pretrained", "@b")
    folder = place.folder(cell)
    folder.mkdir(parents=True)
    (folder / "summary.json").write_text("{}")
    (folder / "command.sh").write_text(f"python {cell.command[0]} -speed 0 -pretrained old -out elsewhere -sn 5\n")
    assert place.state(cell) == "finished"
    (folder / "command.sh").write_text(f"python {cell.command[0]} -pretrained old -out elsewhere -sn 6\n")
    assert place.state(cell) == "other flags"


def test_two_starts_at_once_run_a_cell_once(stand_in, place):
    cells = [stand_in(name, "-steps", 2, "-wait", 0.2) for name in "abc"]
    both = [started(cells, place) for _ in range(2)]
    assert [process.communicate(timeout=120)[0] for process in both] == [f"{['finished'] * 3}\n"] * 2
    assert [starts(place, cell) for cell in cells] == [1, 1, 1]


def test_a_full_disk_is_an_error_and_does_no_damage(stand_in, place, monkeypatch):
    done, cell = stand_in("done"), stand_in("a")
    run_cell(done, place)

    def full(*_, **__):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "run_script", full)
        outcome = run_cell(cell, place)
    assert (outcome.state, outcome.error) == ("failed", "[Errno 28] No space left on device")
    assert place.state(done) == "finished"
    assert run_cell(cell, place).state == "finished"


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(KILLS))
def test_a_kill_at_any_moment_loses_nothing(stand_in, place, moment):
    """kill -9 of the starter or of a cell; then a second start."""
    cells = [stand_in(name, "-steps", 3, "-wait", 0.1) for name in "abcd"]
    rng = random.Random(moment)
    starter = started(cells, place)
    while not any(starts(place, cell) for cell in cells):
        time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.8))
    victims = [starter.pid, *(child.pid for child in psutil.Process(starter.pid).children())]
    os.kill(rng.choice(victims), signal.SIGKILL)
    starter.communicate(timeout=60)
    finished = {cell.id: starts(place, cell) for cell in cells if place.state(cell) == "finished"}
    assert [outcome.state for outcome in run_cells(cells, place, jobs=2)] == ["finished"] * 4
    for cell in cells:
        assert starts(place, cell) == finished.get(cell.id, starts(place, cell))  # none is run again
        assert starts(place, cell) <= 2
        assert json.loads((place.folder(cell) / "summary.json").read_text()) == {}
    assert not [path for path in place.root.rglob("*.tmp")]


@pytest.mark.slow
def test_a_cell_whose_starter_was_killed_is_waited_for(stand_in, place):
    cell = stand_in("a", "-steps", 10, "-wait", 0.1)
    starter = started([cell], place)
    while not starts(place, cell):
        time.sleep(0.01)
    starter.kill()
    starter.communicate(timeout=60)
    assert place.state(cell) == "running"
    assert run_cell(cell, place).state == "finished"
    assert starts(place, cell) == 1


@pytest.mark.slow
def test_a_worker_of_a_cluster_is_killed(stand_in, place):
    """Its cells run again elsewhere, and every result arrives once."""
    from distributed import LocalCluster

    cells = [stand_in(f"cell{i}", "-steps", 5, "-wait", 0.2) for i in range(6)]
    with LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        outcomes = run_cells(cells, place, jobs=1, scheduler=cluster.scheduler_address)
        first = next(outcomes)
        while not (working := [cell for cell in cells if place.state(cell) == "running" and starts(place, cell)]):
            time.sleep(0.01)
        script = int((place.folder(working[0]) / "starts").read_text().split()[-1])
        worker = psutil.Process(script).parent()
        assert worker.pid in {nanny.pid for nanny in cluster.workers.values()}
        for process in (worker, psutil.Process(script)):  # as when its machine goes
            process.kill()
        outcomes = [first, *outcomes]
    assert sorted(outcome.id for outcome in outcomes) == sorted(cell.id for cell in cells)
    assert {outcome.state for outcome in outcomes} == {"finished"}
    counts = {cell.id: starts(place, cell) for cell in cells}
    assert counts.pop(working[0].id) == 2
    assert set(counts.values()) == {1}
