"""Structured Bayesian pruning: LeNet and VGG-like networks that become smaller (Neklyudov et al., NIPS 2017).

    python sbp_cnn.py -model lenet-fc -data mnist -c sbp
    python sbp_cnn.py -model lenet5 -data mnist -c sbp -pretrained runs/sbp_cnn/dense_mnist_lenet5_seed1
    python sbp_cnn.py -model vgglike -data cifar10 -c sbpa -device cuda

A trained network gets log-normal multiplicative noise on its neurons and channels (-c sbp, sbpa) and is trained on;
units whose signal-to-noise ratio is below 1 are then removed, and the network is cut to the others. Beside it SparseVD
(sparsevd), group lasso (ssl) and the plain network (dense).
"""

from __future__ import annotations

import copy
from argparse import Namespace
from dataclasses import replace
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from data import images
from data.augment import RAW, RECIPES, Recipe
from data.image_sets import ImageData
from experiment import device, distributed, options, report, shrunk
from experiment.classifier import generators
from experiment.ending import conclude
from experiment.pretrained import load_pretrained, of_seed
from experiment.run import NOT_IDENTITY, Diverged, Run
from experiment.seeds import check_kept, fit, fit_seeds, folders, load_part, split, table_of
from experiment.shrinking import Shrinking, load_cut
from experiment.structured import SBP, SSL, Dense, SparseVD
from experiment.training import train
from model.lenet import centre, lenet5, lenet_fc
from model.surgery import Removal, fused
from model.vgg import CONVOLUTIONS, vgglike
from sampler.noise import stream
from sampler.schedules import linear_decay

MODELS = {"lenet-fc": lenet_fc, "lenet5": lenet5, "vgglike": vgglike}
NOISY = {  # sites of the noise: outputs (0), before the bias, or inputs (1) of a layer
    "lenet-fc": (("fc1", 1), ("fc1", 0), ("fc2", 0)),
    "lenet5": (("conv1", 0), ("conv2", 0), ("fc1", 1), ("fc1", 0)),
    "vgglike": (*((f"conv{i + 1}", 0) for i in range(CONVOLUTIONS)), ("fc1", 1), ("fc2", 1)),
}
SBPA = [10.0, 10.0, 5.0, 5.0]  # weights of the KL of the first layers
METHODS = ("sbp", "sbpa", "sparsevd", "ssl", "dense")
DATA = (*images.NAMES, "mnist-random", "cifar10-random")
SNR = ("sbp", "sbpa")  # methods whose units have one
OF = {"snr": SNR, "threshold_sweep": SNR, "kl_layers": SNR, "noise_lr": (*SNR, "sparsevd")}  # flags of some methods
OF |= dict.fromkeys(("kl_weight", "warmup"), (*SNR, "sparsevd", "ssl"))
VGG = Recipe(padding=2, flip=True, brightness=63 / 255, contrast=(0.2, 1.8), standardise=True)


def published(model: str, c: str, sn: int | None) -> dict:
    """Published settings of a model and a method; -decay for a run of sn epochs."""
    if model != "vgglike":
        values = {"sn": 200, "lr": 1e-3, "train": 128, "l2": 0.0, "noise_lr": 1.0, "aug": 0, "dense_sn": 200}
        flat = 1 / 2
    else:
        values = {"sn": 300, "lr": 1e-5, "train": 100, "l2": 0.0, "noise_lr": 10.0, "aug": 1, "dense_sn": 200}
        flat = 5 / 6
    if c == "dense":
        values |= {"sn": values["dense_sn"], "lr": 1e-3, "l2": 1.0 if model == "vgglike" else 0.0}
        flat = 1 / 2
    values["kl_layers"] = SBPA[: len(NOISY[model])] if c == "sbpa" else []
    return values | {"decay": round(flat * (sn or values["sn"]))}


def recipe(args: Namespace) -> Recipe:
    """What happens to the images; LeNet subtracts the mean training image itself."""
    if args.model == "vgglike":
        return VGG if args.aug else Recipe(standardise=True)
    full = RECIPES[args.data.removesuffix("-random")]
    return replace(full, mean=RAW.mean, sd=RAW.sd, erase=()) if args.aug else RAW


def network(args: Namespace, data: ImageData) -> nn.Sequential:
    """The plain network of the flags, on the device."""
    dropout = {"dropout": True} if args.model == "vgglike" and args.c == "dense" else {}
    with options.about("-model"):
        net = MODELS[args.model](data.shape, len(data.classes), args.scale, **dropout)
    return net.to(device.resolve(args.device), memory_format=torch.channels_last)


