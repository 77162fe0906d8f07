"""Rows of the CSV files, and their means beside published numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from experiment import report

WHERE = ["protocol", "hardware"]  # rows that differ in one of these are never averaged
COMMITTED = ("full", "cpu")  # protocols that may stand in one table, in rows of their own


def protocols(protocol: str) -> tuple[str, ...]:
    """Those that stand in a table of this one: the committed ones together, quick alone."""
    return COMMITTED if protocol in COMMITTED else (protocol,)


def load(folder: Path, table: str, protocol: str, columns: Iterable[str] = ()) -> pd.DataFrame:
    """Rows of a CSV file of this protocol, none where there is no file; with the column `hardware`.

    columns: that are there in any case.
    """
    path = folder / f"{table}.csv"
    rows = pd.read_csv(path, dtype={"commit": str}) if path.exists() else pd.DataFrame()
    wanted = dict.fromkeys([*rows.columns, "protocol", "cell", "cpu", "gpu", "torch", "commit", *columns])
    rows = rows.reindex(columns=list(wanted))
    rows = rows[rows["protocol"].isin(protocols(protocol))].reset_index(drop=True)
    return rows.assign(hardware=rows["gpu"].astype(object).where(rows["gpu"].notna(), rows["cpu"]).map(plain))


def published(table: str, protocol: str) -> pd.DataFrame:
    """A table of a paper; without rows for the quick protocol, whose data and schedules are others."""
    rows = report.published(table)
    return rows if protocol in COMMITTED else rows.iloc[:0]


def plain(hardware) -> str:
    """A processor's name without signs."""
    if pd.isna(hardware):
        return ""
    return re.sub(r"\s+", " ", str(hardware).replace("(R)", "").replace(" Processor", "").strip())


def provenance(*tables: pd.DataFrame) -> str:
    """'Data mnist; protocol cpu; AMD EPYC; torch 2.15; commits ...' of the rows of some tables."""
    rows = pd.concat([t.reindex(columns=["data", "protocol", "hardware", "torch", "commit"]) for t in tables])

    def all_of(column: str) -> list[str]:
        values = (one for several in rows[column].dropna() for one in str(several).split(" / "))
        return [value for value in dict.fromkeys(values) if value]

    parts = [f"data {', '.join(all_of('data'))}"] if all_of("data") else []
    parts += [f"protocol {', '.join(all_of('protocol'))}"] if len(rows) else ["not run"]
    parts += [", ".join(all_of("hardware"))]
    parts += [f"torch {', '.join(all_of('torch'))}"] if all_of("torch") else []
    commits = [commit[:7] for commit in all_of("commit")]
    parts += [f"commit{'s' if len(commits) > 1 else ''} {', '.join(commits)}"] if commits else []
    text = "; ".join(part for part in parts if part)
    return text[:1].upper() + text[1:] + "."


def keyed(table: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """With '' in the place of missing settings, since a missing key falls out of groups and of merges."""
    filled = {key: table[key].astype(object).where(table[key].notna(), "") for key in by}
    return table.assign(**filled)


def means(table: pd.DataFrame, by: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """`over_seeds` by setting, protocol and hardware."""
    by = [*by, *(key for key in WHERE if key not in by)]
    if table.empty:
        return pd.DataFrame(columns=[*by, "n", *(f"{m}_{what}" for m in metrics for what in ("mean", "sd", "se"))])
    numbers = table[list(metrics)].astype(float)
    return report.over_seeds(keyed(table, by).assign(**numbers), by, list(metrics))


def differences(table: pd.DataFrame, first: str, by: Sequence[str], metrics: Sequence[str]) -> pd.DataFrame:
    """`paired_differences` by setting, protocol and hardware."""
    by = [*by, *(key for key in WHERE if key not in by)]
    found = report.paired_differences(keyed(table, by), first, by, list(metrics))
    return found if len(found) else pd.DataFrame(columns=[*by, "difference"])


def with_published(ours: pd.DataFrame, paper: pd.DataFrame, by: Sequence[str]) -> pd.DataFrame:
    """Our rows and the published ones side by side, either of them empty where there is none.

    Metrics of the paper get the ending _published.
    """
    renamed = keyed(paper, by).rename(columns={c: f"{c}_published" for c in paper if c not in by})
    return keyed(ours, by).merge(renamed, how="outer", on=list(by), sort=False)


def ordered(table: pd.DataFrame, **orders: Sequence) -> pd.DataFrame:
    """Sorted by columns, each of them in a given order; what is not in it comes last."""

    def place(column: pd.Series) -> pd.Series:
        places = {value: i for i, value in enumerate(orders[column.name])}
        return column.map(lambda value: places.get(value, len(places)))

    return table.sort_values(list(orders), key=place, kind="stable", ignore_index=True)


def in_se(ours: float, se: float, paper: float, paper_se: float = 0.0) -> float:
    """(ours - published) in standard errors of the difference; NaN where ours has none."""
    if pd.isna(ours) or pd.isna(se) or pd.isna(paper):
        return np.nan
    spread = float(np.hypot(se, 0.0 if pd.isna(paper_se) else paper_se))
    return (ours - paper) / spread if spread > 0 else np.nan
