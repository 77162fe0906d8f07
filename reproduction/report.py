from __future__ import annotations


def write(cells, place, protocol, results, pictures):
    return results / "report.html"
