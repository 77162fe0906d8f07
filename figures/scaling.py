"""How the cost grows: python -m figures.scaling figures/scaling.png [results/benchmarks.csv]

A panel for everything that a benchmark was run against (p, depth, chains, samples), on two logarithmic axes: a line per
benchmark and case, dashed for the baseline, with the exponent of the power law that fits it. Reads the table only.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
from matplotlib.ticker import LogLocator, NullFormatter

from .style import plt, save

RESULTS = Path(__file__).parents[1] / "results" / "benchmarks.csv"
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")  # one per benchmark of a panel
SIZES = {
    "p": "coefficients p",
    "depth": "depth of the ResNet",
    "chains": "chains",
    "samples": "samples in the posterior average",
}


def label(row: pd.Series, alone: bool) -> str:
    """The case, of which program where several share a panel, and its power law."""
    program = "" if alone else f"{row['benchmark'].split(',')[0]}: "
    return f"{program}{row['case']}, exponent {row['exponent']:.2f} ± {row['exponent_se']:.2f}"


def panel(axis, rows: pd.DataFrame, against: str) -> None:
    """The curves of one quantity."""
    names = list(dict.fromkeys(rows["benchmark"]))
    baselines = set(rows.groupby("benchmark")["case"].first().items())
    for (benchmark, case), curve in rows.groupby(["benchmark", "case"], sort=False):
        baseline = (benchmark, case) in baselines  # the first of its benchmark
        axis.plot(
            curve["at"],
            curve["value"],
            "o--" if baseline else "o-",
            color=COLOURS[names.index(benchmark)],
            mfc="white" if baseline else None,
            ms=4,
            label=label(curve.iloc[0], alone=len(names) == 1),
        )
    (unit,) = rows["unit"].unique()
    axis.set(xscale="log", yscale="log", xlabel=SIZES[against], ylabel=unit)
    axis.set_title("; ".join(name.removesuffix(f", cost against {against}") for name in names), fontsize=9)
    if rows["at"].max() < 10 * rows["at"].min():  # less than a decade: name every size
        axis.set_xticks(sorted(rows["at"].unique()), [f"{at:.0f}" for at in sorted(rows["at"].unique())])
        axis.xaxis.set_minor_formatter(NullFormatter())
    else:
        axis.xaxis.set_major_locator(LogLocator(numticks=12))
    axis.set_ylim(top=axis.get_ylim()[1] * 6)  # room for the legend
    axis.legend(fontsize=7, loc="upper left")


def draw(table: Path, file: Path) -> Path:
    """Draw the figure of a table of benchmarks.

    Raises:
        ValueError: the table has no rows of a size.
    """
    rows = pd.read_csv(table)
    rows = rows[rows["at"].notna()] if "at" in rows else rows.head(0)
    found = [against for against in SIZES if (rows["against"] == against).any()] if len(rows) else []
    if not found:
        raise ValueError(f"{table} holds no costs against {', '.join(SIZES)}: run python -m benchmarks first")
    rows_of_panels = -(-len(found) // 2)
    figure, axes = plt.subplots(rows_of_panels, 2, figsize=(9.5, 3.5 * rows_of_panels), squeeze=False)
    for axis, against in zip(axes.flat, found, strict=False):
        panel(axis, rows[rows["against"] == against], against)
    for axis in axes.flat[len(found) :]:
        axis.set_axis_off()
    hardware = "; ".join(dict.fromkeys(rows["hardware"]))
    figure.supxlabel(f"{hardware}; dashed, hollow: the baseline of the same run", fontsize=8)
    return save(figure, file.parent, file.name, file)


if __name__ == "__main__":
    print(draw(Path(sys.argv[2]) if len(sys.argv) > 2 else RESULTS, Path(sys.argv[1])))
