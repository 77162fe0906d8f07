"""report.md and report.html of a made project: one figure, finished, failed and open cells, one table with rows."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from reproduction import pages, report
from reproduction.cells import Cell, Place, shown
from reproduction.pictures import PICTURES
from reproduction.tables import TABLES

ERROR = 'lr_simulation.py: error: <b>"bad" & worse</b>'
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
MEASURE = """<script>
addEventListener("load", () => {
  const frame = document.querySelector("iframe"), inside = frame.contentDocument, root = inside.documentElement
  const right = e => e.getBoundingClientRect().right
  const width = frame.contentWindow.innerWidth, all = [...inside.querySelectorAll("body *")]
  const outside = all.filter(e => !e.closest(".wide, pre") && right(e) > width)
  document.title = JSON.stringify({
    width, scroll: root.scrollWidth, outside: outside.map(e => e.outerHTML.slice(0, 80)),
    images: [...inside.images].map(e => [e.naturalWidth, e.getBoundingClientRect().width]),
    tables: [...inside.querySelectorAll("table")].map(e => [e.clientWidth, e.clientHeight, right(e.parentNode)]),
  })
})
</script>"""


class Page(HTMLParser):
    """Tags with their attributes, and the text."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict]] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data):
        self.text += data

    def named(self, tag: str) -> list[dict]:
        return [attributes for name, attributes in self.tags if name == tag]


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """The report of a made project; .cells, .place and .results are its own."""
    root = tmp_path_factory.mktemp("project")
    (root / "docs").mkdir()
    (root / "docs" / "differences.md").write_text("# Differences\n\n| here | why |\n|---|---|\n| [x](y.md) | z |\n")
    place, results, pictures = Place(root / "runs"), root / "results", root / "figures"
    cells = [Cell("table1", f"{c}_seeds2", ("lr_simulation.py", "-c", c, "-seeds", "2")) for c in ("sa", "em", "sgld")]
    for cell in cells[:2]:
        place.folder(cell).mkdir(parents=True)
        (place.folder(cell) / "command.sh").write_text(shown(place.words(cell)) + "\n")
    (place.folder(cells[0]) / "summary.json").write_text("{}\n")
    place.beside(cells[1], "failed").write_text(json.dumps({"code": 1, "error": ERROR}))
    write_rows(results, "cpu")
    pictures.mkdir()
    Image.fromarray(np.full((300, 900, 3), 200, dtype=np.uint8)).save(pictures / PICTURES[0].file)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(report, "DIFFERENCES", root / "docs" / "differences.md")
        path, short = report.write(cells, place, "cpu", results, pictures)
    return SimpleNamespace(path=path, short=short, cells=cells, place=place, results=results)


def write_rows(results: Path, protocol: str) -> None:
    """results/table1.csv with one cell of two seeds."""
    results.mkdir()
    one = {"method": "sa", "v0": 0.1, "sd": 1.0, "dc": 1000.0, "da": 100.0, "found_beta1": 1, "found_beta2": 1}
    one |= {"protocol": protocol, "cell": "sa_seeds2", "cpu": "AMD EPYC", "torch": "2.15", "commit": "0123456789"}
    rows = [one | {"seed": seed, "mae": mae, "mse": 4.0 + seed} for seed, mae in ((1, 1.0), (2, 2.0))]
    pd.DataFrame(rows).to_csv(results / "table1.csv", index=False)


def printed(project) -> int:
    """How many tables have rows."""
    return sum(len(make(project.results, "cpu").frame) > 0 for make in TABLES.values())


def test_the_page_needs_nothing_else(project):
    page = Page(project.path.read_text())
    assert project.path == project.results / "report.html"
    assert page.named("html") == [{"lang": "en"}] and {"charset": "utf-8"} in page.named("meta")
    assert "width=device-width" in next(x["content"] for x in page.named("meta") if x.get("name") == "viewport")
    (image,) = page.named("img")
    assert image["src"].startswith("data:image/png;base64,") and image["alt"] == PICTURES[0].title
    assert not {"script", "link", "iframe"}.intersection(tag for tag, _ in page.tags)
    assert all(key not in ("src", "srcset") for tag, attributes in page.tags if tag != "img" for key in attributes)
    assert "url(" not in project.path.read_text() and "@import" not in project.path.read_text()


