"""sbp_cnn.py as a user runs it, in small: on the digits, on folders of images, with narrow networks."""

import itertools
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

import sbp_cnn
from data import images
from data.augment import RAW, Recipe
from data.image_sets import ImageData, MemoryImages
from tests.scripts import sbp_cnn_shared
from tests.scripts.sbp_cnn_shared import (
    BEGUN,
    COLUMNS,
    KINDS,
    REMOVING,
    SHORT,
    STILL,
    accuracy,
    check,
    load,
    metrics,
    same_weights,
    text,
)

SCRIPT = "sbp_cnn.py"
METHODS = ("sbp", "sbpa", "sparsevd", "ssl", "dense")
METRICS = ["epoch", "iterations", "samples", "lr", "accuracy", "nll", "ece", "brier"]
PLAIN = BEGUN | {"table.csv", "summary.json", "predictions.safetensors", "model.safetensors", "cut.safetensors"}
DENSE = {f"dense/{name}" for name in PLAIN}
SMALL_VALUES = {
    "-data": "digits", "-data_dir": "nowhere", "-size": 9, "-workers": 0, "-model": "lenet-fc", "-scale": 0.05,
    "-c": "sbpa", "-aug": 1, "-train": 200, "-test": 99, "-val": 0.2, "-sn": 3, "-dense_sn": 1, "-lr": 2e-3,
    "-decay": 1, "-beta1": 0.9, "-noise_lr": 3, "-l2": 0.5, "-kl_weight": 0.5, "-warmup": 2, "-snr": 1.5,
    "-kl_layers": 3,
    "-threshold_sweep": 2, "-allow_empty": 1, "-finetune": 1, "-speed": 0, "-device": "cpu", "-amp": 1, "-compile": 0,
    "-seed": 4, "-seeds": 2, "-resume": 1, "-save_every": 0, "-save": 0, "-tensorboard": 1,
}  # fmt: skip
few, network = sbp_cnn_shared.few, sbp_cnn_shared.network
quickly, removing = sbp_cnn_shared.quickly, sbp_cnn_shared.removing


@pytest.mark.parametrize("c", METHODS)
@pytest.mark.parametrize("model", KINDS)
def test_every_method_on_every_network(start, pictures, idx_files, files, tmp_path, model, c):
    side, _, scale = KINDS[model]
    kind, folder = ("mnist", idx_files) if model == "lenet5" else ("folder", pictures(side=side))
    flags = ("-data", kind, "-data_dir", folder, "-model", model, "-c", c, "-scale", scale, "-speed", 0)
    batch = 100 if model == "lenet5" else 20
    result = start(*flags, "-sn", 2, "-dense_sn", 1, "-train", batch, "-lr", 1e-3)
    scored = {"units.csv"} if c != "dense" else set()
    assert files(result.folder) == PLAIN | (DENSE | scored if c != "dense" else set())
    dense = load(result / "dense" if c != "dense" else result, "model")
    check(result, images.load(kind, str(folder)), model, c, dense)
    table, (row,) = metrics(result), result.table.to_dict("records")
    assert [row[name] for name in ("data", "model", "scale", "method", "seed")] == [kind, model, scale, c, 1]
    left = [name for name in row if name.startswith("units_")]
    assert list(table) == [*METRICS, *(["penalty", *left] if c != "dense" else [])]
    assert table["iterations"].tolist() == [3, 6] and row["empty_layers"] == 0
    assert c == "dense" or table[left].iloc[-1].tolist() == [row[name] for name in left]
    assert {name: result.summary[name] for name in (*left, "error")} == {name: row[name] for name in (*left, "error")}
    assert result.summary.keys() == {*row, "seeds", "evaluated_on", "device", "seconds"} - {*COLUMNS[:5]}
    (method,) = (line.split() for line in result.stdout.splitlines() if line.startswith("method "))
    assert method == ["method", c] and f"results: {result.folder}" in result.stdout
    assert "Warning" not in result.stderr and "Traceback" not in result.stderr
    if model == "vgglike" and c != "dense":  # with noise, batch norm keeps the statistics of the plain network
        same = all(torch.equal(x, dense[name]) for name, x in load(result, "model").items() if "running" in name)
        assert same == (c in ("sbp", "sbpa"))