def attached(args: Namespace, net: nn.Sequential, generator: torch.Generator) -> Dense:
    """The method of -c on the network."""
    sbp = partial(SBP, noisy=NOISY[args.model], weights=tuple(args.kl_layers))
    methods = {"sbp": sbp, "sbpa": sbp, "sparsevd": SparseVD, "ssl": SSL, "dense": Dense}
    return methods[args.c](net, generator)


def threshold(args: Namespace) -> float | None:
    """Of the scores of units; None: the method's own."""
    return args.snr if args.c in SNR else None


class Chain(Shrinking):
    """One network of one seed, in training by one method.

    net: a plain network with its initial weights.  dense: the network it is compared with in the end, None: itself.
    """

    def __init__(self, args: Namespace, data: ImageData, seed: int, run: Run, net: nn.Sequential, dense=None):
        self.seed, self.run = seed, run
        torch.manual_seed(stream(seed, "dropout").initial_seed())
        sources = generators(seed, data)
        method = attached(args, net, sources["noise"])
        weights, others, noise = method.parameter_groups()
        groups = [
            {"params": weights, "scale": 1.0, "l2": args.l2},
            {"params": others, "scale": 1.0, "l2": 0.0},
            {"params": noise, "scale": args.noise_lr, "l2": 0.0},
        ]
        adam = torch.optim.Adam(
            [group for group in groups if group["params"]],
            lr=args.lr,
            betas=(args.beta1, 0.999),
            fused=data.train.y.device.type == "cpu",  # on a GPU it wants its step counts there, after a resume too
        )
        super().__init__(
            args,
            f"{args.data} {args.model} {args.c} seed {seed}",
            data,
            method,
            dense or net,
            recipe(args),
            adam,
            sources,
            threshold=threshold(args),
            folder=run.folder,
        )

    def epoch(self) -> None:
        """Minimise N cross entropy + penalty over one pass through the training images."""
        args, batches, done = self.args, self.batches, self.iterations // self.batches
        rank, world = distributed.rank(), distributed.world()
        order = torch.randperm(self.observations, generator=self.generators["order"])[: batches * args.train]
        weight = args.kl_weight * (min(1.0, (done + 1) / args.warmup) if args.warmup else 1.0)
        self.method.train()
        for x, y in self.data.train.batches(*distributed.share(order, args.train)):
            self.iterations += 1
            lr = linear_decay(args.lr, args.decay * batches, args.sn * batches, self.iterations)
            l2 = 1e-3 + (1 - 1e-3) * done / args.sn  # grows, as released
            for group in self.sampler.param_groups:
                group.update(lr=lr * group["scale"], weight_decay=l2 * group["l2"])
            self.net.zero_grad()
            x = self.recipe.augment(x, self.generators["augment"], rank, world)
            penalty = self.method.penalty()
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
                logits = self.forward(x)
            potential = self.observations * cross_entropy(logits, y) + weight * penalty
            potential.backward()
            self.sampler.step()
            self.method.project()
            self.finite += potential.detach() < torch.inf
        self.penalty = float(torch.as_tensor(penalty).detach())

    def fine_tuned(self, small: nn.Sequential) -> nn.Sequential:
        """The network as cut, trained on for -finetune epochs without noise, at a step that falls from lr / 10 to 0."""
        if not self.args.finetune or not any(p.requires_grad for p in small.parameters()):
            return small
        changed = {"c": "dense", "sn": self.args.finetune, "lr": self.args.lr / 10, "decay": 0, "l2": 0.0}
        changed |= {"finetune": 0, "threshold_sweep": 0}
        args, run = Namespace(**(vars(self.args) | changed)), self.run.part("finetune", **changed)
        chain = Chain(args, self.data, self.seed, run, small.train())
        if not train(chain, run, args.sn, bool(args.resume)):
            raise Diverged(chain.divergence(args.lr))
        return small.eval()


def dense_network(args: Namespace, data: ImageData, seed: int, run: Run) -> nn.Sequential:
    """The trained plain network of a seed: -pretrained, or else trained here first."""
    net = network(args, data)
    if args.pretrained:
        load_pretrained(net, of_seed(Path(args.pretrained), seed))
        return net
    settings = published(args.model, "dense", args.dense_sn)
    changed = {name: settings[name] for name in ("lr", "l2", "decay")} | {"c": "dense", "sn": args.dense_sn}
    changed |= {"finetune": 0, "threshold_sweep": 0, "save": 1}
    args, part = Namespace(**(vars(args) | changed)), run.part("dense", **changed)
    load_part(net, part, bool(args.resume), lambda: fit_chain(args, data, seed, part))
    return net


