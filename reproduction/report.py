"""results/report.md and results/report.html: every table and figure, made from run folders and CSV files only."""

from __future__ import annotations

import base64
import html
import os
import re
from datetime import date
from pathlib import Path

import markdown
import pandas as pd

from experiment.run import environment, write_text

from . import pages
from .cells import ROOT, Cell, Place, shown
from .pictures import PICTURES
from .results import file_name
from .tables import TABLES, Table
from .tables.rows import plain

TITLE = "Bayesian sparse deep learning: results beside the published ones"
DIFFERENCES = ROOT / "docs" / "differences.md"
EXTENSIONS = ("tables", "fenced_code", "md_in_html", "toc")
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
{body}
</body>
</html>
"""
STYLE = """\
body { margin: 0 auto; padding: 1rem; max-width: 80rem; color: #1a1a1a; background: #fff;
  font: 16px/1.5 system-ui, sans-serif; overflow-wrap: anywhere; }
h1 { font-size: 1.6rem; line-height: 1.2; }
h2 { margin-top: 2.5rem; border-bottom: 1px solid #ccc; }
h3 { margin: 2rem 0 0; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.85rem; overflow-wrap: normal; font-variant-numeric: tabular-nums; }
th, td { padding: 0.25rem 0.6rem; border-bottom: 1px solid #ddd; text-align: left; vertical-align: top; }
td { white-space: nowrap; }
th { background: #f3f3f3; vertical-align: bottom; }
table.text td { min-width: 12rem; white-space: normal; }
img { display: block; max-width: 100%; height: auto; }
pre { overflow-x: auto; padding: 0.6rem; background: #f3f3f3; font-size: 0.8rem; overflow-wrap: normal; }
summary { cursor: pointer; }
"""


def write(cells: list[Cell], place: Place, protocol: str, results: Path, pictures: Path) -> tuple[Path, str]:
    """Write report.md and report.html into `results`; returns the latter and the short form for a terminal.

    cells: of all tables, for their states and commands.  pictures: folder of the figures.
    """
    tables = {name: make(results, protocol) for name, make in TABLES.items()}
    overview = summary(cells, place, protocol, results, tables)
    text = body(cells, place, protocol, results, pictures, tables, overview)
    results.mkdir(parents=True, exist_ok=True)
    write_text(results / "report.md", text)
    path = results / "report.html"
    write_text(path, page(text, results))
    return path, short(protocol, tables, overview)


def short(protocol: str, tables: dict[str, Table], overview: pd.DataFrame) -> str:
    """The summary, and of the quick protocol, which has nothing to compare with, the main tables."""
    lines = [overview.to_string(index=False)]
    for name in map(file_name, overview["table"]) if protocol == "quick" else ():
        frame = compact(tables[name].frame)
        lines += ["", tables[name].title, frame.to_string(index=False)] if len(frame) else []
    return "\n".join(lines)


def compact(frame: pd.DataFrame) -> pd.DataFrame:
    """Without columns in which nothing stands."""
    return frame.loc[:, (frame != "").any()]


def summary(cells: list[Cell], place: Place, protocol: str, results: Path, tables: dict[str, Table]) -> pd.DataFrame:
    """How far every table is, and how near to the published numbers."""
    printed = []
    for experiment in dict.fromkeys(cell.table for cell in cells):
        own = [cell for cell in cells if cell.table == experiment]
        name = file_name(experiment)
        measured = {x for file in (name, f"{name}_ood") for x in named(results / f"{file}.csv", protocol)}
        known = [x for x in tables[name].differences if pd.notna(x)]
        line = {"table": experiment, "cells": str(len(own))}
        line |= {"finished here": str(sum(place.state(cell) == "finished" for cell in own))}
        line |= {"in results/": str(sum(cell.name in measured for cell in own))}
        line["within 2 se of the published"] = f"{sum(abs(x) <= 2 for x in known)} of {len(known)}" if known else ""
        for what, choose in (("nearest, se", min), ("farthest, se", max)):
            line[what] = f"{choose(known, key=abs):+z.1f}" if known else ""
        printed.append(line)
    return pd.DataFrame(printed).astype(str)


def named(path: Path, protocol: str) -> set[str]:
    """Names of the cells with rows in a CSV file."""
    rows = pd.read_csv(path) if path.exists() else pd.DataFrame(columns=["protocol", "cell"])
    return set(rows.loc[rows["protocol"] == protocol, "cell"])


def body(
    cells: list[Cell],
    place: Place,
    protocol: str,
    results: Path,
    pictures: Path,
    tables: dict[str, Table],
    overview: pd.DataFrame,
) -> str:
    """The report in Markdown."""
    machine = environment()
    made_on = f"Written {date.today()} from commit {(machine['commit'] or 'unknown')[:7]}, protocol {protocol}"
    parts = [
        f"# {TITLE}",
        f"{made_on}, on {plain(machine['gpu'] or machine['cpu'])}. Where its numbers were measured stands with "
        "every table. A cell not run is empty. Differences are ours minus published in standard errors, se.",
        "## Summary",
        pages.markdown(overview.drop(columns="finished here")),  # of one machine, at one moment
        "Cells: command lines at this protocol; in results/: with rows in its CSV.",
        "## Tables",
    ]
    for name, table in tables.items():
        if table.frame.empty:
            continue
        frame = compact(table.frame) if protocol == "quick" else table.frame
        parts += [f"### {table.title}", f"{html.escape(table.note, quote=False)} (`{name}`)", pages.markdown(frame)]
    drawn = [picture for picture in PICTURES if (pictures / picture.file).exists()]
    parts += ["## Figures"] if drawn else []
    for picture in drawn:
        link = os.path.relpath(pictures / picture.file, results)
        parts += [f"### {picture.title}", f"![{picture.title}]({link})"]
    parts += [*commands(cells, place, protocol), *failed(cells, place), *differences(results)]
    return "\n\n".join(part.rstrip() for part in parts) + "\n"


def commands(cells: list[Cell], place: Place, protocol: str) -> list[str]:
    """The one command, and that of every cell."""
    whole = "quick" if protocol == "quick" else f"all -protocol {protocol}"
    lines = "\n".join(shown(place.words(cell)) for cell in cells)
    return [
        "## Commands",
        f"```\npython reproduce.py run {whole}\n```",
        f'<details markdown="1">\n<summary>The {len(cells)} cells</summary>\n\n```\n{lines}\n```\n\n</details>',
    ]


def failed(cells: list[Cell], place: Place) -> list[str]:
    """Failed cells with their errors."""
    bad = [cell for cell in cells if place.state(cell) == "failed"]
    lines = [f"{cell.id}: {place.error(cell)}\n    {shown(place.words(cell))}" for cell in bad]
    return ["## Failed cells", "~~~~\n" + "\n".join(lines) + "\n~~~~"] if bad else []


def differences(results: Path) -> list[str]:
    """The list of differences from the papers, with links that lead from the report's folder."""
    if not DIFFERENCES.exists():
        return []
    docs = os.path.relpath(DIFFERENCES.parent, results)
    text = re.sub(r"\]\((?!https?:|#)", f"]({docs}/", DIFFERENCES.read_text().strip())
    return [re.sub(r"^(#+ )", r"#\1", text, flags=re.M)]


def page(text: str, folder: Path) -> str:
    """The report as one HTML file.

    folder: that its links to images start from.
    """
    inside = markdown.markdown(text, extensions=EXTENSIONS, output_format="html")

    def embedded(match: re.Match) -> str:
        data = base64.b64encode((folder / html.unescape(match[1])).read_bytes()).decode()
        return f'src="data:image/png;base64,{data}"'

    inside = re.sub(r'src="([^"]+)"', embedded, inside)
    inside = re.sub(r"<table>(.*?)</table>", boxed, inside, flags=re.S)
    return PAGE.format(title=TITLE, style=STYLE, body=inside)


def boxed(match: re.Match) -> str:
    """A table in a box of its own that scrolls sideways; cells of sentences may wrap."""
    longest = max(map(len, re.findall(r"<td>(.*?)</td>", match[1], re.S)), default=0)
    return f'<div class="wide"><table{" class=text" if longest > 80 else ""}>{match[1]}</table></div>'
