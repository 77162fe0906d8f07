"""A step function compiled by torch.compile where that is possible."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial

import torch


class Step:
    """`function` with keyword arguments bound, compiled if wanted, eager otherwise.

    torch.compile needs a C++ compiler when it first runs. Where there is none, or it fails, a note
    goes to standard error and the eager function runs; `compiled` says which of them does. Both
    compute the same up to rounding.
    """

    def __init__(self, function: Callable, compiled: bool, **settings):
        self.eager = partial(function, **settings)
        self.compiled = compiled
        self._call = torch.compile(self.eager, dynamic=False) if compiled else self.eager
        self._proved = not compiled

    def __call__(self, *args):
        if self._proved:
            return self._call(*args)
        try:
            result = self._call(*args)
        except RuntimeError as error:  # the base of all that the compiler stack raises
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:120]
            print(f"\nnote: torch.compile failed ({reason}); the eager step runs, more slowly", file=sys.stderr)
            self.compiled, self._call = False, self.eager
            result = self.eager(*args)
        self._proved = True
        return result
