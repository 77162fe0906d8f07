"""Tables of linear and UCI regression (Deng et al. 2019)."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from .rows import (
    COMMITTED,
    WHERE,
    differences,
    in_se,
    keyed,
    load,
    means,
    ordered,
    provenance,
    published,
    with_published,
)
from .text import METHODS, Table, count, finished, name, number, of, pair, pm, short, where

SETTING = ["method", "v0", "sd"]
RELEASED, DECREASING = (1000.0, 100.0), (10.0, 1000.0)  # dc and da
ORDER = {"method": METHODS, "v0": (0.01, 0.1), "sd": (1.0, 2.0)}
PAPER_DATA = ["boston", "yacht", "energy-efficiency", "wine", "concrete"]
MORE_DATA = ["power-plant", "diabetes"]
SPLITS = 20  # of the paper
RUNS = [("sghmc", 1.0), ("em", 1.0), ("sa", 1.0), ("sghmc", 1.003), ("em", 1.003), ("sa", 1.003)]


def simulations(folder: Path, protocol: str, omega: tuple[float, float]) -> pd.DataFrame:
    """Chains of data sets at these dc and da; those of the fixed prior, which has neither, at the released ones."""
    rows = load(folder, "table1", protocol, [*SETTING, "seed", "mae", "mse", "found_beta1", "found_beta2", "dc", "da"])
    chosen = (rows["dc"] == omega[0]) & (rows["da"] == omega[1]) & (rows["cell"] != "one_data_set")
    return rows[chosen].drop_duplicates([*SETTING, *WHERE, "seed"])


def finds(row) -> str:
    """Shares of data sets in which the first two coefficients are found."""
    shares = [number(100 * row[f"found_{beta}_mean"], 0) for beta in ("beta1", "beta2")]
    return pair(*(f"{share}%" if share else "" for share in shares), between=", ")


def table1(folder: Path, protocol: str) -> Table:
    """Test errors of posterior means."""
    rows = simulations(folder, protocol, RELEASED)
    paper = published("table1", protocol)
    metrics = ["mae", "mse"]
    table = means(rows, SETTING, [*metrics, "found_beta1", "found_beta2"])
    for source, ending in (("paper*", "paper"), ("authors' notebook", "notebook")):
        other = paper[paper["source"] == source][[*SETTING, *metrics]]
        table = with_published(table, other.rename(columns={m: f"{m}_{ending}" for m in metrics}), SETTING)
    printed, known = [], []
    for row in ordered(table, **ORDER).to_dict("records"):
        line = {"method": row["method"], "v0": short(row["v0"]), "sigma_0": short(row["sd"]), "n": count(row["n"])}
        line |= {"test MAE": of(row, "mae"), "test MSE": of(row, "mse"), "finds beta_1, beta_2": finds(row)} | where(
            row
        )
        for ending in ("paper", "notebook"):
            values = [row[f"{m}_{ending}_published"] for m in metrics]
            apart = [in_se(row[f"{m}_mean"], row[f"{m}_se"], x) for m, x in zip(metrics, values, strict=True)]
            title = "paper*" if ending == "paper" else ending
            line[f"{title} MAE / MSE"] = pair(*(number(x) for x in values))
            line[f"{title}: difference in se"] = pair(*(number(x, 1, "+") for x in apart))
            known += apart if ending == "paper" else []
        printed.append(line)
    note = (
        "Mean ± sd over n simulated data sets. Finds: share of data sets in which the posterior mean of the "
        "coefficient exceeds half of its true value. *: the paper's table, quoted from memory and unconfirmed; "
        "notebook: the authors', of one data set. Differences from them in our own standard errors. " + provenance(rows)
    )
    return Table("Linear regression, more variables than rows: test errors", note, finished(printed), known)


def table1_paired(folder: Path, protocol: str) -> Table:
    """SA minus the others."""
    rows = simulations(folder, protocol, RELEASED)
    found = differences(rows, "sa", ["v0", "sd"], ["mae", "mse"])
    printed = {}
    for row in ordered(found, v0=ORDER["v0"], sd=ORDER["sd"]).to_dict("records"):
        key = tuple(row[k] for k in ("v0", "sd", *WHERE))
        line = printed.setdefault(key, {"v0": short(row["v0"]), "sigma_0": short(row["sd"]), "n": count(row["n"])})
        other = row["difference"].split(" - ")[1].upper()
        for metric in ("mae", "mse"):
            line[f"SA − {other}: {metric.upper()}"] = of(row, metric, spread="se")
        line |= where(row)
    note = "Mean ± standard error over the same n data sets. " + provenance(rows)
    return Table("Linear regression: SA minus the others", note, finished(list(printed.values())))


def table1_decreasing(folder: Path, protocol: str) -> Table:
    """SA with the paper's omega_k."""
    rows = {omega: simulations(folder, protocol, omega) for omega in (RELEASED, DECREASING)}
    sa = {omega: table[table["method"] == "sa"] for omega, table in rows.items()}
    released = means(sa[RELEASED], ["v0", "sd"], ["mse"])
    table = means(sa[DECREASING], ["v0", "sd"], ["mse", "found_beta1", "found_beta2"])
    em = pd.concat([sa[DECREASING], rows[RELEASED][rows[RELEASED]["method"] == "em"]], ignore_index=True)
    apart = differences(em, "sa", ["v0", "sd"], ["mse"])
    by = ["v0", "sd", *WHERE]
    table = table.merge(released.drop(columns="n"), how="left", on=by, suffixes=("", "_released"))
    table = table.merge(apart.reindex(columns=[*by, "mse_mean", "mse_se"]), how="left", on=by, suffixes=("", "_em"))
    printed = [
        {"v0": short(row["v0"]), "sigma_0": short(row["sd"]), "n": count(row["n"])}
        | {"SA, released omega_k: MSE": pm(row["mse_mean_released"], row["mse_sd_released"])}
        | {"SA, decreasing omega_k: MSE": of(row, "mse"), "finds beta_1, beta_2": finds(row)}
        | {"SA − EM: MSE": pm(row["mse_mean_em"], row["mse_se_em"])}
        | where(row)
        for row in ordered(table, v0=ORDER["v0"], sd=ORDER["sd"]).to_dict("records")
    ]
    note = (
        "omega_k = 10 / (1000 + k)^0.7 as in the paper, instead of min(0.1, 1000 / (100 + k)^0.7) as released. "
        "Mean ± sd over n data sets; SA − EM ± standard error. " + provenance(sa[DECREASING])
    )
    return Table("Linear regression with decreasing omega_k", note, finished(printed))


