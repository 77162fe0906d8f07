"""The kept samples of a run: one file of packed weights each, in the folder `samples` of the run folder."""

from __future__ import annotations

from pathlib import Path

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from .packing import pack, unpack
from .run import RunError, replace_file

SAMPLES = "samples"


def _file(run_folder: Path, number: int) -> Path:
    return run_folder / SAMPLES / f"{number:05d}.safetensors"


def save_sample(run_folder: Path, number: int, net: nn.Module) -> None:
    """Keep the network's weights as sample `number` = 1, 2, ... of the run."""
    file = _file(run_folder, number)
    file.parent.mkdir(exist_ok=True)
    replace_file(file, lambda path: save_file(pack(net.state_dict()), path))


def load_samples(run_folder: Path, count: int) -> dict[Path, dict[str, Tensor]]:
    """Files and weights of the samples 1..count, in the order in which they were drawn.

    Raises:
        RunError: one of them is missing or damaged.
    """
    if not _file(run_folder, 1).exists():
        raise RunError(f"{run_folder} holds no samples; train with -save_samples 1 to assess the average")
    weights = {}
    for file in (_file(run_folder, i + 1) for i in range(count)):
        try:
            weights[file] = unpack(load_file(file))
        except (SafetensorError, OSError, KeyError, ValueError) as error:
            raise RunError(f"the sample {file} is missing or damaged: {error}") from error
    return weights
