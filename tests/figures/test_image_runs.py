"""The comparison of image runs and their two figures, from small runs on the digits."""

import math

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from experiment import compare
from figures import adversarial, calibration

SCRIPT = "posterior_cnn.py"
TINY = (
    *("-data", "digits", "-sn", 3, "-burn", 1, "-train", 128, "-thin", 5, "-seeds", 2),
    *("-attack", 1, "-attack_images", 40, "-pgd_images", 10, "-pgd_steps", 2, "-ood", "digits"),
)


@pytest.fixture(scope="module")
def runs(shared_run):
    made = [shared_run(f"cnn_compared_{method}", SCRIPT, *TINY, "-c", method) for method in ("sa", "vanilla")]
    assert [run.code for run in made] == [0, 0], [run.stderr for run in made]
    return [run / "" for run in made]


def test_every_seed_of_every_run_has_a_row_with_its_provenance(runs):
    table, _ = compare.collect(runs)
    assert list(zip(table["method"], table["seed"], strict=True)) == [
        ("sa", 1), ("sa", 2), ("vanilla", 1), ("vanilla", 2),
    ]  # fmt: skip
    assert (table["sn"] == 3).all() and (table["torch"] == torch.__version__).all() and table["commit"].notna().all()
    for run, method in zip(runs, ("sa", "vanilla"), strict=True):
        own = pd.read_csv(run / "table.csv")
        assert table[table["method"] == method]["nll"].tolist() == pytest.approx(own["nll"].tolist())


def test_paired_differences_are_those_of_the_predictions(runs):
    table, predictions = compare.collect(runs)
    (row,) = compare.paired(predictions, compare.keys(table)).to_dict("records")
    assert row["difference"] == "sa - vanilla" and row["seeds"] == 2
    right, likelihood = [], []
    for seed in (1, 2):
        ours, theirs = (load_file(run / f"seed{seed}/predictions.safetensors") for run in runs)
        y = ours["labels"]
        assert torch.equal(y, theirs["labels"])
        hits = [(t["probabilities"].argmax(-1) == y).double() for t in (ours, theirs)]
        right.append(100 * (hits[0] - hits[1]))
        p = [t["probabilities"][range(len(y)), y].double() for t in (ours, theirs)]
        likelihood.append(p[1].log() - p[0].log())
    for name, values in (("accuracy", right), ("nll", likelihood)):
        values = torch.stack(values)
        assert row[name] == pytest.approx(values.mean().item())
        assert row[f"{name}_se_images"] == pytest.approx(values.mean(0).std().item() / math.sqrt(values.shape[1]))
        spread = (values[0].mean() - values[1].mean()).abs().item()
        assert row[f"{name}_se_seeds"] == pytest.approx(spread / 2)  # sd / sqrt(2) of two values


def test_a_method_alone_has_no_differences(runs):
    table, predictions = compare.collect(runs[1:])
    assert compare.paired(predictions, compare.keys(table)).empty


def test_runs_of_different_lengths_are_not_compared(runs):
    table, predictions = compare.collect(runs)
    longer = {(data, aug, sn + (method == "sa"), method): x for (data, aug, sn, method), x in predictions.items()}
    assert compare.paired(longer, compare.keys(table)).empty


def test_the_command_writes_both_tables(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(compare, "PUBLISHED", tmp_path / "published")
    compare.main("mine", *map(str, runs))
    assert len(pd.read_csv(tmp_path / "mine.csv")) == 4 and len(pd.read_csv(tmp_path / "mine_paired.csv")) == 1
    assert len(pd.read_csv(tmp_path / "mine_attack.csv")) == 4 * 3 * 11
    assert pd.read_csv(tmp_path / "mine_ood.csv")["score"].value_counts().to_dict() == {
        "entropy": 4, "mutual_information": 2,
    }  # fmt: skip
    assert "sa - vanilla" in capsys.readouterr().out


@pytest.mark.parametrize("figure", [adversarial, calibration])
def test_the_figures_are_drawn(runs, tmp_path, figure):
    file = figure.draw(runs, tmp_path / "figure.png")
    assert file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and file.stat().st_size > 20_000


def test_the_curves_are_the_means_over_seeds(runs, tmp_path, monkeypatch):
    """What the figure of the attacks plots, against the files."""
    drawn = {}
    monkeypatch.setattr(adversarial.plt, "close", lambda figure: drawn.update(figure=figure))
    adversarial.draw(runs, tmp_path / "figure.png")
    first = next(ax for ax in drawn["figure"].axes if ax.get_title().startswith("FGSM, predicted class"))
    for line, run in zip([x for x in first.lines if x.get_marker() == "None"], [runs[0], runs[1]], strict=True):
        seeds = [pd.read_csv(run / f"seed{s}/attack.csv") for s in (1, 2)]
        curves = [s[s["attack"] == "fgsm_predicted"]["accuracy"].to_numpy() for s in seeds]
        assert line.get_ydata() == pytest.approx((curves[0] + curves[1]) / 2)


def test_the_attacked_example_is_that_of_sa(runs):
    assert adversarial.example(runs[::-1], "digits").is_relative_to(runs[0])
