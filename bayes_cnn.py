"""Sparse residual networks on CIFAR10: dense sampling, then sparse fine-tuning (Deng et al., NeurIPS 2019).

    python bayes_cnn.py -lr 2e-6 -invT 20000 -save 1 -prune 0
    python bayes_cnn.py -lr 2e-9 -invT 1000 -anneal 1.005 -v0 0.005 -v1 1e-5 -sparse 0.9 -c sa -prune 1

-prune 0 samples a dense network with weight decay. -prune 1 starts from it: SGHMC with the spike-and-slab
prior on the convolutions, adapted by SA, EM, or fixed, and magnitude pruning in every iteration.
"""

from __future__ import annotations

from argparse import Namespace
from pathlib import Path

import pandas as pd
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.functional import cross_entropy

from data import images
from data.augment import RECIPES, Recipe
from data.image_sets import ImageData, hold_out
from experiment import device, options
from experiment.board import Board, summary_writer
from experiment.classifier import Classifier
from experiment.pretrained import read_weights
from experiment.run import Diverged, Run, replace_file
from experiment.training import load_network, train
from model.resnet import ResNet
from sampler import SGHMC, FlatNoise, MagnitudePruner, SSGLPrior
from sampler.noise import stream
from sampler.schedules import RobbinsMonro, adaptation, annealed
from sampler.sgmcmc import check_sghmc

PRESETS = {0.3: (0.5, 1e-3), 0.5: (0.1, 5e-4), 0.7: (0.1, 5e-5), 0.9: (0.005, 1e-5)}  # sparsity: v0, v1, published
EPOCH = 50  # iterations of a published epoch: 50,000 images in minibatches of 1000


def recipe(args: Namespace) -> Recipe:
    """The data set's normalisation, with its augmentation only if -aug 1."""
    full = RECIPES[args.data]
    return full if args.aug else Recipe(mean=full.mean, sd=full.sd)


def network(args: Namespace, data: ImageData) -> nn.Module:
    """The network of the flags, on the device."""
    with options.about("-depth"):
        net = ResNet(args.depth, data.shape, len(data.classes))
    return net.to(device.resolve(args.device), memory_format=torch.channels_last)


def ssgl_prior(args: Namespace, net: nn.Module, observations: float) -> SSGLPrior:
    """SSGL on the sparse layers, N(0, 1/(wdecay N)) on the rest; without -prune the latter on all."""
    params = dict(net.named_parameters())
    sparse = [params[name] for name in net.sparse_layers]
    rest = [p for name, p in params.items() if name not in net.sparse_layers]
    plain = not args.prune  # the SSGL form with kappa0 = 0, kappa1 = precision, sigma = 1, and omega = 0
    precision = args.wdecay * observations
    return SSGLPrior(
        sparse,
        v0=args.v0,
        v1=args.v1,
        a=args.a,
        b=args.b,
        nu=args.nu,
        lamda=args.lamda,
        # + 1: the released counter is one ahead
        omega=adaptation("sghmc" if plain else args.c, RobbinsMonro(args.dc, args.da + 1, args.dalpha)),
        sigma=1.0 if plain else args.sd,
        kappa0=0.0 if plain else args.wdecay,
        kappa1=precision if plain else args.wdecay,
        delta=args.theta,
        fix_scale=bool(args.fix_scale),
        gaussian=rest,
        precision=precision,
    )


