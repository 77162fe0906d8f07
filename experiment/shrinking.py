"""A classifier in training whose network is cut to its remaining units in the end."""

from __future__ import annotations

import sys
from argparse import Namespace
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from data.augment import Recipe
from data.image_sets import ImageData, Images
from model.surgery import Removal, fused

from . import distributed, shrunk
from .classification import scores
from .classifier import Classifier
from .evaluation import member, predict
from .pretrained import load_pretrained
from .run import Run, write_csv
from .structured import Dense

COLLAPSE = 5.0  # points of accuracy below the plain network
SWEPT = 2.0  # the sweep's last threshold


def load_cut(
    method: Dense, run: Run, shape: tuple[int, int, int], threshold: float | None, allow_empty: bool
) -> tuple[nn.Sequential, Removal]:
    """The network as cut of a finished run, with the weights that `Shrinking.store` has written, and what went.

    method: on a network of the run's kind.
    """
    load_pretrained(method.net, run.folder)
    small, gone = shrunk.shrink(method, shape, threshold, allow_empty)
    load_pretrained(small, run.folder / "cut.safetensors")  # they may have been fine-tuned
    return small, gone


class Shrinking(Classifier):
    """A classifier that counts its units while it trains, and reports of the network as cut.

    Args:
        args: flags of the script, also -allow_empty and -threshold_sweep.
        method: on its network.  dense: the plain network that it is compared with.
        threshold: of the method's scores, None: its own.
        others: as of `Classifier`.
    """

    def __init__(
        self,
        args: Namespace,
        name: str,
        data: ImageData,
        method: Dense,
        dense: nn.Sequential,
        recipe: Recipe,
        optimizer: Optimizer,
        generators: Mapping[str, torch.Generator],
        *,
        threshold: float | None,
        folder: Path,
    ):
        super().__init__(
            args,
            name,
            data,
            method.net,
            recipe,
            optimizer,
            prior=None,
            pruner=None,
            generators=generators,
            folder=folder,
        )
        self.method, self.dense, self.threshold = method, dense, threshold
        self.allow_empty = bool(args.allow_empty)
        self.penalty = 0.0  # of the last step

    def progress(self) -> dict[str, float]:
        if not self.method.scores():  # nothing goes
            return {}
        left = self.method.removal(self.threshold).units(allow_empty=True)
        return {"penalty": self.penalty} | {f"units_{name}": count for name, count in left.items()}

    def log_probabilities(self, net: nn.Module, part: Images) -> Tensor:
        """Log-probabilities of images under another network of this kind."""
        return predict(member(net, self.recipe, amp=self.amp), part, self.args.test)

    def accuracy(self, net: nn.Module, part: Images) -> float:
        """In percent."""
        return scores(self.log_probabilities(net, part).exp(), part.y)["accuracy"]

    def fine_tuned(self, small: nn.Sequential) -> nn.Sequential:
        """The cut network, trained on if a script does so."""
        return small

    @cached_property
    def cut(self) -> tuple[nn.Sequential, Removal]:
        """The network cut to its units, and what went."""
        small, gone = shrunk.shrink(self.method, self.data.shape, self.threshold, self.allow_empty)
        if gone.empty:
            what = "removed whole" if self.allow_empty else "one unit of each is kept; -allow_empty 1 removes it"
            self.note(f"no unit of {', '.join(sorted(gone.empty))} is left; {what}")
        return self.fine_tuned(small), gone

    def note(self, what: str) -> None:
        """Say it, once."""
        if distributed.rank() == 0:
            print(f"note: {self.name}: {what}", file=sys.stderr)

    def result(self) -> dict:
        """Numbers of table.csv, of the network as cut."""
        (small, gone), plain, data, shape = self.cut, fused(self.dense), self.data, self.data.shape
        row = scores(self.log_probabilities(small, data.test).exp(), data.test.y)
        accuracy, dense = row["accuracy"], self.accuracy(plain, data.test)
        row |= {
            "error": 100 - accuracy,
            "accuracy_uncut": scores(self.predict().exp(), data.test.y)["accuracy"],
            "accuracy_dense": dense,
            "accuracy_train": self.accuracy(small, data.train),
            "collapsed": int(accuracy < dense - COLLAPSE),
            "empty_layers": len(gone.empty),
            **{f"units_{name}": count for name, count in gone.units(self.allow_empty).items()},
            "parameters": shrunk.parameters(small),
            "parameters_dense": shrunk.parameters(plain),
            "flops": shrunk.flops(small, shape),
            "flops_dense": shrunk.flops(plain, shape),
        }
        row["flops_ratio"] = row["flops_dense"] / row["flops"] if row["flops"] else float("inf")
        if row["collapsed"]:
            self.note(f"collapsed: {accuracy:.2f}% as cut, {dense:.2f}% dense")
        return row

    def predictions(self) -> dict[str, Tensor]:
        """Of the network as cut."""
        probabilities = self.log_probabilities(self.cut[0], self.data.test).exp()
        return {"probabilities": probabilities, "labels": self.data.test.y}

    def store(self, run: Run, weights: bool) -> None:
        """Also the network as cut, and the tables units.csv and, if swept, sweep.csv."""
        super().store(run, weights)
        if weights:
            run.store("cut", self.cut[0].state_dict())
        if self.method.scores() and run.writes:
            write_csv(run.folder / "units.csv", shrunk.unit_table(self.method, self.threshold))
            if steps := self.args.threshold_sweep:
                thresholds, test = torch.linspace(0, SWEPT, steps + 1), self.data.test
                table = shrunk.sweep(self.method, self.data.shape, thresholds, lambda net: self.accuracy(net, test))
                write_csv(run.folder / "sweep.csv", table)
