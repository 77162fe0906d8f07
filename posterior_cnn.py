"""MNIST and Fashion-MNIST: posterior averages, calibration, adversarial images (Deng et al., NeurIPS 2019).

    python posterior_cnn.py -data mnist -c sa
    python posterior_cnn.py -data fmnist -c sa -aug 1 -device cuda
    python posterior_cnn.py -data mnist -c sa -seeds 3 -attack 1 -ood fmnist

SGHMC with the adaptive spike-and-slab prior on the first fully connected layer (-c sa, em), with
weight decay only (sghmc), or the Adam baselines (vanilla, dropout). After -burn epochs every -thin-th
iterate is a sample of the posterior average.
"""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from data import images
from data.augment import RAW, RECIPES, Recipe
from data.image_sets import ImageData
from experiment import device, options, report
from experiment.assessment import attack, load_members, out_of_distribution
from experiment.classifier import AVERAGED, METRICS, Classifier, generators
from experiment.ending import conclude
from experiment.priors import network_prior
from experiment.run import AFTERWARDS, Run
from experiment.seeds import check_kept, fit, fit_seeds, split, table_of
from model.model_zoo_mnist import MODELS
from sampler import SGHMC, FlatNoise, MagnitudePruner
from sampler.noise import stream
from sampler.schedules import annealed
from sampler.sgmcmc import check_sghmc

BAYESIAN = ("sa", "em", "sghmc")
METHODS = (*BAYESIAN, "vanilla", "dropout")
EPOCHS = {("mnist", 1): 200, ("fmnist", 1): 1000}  # published; 200 elsewhere is ours
INV_T = {"mnist": 1000.0, "fmnist": 2500.0}  # published; 1000 elsewhere is ours
ELSEWHERE = (*AFTERWARDS, "device", "data_dir", "workers")  # flags that a saved run does not decide


def recipe(args: Namespace) -> Recipe:
    """Augmented and normalised images with -aug 1, raw pixels in [0, 1] without."""
    return RECIPES[args.data] if args.aug else RAW


def network(args: Namespace, data: ImageData) -> nn.Module:
    """The network of the flags, on the device."""
    net = MODELS[args.model](data.shape, len(data.classes), dropout=0.5 if args.c == "dropout" else 0.0)
    return net.to(device.resolve(args.device), memory_format=torch.channels_last)


