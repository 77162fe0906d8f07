"""The two figures of image runs, from small runs on the digits."""

import pandas as pd
import pytest

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