def fresh_network(args: Namespace, data: ImageData, seed: int) -> nn.Sequential:
    """A plain network with its initial weights."""
    torch.manual_seed(stream(seed, "init").initial_seed())
    net = network(args, data)
    if args.model != "vgglike":
        centre(net, data.train.batches(torch.arange(len(data.train)), 1000))
    return net


def fit_chain(args: Namespace, data: ImageData, seed: int, run: Run) -> str:
    """Train one network of one seed by -c, and write its results; returns '' or how it diverged."""
    try:
        if args.c == "dense" and not args.pretrained:
            chain = Chain(args, data, seed, run, fresh_network(args, data, seed))
        else:
            net = dense_network(args, data, seed, run)
            chain = Chain(args, data, seed, run, net, dense=copy.deepcopy(net))
        return fit(args, chain, run, key(args), seed)
    except Diverged as error:  # the plain network before, or the fine-tuning
        return str(error)


def key(args: Namespace) -> dict:
    """Columns of table.csv that say what a row is of."""
    return {"data": args.data, "model": args.model, "scale": args.scale, "method": args.c}


def parse(argv: list[str] | None = None):
    parser = options.Parser(description="Structured Bayesian pruning, SparseVD and group lasso; units cut out.")
    options.add_image_options(parser, names=DATA, data="mnist", aug=None, train=None)
    parser.add_argument("-model", choices=MODELS, default="lenet-fc", help="network")
    parser.add_argument("-scale", type=options.positive, default=1.0, help="width of all layers, in units of -model's")
    parser.add_argument("-c", choices=METHODS, default="sbp", help="method; sbpa: more KL on the first four layers")
    about = "trained plain network to start from: a file, or a run's folder; default: train one first"
    parser.add_argument("-pretrained", default=None, metavar="PATH", help=about)
    parser.add_argument("-sn", type=options.count, default=None, help="epochs; default 200, vgglike 300, dense 200")
    parser.add_argument("-dense_sn", type=options.count, default=None, help="epochs of the plain network; default 200")
    group = parser.add_argument_group("optimisation")
    group.add_argument("-lr", type=options.positive, default=None, help="Adam; default 1e-3, vgglike after dense 1e-5")
    about = "epochs before the step falls linearly to 0; default sn / 2, vgglike after dense 5 sn / 6"
    group.add_argument("-decay", type=options.whole, default=None, help=about)
    group.add_argument("-beta1", type=options.fraction, default=0.95, help="of Adam")
    about = "sbp, sparsevd: step of the noise's parameters in units of -lr; default 1, vgglike 10"
    group.add_argument("-noise_lr", type=options.positive, default=None, help=about)
    about = "weight of |w|^2 / 2 in the last epoch, from a thousandth in the first; default 0, dense vgglike 1"
    group.add_argument("-l2", type=options.non_negative, default=None, help=about)
    group = parser.add_argument_group("pruning")
    about = "weight of the method's penalty (KL or group lasso) beside N x cross entropy"
    group.add_argument("-kl_weight", type=options.non_negative, default=1.0, help=about)
    about = "sbp: weights of the KL of the first layers with noise, the others have 1; default none, sbpa 10 10 5 5"
    group.add_argument("-kl_layers", type=options.non_negative, nargs="*", default=None, metavar="W", help=about)
    group.add_argument("-warmup", type=options.whole, default=0, help="epochs over which that weight grows from 0")
    group.add_argument("-snr", type=options.non_negative, default=1.0, help="sbp: units with a smaller SNR are removed")
    about = "-c sbp: also cut at so many steps of SNR from 0 to 2"
    group.add_argument("-threshold_sweep", type=options.whole, default=0, metavar="STEPS", help=about)
    about = "1: a layer may lose all its units, and leave a constant; 0: it keeps its best"
    group.add_argument("-allow_empty", type=options.switch, default=0, help=about)
    group.add_argument("-finetune", type=options.whole, default=0, help="epochs of the cut network without noise")
    group.add_argument("-speed", type=options.switch, default=1, help="1: time the network as cut and the plain one")
    options.add_device_options(parser)
    options.add_run_options(parser)
    kept = options.add_kept_options(parser)
    kept.add_argument("-export", default=None, metavar="DIR", help="write the cut network there, .pt2 and ONNX")
    args = parser.parse_args(argv)
    parser.fill(args, published(args.model, args.c, args.sn))
    return parser, args


