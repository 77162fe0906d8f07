"""Run folders as rows of CSV files: what a row holds, which rows stay, and paired differences by hand."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from reproduction import results
from reproduction.cells import Cell, Place, shown

IMAGES = (
    *("-data", "digits", "-sn", 3, "-burn", 1, "-train", 128, "-thin", 5, "-seeds", 2),
    *("-attack", 1, "-attack_images", 40, "-pgd_images", 10, "-pgd_steps", 2, "-ood", "digits"),
)


@pytest.fixture
def place(tmp_path):
    return Place(tmp_path / "runs")


@pytest.fixture
def put(place):
    """put(run, table, name, product): a shared run in the folder of a cell of its own command."""

    def link(run, table: str, name: str, product: str = "summary.json") -> Cell:
        assert run.code == 0, run.stderr
        words = (Path(run.folder) / "command.sh").read_text().split()[1:]
        cell = Cell(table, name, tuple(words[: words.index("-out")]), product=product)
        place.folder(cell).parent.mkdir(parents=True, exist_ok=True)
        place.folder(cell).symlink_to(run.folder)
        return cell

    return link


@pytest.fixture
def uci(shared_run, put):
    """A cell with three splits of diabetes."""
    flags = ("-data", "diabetes", "-c", "sa", "-seeds", 3, "-sn", 4, "-burn", 2)
    return put(shared_run("results_uci", "uci_run.py", *flags), "uci", "diabetes_sa_seeds3")


@pytest.fixture
def simulation(shared_run, put):
    small = ("-n", 30, "-p", 50, "-iterations", 300, "-burn", 5, "-thin", 10, "-compile", 0, "-c", "sa", "-v0", 0.1)
    return put(shared_run("results_simulation", "lr_simulation.py", *small), "table1", "all")


@pytest.fixture
def images(shared_run, put):
    """Cells of two methods with two seeds each."""
    return [
        put(shared_run(f"cnn_compared_{c}", "posterior_cnn.py", *IMAGES, "-c", c), "table2", c)
        for c in ("sa", "vanilla")
    ]


def test_rows_of_uci(place, uci):
    rows = results.rows(uci, place, "quick")
    own = pd.read_csv(place.folder(uci) / "table.csv")
    pd.testing.assert_frame_equal(rows[list(own)], own)
    assert rows["seed"].tolist() == [1, 2, 3] and set(rows["cell"]) == {"diabetes_sa_seeds3"}
    assert set(rows["protocol"]) == {"quick"} and set(rows["torch"]) == {torch.__version__}
    args, summary = (json.loads((place.folder(uci) / f"{name}.json").read_text()) for name in ("args", "summary"))
    for name in ("sn", "burn", "anneal", "dc", "da"):
        assert (rows[name] == args[name]).all(), name
    assert (rows["seconds"] == summary["seconds"]).all() and rows["commit"].notna().all()


def test_rows_of_the_simulation_have_its_diagnostics(place, simulation):
    rows = results.rows(simulation, place, "quick")
    chains = json.loads((place.folder(simulation) / "summary.json").read_text())["cells"]
    assert len(rows) == len(chains)
    for row, chain in zip(rows.to_dict("records"), chains, strict=True):
        assert (row["v0"], row["sd"], row["seed"]) == (chain["v0"], chain["sd"], chain["seed"])
        assert row["ess.beta1"] == pytest.approx(chain["ess"]["beta1"], nan_ok=True)


def test_rows_of_evaluations(place, images):
    """Of a run of one seed."""
    shutil.copytree(place.folder(images[0]) / "seed1", place.root / "table2" / "one")
    line = ("posterior_cnn.py", "-evaluate", "@one", "-ood", "digits")
    cell = Cell("table2", "one_ood", line, product="ood.csv")
    rows = results.rows(cell, place, "cpu")
    own = pd.read_csv(place.root / "table2" / "one" / "ood.csv")
    pd.testing.assert_frame_equal(rows[own.columns], own)
    where = results.read(place.root / "table2" / "one" / "environment.json")
    added = {"sn": 3, "protocol": "cpu", "cell": "one_ood"} | {name: where[name] for name in results.HARDWARE}
    assert rows.drop(columns=own.columns).to_dict("records") == [added] * len(own)


def test_every_seed_has_a_row(place, images):
    for cell in images:
        rows = results.rows(cell, place, "quick")
        assert rows["seed"].tolist() == [1, 2] and (rows["sn"] == 3).all() and set(rows["method"]) == {cell.name}
        assert rows["nll"].tolist() == pytest.approx(pd.read_csv(place.folder(cell) / "table.csv")["nll"].tolist())


def test_rows_of_the_same_cell_are_replaced_and_others_stay():
    old = pd.DataFrame({"protocol": ["cpu", "cpu", "full", "cpu"], "cell": ["a", "b", "a", "a"], "x": [1, 2, 3, 4]})
    new = pd.DataFrame({"protocol": ["cpu"], "cell": ["a"], "x": [9], "more": [1.0]})
    both = results.merged(old, new, ["protocol", "cell"])
    assert both[["protocol", "cell", "x"]].to_numpy().tolist() == [["cpu", "b", 2], ["full", "a", 3], ["cpu", "a", 9]]
    assert both["more"].isna().tolist() == [True, True, False]
    assert results.merged(None, new, ["cell"]) is new and results.merged(old.iloc[:0], new, ["cell"]) is new


def test_update_writes_finished_cells_only(place, uci, tmp_path):
    open_cell = Cell("uci", "other", ("uci_run.py", "-data", "diabetes"))
    assert place.state(uci) == "finished", shown(place.words(uci))
    kept = pd.DataFrame({"protocol": ["cpu"], "cell": ["boston"], "seed": [1], "rmse": [3.0]})
    (tmp_path / "results").mkdir()
    kept.to_csv(tmp_path / "results" / "uci.csv", index=False)
    for _ in range(2):  # the second time it replaces its own
        results.update([uci, open_cell], place, "cpu", tmp_path / "results")
        rows = pd.read_csv(tmp_path / "results" / "uci.csv")
        assert rows["cell"].tolist() == ["boston"] + 3 * ["diabetes_sa_seeds3"]
        assert rows["rmse"].iloc[0] == 3.0
    assert [path.name for path in (tmp_path / "results").iterdir()] == ["uci.csv"]


def test_paired_differences_are_those_of_the_predictions(place, images):
    (row,) = results.paired(images, place, "sa").to_dict("records")
    assert row["difference"] == "sa - vanilla" and row["seeds"] == 2 and row["data"] == "digits"
    where = results.read(place.folder(images[0]) / "environment.json")
    assert (row["torch"], row["cpu"]) == (where["torch"], where["cpu"])  # the same of both
    right, likelihood = [], []
    for seed in (1, 2):
        ours, theirs = (load_file(place.folder(cell) / f"seed{seed}/predictions.safetensors") for cell in images)
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


def test_rows_of_sparse_networks_name_the_target_and_the_dense_one(place, shared_run, put):
    size = ("-data", "digits", "-depth", 8, "-train", 100, "-sn", 3)
    dense = shared_run("compared_dense", "bayes_cnn.py", *size, "-lr", 1e-5, "-prune", 0)
    flags = (*size, "-prune", 1, "-cut", 0.9, "-gap", 1, "-pretrained", dense.folder, "-seeds", 2)
    cells = [put(shared_run(f"compared_{c}", "bayes_cnn.py", *flags, "-c", c), "table3", c) for c in ("sa", "em")]
    before = results.rows(put(dense, "table3", "dense"), place, "cpu").iloc[0]
    table = pd.concat([results.rows(cell, place, "cpu") for cell in cells])
    assert table[["method", "target", "pruning", "seed", "anneal"]].to_numpy().tolist() == [
        [method, 0.9, "weight", seed, 1.005] for method in ("sa", "em") for seed in (1, 2)
    ]
    assert (before["method"], before["target"], before["pruning"], before["anneal"]) == ("dense", 0.0, "none", 1.0)
    assert set(table["accuracy_dense"]) == {before["accuracy"]}
    assert table["sparsity"].tolist() == pytest.approx(4 * [0.9 * (1 - 0.9**43)], abs=0.002)  # k + 1
    (row,) = results.paired(cells, place, "sa").to_dict("records")
    assert (row["difference"], row["seeds"], row["target"]) == ("sa - em", 2, 0.9)


def test_a_method_alone_has_no_differences(place, images):
    assert results.paired(images[1:], place, "sa").empty and results.paired(images[:1], place, "sa").empty


def test_runs_of_different_lengths_are_not_compared(place, images):
    longer = Cell("table2", "longer", ("posterior_cnn.py",))
    shutil.copytree(place.folder(images[0]), place.folder(longer))
    assert len(results.paired([longer, images[1]], place, "sa")) == 1
    for path in place.folder(longer).rglob("args.json"):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"sn": 4}))
    assert results.paired([longer, images[1]], place, "sa").empty


def test_update_writes_the_paired_table(place, images, tmp_path):
    results.update(images, place, "quick", tmp_path / "results")
    paired = pd.read_csv(tmp_path / "results" / "table2_paired.csv")
    assert paired["difference"].tolist() == ["sa - vanilla"] and paired["protocol"].tolist() == ["quick"]
