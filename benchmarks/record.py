"""Timings and their ratios to a baseline of the same run, in results/benchmarks.csv.

A row: `value` in `unit` of one `case` of a `benchmark`, and its `ratio` to the benchmark's first case. The rows of a
curve also say `against` what the cost grows and `at` which size; there the ratio is to the first case at the same size,
and `exponent` +- `exponent_se` is the power law value ~ at^exponent that fits the case. `commit` is the repository's.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import pandas as pd

from experiment.run import environment, write_csv
from experiment.timing import interleaved

RESULTS = Path(__file__).parents[1] / "results" / "benchmarks.csv"
COLUMNS = ["benchmark", "case", "unit", "value", "ratio", "against", "at", "exponent", "exponent_se"]
COLUMNS += ["hardware", "commit"]
Size = TypeVar("Size")


def power_law(x, y) -> tuple[float, float]:
    """The exponent c of y ~ x^c by least squares of log y on log x, and its standard error."""
    dx, dy = (z - z.mean() for z in (np.log(x), np.log(y)))
    exponent = dx @ dy / (dx @ dx)
    residual = dy - exponent * dx
    return float(exponent), float(np.sqrt(residual @ residual / (len(dx) - 2) / (dx @ dx)))


def digits(x: float, count: int) -> str:
    """x with `count` significant digits, or with all digits of its whole part if these are more."""
    return f"{x:.{count}g}" if abs(x) < 10**count else f"{x:.0f}"


@dataclass(frozen=True)
class Bench:
    """How thoroughly to measure, and where the rows go.

    file: CSV that they are put in.  quick: smallest sizes and one round, to see that everything runs.
    """

    file: Path = RESULTS
    quick: bool = False

    def size(self, full: Size, quick: Size) -> Size:
        """`full`, or in a quick run `quick`."""
        return quick if self.quick else full

    def seconds(self, alternatives: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
        """Median seconds of each alternative, timed in turn."""
        return interleaved(alternatives, rounds=self.size(rounds, 1))

    def record(self, benchmark: str, unit: str, values: dict[str, float]) -> None:
        """Print values and their ratios to the first, the baseline, and put them in the file.

        They take the place of this benchmark's earlier rows.
        """
        base = next(iter(values.values()))
        rows = [{"case": case, "value": digits(x, 4), "ratio": digits(x / base, 3)} for case, x in values.items()]
        self._write(benchmark, unit, rows)

    def record_curves(self, benchmark: str, unit: str, against: str, curves: dict[str, dict[int, float]]) -> None:
        """The same for case -> size -> value, with the power law of every case. The first case is the baseline."""
        base, rows = next(iter(curves.values())), []
        for case, curve in curves.items():
            exponent, se = power_law(list(curve), list(curve.values()))
            fitted = {"against": against, "exponent": f"{exponent:.3f}", "exponent_se": f"{se:.3f}"}
            rows += [
                {"case": case, "value": digits(x, 4), "ratio": digits(x / base[at], 3), "at": str(at)} | fitted
                for at, x in curve.items()
            ]
        self._write(benchmark, unit, rows)

    def _write(self, benchmark: str, unit: str, rows: list[dict[str, str]]) -> None:
        here = environment()
        about = {
            "benchmark": benchmark,
            "unit": unit,
            "hardware": f"{here['cpu']}, {here['cores']} cores, torch {here['torch']}",
            "commit": (here["commit"] or "")[:10],
        }
        new = pd.DataFrame([row | about for row in rows])
        print(f"{benchmark}, {unit}\n{pd.DataFrame(rows).to_string(index=False)}", flush=True)
        new = new.reindex(columns=COLUMNS)
        if self.file.exists():
            old = pd.read_csv(self.file, dtype=str)  # as text, so that rows that stay are not rounded again
            new = pd.concat([old[old["benchmark"] != benchmark], new], ignore_index=True)[COLUMNS]
        write_csv(self.file, new)