@pytest.mark.parametrize("c", METHODS)
def test_only_the_plain_network_has_dropout(c, pictures):
    data = images.load("folder", str(pictures(side=32)))
    for model in ("lenet5", "vgglike"):
        _, args = sbp_cnn.parse(["-model", model, "-c", c, "-scale", "0.05"])
        rates = [layer.p for layer in sbp_cnn.network(args, data) if isinstance(layer, torch.nn.Dropout)]
        assert len(rates) == (10 if model == "vgglike" and c == "dense" else 0)


def test_published_rows_stand_beside_ours(capsys):
    def shown(**changed) -> str:
        row = {"data": "mnist", "model": "lenet-fc", "method": "sbp", "seed": 1, "units_fc1": 99}
        row |= dict.fromkeys(("error", "accuracy_uncut", "accuracy_dense", "parameters", "flops_ratio"), 0.5) | changed
        sbp_cnn.show(pd.DataFrame([row, row | {"seed": 2, "error": 0.7}]))
        printed = capsys.readouterr().out
        assert "units_fc1" in printed and "0.60 +- 0.14" in printed
        (line,) = (line for line in printed.splitlines() if line.startswith("published"))
        return line.removeprefix("published").strip()

    assert shown() == "error 1.55, units 245-160-55, FLOPs 11.23x, CPU 2.33x"
    assert shown(method="ssl") == "error 1.49, units 434-174-78, FLOPs 6.06x, CPU 2.21x"
    assert shown(model="lenet5", method="dense").startswith("error 0.8, units 20-50-800-500")
    assert shown(data="cifar10", model="vgglike", method="sbpa").startswith("error 9.0, units 44-54-92")
    for other in ({"data": "fmnist"}, {"data": "mnist-random"}, {"method": "sbpa"}, {"model": "vgglike"}):
        assert shown(**other) == ""


def test_a_run_prints_the_published_row(start, idx_files):
    flags = ("-data_dir", idx_files, "-scale", 0.05, "-train", 100, "-sn", 1, "-dense_sn", 1, "-speed", 0)
    assert "error 1.55, units 245-160-55" in start(*flags, "-data", "mnist", "-c", "sbp").stdout
    assert "245-160-55" not in start(*flags, "-data", "fmnist", "-c", "sbp", out="fmnist").stdout


@pytest.mark.parametrize("model", ["lenet-fc", "vgglike"])
def test_the_plain_network_before_is_that_of_a_plain_run(start, pictures, model):
    """With its own true flags: those of the method do not reach it."""
    side, _, scale = KINDS[model]
    flags = ("-data", "folder", "-data_dir", pictures(side=side), "-model", model, "-scale", scale, "-train", 20)
    flags = (*flags, "-speed", 0, "-dense_sn", 3, "-seed", 5)
    alone = start(*flags, "-c", "dense", "-sn", 3, out="alone")
    of_the_method = ("-sn", 2, "-lr", 0.01, "-decay", 1, "-l2", 3, "-finetune", 1, "-threshold_sweep", 2)
    before = start(*flags, "-c", "sbp", *of_the_method, out="run") / "dense"
    for name in ("args.json", "model.safetensors", "metrics.csv", "table.csv", "predictions.safetensors"):
        assert (before / name).read_bytes() == (alone / name).read_bytes(), name
    args = json.loads((before / "args.json").read_text())
    expected = {"c": "dense", "sn": 3, "lr": 1e-3, "decay": 2, "l2": float(model == "vgglike"), "seed": 5}
    assert {name: args[name] for name in expected} == expected