class Chain(Classifier):
    """One network of one seed."""

    def __init__(self, args: Namespace, data: ImageData, seed: int, folder: Path | None = None):
        self.args = args
        torch.manual_seed(stream(seed, "init").initial_seed())
        net = network(args, data)
        if args.pretrained:
            with options.about("-pretrained"):
                load_network(net, read_weights(Path(args.pretrained)))
        self.n = args.N or len(data.train)  # N of the potential
        generators = {"order": stream(seed, "order")}
        generators |= {name: stream(seed, name, device=data.train.y.device) for name in ("augment", "noise")}
        with options.about("-momentum"):
            check_sghmc(args.lr, args.momentum)
        noise = FlatNoise(generators["noise"])
        sampler = SGHMC(net.parameters(), lr=args.lr, momentum=args.momentum, invT=args.invT, noise=noise)
        prior = ssgl_prior(args, net, self.n)
        total = sum(p.numel() for p in net.parameters())
        with options.about("-sparse"):
            # offset 1: the released counter is one ahead
            pruner = MagnitudePruner(prior.layers, total, args.sparse if args.prune else 0.0, args.cut, args.gap, 1)
        super().__init__(
            f"{args.data} {args.c if args.prune else 'dense'} seed {seed}",
            data,
            net,
            recipe(args),
            sampler,
            prior,
            pruner,
            generators,
            amp=bool(args.amp),
            compiled=bool(args.compile),
            test_batch=args.test,
            folder=None,
            board=Board(folder if args.tensorboard else None),
        )
        self.batches = self.observations // args.train  # per epoch; the last partial batch is dropped

    def epoch(self) -> None:
        """Algorithm 1 over one pass through the training images."""
        args, done = self.args, self.iterations // self.batches
        order = torch.randperm(self.observations, generator=self.generators["order"])[: self.batches * args.train]
        lr = args.lr * 0.1 ** sum(done >= milestone for milestone in args.milestones)
        self.sampler.param_groups[0].update(lr=lr, invT=annealed(args.invT, args.anneal, done))
        for x, y in self.data.train.batches(order, args.train):
            self.net.train()
            self.net.zero_grad()
            x = self.recipe.augment(x, self.generators["augment"])
            with torch.autocast(self.device.type, torch.bfloat16, enabled=self.amp):
                logits = self.forward(x)
            potential = self.n * cross_entropy(logits, y)  # on the scale of the whole data set
            potential.backward()
            self.prior.add_grad()
            self.sampler.step()
            self.prior.update()
            self.pruner.step()
            self.iterations += 1
            self.finite += potential.detach() < torch.inf
        if done >= args.sn - args.average:
            self.keep_sample()