UCI = ["data", "method", "anneal"]


def splits(folder: Path, protocol: str) -> pd.DataFrame:
    """All chains, each once; lr '' is the default of the data set."""
    metrics = ["rmse", "rmse_averaged", "nll", "coverage95"]
    rows = keyed(load(folder, "uci", protocol, [*UCI, "lr", "seed", "val", *metrics]), ["lr"])
    return rows[rows["val"].fillna(0) == 0].drop_duplicates([*UCI, "lr", *WHERE, "seed"])


def paper_splits(folder: Path, protocol: str, data: list[str]) -> pd.DataFrame:
    """Of the paper's number of splits, at the default step size."""
    rows = splits(folder, protocol)
    return rows[(rows["lr"] == "") & (rows["seed"] <= SPLITS) & rows["data"].isin(data)]


def uci_data(protocol: str) -> list[str]:
    return PAPER_DATA if protocol in COMMITTED else [*PAPER_DATA, *MORE_DATA]


def run_name(method: str, anneal: float) -> str:
    """As in the paper: A- for annealed."""
    return ("A-" if anneal > 1 else "") + name(method)


def counts(values: list) -> str:
    """n of a row: one number where all columns have it."""
    texts = [count(x) for x in values]
    return texts[0] if len(set(texts)) == 1 else ", ".join(text or "0" for text in texts)


def by_data(table: pd.DataFrame, keys: list[str], data: list[str]) -> list[tuple[dict, dict]]:
    """Rows of the same keys together, as (a row, {data set: row})."""
    groups: dict[tuple, dict[str, dict]] = {}
    for row in table.to_dict("records"):
        groups.setdefault(tuple(row[key] for key in keys), {})[row["data"]] = row
    return [(next(iter(rows.values())), {d: rows.get(d) for d in data}) for rows in groups.values()]


