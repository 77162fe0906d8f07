"""A classifier in training: what every image script measures, averages, saves and restores.

A script builds the parts (network, sampler, prior, pruner) and writes the training loop, `epoch`.
"""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from data.augment import Recipe
from data.image_sets import ImageData
from sampler import MagnitudePruner, SSGLPrior
from sampler.noise import stream
from sampler.temperature import kinetic_temperature

from . import distributed
from .board import Board
from .classification import entropy, scores
from .compiled import Step
from .ending import smaller_step
from .evaluation import member, predict
from .predictive import CategoricalMixturePredictive
from .run import Run, joined, part
from .samples import save_sample
from .training import check_state, load_network, load_optimizer_state, optimizer_state, random_state, set_random_state

METRICS = ["accuracy", "nll", "ece", "brier"]
AVERAGED = [f"{metric}_averaged" for metric in METRICS]


def generators(seed: int, data: ImageData) -> dict[str, torch.Generator]:
    """Where a chain's random numbers come from: "order" of the images, on the CPU, "augment" and "noise"."""
    place = data.train.y.device
    return {"order": stream(seed, "order")} | {name: stream(seed, name, device=place) for name in ("augment", "noise")}


def fixed(name: str) -> bool:
    """Has this tensor of a checkpoint the same shape at every moment of a run?"""
    return not name.startswith("optimizer.") and name != "own.sample_scores"


