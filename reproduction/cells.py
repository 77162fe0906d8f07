"""A cell of a table: one command line of a script with its run folder."""

from __future__ import annotations

import fcntl
import itertools
import json
import shlex
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from experiment.run import NOT_IDENTITY

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Cell:
    """One command.

    table: that it belongs to.  name: of its run folder.  command: script and flags; a word @NAME stands for the run
    folder of the cell NAME, which has to be finished before (@TABLE/NAME: of another table).  keys: method, data,
    sparsity, model, seed, for -only.  product: the file that says that it is finished; `-evaluate @NAME` writes it
    into the folder of that cell.
    """

    table: str
    name: str
    command: tuple[str, ...]
    keys: Mapping[str, object] = field(default_factory=dict, compare=False)
    product: str = "summary.json"

    @property
    def id(self) -> str:
        return f"{self.table}/{self.name}"

    @property
    def before(self) -> list[str]:
        """Ids of the cells that have to be finished first."""
        names = [word[1:] for word in self.command if word.startswith("@")]
        return [name if "/" in name else f"{self.table}/{name}" for name in names]

    @property
    def evaluates(self) -> bool:
        """Is it about another cell's finished run?"""
        return "-evaluate" in self.command


@dataclass(frozen=True)
class Place:
    """Where the cells of a protocol lie: <root>/<table>/<name>, with the log and the lock of every cell beside it."""

    root: Path

    def folder(self, cell: Cell) -> Path:
        """Its run folder."""
        return self.root / cell.before[0] if cell.evaluates else self.root / cell.id

    def beside(self, cell: Cell, ending: str) -> Path:
        return self.root / f"{cell.id}.{ending}"

    def words(self, cell: Cell) -> list[str]:
        """Its command line as it is run, without the interpreter."""
        before = iter(cell.before)
        words = [str(self.root / next(before)) if word.startswith("@") else word for word in cell.command]
        return words if cell.evaluates else [*words, "-out", str(self.folder(cell)), "-resume", "1"]

    def state(self, cell: Cell, locked: bool = False) -> str:
        """finished, running, failed, interrupted, open, or other flags: its folder holds another command's run.

        locked: the caller holds its lock.
        """
        folder = self.folder(cell)
        if not locked and self.running(cell):
            return "running"
        if not cell.evaluates and (folder / "command.sh").exists() and not self.same(cell):
            return "other flags"
        if (folder / cell.product).exists():
            return "finished"
        if self.error(cell):
            return "failed"
        return "interrupted" if self.beside(cell, "log").exists() else "open"

    def same(self, cell: Cell) -> bool:
        """Is the run in its folder of its command, but for the order of the flags and for those without a say?"""
        no_say = {f"-{name}" for name in NOT_IDENTITY}
        no_say |= {flag for flag, word in itertools.pairwise(cell.command) if word.startswith("@")}  # moved folders

        def plain(words: list[str]) -> list[str]:
            pairs = itertools.pairwise(["", *words])
            return sorted(word for before, word in pairs if word not in no_say and before not in no_say)

        done = shlex.split((self.folder(cell) / "command.sh").read_text())[1:]
        return plain(done) == plain(self.words(cell))

    def running(self, cell: Cell) -> bool:
        """Does some process hold its lock?"""
        lock = self.beside(cell, "lock")
        if not lock.exists():
            return False
        with lock.open() as file:
            try:
                fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    def error(self, cell: Cell) -> str:
        """What the last line of a failed command said, '' where it has not failed."""
        record = self.beside(cell, "failed")
        return json.loads(record.read_text())["error"] if record.exists() else ""


def shown(words: list[str]) -> str:
    """A command line for people."""
    return f"python {shlex.join(words)}"
