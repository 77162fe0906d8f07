"""The papers' tables and figures, cell by cell, beside the published numbers.

    python reproduce.py list                                   # every cell with its command
    python reproduce.py run quick                              # every experiment small, no downloads, five minutes
    python reproduce.py run uci table1 -protocol cpu -jobs 2
    python reproduce.py run table3 -protocol full -only method=sa sparsity=0.9 -scheduler tcp://host:8786
    python reproduce.py status
    python reproduce.py report                                 # results/report.md and report.html

A cell is one command line of a script with its run folder. Finished cells are never run again, interrupted ones go on
where they were, failed ones are listed with their error. Exit status: 0 all is well, after run: finished; 1 a cell has
failed or could not be run; 2 bad input.
"""

from __future__ import annotations

import argparse
import os
from collections import Counter
from functools import partial
from pathlib import Path

from experiment import options
from reproduction import pages, protocols, report
from reproduction.cells import ROOT, Cell, Place, shown
from reproduction.engine import locked, run_cells
from reproduction.pictures import draw
from reproduction.results import update

ACTIONS = ("list", "run", "status", "report")
KEYS = ("method", "data", "sparsity", "model", "seed")


def chosen(cell: Cell, only: list[str]) -> bool:
    """Does the cell have the wanted method, data and so on? Of one key, any of the values given."""
    wanted: dict[str, set[str]] = {}
    for pair in only:
        key, value = pair.split("=", 1)
        wanted.setdefault(key, set()).add(value)
    return all(str(cell.keys.get(key)) in values for key, values in wanted.items())


def key_value(text: str) -> str:
    key, sign, value = text.partition("=")
    if key not in KEYS or not sign or not value:
        raise argparse.ArgumentTypeError(f"must be KEY=VALUE with KEY {', '.join(KEYS)}, not '{text}'")
    return text


def parse(argv: list[str] | None = None):
    parser = options.Parser(description="The papers' tables and figures, cell by cell, beside the published numbers.")
    parser.add_argument("action", choices=ACTIONS, help="list cells; run them; say how far they are; write the report")
    names = (*protocols.TABLES, "all", "quick")
    about = "tables: " + ", ".join(names) + "; quick: all, at -protocol quick"
    parser.add_argument("tables", nargs="*", metavar="TABLE", help=about)
    parser.add_argument(
        "-protocol", choices=protocols.PROTOCOLS, default="cpu", help="schedules: published, of two cores, or small"
    )
    about = "seeds, splits or data sets, where a table has several; default of every table"
    parser.add_argument("-seeds", type=options.count, default=None, help=about)
    parser.add_argument(
        "-only",
        type=key_value,
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="only cells of this method, data, sparsity, model or seed, and what they need",
    )
    parser.add_argument("-jobs", type=options.count, default=1, help="cells at once on this machine")
    parser.add_argument(
        "-scheduler",
        default=None,
        metavar="ADDRESS",
        help="dask.distributed scheduler, tcp://host:8786; its workers run the cells",
    )
    parser.add_argument("-checkpoint", default=None, metavar="FILE", help="table3: dense network to start from")
    parser.add_argument("-data_dir", default=None, help="data folder of all cells; default BSDL_DATA, else data/cache")
    parser.add_argument(
        "-out", default=None, metavar="DIR", help="where the run folders lie; default runs/reproduce/PROTOCOL"
    )
    args = parser.parse_args(argv)
    for name in args.tables:
        if name not in names:
            parser.error(f"argument TABLE: {name} is none of {', '.join(names)}")
    if "quick" in args.tables:
        if len(args.tables) > 1:
            parser.error("argument TABLE: quick is all tables, and stands alone")
        args.protocol = "quick"
    if not args.tables or {"all", "quick"}.intersection(args.tables):
        args.tables = list(protocols.TABLES)
    if args.checkpoint and not Path(args.checkpoint).is_file():
        parser.error(f"argument -checkpoint: there is no file {args.checkpoint}")
    args.checkpoint = args.checkpoint and str(Path(args.checkpoint).resolve())  # cells run in the project's folder
    return parser, args


def place_of(args: argparse.Namespace) -> Place:
    """Where the run folders lie; relative to the project where they are inside it."""
    root = Path(args.out).resolve() if args.out else ROOT / "runs" / "reproduce" / args.protocol
    return Place(root.relative_to(ROOT) if root.is_relative_to(ROOT) else root)


def show_cells(cells: list[Cell], place: Place) -> None:
    """Every cell with its command."""
    for cell in cells:
        print(f"{cell.id}: {shown(place.words(cell))}")


def show_states(cells: list[Cell], place: Place) -> Counter:
    """How many cells of every table are how far, and the errors of failed ones; returns the counts."""
    states = {cell.id: place.state(cell) for cell in cells}
    for table in dict.fromkeys(cell.table for cell in cells):
        counts = Counter(states[cell.id] for cell in cells if cell.table == table)
        print(f"{table}: " + ", ".join(f"{n} {state}" for state, n in counts.items()))
    for cell in cells:
        if states[cell.id] in ("failed", "other flags"):
            what = place.error(cell) if states[cell.id] == "failed" else "the folder holds a run with other flags"
            print(f"{states[cell.id]}: {cell.id}: {what}\n    {shown(place.words(cell))}")
    return Counter(states.values())


def run(cells: list[Cell], place: Place, args: argparse.Namespace) -> None:
    """Run what is not finished, a line per cell."""
    left = [cell for cell in cells if place.state(cell) != "finished"]
    print(f"{len(cells)} cells, {len(cells) - len(left)} finished before", flush=True)
    data = Path(args.data_dir).resolve() if args.data_dir else None
    for i, outcome in enumerate(run_cells(left, place, args.jobs, args.scheduler, data), 1):
        note = f": {outcome.error}" if outcome.error else ""
        print(f"[{i}/{len(left)}] {outcome.state} {outcome.id} in {outcome.seconds:.0f} s{note}", flush=True)


def main() -> int:
    parser, args = parse()
    with parser.checked():
        wanted = partial(chosen, only=args.only)
        cells = protocols.cells(args.tables, args.protocol, args.seeds, args.checkpoint, wanted)
        if not cells:
            raise ValueError(f"no cell of -protocol {args.protocol} is {' '.join(args.tables)} {' '.join(args.only)}")
    place = place_of(args)
    os.chdir(ROOT)
    if args.action == "list":
        show_cells(cells, place)
        return 0
    if args.action == "run":
        run(cells, place, args)
    if args.action in ("run", "report"):
        results = place.root / "results" if args.out or args.protocol == "quick" else ROOT / "results"
        pictures = results.parent / "figures"
        with locked(results / ".lock"):  # of several starters
            update(cells, place, args.protocol, results)
            draw(cells, place, args.protocol, pictures)
    states = show_states(cells, place)
    if args.action in ("run", "report"):
        write_report(args, place, results, pictures)
    failed = states["failed"] + states["other flags"]
    return 1 if failed or (args.action == "run" and states.total() > states["finished"]) else 0


def write_report(args: argparse.Namespace, place: Place, results: Path, pictures: Path) -> None:
    """The report of all tables, and of the committed results the pages' tables as well; prints its short form."""
    cells = protocols.cells(list(protocols.TABLES), args.protocol, args.seeds, args.checkpoint)
    path, short = report.write(cells, place, args.protocol, results, pictures)
    if results == pages.RESULTS:
        for page in pages.fill():
            print(f"tables: {page}")
    print(f"\n{short}\n\nreport: {path}")


if __name__ == "__main__":
    options.run_script(main)
