"""The figure of em_cnn.py shows every run, where its numbers say."""

import json

import pandas as pd
import pytest
from matplotlib import pyplot as plt

from figures import em_sparsity

RUNS = {  # c, dense, sparsity, accuracy, of the ensemble
    "dense": ("em", 1, 0.0, 91.0, 91.5),
    "some": ("em", 0, 0.6, 90.0, 90.5),
    "most": ("em", 0, 0.9, 88.0, 89.0),
    "sgd": ("sgd", 1, 0.0, 90.8, 91.2),
}


@pytest.fixture
def folders(tmp_path):
    for name, (c, dense, sparsity, accuracy, ensemble) in RUNS.items():
        folder = tmp_path / name
        folder.mkdir()
        args = {"data": "fmnist", "c": c, "dense": dense, "eps0": 0.02, "soft": 0.004, "hard": 0.0003}
        (folder / "args.json").write_text(json.dumps(args))
        row = {"accuracy": accuracy, "accuracy_averaged": ensemble, "sparsity": sparsity}
        pd.DataFrame([row]).to_csv(folder / "table.csv", index=False)
        epochs = {"epoch": [1, 2], "sparsity": [0, sparsity]}
        pd.DataFrame(epochs).to_csv(folder / "metrics.csv", index=False)
    return [tmp_path / name for name in RUNS]


def test_runs_are_points_and_lines(folders, tmp_path, monkeypatch):
    monkeypatch.setattr(plt, "close", lambda figure: None)
    file = em_sparsity.draw(folders[::-1], tmp_path / "figure.png")
    left, right = plt.gcf().axes
    lines = {line.get_label(): line for line in left.lines}
    assert lines["last network"].get_xdata() == pytest.approx([0, 0.6, 0.9])
    assert lines["last network"].get_ydata() == pytest.approx([91, 90, 88])
    assert lines["ensemble"].get_ydata() == pytest.approx([91.5, 90.5, 89])
    assert lines["SGD, ensemble"].get_ydata() == pytest.approx([91.2, 91.2])
    assert left.get_title() == "Fashion-MNIST"
    assert [line.get_ydata()[-1] for line in right.lines] == [0.6, 0.9]  # the runs that prune
    assert right.lines[0].get_label() == "eps0 0.02, soft 0.004, hard 0.0003"
    assert file.read_bytes().startswith(b"\x89PNG")
    monkeypatch.undo()
    plt.close("all")


def test_every_data_set_has_a_row(folders, tmp_path, monkeypatch):
    args = json.loads((folders[1] / "args.json").read_text()) | {"data": "cifar10"}
    (folders[1] / "args.json").write_text(json.dumps(args))
    monkeypatch.setattr(plt, "close", lambda figure: None)
    em_sparsity.draw(folders, tmp_path / "figure.png")
    assert [axis.get_title() for axis in plt.gcf().axes[::2]] == ["Fashion-MNIST", "CIFAR10"]
    monkeypatch.undo()
    plt.close("all")
