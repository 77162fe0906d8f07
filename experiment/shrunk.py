"""A network before and after units were cut out of it: size, arithmetic, speed, and files."""

from __future__ import annotations

import copy
import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from model.surgery import Removal, cut, emptied

from .compressed import make_export, save_onnx
from .run import Run, replace_file, write_csv
from .structured import Dense
from .timing import interleaved

BATCHES = (1, 256)  # images at a time, in the timings
SECONDS = 0.02  # a timing repeats its network for about that long
NETWORK = "network.pt2"


def shrink(
    method: Dense, shape: tuple[int, int, int], threshold: float | None = None, allow_empty: bool = False
) -> tuple[nn.Sequential, Removal]:
    """The network cut by its method, and what went.

    shape: of an image.  threshold: of the scores, by default the method's.  allow_empty: layers without units really
    go, and leave a constant; otherwise each keeps its best unit.
    """
    gone = method.removal(threshold)
    plain = method.plain()
    return (emptied(plain, gone, shape) if gone.empty and allow_empty else cut(plain, gone)), gone


def flops(net: nn.Module, shape: tuple[int, int, int]) -> int:
    """Floating-point operations of one image by torch.utils.flop_counter: two for every multiply-add of a convolution
    or a matrix product; biases, batch norm, activations and pooling count nothing."""
    device = next((x.device for x in [*net.parameters(), *net.buffers()]), None)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(torch.zeros(1, *shape, device=device))
    return counter.get_total_flops()


def parameters(net: nn.Module) -> int:
    """Number of parameters."""
    return sum(p.numel() for p in net.parameters())


def _repeats(call: Callable[[], object]) -> int:
    """Calls that fill SECONDS."""
    call()
    once = interleaved({"": call}, rounds=3)[""]
    return max(1, round(SECONDS / once))


def _repeated(call: Callable[[], object], times: int, finish: Callable[[], None]) -> Callable[[], None]:
    def run() -> None:
        for _ in range(times):
            call()
        finish()

    return run


def _speed_up(dense: Callable[[], object], small: Callable[[], object], finish: Callable[[], None]) -> float:
    """Time of the dense network over that of the small one, each the median of its turns."""
    times = _repeats(dense)
    seconds = interleaved({name: _repeated(c, times, finish) for name, c in {"dense": dense, "small": small}.items()})
    return seconds["dense"] / seconds["small"]


def speed_ups(dense: nn.Module, small: nn.Module, shape: tuple[int, int, int], device: torch.device) -> dict:
    """Wall-clock speed-up on the CPU in torch and in ONNX Runtime, and on `device` if that is a GPU: `speedup_cpu_1`...

    dense, small: in evaluation mode, batch norm folded in both or in neither. The two take turns. ONNX columns are None
    where onnxruntime is not installed.
    """
    layout = torch.channels_last  # the fastest, of both
    dense, small = (copy.deepcopy(net).cpu().to(memory_format=layout) for net in (dense, small))
    sessions = _sessions(dense, small, shape)
    row = {}
    with torch.no_grad():
        for batch in BATCHES:
            x = torch.rand(batch, *shape).contiguous(memory_format=layout)
            row[f"speedup_cpu_{batch}"] = _speed_up(lambda x=x: dense(x), lambda x=x: small(x), lambda: None)
            feed = {"images": x.contiguous().numpy()}
            runs = [lambda s=session, feed=feed: s.run(None, feed) for session in sessions]
            row[f"speedup_onnx_{batch}"] = _speed_up(*runs, lambda: None) if runs else None
        if device.type == "cuda":
            big, little = copy.deepcopy(dense).to(device), copy.deepcopy(small).to(device)
            for batch in BATCHES:
                x = torch.rand(batch, *shape, device=device).contiguous(memory_format=layout)
                calls = (lambda x=x: big(x)), (lambda x=x: little(x))
                row[f"speedup_gpu_{batch}"] = _speed_up(*calls, lambda: torch.cuda.synchronize(device))
    return row


def record_speed(
    run: Run, seed: int, dense: nn.Module, small: nn.Module, shape: tuple[int, int, int], device: torch.device
) -> dict:
    """`speed_ups` of a seed's network, which also become the one row of its speed.csv."""
    row = speed_ups(dense, small, shape, device)
    write_csv(run.folder / "speed.csv", pd.DataFrame([{"seed": seed} | row]))
    return row


def _sessions(dense: nn.Module, small: nn.Module, shape: tuple[int, int, int]) -> list:
    if importlib.util.find_spec("onnxruntime") is None or importlib.util.find_spec("onnxscript") is None:
        return []
    import tempfile

    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = torch.get_num_threads()
    sessions = []
    with tempfile.TemporaryDirectory() as folder:
        for i, net in enumerate((dense, small)):
            file = Path(folder) / f"{i}.onnx"
            save_onnx(net, shape, file)
            sessions.append(onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"]))
    return sessions


def unit_table(method: Dense, threshold: float | None = None) -> pd.DataFrame:
    """One row per unit and site: its score, and whether it stays."""
    kept = method.removal(threshold).kept
    return pd.concat(
        pd.DataFrame(
            {
                "layer": name,
                "side": ("outputs", "inputs")[dim],
                "unit": np.arange(len(score)),
                "score": score.cpu().numpy(),
                "kept": kept[name, dim].int().cpu().numpy(),
            }
        )
        for (name, dim), score in method.scores().items()
    )


def sweep(
    method: Dense, shape: tuple[int, int, int], thresholds: Tensor, accuracy: Callable[[nn.Module], float]
) -> pd.DataFrame:
    """Accuracy (percent), parameters, FLOPs and units of the network cut at every threshold."""
    rows = []
    for threshold in thresholds.tolist():
        small, gone = shrink(method, shape, threshold)
        row = {"threshold": threshold, "accuracy": accuracy(small), "parameters": parameters(small)}
        left = {f"units_{name}": count for name, count in gone.units().items()}
        rows.append(row | {"flops": flops(small, shape)} | left)
    return pd.DataFrame(rows)


def save(net: nn.Module, shape: tuple[int, int, int], folder: Path) -> dict[str, int]:
    """Write network.pt2, which `torch.export.load` reads without this repository, and network.onnx; returns bytes.

    Both take images (n, *shape), normalised as in training, for any n.

    Raises:
        ValueError: the folder cannot be written, or onnx and onnxscript are not installed.
    """
    make_export(folder)
    net = copy.deepcopy(net).to("cpu", memory_format=torch.contiguous_format).eval()  # what torch.export.save expects
    program = torch.export.export(net, (torch.zeros(2, *shape),), dynamic_shapes=({0: torch.export.Dim("n")},))
    files = {"pt2": folder / NETWORK, "onnx": folder / "network.onnx"}
    replace_file(files["pt2"], lambda temporary: _save_program(program, temporary))
    save_onnx(net, shape, files["onnx"])
    return {name: file.stat().st_size for name, file in files.items()}


def _save_program(program, file: Path) -> None:
    with open(file, "wb") as stream:  # by name it would insist on its suffix
        torch.export.save(program, stream)
