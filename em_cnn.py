"""EM-MCMC on images: optimisation and pruning in one run (Ke and Fan, arXiv 2210.12957).

    python em_cnn.py -data cifar10 -model resnet18 -device cuda          # sparse
    python em_cnn.py -data cifar10 -model resnet18 -dense 1 -device cuda
    python em_cnn.py -data fmnist -model resnet20 -c sgd                 # the baseline, on the same schedule

Preconditioned SGHMC with cosine cycles of the step size. Once an epoch, after a warm-up, EM over a spike-and-slab
prior switches the weight decay of every group of weights and prunes channels for good. The last epochs of every cycle
are the members of an ensemble.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import replace
from pathlib import Path

import pandas as pd
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from data import images
from data.augment import RECIPES, Recipe
from data.image_sets import ImageData
from experiment import device, distributed, options, report, shrunk
from experiment.classification import scores
from experiment.classifier import AVERAGED, METRICS, Classifier, generators
from experiment.compressed import layer_table
from experiment.ending import conclude
from experiment.evaluation import member, predict
from experiment.pretrained import load_pretrained
from experiment.run import NOT_IDENTITY, Run, write_csv
from experiment.seeds import check_kept, fit, fit_seeds, folders, split, table_of
from model.image_networks import MODELS, SCALABLE, build
from model.surgery import cut_channels, zero_channels
from sampler import FlatNoise, GroupSpikeSlab, PreconditionedSGHMC
from sampler.group_spike_slab import CHANNEL, FILTER, KERNEL, keep_large, keep_wide
from sampler.noise import stream
from sampler.schedules import cosine_cycle

GROUPS = {groups.name: groups for groups in (KERNEL, FILTER, CHANNEL)}
RULES = ("range", "square")
SAMPLER = {"em": {"lr": 1.0, "momentum": 0.1}, "sgd": {"lr": 0.05, "momentum": 0.9}}  # the same step in the long run
WARMUP = 0.2  # of the epochs


def recipe(args: Namespace) -> Recipe:
    """The data set's normalisation, with crops, flips and rotations if -aug 1."""
    full = RECIPES[args.data]
    return replace(full, erase=()) if args.aug else Recipe(mean=full.mean, sd=full.sd)


def network(args: Namespace, data: ImageData) -> nn.Module:
    """The network of the flags, on the device."""
    with options.about("-model"):
        net = build(args.model, data.shape, len(data.classes), args.scale)
    return net.to(device.resolve(args.device), memory_format=torch.channels_last)


def group_prior(args: Namespace, net: nn.Module) -> GroupSpikeSlab:
    """On all convolutions."""
    groups = GROUPS[args.group]
    return GroupSpikeSlab(
        [module.weight for module in net.modules() if isinstance(module, nn.Conv2d)],
        sum(p.numel() for p in net.parameters()),
        groups=groups,
        rule=keep_wide if args.rule == "range" else keep_large(groups),
        eps0=args.eps0,
        eps1=args.eps1,
        soft=args.soft,
        hard=args.hard,
    )


def cut(net: nn.Module, shape: tuple[int, int, int]) -> nn.Module:
    """The network without the channels that are zero or that nothing reads; a layer keeps one at least."""
    return cut_channels(net, shape, *zero_channels(net), keep_one=True)


