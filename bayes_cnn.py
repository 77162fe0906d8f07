"""Sparse residual networks on CIFAR10: dense sampling, then sparse fine-tuning (Deng et al., NeurIPS 2019).

    python bayes_cnn.py -lr 2e-6 -invT 20000 -save 1 -prune 0
    python bayes_cnn.py -lr 2e-9 -invT 1000 -anneal 1.005 -v0 0.005 -v1 1e-5 -sparse 0.9 -c sa -prune 1

-prune 0 samples a dense network with weight decay. -prune 1 starts from it: SGHMC with the spike-and-slab
prior on the convolutions, adapted by SA, EM, or fixed, and magnitude pruning in every iteration.
"""

from __future__ import annotations

import math
from argparse import Namespace
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from data import images
from data.augment import RECIPES, Recipe
from data.image_sets import ImageData
from experiment import device, distributed, options, report
from experiment.classification import scores
from experiment.classifier import AVERAGED, METRICS, Classifier, generators
from experiment.compressed import export
from experiment.ending import conclude
from experiment.pretrained import load_pretrained
from experiment.priors import network_prior
from experiment.run import NOT_IDENTITY, Run
from experiment.seeds import check_kept, fit, fit_seeds, folders, split, table_of
from model.resnet import ResNet, blocks_per_stage
from sampler import SGHMC, FlatNoise, MagnitudePruner, SSGLPrior
from sampler.magnitude_pruning import keep_largest_units, keep_likeliest
from sampler.noise import stream
from sampler.schedules import annealed, stepwise
from sampler.sgmcmc import check_sghmc

PRESETS = {0.3: (0.5, 1e-3), 0.5: (0.1, 5e-4), 0.7: (0.1, 5e-5), 0.9: (0.005, 1e-5)}  # sparsity: v0, v1, published
DENSE = {"lr": 2e-6, "invT": 20000.0, "anneal": 1.0}  # published for -prune 0
SPARSE = {"lr": 2e-9, "invT": 1000.0, "anneal": 1.005}  # and for -prune 1
EPOCH = 50  # iterations of a published epoch: 50,000 images in minibatches of 1000
PRUNING = ("weight", "unit", "rho")
# flags that the stem of a default folder's name tells, or that are no part of it
IN_THE_STEM = ("c", "sparse", "data", "depth", "prune", *NOT_IDENTITY)


def recipe(args: Namespace) -> Recipe:
    """The data set's normalisation, with its augmentation if -aug 1."""
    full = RECIPES[args.data]
    return full if args.aug else Recipe(mean=full.mean, sd=full.sd)


def network(args: Namespace, data: ImageData) -> nn.Module:
    """The network of the flags, on the device."""
    net = ResNet(args.depth, data.shape, len(data.classes))
    return net.to(device.resolve(args.device), memory_format=torch.channels_last)


def magnitude_pruner(args: Namespace, prior: SSGLPrior, total: int) -> MagnitudePruner:
    """The pruner of -pruning; it counts one ahead, as released."""
    rho = prior.rho
    rules = {
        "weight": None,  # the pruner's own
        "unit": lambda _, beta, fraction: keep_largest_units(beta, fraction),
        "rho": lambda i, beta, fraction: keep_likeliest(beta, rho[i], fraction),
    }
    with options.about("-sparse"):
        target = args.sparse if args.prune else 0.0
        return MagnitudePruner(prior.layers, total, target, args.cut, args.gap, offset=1, rule=rules[args.pruning])


class Chain(Classifier):
    """One network of one seed."""

    def __init__(self, args: Namespace, data: ImageData, seed: int, folder: Path | None = None):
        torch.manual_seed(stream(seed, "init").initial_seed())
        net = network(args, data)
        self.potential_scale = args.N or len(data.train)  # N
        self.dense: dict[str, float] = {}  # scores of the network at the start
        sources = generators(seed, data)
        with options.about("-momentum"):
            check_sghmc(args.lr, args.momentum)
        noise = FlatNoise(sources["noise"])
        # delay: the released counter is one ahead
        prior = network_prior(args, net, self.potential_scale, plain=not args.prune, delay=1, delta=args.theta)
        super().__init__(
            args,
            f"{args.data} {args.c if args.prune else 'dense'} seed {seed}",
            data,
            net,
            recipe(args),
            SGHMC(net.parameters(), lr=args.lr, momentum=args.momentum, invT=args.invT, noise=noise),
            prior,
            magnitude_pruner(args, prior, sum(p.numel() for p in net.parameters())),
            sources,
            folder=folder,
        )

    def start_from(self, weights: Path) -> None:
        """Load a trained network, and keep its scores."""
        load_pretrained(self.net, weights)
        self.dense = scores(self.predict().exp(), self.data.test.y)

    def epoch(self) -> None:
        """Algorithm 1 over one pass through the training images."""
        args, done = self.args, self.iterations // self.batches
        order = torch.randperm(self.observations, generator=self.generators["order"])[: self.batches * args.train]
        lr, invT = stepwise(args.lr, args.milestones, done), annealed(args.invT, args.anneal, done)
        self.sampler.param_groups[0].update(lr=lr, invT=invT)
        rank, world = distributed.rank(), distributed.world()
        for x, y in self.data.train.batches(*distributed.share(order, args.train)):
            self.net.train()
            self.net.zero_grad()
            x = self.recipe.augment(x, self.generators["augment"], rank, world)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
                logits = self.forward(x)
            potential = self.potential_scale * cross_entropy(logits, y)  # on the scale of the whole data set
            potential.backward()
            self.prior.add_grad()
            self.sampler.step()
            self.prior.update()
            self.pruner.step()
            self.iterations += 1
            self.finite += potential.detach() < torch.inf
        if done >= args.sn - args.average:
            self.keep_sample(weight=self.sampler.param_groups[0]["lr"])

    def result(self) -> dict:
        return super().result() | {f"{name}_dense": value for name, value in self.dense.items()}

    def state_dict(self) -> dict[str, Tensor]:
        dense = {f"dense.{name}": torch.tensor(value, dtype=torch.float64) for name, value in self.dense.items()}
        return super().state_dict() | dense

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict({name: x for name, x in state.items() if not name.startswith("dense.")})
        self.dense = {name: float(state[f"dense.{name}"]) for name in METRICS if f"dense.{name}" in state}


