"""Result tables from made CSV files against numbers by hand."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd
import pytest

from reproduction import protocols
from reproduction.results import file_name
from reproduction.tables import EXCERPTS, TABLES
from reproduction.tables.rows import COMMITTED, in_se

ROOT = Path(__file__).parents[2]
EVERY = TABLES | EXCERPTS
EPYC, XEON = {"cpu": "AMD EPYC"}, {"cpu": "Intel(R) Xeon(R) Processor @ 2.80GHz"}


@pytest.fixture
def write(tmp_path):
    """write(table, rows): a CSV file; returns its folder."""

    def make(table: str, rows: list[dict]) -> Path:
        common = {"protocol": "cpu", "torch": "2.15", "gpu": None, "commit": "0123456789", **EPYC}
        pd.DataFrame([common | {"cell": "any"} | row for row in rows]).to_csv(tmp_path / f"{table}.csv", index=False)
        return tmp_path

    return make


def line(table: pd.DataFrame, **values) -> dict[str, str]:
    """The one row with these values."""
    chosen = table
    for key, value in values.items():
        chosen = chosen[chosen[key] == value]
    (row,) = chosen.to_dict("records")
    return row


def simulations(
    method: str, mae: list[float], mse: list[float], v0: float = 0.1, sd: float = 1.0, **more
) -> list[dict]:
    setting = {"method": method, "v0": v0, "sd": sd, "dc": 1000.0, "da": 100.0}
    found = {"found_beta1": 1.0, "found_beta2": 0.0}
    pairs = zip(mae, mse, strict=True)
    return [setting | found | {"seed": i, "mae": a, "mse": b} | more for i, (a, b) in enumerate(pairs, 1)]


def test_differences_in_standard_errors():
    assert in_se(3.0, 0.5, 2.0) == 2.0
    assert in_se(3.0, 0.3, 2.0, 0.4) == pytest.approx(2.0)  # sqrt(0.09 + 0.16) = 0.5
    assert in_se(3.0, 0.5, 2.0, math.nan) == 2.0
    for unknown in ((math.nan, 0.5, 2.0), (3.0, math.nan, 2.0), (3.0, 0.0, 2.0), (3.0, 0.5, math.nan)):
        assert math.isnan(in_se(*unknown))


def test_table1_by_hand(write):
    folder = write("table1", simulations("sa", [1.0, 2.0, 3.0], [4.0, 5.0, 6.0]))
    table = TABLES["table1"](folder, "cpu")
    row = line(table.frame, method="sa", v0="0.1", sigma_0="1")
    assert row["n"] == "3" and row["finds beta_1, beta_2"] == "100%, 0%"
    assert (row["test MAE"], row["test MSE"]) == ("2.00 ± 1.00", "5.00 ± 1.00")
    assert row["paper* MAE / MSE"] == "1.54 / 4.42"
    assert row["paper*: difference in se"] == "+0.8 / +1.0"  # 0.46 and 0.58 of sd / sqrt(3) = 0.577
    assert row["notebook: difference in se"] == "+0.5 / +1.6"  # from 1.71 and 4.08
    known = [x for x in table.differences if not math.isnan(x)]
    assert known == pytest.approx([0.46 * math.sqrt(3), 0.58 * math.sqrt(3)])


def test_a_cell_not_run_is_empty_beside_the_published_number(write):
    folder = write("table1", simulations("sa", [1.0, 2.0], [4.0, 5.0]))
    frame = TABLES["table1"](folder, "cpu").frame
    assert len(frame) == 12
    row = line(frame, method="sgld", v0="0.01", sigma_0="2")
    assert row.pop("paper* MAE / MSE") == "15.85 / 416.39"
    assert [row.pop(key) for key in ("method", "v0", "sigma_0")] == ["sgld", "0.01", "2"]
    assert set(row.values()) == {""}


def test_one_seed_has_neither_a_spread_nor_a_difference(write):
    folder = write("table1", simulations("sa", [1.0], [4.0]))
    row = line(TABLES["table1"](folder, "cpu").frame, method="sa", v0="0.1", sigma_0="1")
    assert (row["n"], row["test MAE"], row["paper*: difference in se"]) == ("1", "1.00", "")


def test_protocols_and_hardware_are_not_mixed(write):
    rows = simulations("sa", [1.0, 2.0], [4.0, 5.0])
    rows += simulations("sa", [11.0, 12.0], [4.0, 5.0], protocol="full")
    rows += simulations("sa", [21.0, 22.0], [4.0, 5.0], **XEON)
    rows += simulations("sa", [31.0, 32.0], [4.0, 5.0], protocol="quick")
    folder = write("table1", rows)
    frame = TABLES["table1"](folder, "cpu").frame
    ours = frame[frame["n"] != ""]
    assert sorted(zip(ours["protocol"], ours["hardware"], ours["test MAE"], strict=True)) == [
        ("cpu", "AMD EPYC", "1.50 ± 0.71"),
        ("cpu", "Intel Xeon @ 2.80GHz", "21.50 ± 0.71"),
        ("full", "AMD EPYC", "11.50 ± 0.71"),
    ]
    pd.testing.assert_frame_equal(frame, TABLES["table1"](folder, "full").frame)
    (quick,) = TABLES["table1"](folder, "quick").frame.to_dict("records")  # without what was published
    assert quick["test MAE"] == "31.50 ± 0.71" and "protocol" not in quick and quick["paper* MAE / MSE"] == ""


def test_the_same_chain_counts_once(write):
    rows = simulations("sa", [1.0, 3.0], [4.0, 5.0]) + simulations("sa", [1.0, 3.0, 5.0], [4.0, 5.0, 6.0], cell="more")
    rows += simulations("sa", [99.0], [99.0], cell="one_data_set")
    row = line(TABLES["table1"](write("table1", rows), "cpu").frame, method="sa", v0="0.1", sigma_0="1")
    assert (row["n"], row["test MAE"]) == ("3", "3.00 ± 2.00")


def test_paired_differences_of_table1(write):
    rows = simulations("sa", [1.0, 2.0], [4.0, 5.0]) + simulations("em", [2.0, 5.0], [4.0, 8.0])
    rows += simulations("em", [2.0], [4.0], sd=2.0)  # without a partner
    (row,) = TABLES["table1_paired"](write("table1", rows), "cpu").frame.to_dict("records")
    assert row == {
        "v0": "0.1", "sigma_0": "1", "n": "2",
        "SA − EM: MAE": "-2.00 ± 1.00", "SA − EM: MSE": "-1.50 ± 1.50",
    }  # fmt: skip


def test_decreasing_omega(write):
    rows = simulations("sa", [1.0, 2.0], [4.0, 5.0]) + simulations("em", [2.0, 5.0], [4.0, 8.0])
    rows += simulations("sa", [1.0, 2.0], [14.0, 16.0], dc=10.0, da=1000.0)
    (row,) = TABLES["table1_decreasing"](write("table1", rows), "cpu").frame.to_dict("records")
    assert (row["SA, released omega_k: MSE"], row["SA, decreasing omega_k: MSE"]) == ("4.50 ± 0.71", "15.00 ± 1.41")
    assert row["SA − EM: MSE"] == "9.00 ± 1.00"  # 10 and 8


def chains(data: str, method: str, rmse: list[float], anneal: float = 1.0, first: int = 1, **more) -> list[dict]:
    values = {"data": data, "method": method, "anneal": anneal, "lr": None, "val": 0.0}
    return [
        values | {"seed": i, "rmse": x, "rmse_averaged": x, "nll": x, "coverage95": 0.9} | more
        for i, x in enumerate(rmse, first)
    ]


def test_uci_by_hand(write):
    rows = chains("boston", "sa", [3.0, 3.2]) + chains("wine", "sa", [0.6, 0.7, 0.8])
    rows += chains("boston", "sa", [9.0], first=21) + chains("boston", "sa", [9.0, None], lr=1e-5)
    folder = write("uci", rows)
    table = TABLES["uci"](folder, "cpu")
    at = table.frame[""].tolist().index("**SGHMC-SA**")
    ours, paper, apart = table.frame.iloc[at : at + 3].to_dict("records")
    assert (ours["Boston"], ours["Wine"], ours["Yacht"]) == ("3.10 ± 0.14 (0.10)", "0.70 ± 0.10 (0.06)", "")
    assert ours["n"] == "2, 0, 0, 3, 0"
    assert (paper["Boston"], paper["Yacht"]) == ("2.78 (0.13)", "0.79 (0.05)")
    assert apart["Boston"] == "+1.9"  # 0.321 / sqrt(0.1^2 + 0.133^2)
    assert apart["Wine"] == "+0.8" and apart["Yacht"] == ""  # 0.046 / sqrt(0.0577^2 + 0.010^2)
    assert [round(x, 1) for x in table.differences if not math.isnan(x)] == [1.9, 0.8]
    assert len(table.frame) == 18
    assert EXCERPTS["uci_short"](folder, "cpu").frame[""].tolist() == [
        "**A-SGHMC-SA**",
        "published",
        "difference in se",
    ]


def test_uci_beyond_counts_diverged_chains(write):
    rows = chains("concrete", "sa", [6.0, None, 7.0, None], lr=1e-5, cell="released")
    rows += chains("boston", "sa", [3.0] * 30, anneal=1.003) + chains("diabetes", "em", [50.0, 52.0], anneal=1.003)
    frame = TABLES["uci_beyond"](write("uci", rows), "cpu").frame
    row = line(frame, **{"": "concrete, lr 1e-5 as released"})
    assert (row["n"], row["diverged"], row["RMSE"]) == ("2", "2", "6.50 ± 0.71 (0.50)")
    assert (row["published"], row["difference in se"]) == ("6.03 (0.13)", "+0.9")  # 0.471 / sqrt(0.25 + 0.131^2)
    assert line(frame, **{"": "boston, more splits"})["n"] == "30"
    assert line(frame, **{"": "diabetes"})["published"] == ""


def test_uci_paired_and_average(write):
    rows = chains("boston", "sa", [3.0, 3.2], anneal=1.003) + chains("boston", "em", [3.1, 3.5], anneal=1.003)
    folder = write("uci", rows)
    (row,) = TABLES["uci_paired"](folder, "cpu").frame.to_dict("records")
    assert (row["SA minus"], row["anneal"], row["Boston"]) == ("SGHMC-EM", "1.003", "-0.200 ± 0.100")
    average = TABLES["uci_average"](folder, "cpu").frame
    assert line(average, **{"": "coverage of the 95% interval", "run": "A-SGHMC-SA"})["Boston"] == "0.900 ± 0.000"


def test_table2_and_figure2(write):
    accuracies = {f"accuracy{kind}": 99.0 for kind in ("", "_averaged", "_best_sample")}
    others = {f"{m}{kind}": 0.01 for kind in ("", "_averaged", "_best_sample") for m in ("nll", "ece", "brier")}
    rows = [
        {"data": "mnist", "aug": 0, "sn": 12, "method": "sa", "seed": i, "val": 0.0} | accuracies | others
        | {"accuracy_averaged": x} for i, x in enumerate([99.0, 99.2])
    ]  # fmt: skip
    rows += [rows[0] | {"val": 0.1, "accuracy_averaged": 0.0}]
    rows += [
        {"data": "mnist", "aug": 0, "sn": 12, "method": "vanilla", "seed": i, "val": 0.0, "accuracy": 99.0 + i / 10}
        | {"nll": 0.1, "ece": 0.02, "brier": 0.1}
        for i in (1, 2)
    ]
    frame = TABLES["table2"](write("table2", rows), "cpu").frame
    row = line(frame, data="MNIST", of="average")
    assert (row["n"], row["accuracy, %"], row["published"]) == ("2", "99.10 ± 0.14", "99.59")
    assert (row["difference in se"], row["ECE, %"]) == ("-4.9", "1.00 ± 0.00")  # -0.49 / 0.1
    row = line(frame, data="MNIST", method="**Vanilla**")
    assert (row["n"], row["accuracy, %"], row["difference in se"]) == ("2", "99.15 ± 0.07", "-3.2")  # -0.16 / 0.05
    assert line(frame, data="Fashion-MNIST, augmented", method="**SGHMC-SA**")["published"] == "94.38"

    attacked = {"data": "mnist", "method": "sa", "attack": "fgsm_predicted", "seed": 1, "sn": 12, "n": 200}
    rows = [
        attacked | {"zeta": zeta, "accuracy": 100 * (1 - zeta)}
        for zeta in (0, 0.1, 0.15, 0.2, 0.30000000000000004, 0.5)
    ]
    frame = TABLES["figure2"](write("figure2", rows), "cpu").frame
    row = line(frame, data="MNIST", method="SGHMC-SA")
    assert [row[f"zeta {z}"] for z in ("0", "0.1", "0.3", "0.5")] == ["100.0", "90.0 (97)", "70.0 (58)", "50.0 (22)"]
    assert line(frame, data="Fashion-MNIST", method="Vanilla")["zeta 0.1"] == "(40)"


def test_differences_on_the_same_images(write):
    row = {"data": "mnist", "aug": 0, "sn": 12, "difference": "sa - sghmc", "seeds": 2, "val": 0.0}
    row |= {"accuracy": 0.055, "accuracy_se_images": 0.026, "accuracy_se_seeds": 0.015}
    row |= {"nll": -0.0003, "nll_se_images": 0.0003, "nll_se_seeds": None}
    (row,) = TABLES["table2_paired"](write("table2_paired", [row, row | {"protocol": "quick"}]), "cpu").frame.to_dict(
        "records"
    )
    assert (row["difference"], row["accuracy"], row["NLL"]) == (
        "SGHMC-SA − SGHMC", "+0.06 ± 0.03", "-0.0003 ± 0.0003",
    )  # fmt: skip
    assert row["accuracy, published"] == "+0.12" and row["NLL: se over seeds"] == ""


def test_table3_tells_annealed_and_short_runs_apart(write):
    one = {"data": "cifar10", "model": "resnet20", "method": "sa", "target": 0.9, "sn": 30, "milestones": "21 27"}
    one |= {"seed": 1, "val": 0.0, "accuracy": 91.0, "nll": 0.3, "accuracy_dense": 94.0, "pruning": "weight"}
    one |= {"parameters_kept": 27416.0, "anneal": 1.005, "cell": "sa_0.9_1", "sparsity": 0.9}
    rows = [one, one | {"seed": 2, "accuracy": 91.4}, one | {"anneal": 1.0, "accuracy": 90.0, "cell": "sa_0.9_1_plain"}]
    rows += [one | {"cell": "unit_0.9", "pruning": "unit"}, one | {"cell": "validation_late", "val": 0.1}]
    folder = write("table3", rows)
    frame = TABLES["table3"](folder, "cpu").frame
    row = line(frame, method="A-SGHMC-SA", sparsity="90%")
    assert (row["n"], row["last epoch, %"], row["dense minus sparse"]) == ("2", "91.20 ± 0.28", "2.80")
    assert (row["published"], row["difference in se"]) == ("91.68", "-2.4")  # -0.48 / 0.2
    assert row["the authors' log, last epoch"] == "91.43"
    row = line(frame, method="SGHMC-SA", sparsity="90%")
    assert (row["last epoch, %"], row["published"], row["the authors' log, last epoch"]) == ("90.00", "91.45", "91.10")
    assert line(frame, method="A-SGHMC-EM", sparsity="30%")["n"] == ""
    assert TABLES["table3_pruning"](folder, "cpu").frame["pruned by"].tolist() == ["unit"]
    assert len(TABLES["table3_validation"](folder, "cpu").frame) == 1


def test_structured_pruning(write):
    one = {"data": "mnist", "model": "lenet5", "scale": 1.0, "method": "sbpa", "seed": 1, "sn": 40, "val": 0.0}
    one |= {"noise_lr": 10.0, "kl_weight": 1.0, "kl_layers": None, "warmup": 0, "finetune": 15, "amp": 1}
    one |= {"error": 0.8, "flops_ratio": 3.0, "parameters": 10.0, "parameters_dense": 100.0, "accuracy_train": 100.0}
    one |= {"units_conv1": 15, "units_conv2": 19, "units_fc1.inputs": 99, "units_fc1": 48}
    one |= {"speedup_cpu_1": 1.4, "speedup_cpu_256": 1.6, "speedup_onnx_1": 1.7, "speedup_onnx_256": None}
    rows = [one, one | {"seed": 2, "error": 1.0, "units_conv1": 17, "flops_ratio": 4.0}]
    rows += [one | {"data": "mnist-random"}, one | {"val": 0.1, "kl_layers": "100.0 40.0", "warmup": 2}]
    folder = write("sbp_mnist", rows)
    frame = TABLES["sbp_mnist"](folder, "cpu").frame
    row = line(frame, network="LeNet5", method="SBPa")
    assert (row["n"], row["error, %"], row["units"]) == ("2", "0.90 ± 0.14", "16-19-99-48")
    assert row["settings"] == "noise step × 10, 15 epochs fine-tuned, bfloat16"
    assert (row["parameters left"], row["FLOPs"], row["CPU, batch 256 (1)"]) == ("10.0%", "3.50x", "1.6x (1.4x)")
    assert (row["published: error"], row["difference in se"]) == ("0.86", "+0.4")  # 0.04 / 0.1, of the paper's SBP
    assert row["published: FLOPs, CPU, GPU"] == "10.49x, 5.41x, 1.91x"
    assert not {"ONNX Runtime, batch 256 (1)", "GPU, batch 256 (1)"} & row.keys()  # not measured
    row = line(frame, network="LeNet-fc", method="SSL")
    assert (row["published: error"], row["error, %"], row["n"]) == ("1.49", "", "")
    assert len(TABLES["sbp_random"](folder, "cpu").frame) == 1
    (row,) = TABLES["sbp_validation"](folder, "cpu").frame.to_dict("records")
    assert row["settings"].startswith("noise step × 10, KL × 100 40 by layer, warm-up of 2 epochs")
    assert not any(column.startswith("published") for column in row)


def test_variable_selection(write):
    one = {"example": 3, "mse": None, "mse_floor": None, "sparsity": 0.9, "exact": 1.0}
    rows = [
        one | {"seed": seed, "restart": restart, "accuracy": accuracy, "chosen": int(restart == best)}
        for seed, best, chain in ((1, 1, (50.0, 95.0)), (2, 0, (97.0, 90.0)))
        for restart, accuracy in enumerate(chain)
    ]
    table = TABLES["em_regression"](write("em_regression", rows), "cpu")
    row = line(table.frame, **{"": "Example 3, p = 1000: accuracy, %"})
    assert (row["n"], row["mean ± sd"], row["best"]) == ("2", "96.0 ± 1.4", "97.0")
    assert (row["authors' run: value, sparsity"], row["difference in se"]) == ("96.1, 98.73%", "-0.1")  # -0.1 / 1
    assert line(table.frame, **{"": "its first chain alone"})["mean ± sd"] == "73.5 ± 33.2"
    assert line(table.frame, **{"": "Example 2, p = 2000: MSE"})["n"] == ""


@pytest.mark.parametrize("protocol", ["full", "cpu", "quick"])
@pytest.mark.parametrize("name", EVERY)
def test_without_files_only_published_rows_stand_there(tmp_path, name, protocol):
    table = EVERY[name](tmp_path, protocol)
    assert table.title and (protocol != "quick" or table.frame.empty)
    assert all(math.isnan(x) for x in table.differences)


@pytest.mark.parametrize("name", EVERY)
def test_the_committed_results_are_printed_in_full(name):
    frame = EVERY[name](ROOT / "results", "cpu").frame
    assert len(frame) and frame.columns.is_unique
    assert not frame.isin(["nan", "None", "NaN", "<NA>"]).to_numpy().any()
    assert frame.map(lambda cell: isinstance(cell, str)).to_numpy().all()


def test_every_committed_row_is_of_a_cell_that_exists():
    """Else rows of a cell that was renamed would be averaged with those of its new name."""
    every = {(p, file_name(c.table), c.name) for p in COMMITTED for c in protocols.cells(list(protocols.TABLES), p)}
    found = set()
    for path in (ROOT / "results").glob("*.csv"):
        rows = pd.read_csv(path)
        if {"protocol", "cell"} <= {*rows}:
            table = path.stem.removesuffix("_ood")
            found |= {(row.protocol, table, row.cell) for row in rows[["protocol", "cell"]].itertuples()}
    assert found and found <= every
