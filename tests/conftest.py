"""What the tests of the scripts share: a script in a process of its own, and refused command lines."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import socket
import sys
import time
from dataclasses import asdict, dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import pandas as pd
import pytest
import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open

from experiment import options
from tests import forked

# Of every process that the tests start, and of their own. The number of threads changes the rounding, and two test
# processes with as many threads as there are processors wait for each other: up to 25 times as long.
os.environ |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(forked.ROOT)}
torch.set_num_threads(1)


@dataclass(frozen=True)
class Result:
    """A finished process: exit status, output, run folder."""

    code: int
    stdout: str
    stderr: str
    folder: str

    def __truediv__(self, name: str) -> Path:
        return Path(self.folder) / name

    @property
    def table(self) -> pd.DataFrame:
        return pd.read_csv(self / "table.csv")

    @property
    def summary(self) -> dict:
        return json.loads((self / "summary.json").read_text())


class Script:
    """Starts a script of the repository in a process of its own, on one thread."""

    def __init__(self, folder: Path):
        self.folder = folder  # of what the processes print
        self.count = itertools.count()

    def start(self, name: str, *arguments, out=None, **environment: str) -> Running:
        """Start it, and do not wait."""
        words = [name, *map(str, arguments), *(["-out", str(out)] if out else [])]
        number = next(self.count)
        printed = tuple(self.folder / f"{number}.{stream}" for stream in ("out", "err"))
        return Running(forked.start(words, *printed, **environment), printed, str(out))

    def run(self, name: str, *arguments, out) -> Result:
        return self.start(name, *arguments, out=out).result(seconds=300)

    def stop(self, name: str, *arguments, out, after: int, with_signal: int, part: str = "", wait: float = 0) -> Result:
        """Send the signal `wait` seconds after a checkpoint in out / part says that so much is done."""
        running = self.start(name, *arguments, out=out)
        while running.process.is_alive() and done(Path(out) / part) < after:
            time.sleep(0.005)
        time.sleep(wait)
        with contextlib.suppress(ProcessLookupError):  # it has ended
            os.kill(running.process.pid, with_signal)
        return running.result(seconds=60)

    def kill(self, name: str, *arguments, out, after: int, part: str = "", wait: float = 0) -> Result:
        return self.stop(name, *arguments, out=out, after=after, with_signal=signal.SIGKILL, part=part, wait=wait)


@dataclass(frozen=True)
class Running:
    """A started process, the files that it prints to, its run folder."""

    process: BaseProcess
    printed: tuple[Path, Path]
    folder: str

    def result(self, seconds: float) -> Result:
        """Wait for its end, at most so long."""
        try:
            self.process.join(seconds)
            assert not self.process.is_alive(), f"still running after {seconds} s"
        finally:
            self.process.kill()
            self.process.join()
        return Result(self.process.exitcode, *(path.read_text() for path in self.printed), self.folder)


def done(folder) -> int:
    """Iterations or epochs of the checkpoint in a run folder, 0 where there is none."""
    try:
        with safe_open(Path(folder) / "checkpoint.safetensors", framework="pt") as file:
            return json.loads(file.metadata()["state"])["done"]
    except (OSError, RuntimeError, SafetensorError):  # being replaced at this moment
        return 0


def free_port() -> str:
    """A port of this machine that nobody listens on."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


@pytest.fixture(scope="session")
def script(tmp_path_factory) -> Script:
    return Script(tmp_path_factory.mktemp("printed"))


@pytest.fixture(scope="session")
def shared_run(script, tmp_path_factory, worker_id):
    """shared_run(key, script, *arguments): a run made once for all tests and workers, to be read only."""
    folder = tmp_path_factory.getbasetemp()
    folder = (folder if worker_id == "master" else folder.parent) / "shared"
    folder.mkdir(exist_ok=True)

    def run(key: str, name: str, *arguments) -> Result:
        with FileLock(folder / f"{key}.lock"):
            record = folder / f"{key}.json"
            if not record.exists():
                result = script.run(name, *arguments, out=folder / key)
                record.write_text(json.dumps(asdict(result)))
            return Result(**json.loads(record.read_text()))

    return run


@pytest.fixture
def in_process(monkeypatch, capsys, tmp_path):
    """in_process(module, *arguments): a script's main in this process, started in an empty folder."""
    empty = tmp_path / "empty"
    empty.mkdir()

    def run(module, *arguments, out: Path | None = None) -> Result:
        flags = [*map(str, arguments), *(["-out", str(out)] if out else [])]
        monkeypatch.chdir(empty)
        monkeypatch.setattr(sys, "argv", [f"{module.__name__}.py", *flags])
        grad = torch.is_grad_enabled()
        capsys.readouterr()
        try:
            with pytest.raises(SystemExit) as stop:
                options.run_script(module.main)
        finally:
            torch.set_grad_enabled(grad)
            torch.set_flush_denormal(False)
        return Result(stop.value.code, *capsys.readouterr(), str(out))

    return run


@pytest.fixture
def refused(in_process, tmp_path):
    """refused(module, *arguments): the one line with which a script refuses them, having written nothing."""

    def state() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    def run(module, *arguments) -> str:
        before = state()
        result = in_process(module, *arguments)
        lines = [line for line in result.stderr.splitlines() if not line.startswith("note: ")]
        assert (result.code, result.stdout, len(lines)) == (2, "", 1)
        assert lines[0].startswith(f"{module.__name__}.py: error: ")
        assert state() == before
        return lines[0]

    return run


@pytest.fixture(scope="session")
def same_table():
    """same_table(a, b, rtol): two tables with equal settings and close numbers."""

    def check(a: pd.DataFrame, b: pd.DataFrame, rtol: float = 1e-9) -> None:
        a, b = a.reset_index(drop=True), b.reset_index(drop=True)
        pd.testing.assert_frame_equal(a, b, rtol=rtol, atol=0, check_dtype=False)

    return check
