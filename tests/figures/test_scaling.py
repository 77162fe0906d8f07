"""The figure of costs shows the table of benchmarks, and nothing but it."""

import pandas as pd
import pytest
from matplotlib import pyplot as plt

from benchmarks.record import Bench
from figures import scaling

CURVES = {  # benchmark: against, unit, case -> size -> value
    "lr_simulation, cost against p": (
        "p",
        "ms/chain-iteration",
        {"loop": {1000: 1.0, 10_000: 10.0, 100_000: 100.0}, "12 chains": {1000: 0.1, 10_000: 1.0, 100_000: 10.0}},
    ),
    "lr_simulation, cost against chains": (
        "chains",
        "ms/iteration",
        {"loops": {1: 1.0, 10: 10.0, 100: 100.0}, "together": {1: 1.0, 10: 1.0, 100: 1.0}},
    ),
    "uci_run, cost against chains": (
        "chains",
        "ms/iteration",
        {"loops": {1: 2.0, 10: 20.0, 100: 200.0}, "together": {1: 2.0, 10: 2.0, 100: 2.0}},
    ),
}


@pytest.fixture
def table(tmp_path):
    bench = Bench(tmp_path / "rows.csv")
    bench.record("no curve", "images/s", {"a": 1.0, "b": 2.0})
    for name, (against, unit, curves) in CURVES.items():
        bench.record_curves(name, unit, against, curves)
    return bench.file


@pytest.fixture
def drawn(table, tmp_path, monkeypatch):
    monkeypatch.setattr(plt, "close", lambda figure: None)
    file = scaling.draw(table, tmp_path / "figure.png")
    yield plt.gcf(), file
    monkeypatch.undo()
    plt.close("all")


def test_a_panel_per_size_and_a_line_per_case(drawn):
    figure, file = drawn
    p, chains = figure.axes
    assert [axis.get_xlabel() for axis in (p, chains)] == ["coefficients p", "chains"]
    assert [axis.get_ylabel() for axis in (p, chains)] == ["ms/chain-iteration", "ms/iteration"]
    assert [axis.get_title() for axis in (p, chains)] == ["lr_simulation", "lr_simulation; uci_run"]
    assert all(axis.get_xscale() == axis.get_yscale() == "log" for axis in (p, chains))
    expected = [curve for _, _, curves in list(CURVES.values())[1:] for curve in curves.values()]
    assert [dict(zip(line.get_xdata(), line.get_ydata(), strict=True)) for line in chains.lines] == expected
    assert file.read_bytes().startswith(b"\x89PNG")


def test_baselines_are_dashed_and_exponents_named(drawn):
    p, chains = drawn[0].axes
    assert [line.get_linestyle() for line in p.lines] == ["--", "-"]
    assert [line.get_linestyle() for line in chains.lines] == ["--", "-"] * 2
    assert [line.get_label() for line in p.lines] == [
        "loop, exponent 1.00 ± 0.00",
        "12 chains, exponent 1.00 ± 0.00",
    ]
    assert chains.lines[3].get_label() == "uci_run: together, exponent 0.00 ± 0.00"
    assert chains.lines[0].get_color() != chains.lines[2].get_color()


def test_the_hardware_is_named(drawn, table):
    assert pd.read_csv(table)["hardware"].iloc[0] in drawn[0].get_supxlabel()


@pytest.mark.parametrize("columns", [["benchmark", "case", "value"], None])
def test_a_table_without_costs_is_refused(table, tmp_path, columns):
    rows = pd.read_csv(table)
    rows = rows[rows["at"].isna()]
    rows[columns or rows.columns].to_csv(table, index=False)
    with pytest.raises(ValueError, match="no costs against p, depth"):
        scaling.draw(table, tmp_path / "figure.png")
    assert not (tmp_path / "figure.png").exists()
