"""Result rows of many seeds as mean +- standard deviation, and paired differences."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

PUBLISHED = Path(__file__).parents[1] / "results" / "published"


def published(name: str) -> pd.DataFrame:
    """A table of a paper, from results/published/."""
    return pd.read_csv(PUBLISHED / f"{name}.csv")


def over_seeds(table: pd.DataFrame, by: list[str], metrics: list[str]) -> pd.DataFrame:
    """One row per setting: n, and <metric>_mean, <metric>_sd, <metric>_se for every metric.

    Rows with an empty metric (diverged chains) are left out of that metric; n counts the rest.
    """
    groups = table.groupby(by, sort=False)
    columns = {"n": groups[metrics[0]].count()}
    for metric in metrics:
        columns[f"{metric}_mean"] = groups[metric].mean()
        columns[f"{metric}_sd"] = groups[metric].std()
        columns[f"{metric}_se"] = groups[metric].sem()
    return pd.DataFrame(columns).reset_index()


def paired_differences(table: pd.DataFrame, first: str, by: list[str], metrics: list[str]) -> pd.DataFrame:
    """Method `first` minus every other method, paired by seed: mean, standard error and n.

    Nothing for settings without `first`.
    """
    rows = []
    for setting, group in table.groupby(by, sort=False):
        if first not in set(group["method"]):
            continue
        wide = group.pivot(index="seed", columns="method", values=metrics)
        for other in [m for m in group["method"].unique() if m != first]:
            row = dict(zip(by, setting, strict=True)) | {"difference": f"{first} - {other}"}
            for metric in metrics:
                difference = (wide[metric][first] - wide[metric][other]).dropna()
                row |= {f"{metric}_mean": difference.mean(), f"{metric}_se": difference.sem(), "n": len(difference)}
            rows.append(row)
    return pd.DataFrame(rows)


def print_differences(differences: pd.DataFrame) -> None:
    """Print the result of `paired_differences` where there is more than one pair."""
    if len(differences) and differences["n"].max() > 1:
        print("\npaired differences over seeds, mean and standard error:")
        print(differences.round(4).to_string(index=False))


def plus_minus(mean: float, spread: float, digits: int = 3) -> str:
    """'1.234 +- 0.056'; the mean alone where there is no spread; '' where there is no value."""
    if pd.isna(mean):
        return ""
    return f"{mean:.{digits}f}" if pd.isna(spread) else f"{mean:.{digits}f} +- {spread:.{digits}f}"


def formatted(ours: pd.DataFrame, by: list[str], metrics: list[str], digits: int = 3) -> pd.DataFrame:
    """The result of `over_seeds` for print: the settings, n, and every metric as mean +- sd."""
    columns = {
        metric: [
            plus_minus(mean, sd, digits) for mean, sd in zip(ours[f"{metric}_mean"], ours[f"{metric}_sd"], strict=True)
        ]
        for metric in metrics
    }
    return ours[[*by, "n"]].assign(**columns)


def beside(ours: pd.DataFrame, by: list[str], rows: pd.DataFrame, text) -> list[str]:
    """text(published row, our row) for every row of ours; '' where nothing was published for it."""
    known = {key: row for key, row in zip(rows[by].itertuples(index=False, name=None), rows.itertuples(), strict=True)}
    keys = ours[by].itertuples(index=False, name=None)
    return [text(known[key], row) if key in known else "" for key, row in zip(keys, ours.itertuples(), strict=True)]