class Classifier:
    """One network on one data set, its sampler, and the average over its samples.

    Args:
        args: flags of the script, of which it needs -train -test -amp -compile -tensorboard.
        name: for the progress bar and messages.
        data: the data set, on the device of the network.  net: the network; it names `sparse_layers`.
        recipe: augmentation and normalisation of the images.
        sampler: SGHMC or any torch optimizer.  prior: of a Bayesian run, else None.
        pruner: magnitude pruning of the sparse layers, or None.
        generators: see `generators`.
        folder: run folder of the metrics for TensorBoard, None for a chain that is not run.
        keep_samples: keep every sample there as well.
    """

    def __init__(
        self,
        args: Namespace,
        name: str,
        data: ImageData,
        net: nn.Module,
        recipe: Recipe,
        sampler: Optimizer,
        prior: SSGLPrior | None,
        pruner: MagnitudePruner | None,
        generators: Mapping[str, torch.Generator],
        *,
        folder: Path | None,
        keep_samples: bool = False,
    ):
        self.args = args
        self.name, self.data, self.net, self.recipe = name, data, net, recipe
        self.sampler, self.prior, self.pruner, self.generators = sampler, prior, pruner, dict(generators)
        self.amp, self.samples_in = bool(args.amp), folder if keep_samples else None
        self.board = Board(folder if args.tensorboard else None)
        self.forward = Step(distributed.replicate(net), compiled=bool(args.compile))
        self.device = next(net.parameters()).device
        self.observations = len(data.train)  # N
        self.batches = self.observations // args.train  # per epoch; the last partial batch is dropped
        self.iterations = 0
        self.finite = torch.zeros((), dtype=torch.int64, device=self.device)  # iterations with a finite potential
        self.average = CategoricalMixturePredictive(len(data.test), len(data.classes), self.device)
        self.sample_scores: list[dict[str, float]] = []
        self._last: tuple[int, Tensor] | None = None  # iteration, and the predictions of its weights

    @torch.no_grad()
    def keep_sample(self, weight: float) -> None:
        """The current weights join the posterior average."""
        log_probabilities = self.predict()
        self.average.update(log_probabilities, weight=weight)
        self.sample_scores.append(scores(log_probabilities.exp(), self.data.test.y))
        if self.samples_in is not None:
            save_sample(self.samples_in, self.average.samples, self.net)

    def predict(self) -> Tensor:
        """Log-probabilities of the test images under the current weights, (n, classes)."""
        if self._last is None or self._last[0] != self.iterations:
            predictor = member(self.net, self.recipe, amp=self.amp)
            self._last = self.iterations, predict(predictor, self.data.test, self.args.test)
        return self._last[1]

    def evaluate(self, epoch: int) -> list[dict] | None:
        """The epoch's row of metrics.csv; None when the chain has diverged."""
        log_probabilities = self.predict()
        if int(self.finite) < self.iterations or not bool(log_probabilities.isfinite().all()):
            return None
        labels, group = self.data.test.y, self.sampler.param_groups[0]
        row = {"epoch": epoch, "iterations": self.iterations, "samples": self.average.samples, "lr": group["lr"]}
        row |= scores(log_probabilities.exp(), labels)
        if self.average.samples:
            averaged = scores(self.average.probabilities(), labels)
            row |= {f"{name}_averaged": value for name, value in averaged.items()}
        row |= self.progress()
        self.board.add(row, epoch)
        return [row]

    def progress(self) -> dict[str, float]:
        """The columns of metrics.csv beside the scores."""
        row, group = {}, self.sampler.param_groups[0]
        if self.prior:
            velocities = [self.sampler.velocity(p) for p in self.net.parameters()]
            row["temperature_kinetic"] = float(kinetic_temperature(velocities, group["lr"], group["momentum"]))
            row["temperature_claimed"] = 1 / group["invT"]
            row |= self.prior.summary()
        return row | {"sparsity": self.sparsity()}

    def status(self, rows: list[dict]) -> str:
        averaged = rows[-1].get("accuracy_averaged")
        return f"accuracy {rows[-1]['accuracy']:.2f}%" + (f", average {averaged:.2f}%" if averaged else "")

    def divergence(self, lr: float | None) -> str:
        """When it happened and what helps.  lr: the step size that was asked for, if one was."""
        lr = lr or self.sampler.param_groups[0]["lr"]
        return f"{self.name} at iteration {int(self.finite) + 1}; {smaller_step(lr / 10)}"

    def sparsity(self) -> float:
        """Zeros of the sparse layers / all parameters of the network."""
        return sum(int((w == 0).sum()) for w in self.pruner.layers) / self.pruner.mask.total

    def result(self) -> dict:
        """Numbers of table.csv: last sample, posterior average, and the best single sample of every metric."""
        labels, samples = self.data.test.y, self.sample_scores
        row = scores(self.predict().exp(), labels)
        averaged = scores(self.average.probabilities(), labels) if samples else dict.fromkeys(METRICS)
        row |= {f"{name}_averaged": value for name, value in averaged.items()}
        for name in METRICS:
            best = max if name == "accuracy" else min
            row[f"{name}_best_sample"] = best(sample[name] for sample in samples) if samples else None
        sparsity, total = self.sparsity(), self.pruner.mask.total
        kept = round((1 - sparsity) * total)
        return row | {"samples": len(samples), "sparsity": sparsity, "density": 1 - sparsity, "parameters_kept": kept}

    def predictions(self) -> dict[str, Tensor]:
        """What figures and paired tests read: predictive probabilities, mean entropy of the members, labels."""
        last = self.predict().exp()
        averaged = self.average.samples > 0
        return {
            "probabilities": self.average.probabilities() if averaged else last,
            "mean_entropy": self.average.mean_entropy() if averaged else entropy(last),
            "probabilities_last": last.clone(),  # a file cannot hold one tensor under two names
            "labels": self.data.test.y,
        }

    def store(self, run: Run, weights: bool) -> None:
        """Write the predictions, and, if wanted, the last network, model.safetensors."""
        run.store("predictions", self.predictions())
        if weights:
            run.store("model", self.net.state_dict())

    def state_dict(self) -> dict[str, Tensor]:
        return joined(
            {
                "net": self.net.state_dict(),
                "optimizer": optimizer_state(self.net, self.sampler),
                "prior": self.prior.state_dict() if self.prior else {},
                "pruner": self.pruner.state_dict() if self.pruner else {},
                "average": self.average.state_dict(),
                "random": random_state(self.generators, self.device),
                "own": {
                    "iterations": torch.tensor(self.iterations),
                    "finite": self.finite,
                    "sample_scores": torch.tensor([list(s.values()) for s in self.sample_scores], dtype=torch.float64),
                },
            }
        )

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        load_network(self.net, part("net", state))  # first, because its message is the clearest
        check_state(*({name: x for name, x in s.items() if fixed(name)} for s in (self.state_dict(), state)))
        if not part("optimizer", state):
            raise ValueError("the state of the optimizer is missing")
        load_optimizer_state(self.net, self.sampler, part("optimizer", state))
        on_device = {name: x.to(self.device) for name, x in state.items() if name.startswith(("prior.", "pruner."))}
        if self.prior:
            self.prior.load_state_dict(part("prior", on_device))
        if self.pruner:
            self.pruner.load_state_dict(part("pruner", on_device))
        self.average.load_state_dict(part("average", state))
        set_random_state(self.generators, self.device, part("random", state))
        own = part("own", state)
        self.iterations, self.finite = int(own["iterations"]), own["finite"].to(self.device)
        self.sample_scores = [dict(zip(METRICS, row, strict=True)) for row in own["sample_scores"].tolist()]
