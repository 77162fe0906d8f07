"""Finished runs: their members, their attack.csv and ood.csv, and refusal of what is missing or damaged."""

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from data.augment import RAW, Recipe
from data.image_sets import ImageData, MemoryImages
from experiment.adversarial import ATTACKS, accuracy_curves
from experiment.assessment import ZETAS, attack, load_members, out_of_distribution
from experiment.classification import detection, entropy, mutual_information
from experiment.evaluation import member, predict, predictive
from experiment.packing import pack
from experiment.predictive import CategoricalMixturePredictive
from experiment.run import Run, RunError, joined
from experiment.samples import SAMPLES

CLASSES = 3
KEY = {"data": "toy", "method": "sa", "seed": 4}
RECIPE = Recipe(mean=(0.3,), sd=(0.5,))


def network(seed: int = 0, channels: int = 1, width: int = 40) -> nn.Sequential:
    """With a layer of which 90% are zero, and batch norm's buffers."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(channels, 2, 3), nn.BatchNorm2d(2), nn.Flatten(), nn.Linear(32, width), nn.ReLU(),
            nn.Linear(width, CLASSES),
        )  # fmt: skip
        with torch.no_grad():
            net[1].running_mean.uniform_(-0.5, 0.5)
            net[3].weight.mul_(10 * (torch.rand(width, 32) < 0.1))
            net[5].weight.mul_(5)
    return net


def images(n: int, channels: int = 1, seed: int = 0) -> MemoryImages:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randint(0, 256, (n, channels, 6, 6), generator=generator, dtype=torch.uint8)
    return MemoryImages(x, torch.randint(CLASSES, (n,), generator=generator))


def opened(folder, *, resume: int = 1) -> Run:
    return Run("script", "name", {"out": str(folder), "resume": resume, "save_every": 10.0})


def finished(folder, samples: int, **shape) -> Run:
    """A run that kept the networks of seeds 1, 2, ..., and whose last network is that of seed 0."""
    run = opened(folder, resume=0)
    average = CategoricalMixturePredictive(5, CLASSES)
    (folder / SAMPLES).mkdir()
    for i in range(1, samples + 1):
        average.update(torch.zeros(5, CLASSES).log_softmax(-1))
        save_file(pack(network(i, **shape).state_dict()), folder / SAMPLES / f"{i:05d}.safetensors")
    parts = {"net": network(0, **shape).state_dict(), "average": average.state_dict()}
    run.save(joined(parts), {"done": 1}, [{"epoch": 1}])
    return run


@pytest.fixture
def run(tmp_path) -> Run:
    return finished(tmp_path, 3)


def same_predictions(members, nets) -> bool:
    some = images(20)
    pairs = zip(members, nets, strict=True)
    return all(torch.equal(predict(each, some), predict(member(net, RECIPE), some)) for each, net in pairs)


def test_the_members_of_an_average_are_its_samples(run):
    members = load_members(run, network(9), RECIPE, averaged=True)
    assert len(members) == 3 and same_predictions(members, [network(i) for i in (1, 2, 3)])


def test_the_member_of_another_run_is_its_last_network(run):
    members = load_members(run, network(9), RECIPE, averaged=False)
    assert len(members) == 1 and same_predictions(members, [network(0)])


def test_samples_are_in_the_order_in_which_they_were_drawn(tmp_path):
    run = finished(tmp_path, 11)
    assert same_predictions(load_members(run, network(9), RECIPE, True), [network(i) for i in range(1, 12)])


def test_samples_that_the_checkpoint_does_not_know_are_left_out(run):
    save_file(pack(network(8).state_dict()), run.folder / SAMPLES / "00004.safetensors")
    (run.folder / SAMPLES / "00005.safetensors").write_bytes(b"written by half")
    (run.folder / SAMPLES / "notes.txt").write_text("mine")
    assert same_predictions(load_members(run, network(9), RECIPE, True), [network(i) for i in (1, 2, 3)])


def refused(run: Run, averaged: bool = True, **shape) -> str:
    with pytest.raises(RunError) as error:
        load_members(run, network(9, **shape), RECIPE, averaged)
    assert "\n" not in str(error.value) and str(run.folder) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("averaged", [True, False])
def test_a_folder_without_a_checkpoint(tmp_path, averaged):
    assert "no checkpoint" in refused(opened(tmp_path, resume=0), averaged)


@pytest.mark.parametrize("averaged", [True, False])
def test_a_damaged_checkpoint(run, averaged):
    path = run.folder / "checkpoint.safetensors"
    path.write_bytes(path.read_bytes()[:-10])
    assert "damaged" in refused(run, averaged)


@pytest.mark.parametrize("folder", ["absent", "empty", "none drawn"])
def test_no_samples(tmp_path, folder):
    run = finished(tmp_path, 0 if folder == "none drawn" else 2)
    for path in (tmp_path / SAMPLES).iterdir():
        path.unlink()
    if folder == "absent":
        (tmp_path / SAMPLES).rmdir()
    assert "-save_samples" in refused(run)
    assert same_predictions(load_members(run, network(9), RECIPE, False), [network(0)])


@pytest.mark.parametrize("lost", [1, 2, 3])
def test_a_lost_sample_is_not_passed_over(run, lost):
    (run.folder / SAMPLES / f"{lost:05d}.safetensors").unlink()
    refused(run)


def damage(path, how: str) -> None:
    if how == "truncated":
        path.write_bytes(path.read_bytes()[:-100])
    elif how == "header cut":
        path.write_bytes(path.read_bytes()[:20])
    elif how == "empty":
        path.write_bytes(b"")
    elif how == "noise":
        path.write_bytes(np.random.default_rng(0).bytes(1000))
    else:
        packed = load_file(path)
        if how == "values cut":
            packed["3.weight:values"] = packed["3.weight:values"][:-1]
        else:
            del packed["3.weight:shape" if how == "no shape" else "3.weight:values"]
        save_file(packed, path)


@pytest.mark.parametrize("how", ["truncated", "header cut", "empty", "noise", "values cut", "no shape", "no values"])
def test_a_damaged_sample(run, how):
    damage(run.folder / SAMPLES / "00002.safetensors", how)
    assert "the sample" in refused(run) and "damaged" in refused(run)


def test_a_sample_of_another_network(run):
    path = run.folder / SAMPLES / "00002.safetensors"
    save_file(pack(network(2, width=50).state_dict()), path)
    assert "00002.safetensors" in refused(run) and "3.bias has shape (50,)" in refused(run)
    save_file({"fc.weight": torch.ones(3)}, path)
    assert "00002.safetensors" in refused(run) and "another model" in refused(run)


@pytest.mark.parametrize("averaged", [True, False])
def test_a_run_of_another_network(run, averaged):
    assert "another network: 3.bias has shape (40,), the network here (7,)" in refused(run, averaged, width=7)


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("averaged", [True, False])
def test_attack_writes_accuracies_and_an_example(tmp_path, capsys, averaged, channels):
    run = finished(tmp_path, 2, channels=channels)
    members = load_members(run, network(9, channels), RAW, averaged)
    data = ImageData(("a", "b", "c"), images(5, channels), images(60, channels))
    attack(run, members, data, KEY, images=40, pgd_images=15, pgd_steps=3)
    table = pd.read_csv(tmp_path / "attack.csv")
    assert list(table) == [*KEY, "attack", "zeta", "n", "accuracy"]
    assert (table[list(KEY)] == list(KEY.values())).all(axis=None)
    assert list(table["attack"]) == [name for name in ATTACKS for _ in range(11)]
    assert [row.n for row in table.itertuples()] == [15 if name == "pgd" else 40 for name in table["attack"]]
    rows, example = accuracy_curves(
        members, data.test.subset(torch.arange(40)), [0.05 * i for i in range(11)], 3, 15, KEY["seed"]
    )
    np.testing.assert_allclose(table["zeta"], [row["zeta"] for row in rows], rtol=1e-12)
    np.testing.assert_allclose(table["accuracy"], [row["accuracy"] for row in rows])
    assert table["accuracy"].nunique() > 3
    stored = load_file(tmp_path / "attack_example.safetensors")
    assert stored.keys() == {"example"} and stored["example"].shape == (11, channels, 6, 6)
    torch.testing.assert_close(stored["example"], example)
    printed = capsys.readouterr().out
    assert f"{len(members)} networks averaged, seed 4" in printed and all(name in printed for name in ATTACKS)


@pytest.mark.parametrize("pgd_images, attacks", [(0, ATTACKS[:2]), (1000, ATTACKS)])
def test_attack_with_fewer_images_than_asked_for(run, pgd_images, attacks):
    data = ImageData(("a", "b", "c"), images(5), images(12))
    attack(run, load_members(run, network(9), RAW, True), data, KEY, 10_000, pgd_images, 1)
    table = pd.read_csv(run.folder / "attack.csv")
    assert list(table["attack"]) == [name for name in attacks for _ in ZETAS] and set(table["n"]) == {12}


def test_the_sizes_of_the_attack():
    np.testing.assert_allclose(ZETAS, np.linspace(0, 0.5, 11), rtol=1e-12)
    assert {0, 0.1, 0.2, 0.3, 0.5} <= set(ZETAS)


@pytest.mark.parametrize("averaged", [True, False])
def test_out_of_distribution_writes_scores_and_their_raw_material(run, capsys, averaged):
    members = load_members(run, network(9), RECIPE, averaged)
    data, outside = (ImageData(("a", "b", "c"), images(5), images(n, seed=n)) for n in (60, 45))
    dark = ImageData(outside.classes, outside.train, MemoryImages(outside.test.x // 4, outside.test.y))
    out_of_distribution(run, members, data, dark, KEY | {"ood": "dark"})
    table = pd.read_csv(run.folder / "ood.csv")
    assert list(table) == [*KEY, "ood", "score", "auroc", "fpr95"]
    assert list(table["score"]) == (["entropy", "mutual_information"] if averaged else ["entropy"])
    stored = load_file(run.folder / "ood.safetensors")
    assert stored.keys() == {f"{name}_{side}" for name in table["score"] for side in ("inside", "outside")}
    for side, part in (("inside", data.test), ("outside", dark.test)):
        mixture = predictive(members, part, CLASSES)
        expected = {"entropy": entropy(mixture.probabilities())}
        expected["mutual_information"] = mutual_information(mixture.probabilities(), mixture.mean_entropy())
        for name in table["score"]:
            torch.testing.assert_close(stored[f"{name}_{side}"], expected[name])
    for row in table.itertuples():
        found = detection(stored[f"{row.score}_inside"].numpy(), stored[f"{row.score}_outside"].numpy())
        assert (row.auroc, row.fpr95) == pytest.approx((found["auroc"], found["fpr95"])) and row.auroc != 0.5
    assert "out of distribution" in capsys.readouterr().out
