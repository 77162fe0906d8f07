"""UCI regression data sets, and diabetes, which ships with scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from .files import DataError, RemoteFile, locate

_UCI = "https://archive.ics.uci.edu/ml/machine-learning-databases"


@dataclass(frozen=True)
class Source:
    """A data set: its file, its shape, and how to read it.

    The target is the last column. rows and features are checked, so that a truncated file is an
    error and not a smaller data set.
    """

    file: RemoteFile
    rows: int
    features: int
    read: dict  # keyword arguments of pandas.read_csv; empty for a spreadsheet's first sheet
    drop: tuple[int, ...] = ()  # columns that are neither features nor the target


_WHITESPACE = {"sep": r"\s+", "header": None}
SOURCES = {
    "boston": Source(
        RemoteFile(
            "uci/boston_housing.txt",
            f"{_UCI}/housing/housing.data",
            "baadf72995725d76efe787b664e1f083388c79ba21ef9a7990d87f774184735a",
        ),
        506, 13, _WHITESPACE,
    ),
    "yacht": Source(
        RemoteFile(
            "uci/yacht_hydrodynamics.data",
            f"{_UCI}/00243/yacht_hydrodynamics.data",
            "00dfecc0fc01ddd4c90b558a3ac11b246df8ebcfea130724223475a9a67f0ea1",
        ),
        308, 6, _WHITESPACE,
    ),
    "energy-efficiency": Source(
        RemoteFile(
            "uci/ENB2012_data.xlsx",
            f"{_UCI}/00242/ENB2012_data.xlsx",
            "0089fcffc1415e41e2ff63730cca5280efe54fc43d722dfde1b0aaa808e35dc4",
        ),
        768, 8, {}, drop=(8,),  # heating load; the target is the cooling load
    ),
    "wine": Source(
        RemoteFile(
            "uci/winequality-red.csv",
            f"{_UCI}/wine-quality/winequality-red.csv",
            "4a402cf041b025d4566d954c3b9ba8635a3a8a01e039005d97d6a710278cf05e",
        ),
        1599, 11, {"sep": ";"},
    ),
    "concrete": Source(
        RemoteFile(
            "uci/Concrete_Data.xls",
            f"{_UCI}/concrete/compressive/Concrete_Data.xls",
            "710076c66b9ca3f8050e7942f3dcbdbe04013534daeb0077ffd3079a52d8e0c4",
        ),
        1030, 8, {},
    ),
    "power-plant": Source(
        RemoteFile(
            "uci/Folds5x2_pp.xlsx",
            f"{_UCI}/00294/CCPP.zip",
            "ccd490981db2a2f079963b3d9f0aea30d9d338900a0285428dfc6385396f4651",
            member="CCPP/Folds5x2_pp.xlsx",
        ),
        9568, 4, {},
    ),
}  # fmt: skip
NAMES = (*SOURCES, "diabetes")


def load(name: str, data_dir: str | None = None) -> tuple[np.ndarray, np.ndarray]:
    """Features (rows, features) and target (rows,) of a data set, float64, as published.

    data_dir: see `files.data_folder`.

    Raises:
        DataError: unknown name, missing file, wrong shape, text or NaN in the table.
    """
    if name == "diabetes":
        from sklearn.datasets import load_diabetes

        return load_diabetes(return_X_y=True, scaled=False)
    if name not in SOURCES:
        raise DataError(f"unknown data set '{name}'; choose from {', '.join(NAMES)}")
    source = SOURCES[name]
    path = locate(source.file, data_dir)
    table = _numbers(_read(path, source), path)
    expected = (source.rows, source.features + 1 + len(source.drop))
    if table.shape != expected:
        raise DataError(f"{path} has {table.shape[0]} rows and {table.shape[1]} columns, expected {expected}")
    table = np.delete(table, source.drop, axis=1)
    return table[:, :-1], table[:, -1]


def _read(path: Path, source: Source) -> pd.DataFrame:
    try:
        if source.read:
            return pd.read_csv(path, **source.read)
        return pd.read_excel(path, engine="calamine").dropna(how="all", axis=1)
    except Exception as error:  # the spreadsheet readers raise their own kinds for damaged files
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise DataError(f"{path} cannot be read as a table: {reason}") from error


def _numbers(frame: pd.DataFrame, path: Path) -> np.ndarray:
    values = frame.apply(pd.to_numeric, errors="coerce").to_numpy(np.float64)
    bad = np.argwhere(~np.isfinite(values))
    if len(bad):
        row, column = bad[0]
        raise DataError(
            f"{path}: data row {row + 1}, column {column + 1} is {frame.iat[row, column]!r}, not a finite number"
        )
    return values


@dataclass(frozen=True)
class Split:
    """Standardised training features, raw targets; x (n, features), y (n,), float64."""

    x: np.ndarray
    y: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def split(x: np.ndarray, y: np.ndarray, seed: int, val: float = 0.0) -> Split:
    """90/10 split by scikit-learn's train_test_split(test_size=0.1, random_state=seed).

    x is standardised by the training part's mean and standard deviation, y stays as it is.
    val: fraction of the training part to hold out; it then takes the place of the test part, which
    is not looked at.
    """
    from sklearn.model_selection import train_test_split

    x_train, x_test, y_train, y_test = train_test_split(x, y, test_size=0.1, random_state=seed)
    if val:
        x_train, x_test, y_train, y_test = train_test_split(x_train, y_train, test_size=val, random_state=seed)
    mean, sd = x_train.mean(0), x_train.std(0)
    sd[sd == 0] = 1.0
    return Split((x_train - mean) / sd, y_train, (x_test - mean) / sd, y_test)


def stacked(splits: Sequence[Split]) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """x, y, x_test, y_test of several splits of a data set, float32: (split, rows, features) and (split, rows)."""
    parts = ([getattr(each, field.name) for each in splits] for field in fields(Split))
    return tuple(torch.tensor(np.array(part), dtype=torch.float32) for part in parts)
