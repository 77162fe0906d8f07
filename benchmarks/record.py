"""Rates and their ratios to a baseline, in results/benchmarks.csv."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from experiment.run import environment, write_csv

RESULTS = Path(__file__).parents[1] / "results" / "benchmarks.csv"


def record(benchmark: str, unit: str, rates: dict[str, float]) -> None:
    """Print rates and their ratios to the first, the baseline, and put them in results/benchmarks.csv.

    They take the place of this benchmark's earlier rows.
    """
    here = environment()
    base = next(iter(rates.values()))
    new = pd.DataFrame(
        {
            "benchmark": benchmark,
            "case": list(rates),
            "unit": unit,
            "value": [round(rate) for rate in rates.values()],
            "ratio": [round(rate / base, 2) for rate in rates.values()],
            "hardware": f"{here['cpu']}, {here['cores']} cores, torch {here['torch']}",
        }
    )
    print(new.drop(columns="hardware").to_string(index=False))
    if RESULTS.exists():
        old = pd.read_csv(RESULTS)
        new = pd.concat([old[old["benchmark"] != benchmark], new], ignore_index=True)
    write_csv(RESULTS, new)
