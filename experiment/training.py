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

    def epoch(self) -> None: ...
    def evaluate(self, epoch: int) -> list[dict]: ...  # rows of metrics.csv; none when all chains have diverged
    def status(self, rows: list[dict]) -> str: ...  # for the progress bar
    def state_dict(self) -> dict[str, Tensor]: ...
    def load_state_dict(self, state: dict[str, Tensor]) -> None: ...


def train(experiment: Experiment, run: Run, epochs: int, resume: bool) -> bool:
    """All epochs, from the checkpoint if there is one.

    Returns whether they were completed: a diverged experiment stops and keeps its last good checkpoint.

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
    with progress(epochs, done, "epoch", experiment.name) as bar:
        while done < epochs:
            experiment.epoch()
            rows = experiment.evaluate(done + 1)
            if not rows:
                return False
            done += 1
            metrics += rows
            bar.set_postfix_str(experiment.status(rows), refresh=False)
            bar.update()
            if run.due() or done == epochs:
                run.save(experiment.state_dict(), {"done": done}, metrics)
    return True


def load_network(net: nn.Module, state: Mapping[str, Tensor]) -> None:
    """Load weights and buffers into a network.

    Raises:
        ValueError: they are of another network; names the first difference.
    """
    own = net.state_dict()
    for name in sorted(own.keys() | state.keys()):
        if name not in state or name not in own:
            raise ValueError(f"{name} is only in the {'network' if name in own else 'checkpoint'}: another model")
        if state[name].shape != own[name].shape:
            raise ValueError(f"{name} has shape {tuple(state[name].shape)}, the network here {tuple(own[name].shape)}")
    net.load_state_dict(state)


def optimizer_state(net: nn.Module, optimizer: Optimizer) -> dict[str, Tensor]:
    """The tensors that an optimizer keeps, as <parameter name>.<key>."""
    return {f"{name}.{key}": x for name, p in net.named_parameters() for key, x in optimizer.state.get(p, {}).items()}


def load_optimizer_state(net: nn.Module, optimizer: Optimizer, state: Mapping[str, Tensor]) -> None:
    """The inverse of `optimizer_state`."""
    for full, x in state.items():
        name, _, key = full.rpartition(".")
        p = net.get_parameter(name)
        optimizer.state[p][key] = x if x.ndim == 0 else x.to(p.device)  # Adam counts its steps on the CPU


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
