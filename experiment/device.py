"""Where a run computes, and the process-wide settings that make it fast and repeatable."""

from __future__ import annotations

import contextlib
import ctypes
import os

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # glibc's malloc.h


def resolve(name: str, flag: str = "-device") -> torch.device:
    """The device of a flag: "auto" (CUDA where there is one), "cpu", "cuda", "cuda:1", ...

    Under torchrun "auto" and "cuda" are the GPU of this process.

    Raises:
        ValueError: no such device here.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and "LOCAL_RANK" in os.environ:
        name = f"cuda:{os.environ['LOCAL_RANK']}"
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ValueError(f"argument -device: must be auto, cpu, cuda or cuda:N, not '{name}'") from error
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"argument -device: must be auto, cpu, cuda or cuda:N, not '{name}'")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ValueError(f"argument {flag}: {name} asked for, but this machine has {torch.cuda.device_count()} GPUs")
    return device


def prepare() -> None:
    """Settings of the whole process; call before the first parallel operation, whose threads inherit them.

    Denormal numbers are flushed to zero. glibc keeps the memory of freed
    tensors: given back and fetched again for every step, its page faults cost up to a third of a
    training step on a CPU.
    """
    torch.set_flush_denormal(True)
    with contextlib.suppress(OSError, AttributeError):  # another C library
        libc = ctypes.CDLL("libc.so.6")
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
