"""Means, spreads and paired differences against sums by hand."""

import numpy as np
import pandas as pd
import pytest

from experiment.report import PUBLISHED, beside, formatted, over_seeds, paired_differences, plus_minus, published

ROWS = [  # data, method, seed, rmse, nll
    ("boston", "sa", 1, 2.0, 1.0),
    ("boston", "sa", 2, 3.0, 1.5),
    ("boston", "sa", 3, 7.0, 1.1),
    ("boston", "em", 1, 2.5, 1.0),
    ("boston", "em", 2, np.nan, np.nan),
    ("boston", "em", 3, 6.0, 1.3),
    ("yacht", "sa", 1, 0.5, -1.0),
    ("yacht", "em", 1, 0.75, -2.0),
]


@pytest.fixture
def table() -> pd.DataFrame:
    return pd.DataFrame(ROWS, columns=["data", "method", "seed", "rmse", "nll"])


def test_over_seeds(table):
    ours = over_seeds(table, ["data", "method"], ["rmse", "nll"])
    assert list(zip(ours["data"], ours["method"], strict=True)) == [
        ("boston", "sa"), ("boston", "em"), ("yacht", "sa"), ("yacht", "em"),
    ]  # fmt: skip
    assert ours["n"].tolist() == [3, 2, 1, 1]  # the diverged one is left out
    assert ours["rmse_mean"].tolist() == pytest.approx([4.0, 4.25, 0.5, 0.75])
    sd = [np.sqrt((4 + 1 + 9) / 2), np.sqrt(2 * 1.75**2), np.nan, np.nan]
    assert ours["rmse_sd"].tolist() == pytest.approx(sd, nan_ok=True)
    assert ours["rmse_se"].tolist() == pytest.approx([sd[0] / np.sqrt(3), sd[1] / np.sqrt(2), *sd[2:]], nan_ok=True)
    assert ours["nll_mean"].tolist() == pytest.approx([1.2, 1.15, -1.0, -2.0])


def test_over_seeds_agrees_with_numpy():
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"method": ["a"] * 30 + ["b"] * 30, "rmse": rng.normal(size=60)})
    ours = over_seeds(table, ["method"], ["rmse"])
    for row, values in zip(ours.itertuples(), (table["rmse"][:30], table["rmse"][30:]), strict=True):
        assert row.rmse_mean == pytest.approx(np.mean(values))
        assert row.rmse_sd == pytest.approx(np.std(values, ddof=1))
        assert row.rmse_se == pytest.approx(np.std(values, ddof=1) / np.sqrt(30))


def test_a_setting_whose_every_chain_diverged(table):
    table.loc[table["data"] == "yacht", ["rmse", "nll"]] = np.nan
    ours = over_seeds(table, ["data", "method"], ["rmse"])
    assert ours["n"].tolist() == [3, 2, 0, 0] and ours["rmse_mean"].isna().tolist() == [False, False, True, True]
    assert formatted(ours, ["data", "method"], ["rmse"])["rmse"].tolist()[2:] == ["", ""]


def test_paired_differences(table):
    paired = paired_differences(table, "sa", ["data"], ["rmse", "nll"])
    assert paired["data"].tolist() == ["boston", "yacht"]
    assert paired["difference"].tolist() == ["sa - em"] * 2
    assert paired["n"].tolist() == [2, 1]  # seed 2 has no partner
    assert paired["rmse_mean"].tolist() == pytest.approx([(-0.5 + 1.0) / 2, -0.25])
    assert paired["rmse_se"].tolist() == pytest.approx([0.75, np.nan], nan_ok=True)  # sd 1.5 / sqrt(2), / sqrt(2)
    assert paired["nll_mean"].tolist() == pytest.approx([-0.1, 1.0])


def test_pairs_are_found_by_seed_and_not_by_place(table):
    shuffled = table.sample(frac=1, random_state=0)
    a = paired_differences(table, "sa", ["data"], ["rmse"])
    b = paired_differences(shuffled, "sa", ["data"], ["rmse"])
    pd.testing.assert_frame_equal(a, b.sort_values("data", ignore_index=True))


def test_every_other_method_is_compared():
    table = pd.DataFrame({"v0": 0.1, "method": ["em", "sa", "sgld"] * 2, "seed": [1] * 3 + [2] * 3, "mse": range(6)})
    paired = paired_differences(table, "sa", ["v0"], ["mse"])
    assert paired["difference"].tolist() == ["sa - em", "sa - sgld"]
    assert paired["mse_mean"].tolist() == [1.0, -1.0] and paired["mse_se"].tolist() == [0.0, 0.0]


def test_no_differences_without_the_method(table):
    assert len(paired_differences(table, "sghmc", ["data"], ["rmse"])) == 0
    assert len(paired_differences(table[table["method"] == "sa"], "sa", ["data"], ["rmse"])) == 0


@pytest.mark.parametrize(
    "arguments, text",
    [
        ((1.23456, 0.04567), "1.235 +- 0.046"),
        ((1.23456, np.nan), "1.235"),
        ((np.nan, np.nan), ""),
        ((1.23456, 0.04567, 1), "1.2 +- 0.0"),
    ],
)
def test_plus_minus(arguments, text):
    assert plus_minus(*arguments) == text


def test_formatted(table):
    printed = formatted(over_seeds(table, ["data", "method"], ["rmse"]), ["data", "method"], ["rmse"], digits=2)
    assert list(printed) == ["data", "method", "n", "rmse"]
    assert printed["rmse"].tolist() == ["4.00 +- 2.65", "4.25 +- 2.47", "0.50", "0.75"]


def test_published_numbers_stand_beside_their_own_setting(table):
    ours = over_seeds(table, ["data", "method"], ["rmse"])
    paper = pd.DataFrame({"data": ["yacht", "boston"], "method": ["em", "sa"], "rmse": [9.0, 8.0]})
    text = beside(ours, ["data", "method"], paper, lambda row, our: f"{row.rmse} {our.rmse_mean}")
    assert text == ["8.0 4.0", "", "", "9.0 0.75"]


@pytest.mark.parametrize("file", sorted(PUBLISHED.glob("*.csv")), ids=lambda file: file.stem)
def test_published_tables_say_where_they_are_from(file):
    table = published(file.stem)
    assert len(table) and table["source"].notna().all()
