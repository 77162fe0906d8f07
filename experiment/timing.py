"""Timing of alternatives in turn, A B C A B C ..., because single timings of a shared machine mean little."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def interleaved(alternatives: dict[str, Callable[[], object]], rounds: int = 7) -> dict[str, float]:
    """Median seconds of each alternative over `rounds` rounds, after one that is not counted."""
    seconds = {name: [] for name in alternatives}
    for i in range(rounds + 1):
        for name, run in alternatives.items():
            began = time.perf_counter()
            run()
            if i:
                seconds[name].append(time.perf_counter() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}
