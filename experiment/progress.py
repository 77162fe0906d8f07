"""The progress bar of all scripts."""

from __future__ import annotations

import sys

from tqdm import tqdm

from . import distributed


def progress(total: int, initial: int, unit: str, label: str) -> tqdm:
    """A bar on standard error; every ten seconds a line where that is a file and no terminal.

    Of several processes only the first one shows it.
    """
    interval = 0.2 if sys.stderr.isatty() else 10.0
    hidden = distributed.rank() > 0
    return tqdm(
        total=total, initial=initial, unit=unit, desc=label, mininterval=interval, dynamic_ncols=True, disable=hidden
    )