def shown_data(table: pd.DataFrame, protocol: str) -> list[str]:
    """The columns: the paper's data sets, for the quick protocol those that were run."""
    return PAPER_DATA if protocol in COMMITTED else [d for d in uci_data(protocol) if d in set(table["data"])]


def uci(folder: Path, protocol: str, runs: list[tuple[str, float]] = RUNS) -> Table:
    """RMSE of the last sample beside the published one.

    runs: (method, anneal) of the rows.
    """
    rows = paper_splits(folder, protocol, uci_data(protocol))
    paper = published("uci", protocol)
    table = with_published(means(rows, UCI, ["rmse"]), paper, UCI)
    data, order = shown_data(table, protocol), {run: i for i, run in enumerate(runs)}
    table["run"] = [order.get(run) for run in zip(table["method"], table["anneal"], strict=True)]
    table = table.dropna(subset="run")
    # published rows that we have not run stand with those that we have
    filled = table.groupby("run")[WHERE].transform("first") if len(table) else table[WHERE]
    table = table.assign(**{key: table[key].where(table[key].notna(), filled[key]) for key in WHERE})
    printed, known = [], []
    for first, columns in by_data(table.sort_values("run", kind="stable"), ["run", *WHERE], data):
        cells = {d: row for d, row in columns.items() if row}
        n = counts([columns[d]["n"] if columns[d] else None for d in data])
        apart = {
            d: in_se(row["rmse_mean"], row["rmse_se"], row["rmse_published"], row["rmse_se_published"])
            for d, row in cells.items()
        }
        known += apart.values()

        def line(label: str, values: dict, first=first, n: str = "") -> dict:
            return {"": label} | {name(d): values.get(d, "") for d in data} | {"n": n} | where(first)

        ours = {d: with_se(row) for d, row in cells.items()}
        printed.append(line(f"**{run_name(first['method'], first['anneal'])}**", ours, n=n))
        if len(paper):
            values = {d: bracket(row["rmse_published"], row["rmse_se_published"]) for d, row in cells.items()}
            printed.append(line("published", values))
            printed.append(line("difference in se", {d: number(x, 1, "+") for d, x in apart.items()}))
    note = (
        "Test RMSE of the last sample, mean ± sd over n random splits, standard error in brackets; published: mean "
        "(standard error). A-: annealed. The difference is in standard errors of both together. " + provenance(rows)
    )
    return Table("UCI regression: test RMSE", note, finished(printed, ["", *map(name, data)]), known)


def bracket(mean: float, se: float) -> str:
    """'2.78 (0.11)'."""
    return "" if pd.isna(mean) else f"{mean:.2f}" + ("" if pd.isna(se) else f" ({se:.2f})")


def with_se(row) -> str:
    """'3.17 ± 0.56 (0.13)'."""
    return of(row, "rmse") + ("" if pd.isna(row["rmse_se"]) else f" ({row['rmse_se']:.2f})")


def uci_paired(folder: Path, protocol: str) -> Table:
    """SA minus the others on the same splits."""
    rows = paper_splits(folder, protocol, uci_data(protocol))
    table = differences(rows, "sa", ["data", "anneal"], ["rmse"])
    data = shown_data(table, protocol)
    table = ordered(table, difference=["sa - em", "sa - sghmc"], anneal=(1.0, 1.003))
    printed = [
        {"SA minus": name(first["difference"].split(" - ")[1]), "anneal": short(first["anneal"])}
        | {"n": counts([row["n"] if row else None for row in columns.values()])}
        | {name(d): of(row, "rmse", 3, spread="se") if row else "" for d, row in columns.items()}
        | where(first)
        for first, columns in by_data(table, ["difference", "anneal", *WHERE], data)
    ]
    note = "RMSE of SGHMC-SA minus the other, mean ± standard error over the same n splits. " + provenance(rows)
    return Table("UCI regression: SA minus the others", note, finished(printed, ["SA minus", *map(name, data)]))