def rebuilt(args: Namespace, data: ImageData, seed: int, run: Run) -> tuple[nn.Sequential, nn.Sequential, Removal]:
    """The plain network and the network as cut of a finished run, and what went."""
    plain = network(args, data)
    before = of_seed(Path(args.pretrained), seed) if args.pretrained else run.folder / "dense"
    load_pretrained(plain, run.folder if args.c == "dense" else before)
    method = attached(args, copy.deepcopy(plain), torch.Generator(device.resolve(args.device)))
    return fused(plain), *load_cut(method, run, data.shape, threshold(args), bool(args.allow_empty))


def time_parts(args: Namespace, data: ImageData, runs: dict[int, Run]) -> pd.DataFrame:
    """-speed: speed.csv of every finished seed; returns the rows of all."""
    rows, where = [], device.resolve(args.device)
    for seed, run in runs.items():
        plain, small, _ = rebuilt(args, data, seed, run)
        rows.append({"seed": seed} | shrunk.record_speed(run, seed, plain, small, data.shape, where))
    return pd.DataFrame(rows)


def export_parts(args: Namespace, data: ImageData, runs: dict[int, Run]) -> None:
    """-export: the cut network of every finished seed."""
    places = folders(args, Path(args.export))
    for seed, run in runs.items():
        _, small, gone = rebuilt(args, data, seed, run)
        sizes = shrunk.save(small, data.shape, places[seed])
        left = gone.units(bool(args.allow_empty)).values()
        print(f"{places[seed]}: {'-'.join(map(str, left))}, {sizes['pt2']:,} bytes; ONNX {sizes['onnx']:,}")


def show(table: pd.DataFrame) -> None:
    """Print mean +- sd over seeds, and the published row."""
    by = ["data", "model", "method"]
    left = [name for name in table if name.startswith("units_") and table[name].notna().any()]
    metrics = ["error", "accuracy_uncut", "accuracy_dense", *left, "parameters", "flops_ratio"]
    metrics += [name for name in table if name.startswith("speedup_") and table[name].notna().any()]
    ours = report.over_seeds(table, by, metrics)
    printed = report.formatted(ours, by, metrics, digits=2)

    def text(row, _) -> str:
        cpu = f", CPU {row.cpu}x" if pd.notna(row.cpu) else ""
        return f"error {row.error}, units {row.units}, FLOPs {row.flops_ratio}x{cpu}"

    printed["published"] = report.beside(ours, by, report.published("sbp"), text)
    print(printed.T.to_string(header=False))
    print("mean +- sd over n seeds, of the network as cut; error in percent; FLOPs: multiply-adds of the layers")


def main() -> int:
    parser, args = parse()
    device.prepare()
    with parser.checked():
        where = device.resolve(args.device)
        distributed.start(where)
        distributed.share(torch.arange(args.train), args.train)  # checks -train
        usual = vars(parser.parse_args([])) | published(args.model, args.c, args.sn)
        for name, methods in OF.items():
            if args.c not in methods and vars(args)[name] != usual[name]:
                raise ValueError(f"argument -{name}: does nothing with -c {args.c}")
        if len(args.kl_layers) > (sites := len(NOISY[args.model])):
            raise ValueError(f"argument -kl_layers: {len(args.kl_layers)} weights, but {sites} layers have noise")
        if args.decay > args.sn:
            raise ValueError(f"argument -decay: {args.decay} is after the last of {args.sn} epochs")
        data = images.load(args.data, args.data_dir, args.size, workers=args.workers).to(where)
        split(args, data, args.seed)
        for seed in range(args.seed, args.seed + args.seeds):
            if args.pretrained:
                load_pretrained(network(args, data), of_seed(Path(args.pretrained), seed))
        network(args, data)  # checks the images' size
        check_kept(args)
        run = Run("sbp_cnn", folder_name(parser, args), vars(args))
    for place in folders(args, Path(".")).values() if not args.resume else ():
        for part in ("dense", "finetune"):
            run.discard(place / part)

    def fit_one(seed: int, each: Run) -> str:
        return fit_chain(args, split(args, data, seed), seed, each)

    runs, diverged = fit_seeds(args, run, key(args), fit_one)
    if distributed.rank() == 0:
        table = table_of(runs)
        if args.speed and args.save:
            table = table.merge(time_parts(args, data, runs), on="seed")
        show(table)
        if args.export:
            export_parts(args, data, runs)
    return conclude(run, diverged)


def folder_name(parser: options.Parser, args: Namespace) -> str:
    """Name of the default folder."""
    return parser.folder_name(args, f"{args.c}_{args.data}_{args.model}", (*NOT_IDENTITY, "data", "model", "c"))


if __name__ == "__main__":
    options.run_script(main)