class Chain(Classifier):
    """One network of one seed."""

    def __init__(self, args: Namespace, data: ImageData, seed: int, folder: Path | None = None):
        torch.manual_seed(stream(seed, "init").initial_seed())
        net = network(args, data)
        sources = generators(seed, data)
        with options.about("-eps0"):
            prior = group_prior(args, net)
        if args.c == "em":
            with options.about("-lr, -temperature, -eta"):
                sampler = PreconditionedSGHMC(
                    net.parameters(),
                    args.lr,
                    observations=len(data.train),
                    temperature=args.temperature if args.temperature is not None else 1 / len(data.train),
                    momentum=args.momentum,
                    eta=args.eta,
                    decay=prior.decay,
                    noise=FlatNoise(sources["noise"]),
                )
        else:
            sampler = torch.optim.SGD(net.parameters(), args.lr, args.momentum, weight_decay=args.eps1)
        super().__init__(
            args,
            f"{args.data} {args.model} {args.c} seed {seed}",
            data,
            net,
            recipe(args),
            sampler,
            prior=None,  # of one weight by itself
            pruner=prior,
            generators=sources,
            folder=folder,
        )

    def member_epochs(self) -> list[int]:
        """Epochs after which the network joins the ensemble: the last ones of every cycle, sparse ones if it prunes."""
        args, length = self.args, self.args.sn // self.args.cycles
        last = [e for e in range(1, args.sn + 1) if (e - 1) % length >= length - args.samples_per_cycle]
        return [e for e in last if args.dense or e > args.warmup]

    def epoch(self) -> None:
        """EM, then the sampler, over one pass through the training images."""
        args, done = self.args, self.iterations // self.batches
        if not args.dense and done >= args.warmup:
            self.pruner.update()  # decays and masks
            self.pruner.prune()
        order = torch.randperm(self.observations, generator=self.generators["order"])[: self.batches * args.train]
        rank, world, total = distributed.rank(), distributed.world(), args.sn * self.batches
        for x, y in self.data.train.batches(*distributed.share(order, args.train)):
            self.iterations += 1
            self.sampler.param_groups[0]["lr"] = cosine_cycle(args.lr, total, args.cycles, self.iterations)
            self.net.train()
            self.net.zero_grad()
            x = self.recipe.augment(x, self.generators["augment"], rank, world)
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
                logits = self.forward(x)
            loss = cross_entropy(logits, y)  # the mean loss, not the potential: the sampler knows N
            loss.backward()
            self.sampler.step()
            if not args.dense:
                self.pruner.prune()  # what is masked stays zero
            self.finite += loss.detach() < torch.inf
        if done + 1 in self.member_epochs():
            self.keep_sample(weight=1.0)

    def progress(self) -> dict[str, float]:
        row = super().progress()
        if not self.args.dense:
            row |= {f"groups_{name}": share for name, share in self.pruner.summary().items()}
        if self.args.c == "em":
            taus = torch.cat([self.sampler.tau(p).flatten() for p in self.net.parameters()])
            row |= {"tau_mean": float(taus.mean()), "tau_sd": float(taus.std())}
        return row

    def result(self) -> dict:
        """Numbers of table.csv."""
        row, small, shape = super().result(), cut(self.net, self.data.shape), self.data.shape
        row |= {f"groups_{name}": share for name, share in self.pruner.summary().items()}
        outputs = [sum(m.out_channels for m in net.modules() if isinstance(m, nn.Conv2d)) for net in (small, self.net)]
        probabilities = predict(member(small, self.recipe, amp=self.amp), self.data.test, self.args.test).exp()
        return row | {
            "accuracy_cut": scores(probabilities, self.data.test.y)["accuracy"],
            "channels_cut": outputs[1] - outputs[0],
            "channels": outputs[1],
            "empty_layers": sum(not bool(w.any()) for w in self.pruner.layers),
            "parameters_cut": shrunk.parameters(small),
            "flops": shrunk.flops(small, shape),
            "flops_dense": shrunk.flops(self.net, shape),
        }

    def store(self, run: Run, weights: bool) -> None:
        """Also members.csv, a row per member of the ensemble, and layers.csv."""
        super().store(run, weights)
        if run.writes:
            members = pd.DataFrame(self.sample_scores)
            members.insert(0, "epoch", self.member_epochs()[: len(members)])
            write_csv(run.folder / "members.csv", members)
            write_csv(run.folder / "layers.csv", layer_table(self.net, self.data.shape))


def parse(argv: list[str] | None = None):
    parser = options.Parser(description="EM-MCMC on images: sampling, pruning and a snapshot ensemble in one run.")
    options.add_image_options(parser, names=images.NAMES, data="cifar10", aug=1, train=64)
    parser.add_argument("-model", choices=MODELS, default="resnet18", help="network")
    parser.add_argument("-scale", type=options.positive, default=1.0, help="width of all layers, in units of -model's")
    parser.add_argument("-c", choices=SAMPLER, default="em", help="em: EM-MCMC; sgd: SGD with momentum, dense")
    parser.add_argument("-sn", type=options.count, default=200, help="epochs, a multiple of -cycles")
    about = "members of the ensemble from the end of every cycle; with pruning, from those after the warm-up"
    parser.add_argument("-samples_per_cycle", type=options.count, default=3, help=about)
    options.add_em_options(parser, lr="1, sgd 0.05", momentum=None, temperature="1/N", cycles=4)
    group = options.add_group_options(parser, eps0=1e-3, eps1=5e-4, soft=1e-4, hard=0.01, warmup=None)
    group.add_argument("-group", choices=GROUPS, default="kernel", help="weights of a convolution switched together")
    about = "pruned: channels whose weights' range, or groups whose mean square is under -hard"
    group.add_argument("-rule", choices=RULES, default="range", help=about)
    options.add_device_options(parser)
    options.add_run_options(parser)
    kept = options.add_kept_options(parser)
    kept.add_argument("-export", default=None, metavar="DIR", help="write the network as cut there, .pt2 and ONNX")
    kept.add_argument("-speed", type=options.switch, default=1, help="1: time the network as cut, if channels went")
    args = parser.parse_args(argv)
    values = SAMPLER[args.c] | {"warmup": round(WARMUP * args.sn)}
    parser.fill(args, values)
    if args.c == "sgd":
        args.dense = 1
    parser.set_defaults(dense=int(args.c == "sgd"))
    return parser, args


