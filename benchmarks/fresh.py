"""A process of its own for a measurement: threads, allocator and caches of the others do not reach it."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from importlib import import_module

import torch

from .record import Bench

CONTEXT = multiprocessing.get_context("forkserver")


def preload(modules: Sequence[str]) -> None:
    """Import these in the server that the processes are forked from, so that they start at once.

    It does nothing else: they start with one thread, and without the memory of their starter.
    """
    CONTEXT.set_forkserver_preload(list(modules))


def fresh(function: Callable, *arguments):
    """What the function returns, in a process of its own."""
    with ProcessPoolExecutor(1, mp_context=CONTEXT) as pool:
        return pool.submit(function, *arguments).result()


def run_module(module: str, bench: Bench) -> None:
    """Its `main`."""
    if bench.quick:
        torch.set_num_threads(1)  # on a busy machine two threads wait for each other far longer than they work
    import_module(module).main(bench)