FORMS = {
    "a folder": lambda path: path.rename(path.with_name("model.safetensors")).parent,
    "a file": lambda path: path,
    "a state_dict": lambda path: torch.save(load_file(path), path.with_suffix(".pt")) or path.with_suffix(".pt"),
}


@pytest.mark.parametrize("c", METHODS)
@pytest.mark.parametrize("form", FORMS)
def test_a_trained_network_is_started_from(few, network, files, form, c):
    path = network()
    start = load_file(path)
    penalty = () if c == "dense" else ("-kl_weight", 0)
    result = few("-c", c, "-pretrained", FORMS[form](path), *STILL, *penalty)
    found = {name.replace("parametrizations.weight.original", "weight"): x for name, x in load(result, "model").items()}
    assert {name for name in start if not torch.equal(found[name], start[name])} == set()
    assert not any(name.startswith("dense/") for name in files(result.folder))
    data = images.load("folder", str(Path(result.folder).parent / "pictures"))
    assert result.table["accuracy_dense"].item() == pytest.approx(accuracy(start, data.test, "lenet-fc"))


def test_several_seeds_start_from_their_own_networks(few, network):
    """Those of a run of several seeds; or all from one file."""
    dense = few("-c", "dense", "-seed", 2, "-seeds", 2, out="dense_runs")
    for path, own in ((dense.folder, True), (network(), False)):
        result = few("-seed", 2, "-seeds", 2, "-pretrained", path, *STILL, out=f"own{own}")
        for seed in (2, 3):
            start = load(dense / f"seed{seed}", "model") if own else load_file(path)
            found = load(result / f"seed{seed}", "model")
            assert torch.equal(found["fc1.parametrizations.weight.original"], start["fc1.weight"]), (path, seed)
    assert not torch.equal(*(load(dense / f"seed{seed}", "model")["fc1.weight"] for seed in (2, 3)))


def test_a_plain_run_may_go_on_from_a_network(few, network):
    """It is compared with the network that it started from."""
    result = few("-c", "dense", "-pretrained", network(), "-lr", 0.01, "-sn", 6)
    data = images.load("folder", str(Path(result.folder).parent / "pictures"))
    check(result, data, "lenet-fc", "dense", load_file(network()))
    assert not torch.equal(load(result, "model")["fc1.weight"], load_file(network())["fc1.weight"])


@pytest.mark.parametrize("flags", [("-speed", 1, "-tensorboard", 1), ("-finetune", 1)], ids=text)
def test_no_step_is_taken_twice(few, monkeypatch, quickly, flags):
    calls = itertools.count()

    def potential(logits, y):
        next(calls)
        return cross_entropy(logits, y)

    monkeypatch.setattr(sbp_cnn, "cross_entropy", potential)
    result = few("-dense_sn", 2, "-sn", 3, *flags)
    assert next(calls) == 6 + 9 + 3 * ("-finetune" in flags)
    for folder in (Path(result.folder), result / "dense"):
        assert len([*folder.glob("tensorboard/events*")]) == ("-tensorboard" in flags)


def test_the_networks_are_not_kept_on_request(few, network, files):
    """Except that of a plain run from which another one starts."""
    path, weights = network(), {"model.safetensors", "cut.safetensors"}
    assert files(few("-save", 0, "-pretrained", path).folder) == PLAIN - weights | {"units.csv"}
    kept, gone = few(out="kept"), few("-save", 0, out="gone")
    assert weights & files(gone.folder) == set()
    for name in ("table.csv", "metrics.csv", "units.csv", "predictions.safetensors"):
        assert (gone / name).read_bytes() == (kept / name).read_bytes(), name


