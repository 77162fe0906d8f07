"""The figure of sparse networks, from small runs on the digits."""

import numpy as np
import pandas as pd
import pytest
from safetensors.torch import load_file

from figures import sparse_resnet

SCRIPT = "bayes_cnn.py"
SIZE = ("-data", "digits", "-depth", 8, "-train", 100)


@pytest.fixture(scope="module")
def runs(shared_run):
    dense = shared_run("compared_dense", SCRIPT, *SIZE, "-sn", 3, "-lr", 1e-5, "-prune", 0)
    assert dense.code == 0, dense.stderr
    flags = (*SIZE, "-sn", 3, "-prune", 1, "-cut", 0.9, "-gap", 1, "-pretrained", dense.folder)
    made = [shared_run(f"compared_{c}", SCRIPT, *flags, "-c", c, "-seeds", 2) for c in ("sa", "em")]
    assert [run.code for run in made] == [0, 0], [run.stderr for run in made]
    return [run / "" for run in (dense, *made)]


def test_what_is_drawn_is_what_the_runs_hold(runs):
    folder = runs[1] / "seed1"
    run = sparse_resnet.read(folder)
    net = load_file(folder / "model.safetensors")
    assert (next(iter(run.density)), next(reversed(run.density))) == ("conv1", "fc")
    for layer, density in run.density.items():
        assert density == pytest.approx((net[f"{layer}.weight"] != 0).double().mean().item())
    assert run.dense == pd.read_csv(folder / "table.csv")["accuracy_dense"].item()
    # large weights have left the slab: their L1 penalty has grown more, their L2 penalty less
    large, zero = run.sizes > 0.05, run.sizes == 0
    assert large.any() and zero.any()
    assert np.median(run.kappa0[large]) > np.median(run.kappa0[zero])
    assert np.median(run.kappa1[large]) < np.median(run.kappa1[zero])


def test_parameters_are_in_the_order_of_the_network():
    names = ["fc.weight", "layer1.10.conv1.weight", "layer1.2.conv2.weight", "conv1.weight", "layer1.2.conv1.weight"]
    assert sorted(names, key=sparse_resnet.place) == [names[3], names[4], names[2], names[1], names[0]]


def test_the_figure_is_drawn(runs, tmp_path):
    file = sparse_resnet.draw(runs[1:], tmp_path / "figure.png")
    assert file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and file.stat().st_size > 20_000
