"""Printed tables: numbers, settings and names as text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pandas as pd

from experiment import report
from figures.style import NETWORK_LABELS, TITLES

from .rows import WHERE

METHODS = ["dense", "sa", "em", "sghmc", "sgld", "sgd", "dropout", "vanilla", "sbp", "sbpa", "ssl", "sparsevd"]
NAMES = {
    **NETWORK_LABELS,
    **TITLES,
    "lenet-fc": "LeNet-fc",
    "lenet5": "LeNet5",
    "vgglike": "VGG-like",
    "vgg": "VGG",
    "mnist-random": "MNIST, random labels",
    "energy-efficiency": "Energy",
    "power-plant": "Power plant",
    "sgd": "SGD",
}


@dataclass(frozen=True)
class Table:
    """A table as it is printed.

    title, note: without and with the place where its numbers come from.  frame: strings.
    differences: from the published numbers in standard errors, as far as they are known.
    """

    title: str
    note: str
    frame: pd.DataFrame
    differences: list[float] = field(default_factory=list)


def name(word: str) -> str:
    """Of data and methods, for people."""
    return NAMES.get(word, word[:1].upper() + word[1:].replace("esnet", "esNet"))


def pm(mean: float, spread: float = np.nan, digits: int = 2) -> str:
    """'1.23 ± 0.05'."""
    return report.plus_minus(mean, spread, digits).replace("+-", "±")


def of(row, metric: str, digits: int = 2, scale: float = 1.0, spread: str = "sd") -> str:
    """Mean ± sd of a row of `means`."""
    return pm(scale * row[f"{metric}_mean"], scale * row[f"{metric}_{spread}"], digits)


def number(value: float, digits: int = 2, sign: str = "") -> str:
    """'' where there is none."""
    return "" if pd.isna(value) else f"{value:{sign}z.{digits}f}"


def short(value) -> str:
    """A setting: '' or the number without trailing zeros."""
    if value == "" or pd.isna(value):
        return ""
    return f"{value:g}" if isinstance(value, int | float | np.number) else str(value)


def pair(*values: str, between: str = " / ") -> str:
    """'a / b', '' where all are."""
    return between.join(values) if any(values) else ""


def count(value) -> str:
    """n, '' where nothing was run."""
    return "" if pd.isna(value) else str(int(value))


def finished(rows: list[dict], columns: Sequence[str] = ()) -> pd.DataFrame:
    """Printed rows as a frame; protocol and hardware only where rows differ in them.

    columns: of an empty one.
    """
    frame = pd.DataFrame(rows, columns=None if rows else list(columns)).fillna("").astype(str)
    for key in WHERE:
        if key in frame and len(set(frame[key]) - {""}) < 2:
            frame = frame.drop(columns=key)
    return frame


def where(row) -> dict[str, str]:
    """The columns protocol and hardware of a printed row."""
    return {key: short(row[key]) for key in WHERE if key in row}