def test_validation_does_not_look_at_the_test_images(removing, monkeypatch):
    """The same numbers with black test images of one class, and other numbers without -val."""
    flags, read = ("-val", 0.2, "-threshold_sweep", 2, "-finetune", 1), images.load
    clean = removing(*flags, out="clean")

    def spoiled(*args, **kwargs) -> ImageData:
        data = read(*args, **kwargs)
        return ImageData(data.classes, data.train, MemoryImages(data.test.x * 0, data.test.y * 0))

    monkeypatch.setattr(images, "load", spoiled)
    again = removing(*flags, out="again")
    names = ("table.csv", "metrics.csv", "sweep.csv", "cut.safetensors", "dense/table.csv", "dense/model.safetensors")
    for name in (*names, "predictions.safetensors"):
        assert (again / name).read_bytes() == (clean / name).read_bytes(), name
    assert clean.summary["evaluated_on"] == "validation"
    assert len(load(clean, "predictions")["labels"]) == math.ceil(0.2 * 1437)
    assert metrics(clean)["iterations"].tolist() == [8 * epoch for epoch in range(1, 7)]


@pytest.mark.parametrize("model", ["lenet-fc", "vgglike"])
def test_bfloat16_is_close_to_float32(start, pictures, model):
    side, _, scale = KINDS[model]
    flags = ("-data", "folder", "-data_dir", pictures(side=side), "-model", model, "-scale", scale, "-train", 20)
    flags = (*flags, "-speed", 0, "-sn", 2, "-dense_sn", 1)
    exact, rounded = start(*flags), start(*flags, "-amp", 1, out="amp")
    assert not same_weights(load(exact, "model"), load(rounded, "model"))
    assert rounded.table["nll"].item() == pytest.approx(exact.table["nll"].item(), rel=0.1)


@pytest.mark.slow
def test_the_compiled_network_trains_as_the_eager_one(start, script, network, pictures, tmp_path):
    """Up to rounding; in a process of its own, because the compiler leaves much behind."""
    flags = ("-data", "folder", "-data_dir", pictures(), "-scale", 0.04, "-sn", 3, "-train", 20, "-speed", 0)
    flags = (*flags, "-c", "sbp", "-pretrained", network())
    compiled = script.run(SCRIPT, *flags, "-compile", 1, out=tmp_path / "compiled")
    assert compiled.code == 0, compiled.stderr
    if "torch.compile failed" in compiled.stderr:
        pytest.skip(f"torch.compile does not work here: {compiled.stderr}")
    for name, x in load(start(*flags), "model").items():
        torch.testing.assert_close(load(compiled, "model")[name], x, rtol=0, atol=1e-4)


def test_several_seeds_are_the_single_runs(few, tmp_path):
    flags = ("-val", 0.2, "-finetune", 1, "-threshold_sweep", 2, "-noise_lr", 100)
    both = few(*flags, "-seed", 2, "-seeds", 2, out="both")
    for seed in (2, 3):
        alone = few(*flags, "-seed", seed, out=f"alone{seed}")
        for name in ("table.csv", "metrics.csv", "sweep.csv", "units.csv", "dense/table.csv"):
            assert (both / f"seed{seed}" / name).read_bytes() == (alone / name).read_bytes(), name
        for name in ("model", "cut", "predictions", "dense/model"):
            assert same_weights(load(both / f"seed{seed}", name), load(alone, name)), name
    assert both.table["seed"].tolist() == [2, 3] and both.summary["seeds"] == 2
    assert not same_weights(load(both / "seed2", "dense/model"), load(both / "seed3", "dense/model"))
    assert both.summary["nll"] == pytest.approx(both.table["nll"].mean())
    assert f"{both.table['error'].mean():.2f} +- {both.table['error'].std():.2f}" in both.stdout


def test_metrics_for_tensorboard(few, files):
    found = {name for name in files(few("-tensorboard", 1, "-finetune", 1).folder) if "events.out" in name}
    assert sorted(name.split("tensorboard/")[0] for name in found) == ["", "dense/", "finetune/"]


def test_the_minibatch_of_the_evaluation_changes_nothing(removing):
    one, other = removing(out="one"), removing("-test", 7, out="other")
    assert same_weights(load(one, "model"), load(other, "model"))
    assert one.table["nll"].item() == pytest.approx(other.table["nll"].item(), rel=1e-5)


