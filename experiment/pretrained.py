"""Weights of a trained network, from a run folder or a file."""

from __future__ import annotations

import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .training import load_network


def load_pretrained(net: nn.Module, path: Path) -> None:
    """Load the weights at `path` (see `read_weights`) into the network.

    Raises:
        ValueError: there are none, they are of another network, or not finite.
    """
    try:
        weights = read_weights(path)
        if broken := [name for name, x in weights.items() if not bool(x.isfinite().all())]:
            raise ValueError(f"{broken[0]} is not finite")
        load_network(net, weights)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"argument -pretrained: {path}: {error}".splitlines()[0]) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers by name: of a run's folder, a .safetensors file, or a PyTorch state_dict.

    Old state_dicts load as well; nothing but tensors is ever unpickled.

    Raises:
        ValueError: there is nothing, or something else, at `path`.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"there is no {file.name}" if path.is_dir() else "does not exist")
    if file.suffix == ".safetensors":
        try:
            return load_file(file)
        except (SafetensorError, OSError) as error:
            raise ValueError(f"holds no weights: {error}") from error
    try:
        with warnings.catch_warnings(action="ignore"):
            weights = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes make the unpickler raise nearly anything
        raise ValueError("holds no weights: not a whole PyTorch file of nothing but tensors") from error
    if not isinstance(weights, dict) or not all(
        isinstance(name, str) and isinstance(x, Tensor) and x.layout is torch.strided for name, x in weights.items()
    ):
        raise ValueError("holds no state_dict of names and tensors")
    return dict(weights)


def of_seed(path: Path, seed: int) -> Path:
    """Where the weights of a seed are: in its own folder, if `path` is that of a run of several seeds."""
    several = path / f"seed{seed}"
    return several if several.is_dir() else path