def cut_parts(args: Namespace, data: ImageData, runs: dict[int, Run]) -> None:
    """-speed and -export: the network as cut of every finished seed."""
    where, places = device.resolve(args.device), folders(args, Path(args.export or "."))
    for seed, run in runs.items():
        net = network(args, data)
        load_pretrained(net, run.folder)
        net = net.to(memory_format=torch.channels_last).eval()
        small = cut(net, data.shape)
        if args.speed and shrunk.parameters(small) < shrunk.parameters(net):
            times = shrunk.record_speed(run, seed, net, small, data.shape, where)
            print(f"seed {seed}: " + ", ".join(f"{name} {x:.2f}x" for name, x in times.items() if x))
        if args.export:
            sizes = shrunk.save(small, data.shape, places[seed])
            print(f"{places[seed]}: {shrunk.parameters(small):,} parameters, {sizes['pt2']:,} bytes")


def show(table: pd.DataFrame) -> None:
    """Print mean +- sd over seeds."""
    by = ["data", "model", "method", "dense"]
    metrics = [
        m for m in (*METRICS, *AVERAGED, "samples", "sparsity", "parameters_kept", "groups_pruned") if m in table
    ]
    metrics += ["channels_cut", "channels", "accuracy_cut", "parameters_cut", "flops", "flops_dense"]
    ours = report.over_seeds(table, by, metrics)
    print(report.formatted(ours, by, metrics, digits=4).T.to_string(header=False))
    print("mean +- sd over n seeds, of the last network; _averaged: of the ensemble; _cut: of the network as cut")


def check(args: Namespace) -> None:
    """Raise ValueError where flags contradict each other."""
    options.check_warmup(args, args.sn)
    if args.sn % args.cycles:
        raise ValueError(f"argument -sn: {args.sn} epochs are no multiple of {args.cycles} cycles")
    if args.samples_per_cycle > args.sn // args.cycles:
        raise ValueError(
            f"argument -samples_per_cycle: {args.samples_per_cycle} of a cycle of {args.sn // args.cycles} epochs"
        )
    if args.scale != 1 and args.model not in SCALABLE:
        raise ValueError(f"argument -scale: {args.model} has one width; {', '.join(SCALABLE)} have any above 0")


def main() -> int:
    parser, args = parse()
    device.prepare()
    name = parser.folder_name(args, f"{args.c}_{args.data}_{args.model}", (*NOT_IDENTITY, "c", "data", "model"))
    with parser.checked():
        check(args)
        where = device.resolve(args.device)
        distributed.start(where)
        distributed.share(torch.arange(args.train), args.train)  # checks -train
        data = images.load(args.data, args.data_dir, args.size, workers=args.workers).to(where)
        Chain(args, split(args, data, args.seed), args.seed)  # checks the settings
        check_kept(args)
        run = Run("em_cnn", name, vars(args))
    places = folders(args, run.folder)
    key = {"data": args.data, "model": args.model, "scale": args.scale, "aug": args.aug}
    key |= {"method": args.c, "dense": args.dense}

    def fit_one(seed: int, each: Run) -> str:
        return fit(args, Chain(args, split(args, data, seed), seed, places[seed]), each, key, seed)

    runs, diverged = fit_seeds(args, run, key, fit_one)
    if distributed.rank() == 0:
        show(table_of(runs))
        if args.save:
            cut_parts(args, data, runs)
    return conclude(run, diverged)


if __name__ == "__main__":
    options.run_script(main)