def test_tables_commands_and_errors_stand_there(project):
    page = Page(project.path.read_text())
    for cell in project.cells:
        assert shown(project.place.words(cell)) in page.text
    assert "python reproduce.py run all -protocol cpu\n" in page.text
    assert f"table1/em_seeds2: {ERROR}" in page.text and "b" not in {tag for tag, _ in page.tags}
    assert "1.50 ± 0.71" in page.text and "Protocol cpu; AMD EPYC; torch 2.15; commit 0123456." in page.text
    assert len(page.named("table")) == printed(project) + 2  # summary and differences
    assert {"href": "../docs/y.md"} in page.named("a")


def test_report_md_has_links_to_the_figures(project):
    text = (project.results / "report.md").read_text()
    assert f"![{PICTURES[0].title}](../figures/{PICTURES[0].file})" in text and "data:" not in text
    assert "| table1 | 3 | 1 |" in text and "finished here" not in text  # which is true of one machine only
    assert "## Differences" in text and ERROR in text
    assert pages.markdown(TABLES["table1"](project.results, "cpu").frame) in text


def test_the_short_form(project):
    lines = project.short.splitlines()
    assert lines[1].split()[:4] == ["table1", "3", "1", "1"] and len(lines) == 2


def test_without_figures_failures_and_differences(project, monkeypatch, tmp_path):
    """The quick report: of quick rows alone, beside nothing that was published."""
    monkeypatch.setattr(report, "DIFFERENCES", tmp_path / "none.md")
    write_rows(tmp_path / "results", "quick")
    path, short = report.write(project.cells[:1], project.place, "quick", tmp_path / "results", tmp_path / "none")
    text = (path.parent / "report.md").read_text()
    assert not re.search("^## (Figures|Failed|Differences)", text, re.M) and "<img" not in path.read_text()
    assert "1.50 ± 0.71" in text and "1.50 ± 0.71" in short
    assert "paper* MAE" not in text and "run quick\n" in text and text.count("### ") == 1


def chromium(page, folder, *flags, size: tuple[int, int]) -> str:
    """Load a page in a headless browser; its standard output."""
    command = [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", "--hide-scrollbars"]
    command += [f"--user-data-dir={folder}", "--virtual-time-budget=5000", f"--window-size={size[0]},{size[1]}", *flags]
    done = subprocess.run([*command, page.as_uri()], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
@pytest.mark.parametrize("width", [400, 1200])
def test_in_a_browser(project, tmp_path, width):
    """Laid out in a frame, since a window is never narrower than 500 pixels."""
    style, text = f"border: 0; width: {width}px; height: 1600px", html.escape(project.path.read_text())
    page = tmp_path / "frame.html"
    frame = f'<iframe style="{style}" srcdoc="{text}"></iframe>'
    page.write_text(f'<!DOCTYPE html><title></title><body style="margin: 0">{frame}{MEASURE}')
    dom = chromium(page, tmp_path / "profile", "--dump-dom", size=(1200, 1600))
    found = json.loads(html.unescape(re.search("<title>(.*?)</title>", dom, re.S)[1]))
    assert found["width"] == width and found["scroll"] == width and found["outside"] == []
    assert found["images"] == [[900, pytest.approx(min(900, width - 32), abs=0.5)]]
    assert len(found["tables"]) == printed(project) + 2
    assert all(w > 50 and h > 20 and right <= width for w, h, right in found["tables"])


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="there is no Chromium")
def test_it_is_seen_in_a_browser(project, tmp_path):
    file = tmp_path / "page.png"
    chromium(project.path, tmp_path / "profile", f"--screenshot={file}", size=(1000, 1500))
    image = Image.open(file)
    pixels = np.asarray(image.convert("L"))
    assert image.format == "PNG" and image.size == (1000, 1500)
    assert pixels[:3].min() == 255  # the margin
    assert 0.02 < (pixels < 128).mean() < 0.5 and (pixels[:, 750:] < 128).any()
