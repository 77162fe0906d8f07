"""reproduce.py as users start it."""

from __future__ import annotations

import contextlib
import importlib
import json
import random
import shutil
import sys
import time

import pandas as pd
import psutil
import pytest

import reproduce
from reproduction import engine, protocols
from reproduction.cells import ROOT, Place

SCRIPT = "reproduce.py"
TINY = ("uci", "-protocol", "quick", "-only", "method=sa", "method=em")  # two cells of uci_run.py on diabetes


def every_cell(protocol: str) -> list:
    return protocols.cells(list(protocols.TABLES), protocol)


@pytest.mark.parametrize("protocol", protocols.PROTOCOLS)
def test_every_cell_is_a_command_that_its_script_takes(protocol, monkeypatch, tmp_path):
    """Not -evaluate: it reads a finished run."""
    place = Place(tmp_path)
    for cell in every_cell(protocol):
        words = place.words(cell)
        module = importlib.import_module(words[0].removesuffix(".py"))
        if not cell.evaluates:
            _, args = module.parse(words[1:])
            assert args.out == str(place.folder(cell)) and args.resume == 1
            for name in ("data", "model"):
                assert cell.keys.get(name, vars(args).get(name)) == vars(args).get(name) or name not in vars(args)


@pytest.mark.parametrize("protocol", protocols.PROTOCOLS)
def test_cells_have_names_of_their_own_and_need_cells_that_exist(protocol):
    cells = every_cell(protocol)
    ids = [cell.id for cell in cells]
    assert len(set(ids)) == len(ids)
    assert {name for cell in cells for name in cell.before} <= set(ids)
    assert {cell.table for cell in cells} >= set(protocols.TABLES) - ({"sbp-vgg"} if protocol == "quick" else set())


def test_quick_needs_no_download():
    sets = {cell.keys["data"] for cell in every_cell("quick") if "data" in cell.keys}
    assert sets == {"digits", "diabetes"}


def test_only_takes_what_the_chosen_cells_need_along():
    _, args = reproduce.parse(["list", "figure2", "-only", "method=sa", "data=mnist"])
    cells = protocols.cells(args.tables, "cpu", wanted=lambda cell: reproduce.chosen(cell, args.only))
    assert [cell.id for cell in cells] == ["table2/mnist_sa_raw_1", "figure2/mnist_sa"]


def test_seeds_change_the_folder_or_add_cells():
    assert len(protocols.cells(["table2"], "full", seeds=1)) * 3 == len(protocols.cells(["table2"], "full", seeds=3))
    names = [{cell.name for cell in protocols.cells(["uci"], "cpu", seeds=n)} for n in (3, 4)]
    assert not names[0] & names[1]


def test_list_shows_commands(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["reproduce.py", "list", "table3", "-only", "sparsity=0.5"])
    monkeypatch.chdir(ROOT)
    assert reproduce.main() == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3  # by weight, by unit, and the dense network
    assert all(" -out runs/reproduce/cpu/table3/" in line for line in lines)


@pytest.mark.parametrize(
    ("words", "about"),
    [
        (["fly"], "argument action"),
        (["run", "table9"], "argument TABLE: table9"),
        (["run", "quick", "uci"], "argument TABLE: quick"),
        (["run", "uci", "-jobs", "0"], "argument -jobs"),
        (["run", "uci", "-seeds", "x"], "argument -seeds"),
        (["run", "uci", "-protocol", "fast"], "argument -protocol"),
        (["run", "uci", "-only", "colour=red"], "argument -only"),
        (["run", "uci", "-only", "method"], "argument -only"),
        (["run", "uci", "-only", "method=dropout"], "no cell"),
        (["run", "table3", "-checkpoint", "nowhere.pth"], "argument -checkpoint"),
    ],
)
def test_bad_input_is_one_line(words, about, refused, tmp_path):
    assert about in refused(reproduce, *words, "-out", tmp_path / "runs")


def test_a_full_disk_is_no_success(in_process, monkeypatch, tmp_path):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(engine, "run_script", full)
    result = in_process(reproduce, "run", *TINY, out=tmp_path / "runs")
    assert result.code == 1 and result.stdout.count("No space left on device") == 2 and "uci: 2 open" in result.stdout


@pytest.fixture
def reproduced(shared_run):
    """A finished run of the two cells."""
    return shared_run("reproduced", SCRIPT, "run", *TINY, "-jobs", 2)


@pytest.mark.slow
def test_cells_run_once_and_the_report_is_written(script, reproduced, tmp_path):
    first, out = reproduced, tmp_path / "runs"
    shutil.copytree(first.folder, out)
    assert (first.code, first.stderr) == (0, "")
    assert "2 cells, 0 finished before" in first.stdout and "uci: 2 finished" in first.stdout
    rows = pd.read_csv(out / "results" / "uci.csv")
    assert sorted(rows["method"]) == ["em", "em", "sa", "sa"] and set(rows["protocol"]) == {"quick"}
    [report] = [line.removeprefix("report: ") for line in first.stdout.splitlines() if line.startswith("report: ")]
    assert "uci_run.py -data diabetes -c sa" in (ROOT / report).read_text()
    written = (out / "uci" / "diabetes_sa_annealed_seeds2" / "table.csv").stat().st_mtime_ns
    second = script.run(SCRIPT, "run", *TINY, out=out)
    assert second.code == 0 and "2 cells, 2 finished before" in second.stdout
    assert (out / "uci" / "diabetes_sa_annealed_seeds2" / "table.csv").stat().st_mtime_ns == written


@pytest.mark.slow
def test_a_failed_cell_is_listed_with_its_error(script, reproduced, tmp_path):
    shutil.copytree(reproduced.folder, tmp_path / "runs")
    folder = tmp_path / "runs" / "uci" / "diabetes_sa_annealed_seeds2"
    (folder / "summary.json").unlink()
    (folder / "args.json").write_text("{")
    run = script.run(SCRIPT, "run", *TINY, "-jobs", 2, out=tmp_path / "runs")
    assert run.code == 1
    assert "uci: 1 failed, 1 finished" in run.stdout
    assert "holds an unreadable args.json" in run.stdout
    status = script.run(SCRIPT, "status", *TINY, out=tmp_path / "runs")
    assert status.code == 1 and "holds an unreadable args.json" in status.stdout


@pytest.mark.slow
def test_killed_runs_end_with_the_same_numbers(script, reproduced, tmp_path):
    """kill -9 of reproduce.py and of its scripts, at one random moment each; the third start completes."""
    rng = random.Random(0)
    for victim in ("script", "starter"):
        running = script.start(SCRIPT, "run", *TINY, "-jobs", 2, out=tmp_path / "killed")
        starter = psutil.Process(running.process.pid)
        while not (scripts := starter.children()) and running.process.is_alive():
            time.sleep(0.01)
        time.sleep(rng.uniform(0, 6))
        for target in scripts if victim == "script" else [starter]:
            with contextlib.suppress(psutil.NoSuchProcess):
                target.kill()
        running.result(seconds=300)
    assert script.run(SCRIPT, "run", *TINY, "-jobs", 2, out=tmp_path / "killed").code == 0
    tables = [pd.read_csv(f"{folder}/results/uci.csv") for folder in (reproduced.folder, tmp_path / "killed")]
    measured = ["method", "seed", "rmse", "rmse_averaged", "nll"]
    ordered = [table[measured].sort_values(["method", "seed"]).reset_index(drop=True) for table in tables]
    pd.testing.assert_frame_equal(*ordered, check_exact=True)
    assert json.loads((tmp_path / "killed/uci/diabetes_em_annealed_seeds2/summary.json").read_text())
