"""The figures and the table of docs/choosing.md."""

import math

import pandas as pd
import pytest
import torch
from PIL import Image

import uci_run
from figures import choosing
from sampler.spike_slab import inclusion_probability

CASES = [(0.1, 10.0, 0.5), (1.0, 0.1, 0.5), (0.005, 1e-5, 0.5), (0.1, 10.0, 0.2)]


@pytest.mark.parametrize(("v0", "v1", "delta"), CASES)
def test_slab_and_spike_are_equally_probable_at_the_crossings(v0, v1, delta):
    low, high = choosing.crossing(v0, v1, delta)
    beta = torch.tensor([b for b in (low, high) if b > 0], dtype=torch.float64)
    rho = inclusion_probability(beta, torch.full_like(beta, delta), torch.tensor(v0, dtype=torch.float64), v1)
    torch.testing.assert_close(rho, torch.full_like(rho, 0.5), rtol=0, atol=1e-6)
    assert (low == 0) == (v1 < 2 * v0**2 / math.pi)


def test_there_is_no_crossing_where_the_spike_always_wins():
    assert all(map(math.isnan, choosing.crossing(0.1, 0.01, 1e-6)))


def test_the_figures_are_drawn_from_the_committed_table(tmp_path):
    results = choosing.Path(__file__).parents[2] / "results" / "choosing.csv"
    for file in (choosing.prior(tmp_path / "prior.png"), choosing.sampler(results, tmp_path / "sampler.png")):
        with Image.open(file) as image:
            assert min(image.size) > 400


def test_the_table_has_a_row_per_run_and_says_which_diverged(in_process, tmp_path):
    flags = ["-data", "diabetes", "-c", "sa", "-sn", "5", "-burn", "1", "-seeds", "2", "-val", "0.1", "-anneal", "1"]
    assert in_process(uci_run, *flags, "-lr", "1e-8", out=tmp_path / "full_1e-8").code == 0
    assert in_process(uci_run, *flags, "-lr", "1e-3", out=tmp_path / "full_1e-3").code == 3
    folders = [tmp_path / "full_1e-8", tmp_path / "full_1e-3"]
    table = pd.read_csv(choosing.table(folders, tmp_path / "choosing.csv")).set_index("run")
    metrics = pd.read_csv(tmp_path / "full_1e-8" / "metrics.csv")
    assert table.loc["full_1e-8", "temperature_kinetic"] == pytest.approx(metrics["temperature_kinetic"].iloc[-1], 1e-4)
    assert list(table["diverged"]) == [0, 2]
    assert table["rmse"].isna().tolist() == [False, True]
