"""Runs cells, on this machine or on a cluster, each once.

A cell runs as a process of its own, which holds the cell's lock for as long as it lives: the lock (flock) belongs to
the open file, and the script inherits it. So no cell runs twice at once, whoever starts it and whoever is killed,
and a cell whose starter was killed is waited for, not started again. On several machines the folder has to be shared
by them, with locks (a local disk or NFS; not every parallel file system has them).
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from joblib import Parallel, delayed, parallel_config

from experiment.run import RunError, write_text

from .cells import ROOT, Cell, Place

DIVERGED = 3  # exit status; of a batch the other chains' results are there


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: finished, or failed with an error; seconds: that it ran now."""

    id: str
    state: str
    seconds: float = 0.0
    error: str = ""


@contextlib.contextmanager
def locked(path: Path) -> Iterator[int]:
    """Wait for the lock and hold it; yields its file descriptor, for a child process to hold it as well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file.fileno()


def run_cell(cell: Cell, place: Place, environment: Mapping[str, str] | None = None) -> Outcome:
    """Run a cell, or go on with it, unless it is finished.

    environment: variables of its process, beside those of this one.
    """
    began = time.monotonic()
    try:
        with locked(place.beside(cell, "lock")) as lock:
            if place.state(cell, locked=True) == "finished":
                return Outcome(cell.id, "finished")
            place.beside(cell, "failed").unlink(missing_ok=True)
            code, last = run_script(place.words(cell), place.beside(cell, "log"), lock, environment or {})
            seconds = time.monotonic() - began
            if code in (0, DIVERGED) and place.state(cell, locked=True) == "finished":
                return Outcome(cell.id, "finished", seconds, last if code else "")
            error = last if code > 0 else f"killed by signal {-code}" if code else f"{cell.product} is missing"
            write_text(place.beside(cell, "failed"), json.dumps({"code": code, "error": error}) + "\n")
    except (OSError, RunError) as error:  # a full disk
        return Outcome(cell.id, "failed", time.monotonic() - began, str(error))
    return Outcome(cell.id, "failed", seconds, error)


def run_script(words: list[str], log: Path, lock: int, environment: Mapping[str, str]) -> tuple[int, str]:
    """Run a script with its output in a log; returns its exit status and its last line."""
    with log.open("w") as output:
        done = subprocess.run(
            [sys.executable, *words],
            cwd=ROOT,
            env=os.environ | environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            pass_fds=(lock,),
        )
    lines = log.read_text(errors="replace").strip().splitlines()
    return done.returncode, lines[-1][-300:] if lines else ""


def waves(cells: list[Cell]) -> Iterator[list[Cell]]:
    """Cells in groups, each of which needs earlier groups only, or cells that are not among these: finished ones."""
    left = list(cells)
    while left:
        waiting = {cell.id for cell in left}
        ready = [cell for cell in left if waiting.isdisjoint(cell.before)]
        yield ready
        left = [cell for cell in left if cell not in ready]


def run_cells(
    cells: list[Cell], place: Place, jobs: int, scheduler: str | None = None, data: Path | None = None
) -> Iterator[Outcome]:
    """Run cells, jobs at a time, or on a dask.distributed cluster, as many at a time as it has workers; yields
    outcomes as they come.

    A cell that needs a failed one fails as well; all others go on.  data: the data folder, default that of the
    environment, on a cluster that of the workers.
    """
    environment = {"BSDL_DATA": str(data)} if data else {}
    with contextlib.ExitStack() as stack:
        if scheduler:
            from distributed import Client

            stack.enter_context(Client(scheduler))
            stack.enter_context(parallel_config("dask", wait_for_workers_timeout=60))
            jobs = -1
        else:
            stack.enter_context(parallel_config("threading"))  # every cell is a process of its own
            if jobs > 1:
                environment |= {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // jobs))}
        failed: set[str] = set()
        for wave in waves(cells):
            ready = [cell for cell in wave if failed.isdisjoint(cell.before)]
            outcomes = Parallel(n_jobs=jobs, batch_size=1, return_as="generator_unordered")(
                delayed(run_cell)(cell, place, environment) for cell in ready
            )
            for outcome in outcomes:
                if outcome.state == "failed":
                    failed.add(outcome.id)
                yield outcome
            for cell in set(wave) - set(ready):
                failed.add(cell.id)
                yield Outcome(cell.id, "failed", error=f"needs {', '.join(failed.intersection(cell.before))}")
