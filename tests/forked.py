"""Scripts in processes of their own that need not import their libraries again: forked from a process that has."""

from __future__ import annotations

import multiprocessing
import os
import runpy
import sys
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).parents[1]
SCRIPTS = sorted(path.stem for path in ROOT.glob("*_*.py"))
SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["torchvision", "tests.forked", *SCRIPTS])


def start(words: list[str], stdout: Path, stderr: Path, **environment: str) -> BaseProcess:
    """Start `python words`, a script or -m and a module with flags, in the project's folder; it prints to files."""
    process = SERVER.Process(target=main, args=(words, stdout, stderr, environment))
    process.start()
    return process


def main(words: list[str], stdout: Path, stderr: Path, environment: dict[str, str]) -> None:
    """In the new process: what the interpreter does with the words of its command line."""
    for stream, path in ((1, stdout), (2, stderr)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream)
    os.chdir(ROOT)
    os.environ.update(environment)
    sys.path.insert(0, str(ROOT))
    if words[0] == "-m":
        sys.argv = words[1:]
        runpy.run_module(words[1], run_name="__main__", alter_sys=True)
    else:
        sys.argv = words
        runpy.run_path(words[0], run_name="__main__")
