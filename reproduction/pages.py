"""The result tables in README.md and docs/*.md, which stand between <!-- table: NAME --> and <!-- /table -->."""

from __future__ import annotations

import html
import re
from pathlib import Path

import pandas as pd

from experiment.run import write_text

from .cells import ROOT
from .tables import EXCERPTS, TABLES

RESULTS = ROOT / "results"
COMMAND = "python reproduce.py report"  # that writes them
MARKED = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- /table -->)", re.S)


def pages(root: Path = ROOT) -> list[Path]:
    """The files that may have such tables."""
    return [root / "README.md", *sorted((root / "docs").glob("*.md"))]


def markdown(frame: pd.DataFrame) -> str:
    """A table in Markdown."""

    def line(cells) -> str:
        return "| " + " | ".join(html.escape(str(cell), quote=False).replace("|", "\\|") for cell in cells) + " |"

    return "\n".join([line(frame), "|" + "---|" * len(frame.columns), *map(line, frame.to_numpy())]) + "\n"


def filled(text: str, results: Path = RESULTS) -> str:
    """A page with its tables as they follow from the CSV files."""

    def table(match: re.Match) -> str:
        make = (TABLES | EXCERPTS).get(match[2])
        if make is None:
            raise ValueError(f"there is no table {match[2]}; there are {', '.join(TABLES | EXCERPTS)}")
        return match[1] + markdown(make(results, "cpu").frame) + match[3]

    return MARKED.sub(table, text)


def renewed(root: Path, results: Path) -> dict[Path, str]:
    """Pages whose tables are not those of the CSV files, with the text that they should have."""
    texts = {page: filled(page.read_text(), results) for page in pages(root)}
    return {page: text for page, text in texts.items() if text != page.read_text()}


def stale(root: Path = ROOT, results: Path = RESULTS) -> list[Path]:
    """Pages whose tables are not those of the CSV files."""
    return list(renewed(root, results))


def fill(root: Path = ROOT, results: Path = RESULTS) -> list[Path]:
    """Write the tables into all pages; returns those that were stale."""
    written = renewed(root, results)
    for page, text in written.items():
        write_text(page, text)
    return list(written)