def test_augmentation_changes_the_training_and_repeats(few):
    first, again, plain = (few("-aug", aug, out=name) for aug, name in ((1, "a"), (1, "b"), (0, "c")))
    assert same_weights(load(first, "model"), load(again, "model"))
    assert not same_weights(load(first, "model"), load(plain, "model"))
    assert not same_weights(load(first / "dense", "model"), load(plain / "dense", "model"))
    data = images.load("folder", str(Path(first.folder).parent / "pictures"))
    check(first, data, "lenet-fc", "sbp", load(first / "dense", "model"))  # on images that are not augmented


@pytest.mark.parametrize("data", ["mnist", "mnist-random", "digits", "cifar10-random"])
def test_recipes(data):
    """LeNet subtracts the mean image itself; the VGG-like network gets standardised images."""

    def recipe(*flags) -> Recipe:
        return sbp_cnn.recipe(sbp_cnn.parse(["-data", data, *flags])[1])

    for model in ("lenet-fc", "lenet5"):
        assert recipe("-model", model) == recipe("-model", model, "-aug", "0") == RAW
        augmented = recipe("-model", model, "-aug", "1")
        assert (augmented.mean, augmented.sd, augmented.erase) == (RAW.mean, RAW.sd, ()) and augmented.padding > 0
    assert recipe("-model", "vgglike", "-aug", "0") == Recipe(standardise=True)
    published = Recipe(padding=2, flip=True, brightness=63 / 255, contrast=(0.2, 1.8), standardise=True)
    assert recipe("-model", "vgglike") == published


def test_random_labels_say_nothing(start, idx_files):
    """In both parts; the images, their number and the classes stay."""
    flags = ("-data", "mnist-random", "-data_dir", idx_files)
    true = images.load("mnist", str(idx_files))
    found = images.load("mnist-random", str(idx_files))
    for part, whole in ((found.train, true.train), (found.test, true.test)):
        assert torch.equal(part.x, whole.x) and len(part.y) == len(whole.y)
        assert (part.y == whole.y).double().mean() < 0.2 and part.y.bincount(minlength=10).min() > 0
    result = start(*flags, "-scale", 0.05, "-train", 100, "-sn", 4, "-dense_sn", 4, "-speed", 0)
    assert torch.equal(load(result, "predictions")["labels"], found.test.y)
    assert result.table["data"].item() == "mnist-random" and result.table["accuracy_dense"].item() < 30
    assert start(*flags, "-data", "mnist", "-scale", 0.05, "-train", 20, "-c", "dense", "-sn", 4, "-speed", 0,
                 out="true").table["accuracy"].item() > 60  # fmt: skip


def test_random_labels_of_a_folder(start, pictures):
    flags = ("-data", "cifar10-random", "-data_dir", pictures(root="data/cifar10").parent, "-scale", 0.04)
    result = start(*flags, "-train", 20, "-sn", 1, "-dense_sn", 1, "-speed", 0)
    y = load(result, "predictions")["labels"]
    assert len(y) == 16 and not torch.equal(y, y.sort().values)


def test_five_seeds_stay_finite(start):
    result = start(*SHORT, "-scale", 0.1, "-sn", 4, "-dense_sn", 1, *REMOVING, "-seeds", 5)
    assert len(result.table) == 5 and np.isfinite(result.table.select_dtypes("number")).all(axis=None)
    for seed in range(1, 6):
        assert np.isfinite(metrics(result / f"seed{seed}")).all(axis=None)
        assert all(x.isfinite().all() for x in load(result / f"seed{seed}", "model").values())


@pytest.mark.parametrize("c", ["sbp", "sparsevd", "dense"])
def test_a_network_learns(start, c):
    """Chance is 10%."""
    flags = ("-data", "digits", "-scale", 0.1, "-train", 64, "-sn", 6, "-dense_sn", 6, "-speed", 0)
    penalty = () if c == "dense" else ("-kl_weight", 0.01)
    assert start(*flags, "-c", c, *penalty, "-lr", 3e-3).table["accuracy"].item() > 85