class Chain(Classifier):
    """One network of one seed."""

    def __init__(self, args: Namespace, data: ImageData, seed: int, folder: Path | None = None):
        torch.manual_seed(stream(seed, "init").initial_seed())  # initial weights, then dropout
        net, observations = network(args, data), len(data.train)
        params = dict(net.named_parameters())
        sparse = [params[name] for name in net.sparse_layers]
        total = sum(p.numel() for p in params.values())
        sources = generators(seed, data)
        if args.c in BAYESIAN:
            lr = args.lr or 0.03 / observations
            with options.about("-momentum"):
                check_sghmc(lr, args.momentum)
            noise = FlatNoise(sources["noise"])
            sampler = SGHMC(params.values(), lr=lr, momentum=args.momentum, invT=args.invT, noise=noise)
        else:
            sampler = torch.optim.Adam(params.values(), lr=args.lr or 1e-3)  # blind to the potential's scale
        with options.about("-sparse"):
            pruner = MagnitudePruner(sparse, total, args.sparse if args.prune else 0.0, args.cut, args.gap)
        super().__init__(
            args,
            f"{args.data} {args.c} seed {seed}",
            data,
            net,
            recipe(args),
            sampler,
            network_prior(args, net, observations, plain=args.c == "sghmc") if args.c in BAYESIAN else None,
            pruner,
            sources,
            folder=folder,
            keep_samples=bool(args.save_samples),
        )

    def epoch(self) -> None:
        """Algorithm 1 over one pass through the training images."""
        args, prior = self.args, self.prior
        order = torch.randperm(self.observations, generator=self.generators["order"])[: self.batches * args.train]
        if prior:
            self.sampler.param_groups[0]["invT"] = annealed(args.invT, args.anneal, self.iterations // self.batches)
        for x, y in self.data.train.batches(order, args.train):
            self.net.train()
            self.net.zero_grad()
            x = self.recipe.augment(x, self.generators["augment"])
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
                logits = self.forward(x)
            potential = self.observations * cross_entropy(logits, y)  # on the scale of the whole data set
            potential.backward()
            if prior:
                prior.add_grad()
            self.sampler.step()
            if prior:
                prior.update()
            self.pruner.step()
            self.iterations += 1
            self.finite += potential.detach() < torch.inf
            kept = self.iterations - args.burn * self.batches
            if prior and kept > 0 and kept % args.thin == 0:
                self.keep_sample(weight=self.sampler.param_groups[0]["lr"])


def parse(argv: list[str] | None = None):
    parser = options.Parser(description="MNIST and Fashion-MNIST by SGHMC-SA, SGHMC-EM, SGHMC and Adam baselines.")
    options.add_image_options(parser, names=images.NAMES, data="mnist", aug=0)
    parser.add_argument("-model", choices=MODELS, default=None, help="network; default convnet, with -aug 1 convnet-bn")
    parser.add_argument("-c", choices=METHODS, default="sa", help="method: omega_k of the sampler, or Adam")
    parser.add_argument("-sn", type=options.count, default=None, help="epochs; default 200, fmnist -aug 1: 1000")
    parser.add_argument("-burn", type=options.whole, default=None, help="epochs before the average; default sn // 2")
    parser.add_argument("-thin", type=options.count, default=500, help="iterations between samples of the average")
    options.add_sghmc_options(parser, lr="0.03/N, Adam 0.001", anneal=1.0)
    prior = options.add_prior_options(parser, v1=0.1, a=None, b=None, sd=1.0, nu=1000.0, lamda=1000.0)
    prior.add_argument("-v0", type=options.positive, default=1.0, help="scale of the spike")
    prior.add_argument("-fix_scale", type=options.switch, default=0, help="1 keeps delta and sigma^2 fixed")
    options.add_adaptation_options(parser, dc=1.0, da=1000.0, dalpha=0.75)
    pruning = options.add_pruning_options(parser, sparse=0.5)
    pruning.add_argument("-prune", type=options.switch, default=0, help="1: magnitude pruning of the sparse layers")
    after = parser.add_argument_group("after the training")
    after.add_argument("-evaluate", default=None, metavar="DIR", help="do the following for the finished run DIR")
    after.add_argument("-attack", type=options.switch, default=0, help="1: accuracy under FGSM and PGD")
    after.add_argument("-attack_images", type=options.count, default=10000, help="FGSM: the first so many test images")
    after.add_argument("-pgd_images", type=options.whole, default=1000, help="PGD: the first so many of these")
    after.add_argument("-pgd_steps", type=options.count, default=20, help="gradient steps of PGD")
    after.add_argument("-ood", choices=images.NAMES[:-1], default=None, help="data set to be told from -data")
    options.add_device_options(parser)
    options.add_run_options(parser)
    kept = options.add_kept_options(parser)
    kept.add_argument("-save_samples", type=options.switch, default=0, help="1: every sample of the posterior average")
    args = parser.parse_args(argv)
    if args.evaluate:
        args = saved_flags(parser, args)
    published = {
        "model": "convnet-bn" if args.aug else "convnet",
        "sn": EPOCHS.get((args.data, args.aug), 200),
        "invT": INV_T.get(args.data, 1000.0),
    }
    published["burn"] = (args.sn or published["sn"]) // 2
    parser.fill(args, published)
    if (args.attack or args.ood) and not args.evaluate and args.c in BAYESIAN:
        args.save_samples = 1  # the average cannot be attacked without its members
    return parser, args


def saved_flags(parser: options.Parser, args: Namespace) -> Namespace:
    """The flags of the run args.evaluate, with those of the evaluation itself from the command line."""
    folder = Path(args.evaluate)
    try:
        saved = json.loads((folder / "args.json").read_text())
        if not saved.keys() <= vars(args).keys() or saved["c"] not in METHODS:
            raise ValueError("flags of another script")
    except (OSError, ValueError, KeyError, AttributeError, TypeError):
        parser.error(f"argument -evaluate: {folder} is not the folder of a run of posterior_cnn.py")
    if not (folder / "summary.json").exists():
        parser.error(f"argument -evaluate: the run in {folder} is not finished")
    changed = {name: value for name, value in saved.items() if name not in ELSEWHERE}
    return Namespace(**(vars(args) | changed | {"out": args.evaluate, "resume": 1}))


def load_data(args: Namespace) -> tuple[ImageData, ImageData | None]:
    """The data set, and that of -ood, on the device."""
    where = device.resolve(args.device)
    data = images.load(args.data, args.data_dir, args.size, workers=args.workers)
    if not args.ood:
        return data.to(where), None
    outside = images.load(args.ood, args.data_dir)
    if outside.shape != data.shape:
        raise ValueError(f"argument -ood: {args.ood} has images {outside.shape}, not {data.shape} as {args.data}")
    return data.to(where), outside.to(where)


def assess(args: Namespace, data: ImageData, outside: ImageData | None, seed: int, run: Run) -> None:
    """-attack and -ood for one finished seed."""
    members = load_members(run, network(args, data), recipe(args), averaged=args.c in BAYESIAN)
    key = {"data": args.data, "aug": args.aug, "method": args.c, "seed": seed}
    if args.attack:
        attack(run, members, data, key, args.attack_images, args.pgd_images, args.pgd_steps)
    if outside:
        out_of_distribution(run, members, data, outside, key | {"ood": args.ood})


def finished_parts(run: Run, seeds: Iterable[int]) -> dict[int, Run]:
    """Where the results of the seeds of a finished run lie: in a folder each, or, of one seed, in the run's own."""
    folders = {seed: run.folder / f"seed{seed}" for seed in seeds}
    if not any(folder.is_dir() for folder in folders.values()):
        return dict.fromkeys(folders, run)
    return {seed: run.part(folder.name) for seed, folder in folders.items() if (folder / "summary.json").exists()}


def show(table: pd.DataFrame) -> None:
    """Print mean +- sd over seeds, and the published accuracy."""
    by, metrics = ["data", "aug", "method"], [*METRICS, *AVERAGED, "sparsity"]
    ours = report.over_seeds(table, by, metrics)
    printed = report.formatted(ours, by, metrics, digits=4)
    printed["published accuracy"] = report.beside(
        ours, by, report.published("table2"), lambda row, _: f"{row.accuracy:.2f}"
    )
    print(printed.T.to_string(header=False))
    print("mean +- sd over n seeds; of the last sample, and _averaged: of the posterior average; accuracy in percent")


def main() -> int:
    parser, args = parse()
    device.prepare()
    told = ("out", "resume", "save_every", "data", "data_dir", "workers", "c", *AFTERWARDS)
    with parser.checked():
        data, outside = load_data(args)
        batches = Chain(args, split(args, data, args.seed), args.seed).batches  # checks the settings
        check_kept(args)
        if args.c in BAYESIAN and (args.sn - args.burn) * batches < args.thin:
            raise ValueError(
                f"argument -thin: no sample in {args.sn} epochs, {args.burn} of burn-in, thinned by {args.thin}"
            )
        run = Run("posterior_cnn", parser.folder_name(args, f"{args.data}_{args.c}", told), vars(args))
    key = {"data": args.data, "aug": args.aug, "method": args.c}
    if args.evaluate:
        table, diverged = pd.read_csv(run.folder / "table.csv"), ""
        runs = finished_parts(run, table["seed"])
    else:

        def fit_one(seed: int, each: Run) -> str:
            return fit(args, Chain(args, split(args, data, seed), seed, each.folder), each, key, seed)

        runs, diverged = fit_seeds(args, run, key, fit_one)
        table = table_of(runs)
    show(table)
    for seed, each in runs.items() if args.attack or args.ood else ():
        assess(args, split(args, data, seed), outside, seed, each)
    return conclude(run, diverged)


if __name__ == "__main__":
    options.run_script(main)
