"""The figures, drawn from the run folders of finished cells."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from figures import adversarial, calibration, em_selection, em_sparsity, lr_simulation, sa_convergence, sparse_resnet
from figures import structured_pruning as structured

from .cells import Cell, Place
from .protocols import PROTOCOLS


@dataclass(frozen=True)
class Picture:
    """A figure of a table.

    cells: names of the cells that it shows, with * and ? and spaces between, by protocol.  draw: (run folders, file).
    """

    table: str
    file: str
    title: str
    draw: Callable[[list[Path], Path], Path]
    cells: dict[str, str]


def single(draw: Callable) -> Callable[[list[Path], Path], Path]:
    """A figure of one run."""
    return lambda folders, file: draw(folders[0], file)


ALL = dict.fromkeys(PROTOCOLS, "*")
RAW = dict.fromkeys(PROTOCOLS, "*_raw_?")
PICTURES = [
    Picture(
        "table1",
        "lr_simulation.png",
        "Posteriors and fits of one data set",
        single(lr_simulation.draw),
        {"full": "one_data_set", "cpu": "one_data_set", "quick": "all"},
    ),
    Picture("table2", "calibration.png", "Reliability, and entropy inside and outside", calibration.draw, RAW),
    Picture(
        "figure2",
        "adversarial.png",
        "Accuracy under attack",
        adversarial.draw,
        {"full": "*", "cpu": "*[a-z]", "quick": "*"},
    ),
    Picture(
        "table3",
        "sparse_resnet.png",
        "Accuracy, density and penalties of sparse networks",
        sparse_resnet.draw,
        {"full": "*_0.9_1", "cpu": "sa_0.9 em_0.9 sghmc_0.9", "quick": "*_0.9"},
    ),
    Picture(
        "sbp-mnist",
        "sbp_threshold.png",
        "Accuracy and units against the threshold",
        structured.threshold,
        {"full": "*_sbp_1", "cpu": "fc_sbp_1 fc_sbp_tuned_1 l5_sbpa_1", "quick": "fc_sbp"},
    ),
    Picture(
        "sbp-mnist",
        "sbp_lenet5.png",
        "LeNet5 by cost: accuracy and units against the threshold",
        structured.threshold,
        {"cpu": "l5_cost_1"},
    ),
    Picture(
        "sbp-mnist",
        "sbp_units.png",
        "SNR of every unit",
        structured.units,
        {"full": "*_sbp_1", "cpu": "fc_sbp_tuned_1 l5_cost_1", "quick": "fc_sbp"},
    ),
    Picture(
        "sbp-mnist",
        "sbp_curves.png",
        "Units left over the epochs",
        structured.curves,
        {"full": "*_1", "cpu": "fc_*_1 l5_*_1", "quick": "*"},
    ),
    Picture(
        "sbp-vgg",
        "sbp_vgg.png",
        "VGG-like: accuracy and units against the threshold",
        structured.threshold,
        {"full": "sbp*"},
    ),
    Picture(
        "em-regression",
        "em_selection.png",
        "Mean square of the weights of every input",
        em_selection.draw,
        ALL,
    ),
    Picture(
        "em-images",
        "em_sparsity.png",
        "Accuracy against sparsity",
        em_sparsity.draw,
        ALL,
    ),
    Picture(
        "convergence",
        "sa_convergence.png",
        "L2 rate and weak convergence",
        single(sa_convergence.draw),
        ALL,
    ),
]


def draw(cells: list[Cell], place: Place, protocol: str, folder: Path) -> list[Path]:
    """Draw every figure of which all cells are finished; returns the files."""
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for picture in PICTURES:
        patterns = picture.cells.get(protocol, "").split()
        shown = [c for c in cells if c.table == picture.table and any(fnmatch.fnmatch(c.name, x) for x in patterns)]
        if shown and all(place.state(c) == "finished" for c in shown):
            drawn.append(picture.draw([place.folder(c) for c in shown], folder / picture.file))
    return drawn