def test_defaults_are_published():
    def defaults(*flags) -> tuple:
        _, args = sbp_cnn.parse([*flags])
        return args.sn, args.decay, args.lr, args.noise_lr, args.train, args.l2, args.aug, args.dense_sn

    for model in ("lenet-fc", "lenet5"):
        assert defaults("-model", model) == (200, 100, 1e-3, 1, 128, 0, 0, 200)
        assert defaults("-model", model, "-c", "dense") == (200, 100, 1e-3, 1, 128, 0, 0, 200)
    for c in ("sbp", "sbpa", "ssl", "sparsevd"):
        assert defaults("-model", "vgglike", "-c", c) == (300, 250, 1e-5, 10, 100, 0, 1, 200)
    assert defaults("-model", "vgglike", "-c", "dense") == (200, 100, 1e-3, 10, 100, 1, 1, 200)
    assert defaults("-model", "vgglike", "-sn", "30")[:2] == (30, 25)
    _, args = sbp_cnn.parse([])
    assert (args.data, args.model, args.c, args.beta1, args.kl_weight) == ("mnist", "lenet-fc", "sbp", 0.95, 1)
    assert (args.warmup, args.snr, args.finetune, args.allow_empty, args.speed, args.scale) == (0, 1, 0, 0, 1, 1)
    for c in ("dense", "sbp"):
        name = sbp_cnn.folder_name(*sbp_cnn.parse(["-model", "lenet5", "-c", c]))
        assert name == f"{c}_mnist_lenet5_seed1"
    name = sbp_cnn.folder_name(*sbp_cnn.parse(["-snr", "2", "-seed", "3", "-seeds", "2", "-out", "x", "-speed", "0"]))
    assert name == "sbp_mnist_lenet-fc_seed3_seeds2_snr-2.0"


def test_the_default_folder_of_a_plain_run_is_started_from(few):
    few("-c", "dense", out=None)
    result = few("-pretrained", "runs/sbp_cnn/dense_folder_lenet-fc_seed1_train-20_scale-0.04_sn-2_dense_sn-1")
    assert not (result / "dense").exists()


def test_every_flag_is_accepted(start, files, tmp_path):
    parser, _ = sbp_cnn.parse([])
    flags = {action.option_strings[0] for action in parser._actions} - {"-h", "-out", "-pretrained", "-export"}
    assert flags == set(SMALL_VALUES)
    for flag, value in SMALL_VALUES.items():
        assert parser.get_default(flag[1:]) != value or flag in ("-compile", "-model"), f"{flag} has its default"
    result = start(*itertools.chain(*SMALL_VALUES.items()))
    args = json.loads((result / "args.json").read_text())
    elsewhere_ = {"data_dir", "device", "workers", "resume", "save_every", "tensorboard", "speed"}
    assert args.keys() - {"pretrained"} == {flag[1:] for flag in SMALL_VALUES} - elsewhere_
    for flag, value in SMALL_VALUES.items():
        assert args.get(flag[1:], value) in (value, [value]), flag
    assert result.table["seed"].tolist() == [4, 5] and not (tmp_path / "empty/nowhere").exists()
    assert result.summary["evaluated_on"] == "validation"
    found = {name for name in files(result.folder) if "tensorboard" not in name and "/dense/" not in name}
    own = PLAIN - {"metrics.csv", "checkpoint.safetensors", "predictions.safetensors", "model.safetensors"}
    each = PLAIN - {"model.safetensors", "cut.safetensors"} | {"units.csv", "sweep.csv"}
    each |= {f"finetune/{name}" for name in BEGUN}
    assert found == own - {"cut.safetensors"} | {f"seed{seed}/{name}" for seed in (4, 5) for name in each}
