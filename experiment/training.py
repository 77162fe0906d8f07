"""The epochs of a run, with checkpoints between them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from .progress import progress
from .run import Run, RunError


class Experiment(Protocol):
    """What `train` needs of the chains of one data set."""

    name: str

    def epoch(self) -> None:
        """Advance by one stride."""

    def evaluate(self, done: int) -> list[dict] | None:
        """Rows of metrics.csv after `done` epochs or iterations, if it is time for some; None: all diverged."""

    def status(self, rows: list[dict]) -> str:
        """The rows, for the progress bar."""

    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


def train(experiment: Experiment, run: Run, total: int, resume: bool, stride: int = 1, unit: str = "epoch") -> bool:
    """Advance to `total` epochs (or iterations, `stride` at a time), from the checkpoint if there is one.

    Returns whether it was reached: a diverged experiment stops and keeps its last good checkpoint.

    Raises:
        RunError: the checkpoint is damaged, or of another network.
    """
    metrics, done = [], 0
    if resume and (saved := run.load()):
        tensors, state, metrics = saved
        try:
            experiment.load_state_dict(tensors)
        except (KeyError, RuntimeError, ValueError, TypeError) as error:
            raise RunError(f"the checkpoint in {run.folder} does not fit this run: {error}".splitlines()[0]) from error
        done = state["done"]
    with progress(total, done, unit, experiment.name) as bar:
        while done < total:
            experiment.epoch()
            rows = experiment.evaluate(done + stride)
            if rows is None:
                return False
            done += stride
            metrics += rows
            if rows:
                bar.set_postfix_str(experiment.status(rows), refresh=False)
            bar.update(stride)
            if run.due() or done == total:
                run.save(experiment.state_dict(), {"done": done}, metrics)
    return True


def check_state(own: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Raise ValueError, naming the first difference, unless both have the same names and shapes."""
    for name in sorted(own.keys() | state.keys()):
        if name not in state or name not in own:
            raise ValueError(f"{name} is only in the {'network' if name in own else 'checkpoint'}: another model")
        if state[name].shape != own[name].shape:
            raise ValueError(f"{name} has shape {tuple(state[name].shape)}, the network here {tuple(own[name].shape)}")


def load_network(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load weights and buffers into a network.

    Raises:
        ValueError: they are of another network; names the first difference.
    """
    check_state(net.state_dict(), state)
    net.load_state_dict(state)


def optimizer_state(net: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The tensors that an optimizer keeps, as <parameter name>.<key>."""
    return {f"{name}.{key}": x for name, p in net.named_parameters() for key, x in optimizer.state.get(p, {}).items()}


def load_optimizer_state(net: nn.Module, optimizer: Optimizer, state: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_state`.

    Raises:
        ValueError: the tensors are not the same kinds for every parameter, or have other shapes.
    """
    params = dict(net.named_parameters())
    kinds = {full.rpartition(".")[2]: x.ndim == 0 for full, x in state.items()}
    scalar = torch.empty(())
    check_state({f"{name}.{key}": scalar if kinds[key] else p for name, p in params.items() for key in kinds}, state)
    for full, x in state.items():
        name, _, key = full.rpartition(".")
        p = params[name]
        # in the parameter's memory layout; Adam counts its steps on the CPU
        optimizer.state[p][key] = x if x.ndim == 0 else torch.empty_like(p).copy_(x)


def random_state(generators: Mapping[str, torch.Generator], device: torch.device) -> dict[str, Tensor]:
    """States of the generators, and of torch's global ones, from which dropout draws."""
    states = {name: generator.get_state() for name, generator in generators.items()}
    states["global"] = torch.get_rng_state()
    if device.type == "cuda":
        states["global_cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_random_state(
    generators: Mapping[str, torch.Generator], device: torch.device, states: Mapping[str, Tensor]
) -> None:
    """The inverse of `random_state`."""
    for name, generator in generators.items():
        generator.set_state(states[name].clone())
    torch.set_rng_state(states["global"].clone())
    if device.type == "cuda":
        torch.cuda.set_rng_state(states["global_cuda"].clone(), device)
