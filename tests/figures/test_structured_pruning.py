"""The figures of structured pruning, from small runs on the digits."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

import sbp_cnn
from figures import structured_pruning

TINY = ("-data", "digits", "-scale", 0.05, "-train", 128, "-sn", 4, "-dense_sn", 1, "-speed", 0)
REMOVING = ("-noise_lr", 100, "-kl_weight", 0.1, "-lr", 3e-3, "-threshold_sweep", 4)  # some of the units go
LEFT = ["fc1.inputs", "fc1", "fc2"]


@pytest.fixture
def start(in_process, tmp_path):
    """start(*flags, out): the folder of a small run."""

    def run(*flags, out: str) -> Path:
        result = in_process(sbp_cnn, *TINY, *flags, out=tmp_path / out)
        assert result.code == 0, result.stderr
        return tmp_path / out

    return run


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """drawn(draw, runs): the figure, drawn and written."""
    kept = []
    monkeypatch.setattr(structured_pruning.plt, "close", kept.append)

    def draw(function, runs: list[Path]):
        file = function(runs, tmp_path / "figure.png")
        assert file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and file.stat().st_size > 10_000
        return kept[-1]

    yield draw
    monkeypatch.undo()
    for figure in kept:
        structured_pruning.plt.close(figure)


def panels(figure) -> list:
    """Axes with something in them."""
    return [ax for ax in figure.axes if ax.axison and (ax.lines or ax.images)]


def curve(ax, label: str) -> np.ndarray:
    (line,) = (line for line in ax.lines if line.get_label() == label)
    return line.get_ydata()


def test_accuracy_and_units_against_the_threshold(start, drawn):
    """A pair of axes per run; every seed of several is one."""
    runs = [start(*REMOVING, "-snr", 1.5, "-seeds", 2, out="first"), start(*REMOVING, "-c", "sbpa", out="second")]
    figure = drawn(structured_pruning.threshold, [*runs, start("-c", "sparsevd", "-sn", 1, out="third")])
    left, right = figure.axes[:3], figure.axes[3:]
    assert len(right) == 3
    folders = [runs[0] / "seed1", runs[0] / "seed2", runs[1]]
    for accuracy, units, folder in zip(left, right, folders, strict=True):
        table, args = pd.read_csv(folder / "sweep.csv"), json.loads((folder / "args.json").read_text())
        curve_, marker = accuracy.lines
        assert curve_.get_xdata().tolist() == [0, 0.5, 1, 1.5, 2] == table["threshold"].tolist()
        assert curve_.get_ydata().tolist() == table["accuracy"].tolist()
        assert [*marker.get_xdata()] == [args["snr"]] * 2
        assert [text.get_text() for text in units.get_legend().get_texts()] == LEFT
        for name in LEFT:
            assert curve(units, name).tolist() == table[f"units_{name}"].tolist()
        assert accuracy.get_title().splitlines()[0] == f"LeNet-fc on digits, {'SBP' if args['c'] == 'sbp' else 'SBPa'}"
        assert units.get_yscale() == "log"
        assert "accuracy" in accuracy.get_ylabel() and "units" in units.get_ylabel() and "SNR" in accuracy.get_xlabel()


def test_the_score_of_every_unit(start, drawn):
    run = start(*REMOVING, "-snr", 1.5, out="run")
    pixels, *others = (ax for ax in drawn(structured_pruning.units, [run]).axes if ax.axison and ax.get_title())
    table = pd.read_csv(run / "units.csv")
    groups = dict([*table.groupby(["layer", "side"], sort=False)])
    (image,) = pixels.images
    picture = groups["fc1", "inputs"]
    np.testing.assert_allclose(image.get_array(), np.log10(picture["score"].to_numpy()).reshape(8, 8))
    assert pixels.get_title() == f"pixels, {picture['kept'].sum()} of 64"
    for ax, (layer, size) in zip(others, (("fc1", 25), ("fc2", 15)), strict=True):
        scores, marker = ax.lines
        rows = groups[layer, "outputs"]
        assert scores.get_ydata().tolist() == sorted(rows["score"], reverse=True) and len(rows) == size
        assert ax.get_title() == f"{layer} outputs, {rows['kept'].sum()} of {size}" and ax.get_yscale() == "log"
        assert [*marker.get_ydata()] == [1.5, 1.5]
    assert "LeNet-fc on digits, SBP" in pixels.get_ylabel()


def written(folder: Path, sites: list[tuple[str, str, int]], **args) -> Path:
    """A run of which only units.csv is there."""
    folder.mkdir()
    flags = {"c": "sbp", "model": "vgglike", "data": "cifar10", "snr": 1.0, "kl_weight": 1.0, "noise_lr": 10.0} | args
    (folder / "args.json").write_text(json.dumps(flags))
    rng = np.random.default_rng(0)
    table = [
        {"layer": layer, "side": side, "unit": i, "score": rng.lognormal(), "kept": 1}
        for layer, side, n in sites
        for i in range(n)
    ]
    pd.DataFrame(table).to_csv(folder / "units.csv", index=False)
    return folder


def test_many_layers_take_several_rows(drawn, tmp_path):
    sites = [*((f"conv{i}", "outputs", i) for i in range(1, 14)), ("fc1", "inputs", 9), ("fc2", "inputs", 9)]
    figure = drawn(structured_pruning.units, [written(tmp_path / "run", sites)])
    shown = [ax.get_title() for ax in panels(figure)]
    assert shown == [f"{layer} {side}, {n} of {n}" for layer, side, n in sites]  # no pixels here
    assert len(figure.axes) == 21 and not any(ax.images for ax in figure.axes)


def test_pixels_of_colour_images(drawn, tmp_path):
    """They are no square picture."""
    sites = [("fc1", "inputs", 3 * 8 * 8), ("fc1", "outputs", 5), ("fc2", "outputs", 4)]
    figure = drawn(structured_pruning.units, [written(tmp_path / "run", sites, model="lenet-fc")])
    assert len(panels(figure)) == 3


def test_scores_that_are_no_ratio_are_left_out(drawn, tmp_path):
    """-log alpha of sparse variational dropout has no place on a logarithmic axis, nor have norms beside an SNR."""
    sites = [("fc1", "inputs", 16), ("fc1", "outputs", 5), ("fc2", "outputs", 4)]
    runs = [written(tmp_path / c, sites, model="lenet-fc", c=c) for c in ("sbp", "sparsevd", "ssl")]
    for run in runs[1:]:
        table = pd.read_csv(run / "units.csv")
        table.assign(score=table["score"] - 1).to_csv(run / "units.csv", index=False)
    assert len(panels(drawn(structured_pruning.units, runs))) == 3


def test_units_left_over_the_epochs(start, drawn):
    """One panel per kind, every seed a line; the plain networks and the fine-tuning inside the runs are left out."""
    runs = [start(*REMOVING, "-seeds", 2, "-finetune", 1, out="sbp"), start("-c", "ssl", out="ssl")]
    runs += [start("-c", "dense", out="plain")]
    first, second = panels(drawn(structured_pruning.curves, runs))
    assert [ax.get_title().splitlines()[0] for ax in (first, second)] == [
        "LeNet-fc on digits, SBP",
        "LeNet-fc on digits, SSL",
    ]
    assert (len(first.lines), len(second.lines)) == (6, 3)
    for ax, folders in ((first, [runs[0] / "seed1", runs[0] / "seed2"]), (second, runs[1:2])):
        assert [text.get_text() for text in ax.get_legend().get_texts()] == LEFT and ax.get_yscale() == "log"
        tables = [pd.read_csv(folder / "metrics.csv") for folder in folders]
        expected = [table[f"units_{name}"].tolist() for table in tables for name in LEFT]
        assert [line.get_ydata().tolist() for line in ax.lines] == expected
        assert all(line.get_xdata().tolist() == [1, 2, 3, 4] for line in ax.lines)


def test_a_layer_without_units_is_drawn(start, drawn):
    flags = ("-kl_weight", 100, "-noise_lr", 150, "-lr", 3e-3, "-sn", 6, "-allow_empty", 1, "-threshold_sweep", 2)
    run = start(*flags, out="run")
    left = pd.read_csv(run / "metrics.csv").filter(like="units_")
    assert (left.iloc[0] > 0).all() and (left.iloc[-1] == 0).all()
    for draw in (structured_pruning.curves, structured_pruning.threshold, structured_pruning.units):
        assert panels(drawn(draw, [run]))


@pytest.mark.parametrize("kind", ["threshold", "units", "curves"])
def test_the_command_draws(start, tmp_path, monkeypatch, capsys, kind):
    run = start(*REMOVING, out="run")
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["figures.structured_pruning", kind, str(tmp_path / f"{kind}.png"), str(run)])
    monkeypatch.delitem(sys.modules, structured_pruning.__name__)  # else runpy warns
    runpy.run_module(structured_pruning.__name__, run_name="__main__")
    assert capsys.readouterr().out == f"{tmp_path / f'{kind}.png'}\n" and (tmp_path / f"{kind}.png").exists()
