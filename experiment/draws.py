"""All draws of a batch of chains: draws.npy on disk while they are made, draws.nc (NetCDF) in the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .diagnostics import save_netcdf
from .run import replace_file

GROWING, WHOLE = "draws.npy", "draws.nc"


def open_draws(folder: Path, shape: tuple[int, ...], resume: bool) -> np.memmap:
    """An array on disk, float32: new, or, to resume, with the draws that are there."""
    path = folder / GROWING
    return np.lib.format.open_memmap(path, "r+" if resume and path.exists() else "w+", np.float32, shape)


def write_draws(folder: Path, seeds: Sequence[int], cells: Sequence[str], **variables: np.ndarray) -> None:
    """draws.nc, every variable as (chain, draw, seed, cell) or (chain, draw, seed, cell, coefficient).

    variables: (group, cell, draw) or (group, cell, draw, coefficient); the groups are all chains of the first seed,
    then those of the next.
    """
    grids = {name: x.reshape(len(seeds), -1, *x.shape[1:]) for name, x in variables.items()}  # (seed, chain, cell, ...)
    grids = {name: np.moveaxis(x, (1, 3, 0, 2), range(4)) for name, x in grids.items()}
    dims = {name: ["seed", "cell", "coefficient"][: x.ndim - 2] for name, x in grids.items()}
    coords = {"seed": list(seeds), "cell": list(cells)}
    replace_file(folder / WHOLE, lambda file: save_netcdf(file, grids, dims, coords))


def close_draws(folder: Path) -> None:
    """Drop the array on disk, once the run is finished: draws.nc has the draws, and a kill before loses nothing."""
    (folder / GROWING).unlink()
