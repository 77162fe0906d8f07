"""Sources of standard normal noise for the samplers.

A sampler asks its noise source for one standard normal tensor per parameter. All parameters are
served from one flat draw, because one call for a million normals is much cheaper than a hundred
small ones.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor


def stream(seed: int, purpose: str, replicate: int = 0, device: torch.device | str = "cpu") -> torch.Generator:
    """An independent generator of the device for one purpose ("noise", "init", ...) of one seed.

    Streams with different arguments are hashed apart (numpy's SeedSequence), so that drawing more
    numbers for one purpose never shifts the numbers of another.
    """
    key = np.random.SeedSequence([seed, int.from_bytes(purpose.encode(), "little"), replicate])
    return torch.Generator(device).manual_seed(int(key.generate_state(1, np.uint64)[0] >> 1))


def generator_states(generators: Sequence[torch.Generator]) -> Tensor:
    """States of some CPU generators, (generator, bytes), for a checkpoint."""
    return torch.stack([g.get_state() for g in generators])


def set_generator_states(generators: Sequence[torch.Generator], states: Tensor) -> None:
    """The inverse of `generator_states`."""
    for generator, state in zip(generators, states, strict=True):
        generator.set_state(state.clone())  # set_state reads from the start of the storage, not of the view


def _views(flat: Tensor, shapes: Sequence[torch.Size], lead: tuple[int, ...]) -> list[Tensor]:
    """Cut the last dimension of `flat` into tensors of the shapes, `lead` in front of each."""
    parts = flat.split([math.prod(shape) for shape in shapes], dim=-1)
    return [part.unflatten(-1, (*lead, *shape)) for part, shape in zip(parts, shapes, strict=True)]


class FlatNoise:
    """Standard normals for the parameters of one chain, on their device.

    generator: torch.Generator of that device; None uses the global one.
    """

    def __init__(self, generator: torch.Generator | None = None):
        self.generator = generator

    def __call__(self, params: Sequence[Tensor]) -> list[Tensor]:
        first = params[0]
        flat = torch.randn(
            sum(p.numel() for p in params), generator=self.generator, device=first.device, dtype=first.dtype
        )
        return _views(flat, [p.shape for p in params], ())


class ChainNoise:
    """Standard normals for parameters with leading chain dimensions (group, cell).

    Every group has its own generator; the cells of a group (the methods and settings that are
    compared on the same data) share its noise. Common random numbers make paired differences
    between cells sharper, cost one draw instead of many, and leave each single chain exactly
    as it would be alone.

    generators: one CPU torch.Generator per group.
    block: number of steps that are drawn at a time.

    `used` may say how many of its values, from the first one on, each group needs: the others are zero, and are not
    drawn. So a group whose network has been padded to the size of its neighbours' gets the numbers it would get alone.

    The result for a parameter of shape (group, cell, *shape) has shape (group, 1, *shape).
    """

    def __init__(self, generators: Sequence[torch.Generator], block: int = 1):
        self.generators = list(generators)
        self.block = block
        self.used: list[int] | None = None
        self._buffer: Tensor | None = None  # (group, block, numel)
        self._used = block
        self._start: Tensor | None = None  # generator states from which the buffer was drawn

    def draw(self, steps: int, numel: int) -> Tensor:
        """Fresh normals for `steps` steps of `numel` values: (group, steps, numel)."""
        if self.used is None:
            buffer = torch.empty(len(self.generators), steps, numel)
            for row, generator in zip(buffer, self.generators, strict=True):
                torch.randn((steps, numel), generator=generator, out=row)
            return buffer
        buffer = torch.zeros(len(self.generators), steps, numel)
        for row, generator, used in zip(buffer, self.generators, self.used, strict=True):
            row[:, :used] = torch.randn((steps, used), generator=generator)
        return buffer

    def __call__(self, params: Sequence[Tensor]) -> list[Tensor]:
        shapes = [p.shape[2:] for p in params]
        if self._used == self.block:
            self._start = generator_states(self.generators)
            self._buffer = self.draw(self.block, sum(math.prod(shape) for shape in shapes))
            self._used = 0
        flat = self._buffer[:, self._used]
        self._used += 1
        return _views(flat, shapes, (1,))

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors that restore the stream exactly: the generators, and how much of a block is used.

        The buffer itself is not stored: it is drawn again from the generators as they were
        before it.
        """
        if self._used == self.block:
            return {"generators": generator_states(self.generators), "position": torch.tensor([self.block, 0])}
        return {"generators": self._start, "position": torch.tensor([self._used, self._buffer.shape[-1]])}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        set_generator_states(self.generators, state["generators"])
        self._used, numel = state["position"].tolist()
        if self._used < self.block:
            self._start = state["generators"]
            self._buffer = self.draw(self.block, numel)
