"""A pruned network as a small file, and what is left of it, layer by layer."""

from __future__ import annotations

import errno
import importlib.util
import json
import math
import os
from pathlib import Path

import pandas as pd
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save, save_file
from torch import Tensor, nn

from model.resnet import ResNet

from .packing import pack, unpack
from .run import RunError, replace_file, write_csv

NETWORKS = {"ResNet": ResNet}
FILES = {"compact": "network.safetensors", "onnx": "network.onnx"}


def layer_table(net: nn.Module, shape: tuple[int, int, int]) -> pd.DataFrame:
    """One row per convolution and linear layer: parameters, zeros, and multiply-adds of one image.

    shape: (channels, height, width) of an image. multiply_adds_kept counts the weights that are not zero; dense
    kernels compute all of them.
    """
    rows = []

    def hook(name: str):
        def after(module: nn.Module, _, output: Tensor) -> None:
            weight, positions = module.weight, math.prod(output.shape[2:])
            total, kept = weight.numel(), int((weight != 0).sum())
            row = {"layer": f"{name}.weight", "shape": "x".join(map(str, weight.shape))}
            row |= {"parameters": total, "kept": kept, "sparsity": 1 - kept / total, "density": kept / total}
            rows.append(row | {"multiply_adds": total * positions, "multiply_adds_kept": kept * positions})

        return after

    layers = {name: m for name, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}
    handles = [module.register_forward_hook(hook(name)) for name, module in layers.items()]
    training = net.training
    with torch.no_grad():
        net.eval()(torch.zeros(1, *shape, device=next(net.parameters()).device))
    net.train(training)
    for handle in handles:
        handle.remove()
    return pd.DataFrame(rows)


def save_compressed(net: nn.Module, arguments: dict, file: Path, half: bool = False) -> None:
    """Write the network to a safetensors file: a bit per weight and the values that are not zero.

    arguments: of the network's class, so that `load_compressed` can build it again.  half: values in half precision.
    """
    header = {"class": type(net).__name__, "arguments": json.dumps(arguments)}
    state = {name: x.half() if half and x.is_floating_point() else x for name, x in net.state_dict().items()}
    replace_file(file, lambda temporary: save_file(pack(state), temporary, metadata=header))


def load_compressed(file: Path) -> nn.Module:
    """The network of such a file, float32, in evaluation mode: the same weights, rounded once if they were halved.

    Raises:
        ValueError: the file is damaged, or no such file.
    """
    try:
        with safe_open(file, framework="pt") as opened:
            header = opened.metadata()
            state = unpack({name: opened.get_tensor(name) for name in opened.keys()})  # noqa: SIM118, not a dict
        net = NETWORKS[header["class"]](**json.loads(header["arguments"]))
        net.load_state_dict(state)
    except (SafetensorError, OSError, LookupError, TypeError, ValueError, ArithmeticError, RuntimeError) as error:
        raise ValueError(f"{file} holds no compressed network: {error}".splitlines()[0]) from error
    return net.eval()


def check_export(folder: Path) -> None:
    """Raise ValueError where the folder cannot be made and written, or ONNX cannot be written; writes nothing."""
    if importlib.util.find_spec("onnx") is None or importlib.util.find_spec("onnxscript") is None:
        raise ValueError("argument -export: needs `pip install onnx onnxscript`")
    there = folder.absolute()
    while not os.path.lexists(there):
        there = there.parent
    reason = "" if os.access(there, os.W_OK | os.X_OK) else os.strerror(errno.EACCES)
    if not there.is_dir():
        reason = os.strerror(errno.ENOTDIR)
    if reason:
        raise ValueError(f"argument -export: {folder} cannot be written: {reason}")


def make_export(folder: Path) -> None:
    """Make the folder.

    Raises:
        ValueError: see `check_export`.
        RunError: the folder cannot be made.
    """
    check_export(folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RunError(f"-export {folder} cannot be written: {error.strerror}") from error


def save_onnx(net: nn.Module, shape: tuple[int, int, int], file: Path) -> None:
    """Write the network as ONNX, for normalised images (n, *shape) of any n; zeros are stored as zeros."""
    images = torch.zeros(2, *shape)
    program = torch.onnx.export(
        net.eval(),
        (images,),
        dynamo=True,
        dynamic_shapes=({0: "n"},),
        input_names=["images"],
        output_names=["logits"],
        verbose=False,
    )
    replace_file(file, lambda temporary: program.save(temporary))


def export(net: nn.Module, arguments: dict, folder: Path, half: bool = False) -> tuple[pd.DataFrame, dict[str, int]]:
    """Write network.safetensors, network.onnx and layers.csv; returns the table of layers and the files' bytes.

    net: on the CPU.  arguments: of its class; they hold the shape of an image.

    Raises:
        ValueError: the folder cannot be written, or onnx and onnxscript are not installed.
    """
    files = {name: folder / file for name, file in FILES.items()}
    make_export(folder)
    layers = layer_table(net, arguments["shape"])
    write_csv(folder / "layers.csv", layers)
    save_compressed(net, arguments, files["compact"], half)
    save_onnx(net, arguments["shape"], files["onnx"])
    dense = save({name: x.contiguous() for name, x in net.state_dict().items()})
    return layers, {name: file.stat().st_size for name, file in files.items()} | {"dense": len(dense)}