def uci_average(folder: Path, protocol: str) -> Table:
    """The posterior average, annealed."""
    rows = paper_splits(folder, protocol, uci_data(protocol))
    rows = rows[rows["anneal"] > 1]
    metrics = {"rmse_averaged": ("RMSE", 2), "nll": ("NLL", 2), "coverage95": ("coverage of the 95% interval", 3)}
    table = ordered(means(rows, UCI, list(metrics)), method=["sghmc", "em", "sa"])
    data = shown_data(table, protocol)
    printed = [
        {"": title, "run": run_name(first["method"], first["anneal"])}
        | {name(d): of(row, metric, digits) if row else "" for d, row in columns.items()}
        | {"n": counts([row["n"] if row else None for row in columns.values()])}
        | where(first)
        for metric, (title, digits) in metrics.items()
        for first, columns in by_data(table, ["method", *WHERE], data)
    ]
    note = (
        "The average of the annealed chains over the epochs after -burn, its predictive density (each sample with the "
        "variance of its training residuals) and its central 95% interval; mean ± sd over n splits. "
    )
    frame = finished(printed, ["", "run", *map(name, data)])
    return Table("UCI regression: the posterior average", note + provenance(rows), frame)


def uci_beyond(folder: Path, protocol: str) -> Table:
    """Data that the paper has not, more splits, and the released step size."""
    rows = splits(folder, protocol)
    default = rows[rows["lr"] == ""]
    boston = default[(default["data"] == "boston") & (default["anneal"] > 1)]
    parts = {
        "concrete, lr 1e-5 as released": rows[(rows["lr"] == 1e-5) & (rows["data"] == "concrete")],
        "boston, more splits": boston if boston["seed"].max() > SPLITS else boston.iloc[:0],
        "power plant": default[default["data"] == "power-plant"],
        "diabetes": default[default["data"] == "diabetes"],
    }
    paper = published("uci", protocol)
    printed, known = [], []
    for title, part in parts.items() if protocol in COMMITTED else ():
        table = means(part, UCI, ["rmse", "rmse_averaged"])
        chains = part.groupby([*UCI, *WHERE]).size().to_dict()
        beside = paper.set_index(UCI)
        for row in ordered(table, anneal=(1.0, 1.003), method=["sghmc", "em", "sa"]).to_dict("records"):
            key = tuple(row[k] for k in UCI)
            theirs, se = beside.loc[key, ["rmse", "rmse_se"]] if key in beside.index else (None, None)
            apart = in_se(row["rmse_mean"], row["rmse_se"], theirs, se)
            diverged = chains[tuple(row[k] for k in [*UCI, *WHERE])] - row["n"]
            printed.append(
                {"": title, "run": run_name(row["method"], row["anneal"]), "n": count(row["n"])}
                | {"diverged": str(int(diverged)), "RMSE": with_se(row)}
                | {"RMSE of the average": of(row, "rmse_averaged"), "published": bracket(theirs, se)}
                | {"difference in se": number(apart, 1, "+")}
                | where(row)
            )
            known.append(apart)
    note = (
        "Test RMSE, mean ± sd over the n splits whose chain has not diverged, standard error in brackets. "
        + provenance(*parts.values())
    )
    return Table("UCI regression beyond the paper's table", note, finished(printed, ["", "run"]), known)


def uci_validation(folder: Path, protocol: str) -> Table:
    """Step sizes on validation data."""
    path = folder / "uci_validation.csv"
    rows = pd.read_csv(path) if path.exists() and protocol in COMMITTED else pd.DataFrame()
    printed = []
    for (data, n, lr), part in rows.groupby(["data", "splits", "lr"], sort=False) if len(rows) else ():
        one = {"": name(data), "lr": short(lr), "splits": str(n), "RMSE": number(part["rmse_mean"].mean())}
        one |= {"RMSE of the average": number(part["rmse_averaged_mean"].mean())}
        printed.append(one | {"diverged chains": f"{part['diverged'].sum()} of {3 * n}"})
    note = "On validation data only (-val 0.1 -seed 101), mean over the three methods and the splits."
    return Table("UCI regression: step sizes", note, finished(printed, ["", "lr", "splits", "RMSE"]))