def parse(argv: list[str] | None = None):
    parser = options.Parser(description="Sparse residual networks by SGHMC-SA, SGHMC-EM and SGHMC.")
    parser.add_argument("-data", choices=images.NAMES, default="cifar10", help="data set")
    parser.add_argument("-data_dir", default=None, help="data folder; default BSDL_DATA, else data/cache")
    parser.add_argument("-size", type=options.count, default=None, help="-data folder: scale images to size x size")
    parser.add_argument("-workers", type=options.whole, default=2, help="processes that read images from disk")
    parser.add_argument("-depth", type=options.count, default=20, help="depth of the ResNet, 6 n + 2")
    parser.add_argument("-c", choices=("sa", "em", "sghmc"), default="sa", help="omega_k of the latent variables")
    parser.add_argument("-aug", type=options.switch, default=1, help="1: augmented training images")
    parser.add_argument("-pretrained", default=None, help="weights to start from: a file, or the folder of a run")
    parser.add_argument("-invT", type=options.positive, default=1000.0, help="inverse temperature")
    parser.add_argument("-anneal", type=options.at_least_one, default=1.0, help="invT grows by it per epoch")
    parser.add_argument("-lr", type=options.positive, default=2e-9, help="step size")
    parser.add_argument("-momentum", type=options.fraction, default=0.9, help="1 - friction")
    parser.add_argument("-wdecay", type=options.non_negative, default=5e-4, help="Gaussian prior of precision wdecay N")
    parser.add_argument("-N", type=options.positive, default=None, help="observations of the potential; default: all")
    parser.add_argument("-sn", type=options.count, default=1000, help="epochs")
    parser.add_argument("-milestones", type=options.whole, nargs="*", default=None, help="epochs after which lr falls")
    parser.add_argument("-average", type=options.whole, default=0, help="posterior average over the last epochs")
    parser.add_argument("-train", type=options.count, default=1000, help="minibatch size")
    parser.add_argument("-test", type=options.count, default=1000, help="minibatch size of evaluations")
    parser.add_argument("-val", type=options.fraction, default=0.0, help="evaluate on this share of the training part")
    prior = options.add_prior_options(parser, v1=1e-5, a=2.7e5, b=2.7e5, sd=1.0, nu=1000.0, lamda=1000.0)
    prior.add_argument("-v0", type=options.positive, default=0.005, help="scale of the spike")
    prior.add_argument("-theta", type=options.open_unit, default=0.5, help="delta_0, initial inclusion rate")
    prior.add_argument("-fix_scale", type=options.switch, default=0, help="1 keeps delta and sigma^2 fixed")
    options.add_adaptation_options(parser, dc=0.02, da=1000.0, dalpha=0.75)
    pruning = options.add_pruning_options(parser, sparse=0.9)
    pruning.add_argument("-prune", type=options.switch, default=0, help="1: sparse fine-tuning of a dense network")
    parser.add_argument("-scale_to", type=options.count, default=None, metavar="T0", help="see below")
    options.add_device_options(parser)
    options.add_run_options(parser)
    run = parser.add_argument_group("what is kept")
    run.add_argument("-save", type=options.switch, default=1, help="1: the last network, model.safetensors")
    run.add_argument("-tensorboard", type=options.switch, default=0, help="1: metrics for TensorBoard as well")
    args = parser.parse_args(argv)
    if args.milestones is None:
        args.milestones = [args.sn * 7 // 10, args.sn * 9 // 10]
    return parser, args


def scaled(args: Namespace, iterations: int) -> Namespace:
    """The schedules of a run of args.scale_to iterations, squeezed into `iterations`."""
    if not args.scale_to:
        return args
    ratio = args.scale_to / iterations
    published_epochs = args.scale_to / EPOCH
    changed = {
        "lr": args.lr * ratio,
        "gap": args.gap / ratio,
        "da": args.da / ratio,
        "dc": args.dc * ratio ** (1 - args.dalpha),
        "anneal": args.anneal ** (published_epochs / args.sn),
    }
    return Namespace(**(vars(args) | changed))


def fit(args: Namespace, data: ImageData, seed: int, run: Run) -> str:
    """Train one seed, and write its results; returns '' or how it diverged."""
    if args.resume and run.finished:
        return ""
    chain = Chain(args, data, seed, run.folder)
    if not train(chain, run, args.sn, bool(args.resume)):
        return chain.divergence()
    files = {"predictions": chain.predictions()} | ({"model": chain.net.state_dict()} if args.save else {})
    for name, tensors in files.items():
        tensors = {key: x.cpu().contiguous() for key, x in tensors.items()}
        replace_file(run.folder / f"{name}.safetensors", lambda path, tensors=tensors: save_file(tensors, path))
    row = {"data": args.data, "aug": args.aug, "method": args.c if args.prune else "dense", "seed": seed}
    table = pd.DataFrame([row | chain.result()])
    run.finish(table, table.drop(columns=list(row)).astype(float).mean().to_dict() | {"seconds": run.seconds})
    print(table.T.to_string(header=False))
    return ""


def main() -> int:
    parser, args = parse()
    device.prepare()
    data = images.load(args.data, args.data_dir, args.size, workers=args.workers).to(device.resolve(args.device))
    if args.val:
        data = hold_out(data, args.val, args.seed)
    run = Run("bayes_cnn", f"{args.c}_seed{args.seed}", vars(args))
    args = scaled(args, args.sn * (len(data.train) // args.train))
    if failed := fit(args, data, args.seed, run):
        raise Diverged(failed)
    return 0


if __name__ == "__main__":
    options.run_script(main)
