"""What a finished classifier is worth beyond its test accuracy: under attack, and on other data.

A Bayesian run is assessed as the mixture of the samples in its folder, any other run as its last
network. Results go to attack.csv, ood.csv and their raw material for the figures.
"""

from __future__ import annotations

import pandas as pd
import torch
from safetensors.torch import save_file
from torch import nn

from data.augment import Recipe
from data.image_sets import ImageData

from .adversarial import Member, accuracy_curves
from .classification import detection, entropy, mutual_information
from .evaluation import member, predictive
from .run import Run, RunError, part, replace_file, write_csv
from .samples import load_samples
from .training import load_network

SIDES = ("inside", "outside")
ZETAS = [i / 20 for i in range(11)]


def load_members(run: Run, net: nn.Module, recipe: Recipe, averaged: bool) -> list[Member]:
    """The networks of a run as functions of pixels in [0, 1].

    averaged: the samples of its posterior average, else the last network of its checkpoint.

    Raises:
        RunError: they are missing, damaged, or of another network.
    """
    device = next(net.parameters()).device
    checkpoint = run.load()
    if checkpoint is None:
        raise RunError(f"{run.folder} holds no checkpoint: not the folder of a trained run")
    tensors = checkpoint[0]
    sets = {run.folder: part("net", tensors)}
    if averaged:
        sets = load_samples(run.folder, int(tensors["average.samples"]))
    members = []
    for source, weights in sets.items():
        try:
            load_network(net, weights)
        except ValueError as error:
            raise RunError(f"{source} holds the weights of another network: {error}") from error
        members.append(member(net, recipe, {name: x.to(device) for name, x in weights.items()}))
    return members


def attack(
    run: Run, members: list[Member], data: ImageData, key: dict, images: int, pgd_images: int, pgd_steps: int
) -> None:
    """attack.csv: accuracy against zeta of the first `images` test images under FGSM, `pgd_images` under PGD."""
    some = data.test.subset(torch.arange(min(images, len(data.test))))
    rows, example = accuracy_curves(members, some, ZETAS, pgd_steps, pgd_images, key["seed"])
    table = pd.DataFrame([key | row for row in rows])
    write_csv(run.folder / "attack.csv", table)
    replace_file(run.folder / "attack_example.safetensors", lambda path: save_file({"example": example}, path))
    shown = table[table["zeta"].isin([0, 0.1, 0.2, 0.3, 0.5])].pivot(index="attack", columns="zeta", values="accuracy")
    print(f"\naccuracy (%) under attack, {len(members)} networks averaged, seed {key['seed']}:")
    print(shown.round(2).to_string())


def out_of_distribution(run: Run, members: list[Member], data: ImageData, outside: ImageData, key: dict) -> None:
    """ood.csv: how well entropy and mutual information tell the test images from those of `outside`."""
    mixtures = [predictive(members, images.test, len(data.classes)) for images in (data, outside)]
    measures = {"entropy": [entropy(each.probabilities()).cpu() for each in mixtures]}
    if len(members) > 1:  # the information of a single network is zero
        measures["mutual_information"] = [
            mutual_information(each.probabilities(), each.mean_entropy()).cpu() for each in mixtures
        ]
    table = pd.DataFrame(
        [key | {"score": name} | detection(*(x.numpy() for x in pair)) for name, pair in measures.items()]
    )
    write_csv(run.folder / "ood.csv", table)
    tensors = {f"{name}_{side}": x for name, pair in measures.items() for side, x in zip(SIDES, pair, strict=True)}
    replace_file(run.folder / "ood.safetensors", lambda path: save_file(tensors, path))
    print(f"\nout of distribution:\n{table.round(4).to_string(index=False)}")
