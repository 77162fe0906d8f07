"""A training step of posterior_cnn.py against the same step with torch.optim.SGD, and its data.

    python -m benchmarks -only posterior_cnn

The images are random bytes of the shape of MNIST and CIFAR10, so that no download is needed. Float32
on all cores; the augmentation on one.
"""

from __future__ import annotations

import torch
from torchvision.transforms import v2

from benchmarks.plain_loop import PlainLoop, fake
from benchmarks.record import Bench
from data.augment import RAW, RECIPES
from experiment import device
from model.model_zoo_mnist import ConvNet
from posterior_cnn import Chain, parse

IMAGES = {128: 1280, 1000: 2000}  # minibatch size: images of an epoch


def steps(bench: Bench, batch: int, images: int) -> None:
    """Images per second of one epoch under every method."""
    data = fake(images, (1, 28, 28))
    net = ConvNet(data.shape, 10).to(memory_format=torch.channels_last)
    programs = {"torch.optim.SGD, momentum": PlainLoop(net, data, batch, RAW, lr=1e-4)}
    for method in ("sa", "sghmc"):
        _, args = parse(["-c", method, "-train", str(batch), "-sn", "100000", "-lr", "1e-9"])
        programs[f"-c {method}"] = Chain(args, data, seed=1)
    seconds = bench.seconds({name: program.epoch for name, program in programs.items()}, rounds=9)
    bench.record(f"posterior_cnn, batch {batch}", "images/s", {name: images / s for name, s in seconds.items()})


def loading(bench: Bench, name: str, images: int) -> None:
    """Images per second of an epoch with -aug 1, and of its minibatches and their augmentation alone."""
    data = fake(images, (1, 28, 28))
    train = str(min(images, 1000))
    _, args = parse(["-data", name, "-aug", "1", "-lr", "1e-9", "-train", train])
    chain = Chain(args, data, seed=1)

    def batches() -> None:
        for x, _ in data.train.batches(torch.randperm(len(data.train)), args.train):
            chain.recipe.augment(x, chain.generators["augment"])

    seconds = bench.seconds({"epoch": chain.epoch, "minibatches and augmentation": batches}, rounds=7)
    bench.record(f"posterior_cnn, {name} -aug 1", "images/s", {case: images / s for case, s in seconds.items()})


def augmentation(bench: Bench, images: int) -> None:
    """CIFAR images: one batch on one thread, against torchvision's transforms image by image."""
    recipe, x = RECIPES["cifar10"], fake(images, (3, 32, 32)).train.x
    reference = v2.Compose(
        [
            v2.RandomCrop(32, padding=recipe.padding),
            v2.RandomHorizontalFlip(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(recipe.mean, recipe.sd),
            v2.RandomErasing(0.5, (0.02, 0.4), (0.3, 1 / 0.3), recipe.erase),
        ]
    )
    alternatives = {
        "torchvision, image by image": lambda: torch.stack([reference(image) for image in x]),
        "data.augment, whole batch": lambda: recipe.augment(x, torch.default_generator),
    }
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    seconds = bench.seconds(alternatives, rounds=7)
    torch.set_num_threads(threads)
    bench.record(
        "augmentation of CIFAR images, one thread", "images/s", {name: images / s for name, s in seconds.items()}
    )


def main(bench: Bench) -> None:
    device.prepare()
    for batch, images in bench.size(IMAGES, {16: 16}).items():
        steps(bench, batch, images)
    for name in ("mnist", "fmnist"):
        loading(bench, name, bench.size(2000, 16))
    augmentation(bench, bench.size(1000, 16))