def parse(argv: list[str] | None = None):
    parser = options.Parser(description="Sparse residual networks by SGHMC-SA, SGHMC-EM and SGHMC.")
    options.add_image_options(parser, names=images.NAMES, data="cifar10", aug=1)
    parser.add_argument("-depth", type=options.count, default=20, help="depth of the ResNet, 6 n + 2")
    parser.add_argument("-prune", type=options.switch, default=0, help="0: dense sampling; 1: sparse fine-tuning of it")
    parser.add_argument("-c", choices=("sa", "em", "sghmc"), default="sa", help="-prune 1: omega_k of the sampler")
    about = "network to start from: a file, or a run's folder; default with -prune 1: the dense run of the seed"
    parser.add_argument("-pretrained", default=None, metavar="PATH", help=about)
    parser.add_argument("-sn", type=options.count, default=1000, help="epochs")
    parser.add_argument("-average", type=options.whole, default=0, help="posterior average over the last epochs")
    sampler = options.add_sghmc_options(parser, lr="published", anneal=None)
    about = "observations that the potential stands for; default: the training images"
    sampler.add_argument("-N", type=options.positive, default=None, help=about)
    about = "epochs after which the step size is divided by 10; default 70%% and 90%% of -sn"
    sampler.add_argument("-milestones", type=options.whole, nargs="*", default=None, metavar="EPOCH", help=about)
    about = "squeeze the schedules of a run of T0 iterations (published: 50000) into this one: -lr -gap -da -dc -anneal"
    sampler.add_argument("-scale_to", type=options.count, default=None, metavar="T0", help=about)
    prior = options.add_prior_options(parser, v1=None, a=2.7e5, b=2.7e5, sd=1.0, nu=1000.0, lamda=1000.0)
    prior.add_argument("-v0", type=options.positive, default=None, help="scale of the spike")
    prior.add_argument("-theta", type=options.open_unit, default=0.5, help="delta_0, initial inclusion rate")
    prior.add_argument("-fix_scale", type=options.switch, default=0, help="1 keeps delta and sigma^2 fixed")
    options.add_adaptation_options(parser, dc=0.02, da=1000.0, dalpha=0.75)
    pruning = options.add_pruning_options(parser, sparse=None)
    about = "what goes first: the smallest weights, the smallest filters, or the least probable weights"
    pruning.add_argument("-pruning", choices=PRUNING, default="weight", help=about)
    pruning.add_argument("-preset", type=float, choices=PRESETS, default=0.9, help="a published row: -sparse -v0 -v1")
    options.add_device_options(parser)
    parser.add_argument("-gpu", type=options.whole, default=None, metavar="N", help="the same as -device cuda:N")
    options.add_run_options(parser)
    kept = options.add_kept_options(parser)
    kept.add_argument("-export", default=None, metavar="DIR", help="write the compact network and ONNX there")
    kept.add_argument("-half", type=options.switch, default=0, help="-export: values in half precision")
    args = parser.parse_args(argv)
    v0, v1 = PRESETS[args.preset]
    published = {"sparse": args.preset, "v0": v0, "v1": v1} | (SPARSE if args.prune else DENSE)
    published["milestones"] = [math.ceil(args.sn * tenths / 10) for tenths in (7, 9)]
    parser.fill(args, published)
    if args.gpu is not None:
        args.device = f"cuda:{args.gpu}"
    return parser, args


def folder_name(parser: options.Parser, args: Namespace) -> str:
    """Name of the default folder; a dense run's does not depend on its other flags, so that -prune 1 finds it."""
    if not args.prune:
        return dense_name(args, args.seed) + (f"_seeds{args.seeds}" if args.seeds > 1 else "")
    return parser.folder_name(args, f"{args.c}_{args.sparse:g}_{args.data}_resnet{args.depth}", IN_THE_STEM)


def dense_name(args: Namespace, seed: int | str) -> str:
    """Name of the default folder of the dense run."""
    return f"dense_{args.data}_resnet{args.depth}_seed{seed}"


