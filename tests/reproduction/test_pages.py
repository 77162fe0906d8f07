"""The result tables in README.md and docs/*.md are those that the committed CSV files give."""

from __future__ import annotations

import pandas as pd
import pytest

from reproduction import pages
from reproduction.cells import ROOT

PAGE = "# Title\n\n<!-- table: {name} -->\n{table}<!-- /table -->\n\nThe end.\n"


@pytest.fixture
def root(tmp_path):
    """A project with a README and a page without tables."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(PAGE.format(name="uci_short", table="old\n"))
    (tmp_path / "docs" / "other.md").write_text("<!-- not a table -->\n")
    return tmp_path


def test_no_page_is_stale():
    stale = [str(page.relative_to(ROOT)) for page in pages.stale()]
    assert not stale, f"the tables of {', '.join(stale)} are not those of results/: run `{pages.COMMAND}`"


def test_a_stale_page_is_found_and_written(root):
    assert pages.stale(root) == pages.fill(root) == [root / "README.md"]
    text = (root / "README.md").read_text()
    assert text.startswith("# Title\n\n<!-- table: uci_short -->\n|  | Boston |") and "old" not in text
    assert text.endswith("|\n<!-- /table -->\n\nThe end.\n")
    assert pages.stale(root) == pages.fill(root) == []


def test_another_number_makes_a_page_stale(root, tmp_path):
    pages.fill(root)
    rows = pd.read_csv(pages.RESULTS / "uci.csv")
    rows.loc[(rows["data"] == "boston") & (rows["seed"] == 1), "rmse"] += 1
    rows.to_csv(tmp_path / "uci.csv", index=False)
    assert pages.stale(root, tmp_path) == [root / "README.md"]


def test_a_page_may_have_several_tables(root):
    two = PAGE.format(name="uci_short", table="") + PAGE.format(name="convergence", table="")
    (root / "README.md").write_text(two)
    pages.fill(root)
    text = (root / "README.md").read_text()
    assert text.count("<!-- /table -->") == text.count("The end.") == 2 and "Wasserstein" in text


def test_an_unknown_table_is_an_error(root):
    (root / "README.md").write_text(PAGE.format(name="table9", table=""))
    with pytest.raises(ValueError, match="no table table9; there are table1, "):
        pages.stale(root)


def test_markdown_tables():
    frame = pd.DataFrame({"": ["a|b"], "n": ["<2 & 3"]})
    assert pages.markdown(frame) == "|  | n |\n|---|---|\n| a\\|b | &lt;2 &amp; 3 |\n"
