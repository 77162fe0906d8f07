"""A training step of posterior_cnn.py against the same step with torch.optim.SGD, and its data.

    python -m benchmarks.posterior_cnn

The images are random bytes of the shape of MNIST and CIFAR10, so that no download is needed. Float32
on all cores; the augmentation on one.
"""

from __future__ import annotations

import torch
from torchvision.transforms import v2

from benchmarks.plain_loop import PlainLoop, fake
from benchmarks.record import record
from data.augment import RAW, RECIPES
from experiment import device
from experiment.timing import interleaved
from model.model_zoo_mnist import ConvNet
from posterior_cnn import Chain, parse

IMAGES = {128: 1280, 1000: 4000}  # minibatch size: images of an epoch


def steps(batch: int) -> None:
    """Images per second of one epoch under every method."""
    data = fake(IMAGES[batch], (1, 28, 28))
    net = ConvNet(data.shape, 10).to(memory_format=torch.channels_last)
    programs = {"torch.optim.SGD, momentum": PlainLoop(net, data, batch, RAW, lr=1e-4)}
    for method in ("sa", "sghmc"):
        _, args = parse(["-c", method, "-train", str(batch), "-sn", "100000", "-lr", "1e-9"])
        programs[f"-c {method}"] = Chain(args, data, seed=1)
    seconds = interleaved({name: program.epoch for name, program in programs.items()}, rounds=15)
    record(f"posterior_cnn, batch {batch}", "images/s", {name: IMAGES[batch] / s for name, s in seconds.items()})


def loading(name: str) -> None:
    """Images per second of an epoch with -aug 1, and of its minibatches and their augmentation alone."""
    data = fake(2000, (1, 28, 28))
    _, args = parse(["-data", name, "-aug", "1", "-lr", "1e-9"])
    chain = Chain(args, data, seed=1)

    def batches() -> None:
        for x, _ in data.train.batches(torch.randperm(len(data.train)), args.train):
            chain.recipe.augment(x, chain.generators["augment"])

    seconds = interleaved({"epoch": chain.epoch, "minibatches and augmentation": batches})
    record(f"posterior_cnn, {name} -aug 1", "images/s", {case: 2000 / s for case, s in seconds.items()})


def augmentation() -> None:
    """1000 CIFAR images: one batch on one thread, against torchvision's transforms image by image."""
    recipe, x = RECIPES["cifar10"], fake(1000, (3, 32, 32)).train.x
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
    seconds = interleaved(alternatives)
    torch.set_num_threads(threads)
    record("augmentation of CIFAR images, one thread", "images/s", {name: 1000 / s for name, s in seconds.items()})


def main() -> None:
    device.prepare()
    for batch in IMAGES:
        steps(batch)
    for name in ("mnist", "fmnist"):
        loading(name)
    augmentation()


if __name__ == "__main__":
    main()
