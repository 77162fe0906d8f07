"""A run is a folder.

    args.json command.sh environment.json     what was asked for, and where it ran
    metrics.csv                               progress, one row per epoch or interval
    checkpoint.safetensors                    tensors, with the JSON part in the file's header
    table.csv summary.json                    the results; summary.json is written last

Every file is written under a temporary name and renamed, so that a kill at any moment leaves
whole files only.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from . import distributed

FILES = ("summary.json", "checkpoint.safetensors", "table.csv", "metrics.csv")  # removed in this order
AFTERWARDS = (
    "evaluate",
    "attack",
    "attack_images",
    "pgd_images",
    "pgd_steps",
    "ood",
    "export",
    "half",
    "speed",
)  # asked of a finished run
# flags that do not change the numbers of a run
NOT_IDENTITY = {"out", "resume", "save_every", "data_dir", "workers", "device", "gpu", "tensorboard", *AFTERWARDS}


class Diverged(RuntimeError):
    """Every chain, or some chains of a batch, left the finite numbers. Exit status 3."""


class RunError(ValueError):
    """The run folder cannot be used: unwritable, full, another run's, or damaged."""


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Ctrl-C (SIGINT) has its effect at the end of the block.

    In the midst of it, it could be lost: numpy, on whose conversions of text pandas relies, drops any exception
    that it meets in there.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone is interrupted
        yield
        return
    came = []
    before = signal.signal(signal.SIGINT, lambda *_: came.append(True))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if came:
            signal.raise_signal(signal.SIGINT)


def replace_file(path: Path, write) -> None:
    """write(temporary path), then rename it to `path`: readers see the old file or the new one.

    Raises:
        RunError: it cannot be written, as on a full disk; the old file is whole.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with interrupts_wait():
        try:
            write(temporary)
            os.replace(temporary, path)
        except (OSError, SafetensorError) as error:
            reason = getattr(error, "strerror", None) or error
            raise RunError(f"{path} cannot be written: {reason}") from error
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    replace_file(path, lambda temporary: temporary.write_text(text))


def write_csv(path: Path, frame: pd.DataFrame) -> None:
    replace_file(path, lambda temporary: frame.to_csv(temporary, index=False))


def plain(value):
    """`value` as JSON allows it: NaN and infinity become null, numpy scalars plain numbers."""
    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(v) for v in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if np.isfinite(value) else None
    return value.item() if isinstance(value, np.generic) else value


def environment() -> dict:
    """Versions, hardware and the project's commit."""
    root = Path(__file__).parents[1]
    commit = None
    if shutil.which("git"):
        git = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True)
        commit = git.stdout.strip() or None
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "cpu": names[0] if names else platform.processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "commit": commit,
    }