def start(args: Namespace, seed: int, folder: Path) -> Path | None:
    """The trained network from which the seed starts in its run folder; None: from none, or from its checkpoint.

    Raises:
        ValueError: there is no dense network of this seed; says which command makes one.
    """
    if args.resume and (folder / "checkpoint.safetensors").exists():
        return None
    if args.pretrained or not args.prune:
        return Path(args.pretrained) if args.pretrained else None
    runs = Path("runs/bayes_cnn")
    for candidate in (runs / dense_name(args, seed), *runs.glob(f"{dense_name(args, '*')}_seeds*/seed{seed}")):
        if (candidate / "model.safetensors").exists():
            return candidate
    raise ValueError(
        f"argument -prune: no dense network in {runs / dense_name(args, seed)}; make one with `python bayes_cnn.py "
        f"-lr 2e-6 -invT 20000 -save 1 -prune 0 -data {args.data} -depth {args.depth} -seed {seed}`, or name one "
        "with -pretrained"
    )


def scaled(args: Namespace, batches: int) -> Namespace:
    """The schedules of a run of args.scale_to iterations in the time of this one.

    With R = T0 / T: lr R, so that the distance travelled stays the same, gap / R, da / R, dc R^(1 - dalpha), so that
    the sum of omega_k does, and an annealing that ends at the same temperature.
    """
    if not args.scale_to:
        return args
    ratio = args.scale_to / (args.sn * batches)
    changed = {
        "lr": args.lr * ratio,
        "gap": args.gap / ratio,
        "da": args.da / ratio,
        "dc": args.dc * ratio ** (1 - args.dalpha),
        "anneal": annealed(1.0, args.anneal, args.scale_to / EPOCH / args.sn),
    }
    return Namespace(**(vars(args) | changed))


def export_parts(args: Namespace, data: ImageData, runs: dict[int, Run]) -> None:
    """-export: the compact network of every seed, with its table of layers."""
    places = folders(args, Path(args.export))
    for seed, run in runs.items():
        net = ResNet(args.depth, data.shape, len(data.classes))
        load_pretrained(net, run.folder)
        arguments = {"depth": args.depth, "shape": data.shape, "classes": len(data.classes)}
        layers, sizes = export(net, arguments, places[seed], bool(args.half))
        print(layers.round(4).to_string(index=False))
        print(
            f"{places[seed]}: {sizes['compact']:,} bytes, {sizes['compact'] / sizes['dense']:.3f} of the dense file's "
            f"{sizes['dense']:,}; ONNX {sizes['onnx']:,}, zeros included"
        )


def show(table: pd.DataFrame, annealed: bool) -> None:
    """Print mean +- sd over seeds, and the published accuracy."""
    by = ["data", "model", "method", "target", "annealed"]
    metrics = [m for m in (*METRICS, *AVERAGED, "accuracy_dense", "sparsity", "parameters_kept") if m in table]
    ours = report.over_seeds(table.assign(annealed=int(annealed)), by, metrics)
    printed = report.formatted(ours, by, metrics, digits=4)
    published = report.beside(ours, by, report.published("table3"), lambda row, _: f"{row.accuracy:.2f}")
    print(printed.assign(published_accuracy=published).T.to_string(header=False))
    print("mean +- sd over n seeds, of the last epoch; _averaged: of the posterior average; _dense: at the start")


def main() -> int:
    parser, args = parse()
    device.prepare()
    with parser.checked():
        where = device.resolve(args.device, flag="-device" if args.gpu is None else "-gpu")
        distributed.start(where)
        distributed.share(torch.arange(args.train), args.train)  # checks -train
        with options.about("-depth"):
            blocks_per_stage(args.depth)
        name = folder_name(parser, args)
        places = folders(args, Run.place("bayes_cnn", name, args.out))
        starts = {seed: start(args, seed, folder) for seed, folder in places.items()}
        data = images.load(args.data, args.data_dir, args.size, workers=args.workers).to(where)
        first = split(args, data, args.seed)
        plan = scaled(args, len(first.train) // args.train)
        Chain(plan, first, args.seed)  # checks the settings
        for path in filter(None, starts.values()):
            load_pretrained(network(args, data), path)
        check_kept(args)
        run = Run("bayes_cnn", name, vars(args))
    key = {"data": args.data, "model": f"resnet{args.depth}", "aug": args.aug}
    key |= {"method": args.c if args.prune else "dense", "target": args.sparse if args.prune else 0.0}
    key |= {"pruning": args.pruning if args.prune else "none"}

    def fit_one(seed: int, each: Run) -> str:
        chain = Chain(plan, split(args, data, seed), seed, each.folder)
        if starts[seed]:
            chain.start_from(starts[seed])
        return fit(args, chain, each, key, seed)

    runs, diverged = fit_seeds(args, run, key, fit_one)
    if distributed.rank() == 0:
        show(table_of(runs), args.anneal > 1)
        if args.export:
            export_parts(args, data, runs)
    return conclude(run, diverged)


if __name__ == "__main__":
    options.run_script(main)
