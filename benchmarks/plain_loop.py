"""What the image scripts are timed against, and on: a loop with torch.optim.SGD, and random images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from data.augment import Recipe
from data.image_sets import ImageData, MemoryImages
from experiment.timing import interleaved


def fake(n: int, shape: tuple[int, int, int]) -> ImageData:
    """n training images of random bytes in ten classes, and ten test images."""
    parts = [MemoryImages(torch.randint(256, (k, *shape), dtype=torch.uint8), torch.randint(10, (k,))) for k in (n, 10)]
    return ImageData(tuple("0123456789"), *parts)


def finished(run: Callable[[], object], where: torch.device) -> Callable[[], None]:
    """`run`, until the device has done it."""

    def wait() -> None:
        run()
        if where.type == "cuda":
            torch.cuda.synchronize(where)

    return wait


def fast_bfloat16(size: int = 256) -> bool:
    """Does the CPU compute in bfloat16 faster than in float32? Without instructions for it, ten times more slowly."""
    pair = [(x, x) for x in (torch.randn(size, size), torch.randn(size, size, dtype=torch.bfloat16))]
    seconds = interleaved({str(a.dtype): lambda a=a, b=b: a @ b for a, b in pair})
    return seconds["torch.bfloat16"] < seconds["torch.float32"]


class PlainLoop:
    """A network and data under torch.optim.SGD with momentum.

    lr, weight_decay: of SGD.  amp: bfloat16 autocast.  compiled: torch.compile of the network.
    """

    def __init__(
        self,
        net: nn.Module,
        data: ImageData,
        batch: int,
        recipe: Recipe,
        *,
        lr: float,
        weight_decay: float = 0.0,
        amp: bool = False,
        compiled: bool = False,
    ):
        self.net, self.data, self.batch, self.recipe, self.amp = net, data, batch, recipe, amp
        self.forward = torch.compile(net) if compiled else net
        self.sgd = torch.optim.SGD(net.parameters(), lr=lr, momentum=0.9, weight_decay=weight_decay)
        self.generator = torch.Generator(data.train.y.device)

    def epoch(self) -> None:
        where = self.data.train.y.device
        for x, y in self.data.train.batches(torch.randperm(len(self.data.train)), self.batch):
            self.net.zero_grad()
            x = self.recipe.augment(x, self.generator)
            with torch.autocast(where.type, torch.bfloat16, enabled=self.amp):
                logits = self.forward(x)
            cross_entropy(logits, y).backward()
            self.sgd.step()