class Run:
    """Opens a run folder. Of several processes only the first one writes it.

    Args:
        script: name of the script.  name: default folder name under runs/<script>/.
        settings: all flags with their values.

    Raises:
        RunError: the folder is unwritable, or holds a run with other settings.
    """

    def __init__(self, script: str, name: str, settings: Mapping):
        self._given = settings
        self.settings = {k: v for k, v in settings.items() if k not in NOT_IDENTITY}
        self.folder = self.place(script, name, settings["out"])
        self.save_every = settings["save_every"]
        self._saved = self._began = time.monotonic()
        self._seconds_before = 0.0
        self._compare_with_earlier()
        self.writes = distributed.rank() == 0
        if self.writes and not (settings["resume"] and self.finished):
            self._begin(settings)  # else the records stay those of the command and the machine that made the numbers
        distributed.barrier()

    @staticmethod
    def place(script: str, name: str, out: str | None) -> Path:
        """Where the run of these flags lies: `out`, or by default runs/<script>/<name>."""
        return Path(out or Path("runs") / script / name)

    def _begin(self, settings: Mapping) -> None:
        try:
            (self.folder / "figures").mkdir(parents=True, exist_ok=True)
            if not settings["resume"]:
                for file in FILES:
                    (self.folder / file).unlink(missing_ok=True)
            write_text(self.folder / "args.json", json.dumps(plain(self.settings), indent=1) + "\n")
            command = f"{Path(sys.argv[0]).name} {shlex.join(sys.argv[1:])}".strip()
            write_text(self.folder / "command.sh", f"python {command}\n")
            write_text(self.folder / "environment.json", json.dumps(environment(), indent=1) + "\n")
        except OSError as error:
            raise RunError(f"-out {self.folder} cannot be written: {error.strerror}") from error

    def _compare_with_earlier(self) -> None:
        try:
            earlier = json.loads((self.folder / "args.json").read_text())
            if not isinstance(earlier, dict):
                raise ValueError("no flags")
        except (FileNotFoundError, NotADirectoryError):
            return
        except (OSError, ValueError) as error:
            raise RunError(f"-out {self.folder} holds an unreadable args.json") from error
        now = plain(self.settings)
        for key in sorted(now.keys() | earlier.keys()):
            if now.get(key) != earlier.get(key):
                raise RunError(
                    f"-out {self.folder} holds a run with -{key} {earlier.get(key)}, not {now.get(key)}; "
                    "choose another -out"
                )

    def part(self, name: str, **changed) -> Run:
        """A run folder inside this one, for one of several data sets or seeds, or with some flags changed."""
        return Run("", "", {**self._given, **changed, "out": self.folder / name})

    def discard(self, name: str | Path) -> None:
        """Remove the results and the checkpoint of an earlier part."""
        for file in FILES if self.writes else ():
            (self.folder / name / file).unlink(missing_ok=True)

    @property
    def finished(self) -> bool:
        return (self.folder / "summary.json").exists()

    @property
    def seconds(self) -> float:
        """Wall-clock time of the run, earlier pieces included."""
        return self._seconds_before + time.monotonic() - self._began

    def due(self) -> bool:
        """Is it time for the next checkpoint?"""
        return time.monotonic() - self._saved >= self.save_every

    def save(self, tensors: Mapping[str, Tensor], state: Mapping, metrics: list[dict]) -> None:
        """Write the checkpoint, and metrics.csv from its rows; `state` and `metrics` hold what JSON can."""
        if not self.writes:
            return
        header = {"state": json.dumps({**state, "metrics": metrics, "seconds": self.seconds})}
        tensors = {name: x.detach().cpu().contiguous() for name, x in tensors.items()}
        replace_file(
            self.folder / "checkpoint.safetensors", lambda temporary: save_file(tensors, temporary, metadata=header)
        )
        if metrics:
            write_csv(self.folder / "metrics.csv", pd.DataFrame(metrics))
        self._saved = time.monotonic()

    def load(self) -> tuple[dict[str, Tensor], dict, list[dict]] | None:
        """The checkpoint (tensors, state, metrics), or None where there is none.

        Raises:
            RunError: the checkpoint is damaged. Nothing is ever unpickled.
        """
        path = self.folder / "checkpoint.safetensors"
        if not path.exists():
            return None
        try:
            with safe_open(path, framework="pt") as file:
                state = json.loads(file.metadata()["state"])
                # copies: a tensor in the file may lie at any address, and matrix products round by their alignment
                tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118, not a dict
            metrics, self._seconds_before = state["metrics"], state["seconds"]
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise RunError(
                f"the checkpoint in {self.folder} is damaged ({error}); start again without -resume"
            ) from error
        return tensors, state, metrics

    def store(self, name: str, tensors: Mapping[str, Tensor]) -> None:
        """Write tensors to NAME.safetensors."""
        if not self.writes:
            return
        tensors = {key: x.detach().cpu().contiguous() for key, x in tensors.items()}
        replace_file(self.folder / f"{name}.safetensors", lambda temporary: save_file(tensors, temporary))

    def finish(self, table: pd.DataFrame, summary: Mapping) -> None:
        """Write table.csv and, last, summary.json."""
        if not self.writes:
            return
        write_csv(self.folder / "table.csv", table)
        write_text(self.folder / "summary.json", json.dumps(plain(summary), indent=1) + "\n")


def joined(parts: Mapping[str, Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """The tensors of several parts in one dict for a checkpoint, each under `<part>.<name>`."""
    return {f"{prefix}.{name}": x for prefix, tensors in parts.items() for name, x in tensors.items()}


def part(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """One part out of what `joined` made."""
    return {name.removeprefix(f"{prefix}."): x for name, x in tensors.items() if name.startswith(f"{prefix}.")}
