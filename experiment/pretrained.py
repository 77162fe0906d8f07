"""Weights of a trained network, from a run folder or a file."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from .training import load_network


def load_pretrained(net: nn.Module, path: Path) -> None:
    """Load the weights at `path` (see `read_weights`) into the network.

    Raises:
        ValueError: there are none, or they are of another network.
    """
    try:
        load_network(net, read_weights(path))
    except ValueError as error:
        raise ValueError(f"argument -pretrained: {path}: {error}") from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Parameters and buffers by name: of a run's folder, a .safetensors file, or a PyTorch state_dict.

    Old state_dicts load as well; nothing but tensors is ever unpickled.

    Raises:
        ValueError: there is nothing, or something else, at `path`.
    """
    file = path / "model.safetensors" if path.is_dir() else path
    if not file.is_file():
        raise ValueError(f"there is no {file.name}" if path.is_dir() else "does not exist")
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise ValueError(f"holds no weights: {error}".splitlines()[0]) from error
    if not isinstance(weights, dict) or not all(isinstance(x, Tensor) for x in weights.values()):
        raise ValueError("holds no state_dict of names and tensors")
    return dict(weights)
