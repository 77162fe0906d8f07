"""Result tables, each a function of the folder of CSV files and the protocol, beside the published numbers."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

from . import images, others, regression, structured
from .text import Table

Generator = Callable[[Path, str], Table]

TABLES: dict[str, Generator] = {
    "table1": regression.table1,
    "table1_paired": regression.table1_paired,
    "table1_decreasing": regression.table1_decreasing,
    "uci": regression.uci,
    "uci_paired": regression.uci_paired,
    "uci_average": regression.uci_average,
    "uci_beyond": regression.uci_beyond,
    "uci_validation": regression.uci_validation,
    "table2": images.table2,
    "table2_paired": images.table2_paired,
    "table2_ood": images.table2_ood,
    "figure2": images.figure2,
    "table3": images.table3,
    "table3_paired": images.table3_paired,
    "table3_pruning": images.table3_pruning,
    "table3_validation": images.table3_validation,
    "sbp_mnist": structured.sbp_mnist,
    "sbp_random": structured.sbp_random,
    "sbp_vgg": structured.sbp_vgg,
    "sbp_validation": structured.sbp_validation,
    "em_regression": others.em_regression,
    "em_images": others.em_images,
    "em_images_paired": others.em_images_paired,
    "convergence": others.convergence,
    "benchmarks": others.benchmarks,
    "scaling": others.scaling,
}
EXCERPTS: dict[str, Generator] = {  # for pages; the report has the whole
    "uci_short": partial(regression.uci, runs=[("sa", 1.003)]),
    **others.PARTS,
}

__all__ = ["EXCERPTS", "TABLES", "Generator", "Table"]
