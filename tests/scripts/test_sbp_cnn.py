"""sbp_cnn.py as a user runs it, in small: on the digits, on folders of images, with narrow networks.

What the network as cut computes is computed again from its weights alone, by functions.
"""

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn.functional import cross_entropy

import sbp_cnn
from data import images
from data.augment import RAW, Recipe
from data.image_sets import ImageData, MemoryImages
from experiment import classification, shrunk
from model.multiplicative_noise import kl, mean, sample, snr
from sampler.noise import stream

SCRIPT = "sbp_cnn.py"
METHODS = ("sbp", "sbpa", "sparsevd", "ssl", "dense")
SHORT = ("-data", "digits", "-train", 128, "-speed", 0)  # 11 iterations an epoch
TINY = (*SHORT, "-scale", 0.05, "-sn", 6, "-dense_sn", 2)  # 64-25-15
REMOVING = ("-noise_lr", 100, "-kl_weight", 0.1, "-lr", 3e-3)  # about half of the units go
STILL = ("-lr", 1e-30, "-noise_lr", 1, "-l2", 0)  # steps that no float32 number feels
POOLED = (2, 4, 7, 10, 13)  # convolutions of the VGG-like network
LAYERS = {
    "lenet-fc": ["flatten", "fc1", "relu", "fc2", "relu", "fc3"],
    "lenet5": ["conv1", "relu", "pool", "conv2", "relu", "pool", "flatten", "fc1", "relu", "fc2"],
    "vgglike": [
        *itertools.chain(*([f"conv{i}", "relu", *["pool"] * (i in POOLED)] for i in range(1, 14))),
        *["flatten", "fc1", "relu", "fc2"],
    ],
}
SITES = {  # of the noise, as the parametrizations of every layer are numbered
    "lenet-fc": {"fc1": (1, 0), "fc2": (0,)},
    "lenet5": {"conv1": (0,), "conv2": (0,), "fc1": (1, 0)},
    "vgglike": {f"conv{i}": (0,) for i in range(1, 14)} | {"fc1": (1,), "fc2": (1,)},
}
COLUMNS = ["data", "model", "scale", "method", "seed", "accuracy", "nll", "ece", "brier", "error", "accuracy_uncut"]
COLUMNS += ["accuracy_dense", "accuracy_train", "collapsed", "empty_layers"]
SIZES = ["parameters", "parameters_dense", "flops", "flops_dense", "flops_ratio"]
METRICS = ["epoch", "iterations", "samples", "lr", "accuracy", "nll", "ece", "brier"]
BEGUN = {"args.json", "command.sh", "environment.json", "metrics.csv", "checkpoint.safetensors"}
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


def text(flags) -> str:
    return " ".join(map(str, flags))


def metrics(of) -> pd.DataFrame:
    return pd.read_csv(of / "metrics.csv")


def load(of, name: str) -> dict[str, Tensor]:
    return load_file(of / f"{name}.safetensors")


def same_weights(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def files(snapshot):
    """files(folder): names of the files in it and below."""
    return lambda folder: set(snapshot(folder))


@pytest.fixture
def few(start, pictures):
    """few(*flags, out): 3 iterations an epoch on 60 grey pictures of two classes; 144-20-12."""
    flags = ("-data", "folder", "-data_dir", pictures(), "-scale", 0.04, "-sn", 2, "-dense_sn", 1, "-train", 20)

    def run(*more, **kwargs):
        return start(*flags, "-speed", 0, *more, **kwargs)

    return run


@pytest.fixture
def quickly(monkeypatch):
    """Timings take a twentieth of their time, and leave ONNX Runtime out."""
    monkeypatch.setattr(shrunk, "SECONDS", 1e-3)
    monkeypatch.setattr(shrunk, "_sessions", lambda *networks: [])


@pytest.fixture
def network(tmp_path):
    """network(model, scale, side, classes, empty): the file of a plain network with weights of ordinary size.

    empty: by layer, how many of its first outputs have weights of nearly nothing.
    """

    def make(model: str = "lenet-fc", scale: float = 0.04, side: int = 12, classes: int = 2, empty=None) -> Path:
        torch.manual_seed(3)
        net = sbp_cnn.MODELS[model]((1, side, side), classes, scale)
        for name, count in (empty or {}).items():
            net.get_submodule(name).weight.data[:count] *= 1e-8
        save_file(net.state_dict(), tmp_path / f"{model}.safetensors")
        return tmp_path / f"{model}.safetensors"

    return make


def pixels(part: MemoryImages, model: str) -> Tensor:
    """Images as a network gets them in evaluation: in [0, 1], or each with mean 0 and standard deviation 1."""
    x = part.x.float() / 255
    if model != "vgglike":
        return x
    flat = x.double().flatten(1)
    sd = flat.std(1, correction=0, keepdim=True).clamp(min=1 / (255 * flat.shape[1] ** 0.5))
    return ((flat - flat.mean(1, keepdim=True)) / sd).view(x.shape).float()


def computed(w: dict[str, Tensor], x: Tensor, model: str) -> tuple[Tensor, int]:
    """Logits of a network of plain layers, cut or whole, from its weights; and its multiply-adds for one image."""
    if "constant.logits" in w:
        return w["constant.logits"].expand(len(x), -1), 0
    x, operations = x - w.get("centre.mean", torch.zeros(())), 0
    for layer in LAYERS[model]:
        if layer in ("relu", "pool", "flatten"):
            x = {"relu": F.relu, "pool": lambda x: F.max_pool2d(x, 2), "flatten": lambda x: x.flatten(1)}[layer](x)
            continue
        if f"{layer}_inputs.index" in w:
            x = x[:, w[f"{layer}_inputs.index"]]
        weight, bias = w[f"{layer}.weight"], w[f"{layer}.bias"]
        convolution = layer.startswith("conv")
        x = F.conv2d(x, weight, bias, padding=int(model == "vgglike")) if convolution else F.linear(x, weight, bias)
        operations += weight.numel() * math.prod(x.shape[2:])
        norm = f"bn{layer[4:]}" if convolution else "bn14"
        if f"{norm}.weight" in w and layer != "fc2":
            running = [w[f"{norm}.running_{name}"] for name in ("mean", "var")]
            x = F.batch_norm(x, *running, w[f"{norm}.weight"], w[f"{norm}.bias"])
    return x, operations


def accuracy(w: dict[str, Tensor], part: MemoryImages, model: str) -> float:
    right = computed(w, pixels(part, model), model)[0].argmax(1) == part.y
    return 100 * right.double().mean().item()


def at_test_time(w: dict[str, Tensor], c: str, model: str, gone: bool = False) -> dict[str, Tensor]:
    """The plain layers of a trained network.  gone: the noise of units with SNR < 1 is zero, else at its mean."""
    w = dict(w)
    if c == "sparsevd":
        for name in [name.removesuffix(".log_sigma2") for name in w if name.endswith(".log_sigma2")]:
            weight = w[f"{name}.weight"]
            w[f"{name}.weight"] = weight * (w.pop(f"{name}.log_sigma2") - (weight**2 + 1e-8).log() <= 3)
    if c in ("sbp", "sbpa"):
        for layer, dims in SITES[model].items():
            weight = w.pop(f"{layer}.parametrizations.weight.original")
            for i, dim in enumerate(dims):
                law = [w.pop(f"{layer}.parametrizations.weight.{i}.{name}") for name in ("mu", "log_sigma")]
                theta = mean(*law) * (1.0 if not gone else snr(*law) >= 1)
                weight = weight * theta.view(-1, *[1] * (weight.ndim - dim - 1))
            w[f"{layer}.weight"] = weight
    return w


def units(w: dict[str, Tensor], model: str) -> dict[str, int]:
    """Units of a cut network as the papers count them, from the shapes of its weights."""
    shapes = {name.removesuffix(".weight"): x.shape for name, x in w.items() if name.endswith(".weight")}
    counted = {"lenet-fc": ["fc1.inputs", "fc1", "fc2"], "lenet5": ["conv1", "conv2", "fc1.inputs", "fc1"]}
    names = counted.get(model) or [*(f"conv{i}" for i in range(1, 14)), "fc1"]
    return {name: shapes[name.removesuffix(".inputs")][name.endswith(".inputs")] for name in names}


def parameters(w: dict[str, Tensor]) -> int:
    return sum(x.numel() for name, x in w.items() if name.endswith((".weight", ".bias")) and not name.startswith("bn"))


def check(result, data: ImageData, model: str, c: str, dense: dict[str, Tensor]) -> None:
    """Every number of the table, of the network as cut, from the weights of the run.  dense: those of the plain one."""
    (row,), small, whole = result.table.to_dict("records"), load(result, "cut"), load(result, "model")
    logits, operations = computed(small, pixels(data.test, model), model)
    probabilities, y = logits.double().softmax(1), data.test.y
    saved = load(result, "predictions")
    torch.testing.assert_close(saved["probabilities"], probabilities, rtol=1e-4, atol=1e-6)
    assert torch.equal(saved["labels"], y) and saved.keys() == {"probabilities", "labels"}
    for name in ("accuracy", "nll", "ece", "brier"):
        assert row[name] == pytest.approx(getattr(classification, name)(probabilities, y), rel=1e-4), name
    assert row["error"] == pytest.approx(100 - accuracy(small, data.test, model))
    assert row["accuracy_train"] == pytest.approx(accuracy(small, data.train, model))
    assert row["accuracy_uncut"] == pytest.approx(accuracy(at_test_time(whole, c, model), data.test, model))
    assert row["accuracy_dense"] == pytest.approx(accuracy(dense, data.test, model))
    assert row["collapsed"] == (row["accuracy"] < row["accuracy_dense"] - 5)
    left = {f"units_{name}": count for name, count in units(small, model).items()}
    assert {name: value for name, value in row.items() if name.startswith("units_")} == left
    _, before = computed(dense, pixels(data.test, model)[:1], model)
    assert (row["parameters"], row["parameters_dense"]) == (parameters(small), parameters(dense))
    assert (row["flops"], row["flops_dense"]) == (2 * operations, 2 * before)
    assert row["flops_ratio"] == pytest.approx(before / operations)
    assert list(row) == [*COLUMNS, *left, *SIZES]


KINDS = {  # side of the images, classes, scale
    "lenet-fc": (12, 2, 0.04),
    "lenet5": (28, 10, 0.2),
    "vgglike": (32, 2, 0.05),
}


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


@pytest.fixture
def removing(start):
    """removing(*flags, out): sbp on the digits, which removes about half of the units."""
    return lambda *flags, **kwargs: start(*TINY, *REMOVING, *flags, **kwargs)


def test_the_network_is_cut_where_the_signal_to_noise_ratio_is_below_one(removing):
    """It computes what the network does with the noise of these units at zero."""
    result, data = removing(), images.load("digits")
    dense, whole, small = (load(*of) for of in ((result / "dense", "model"), (result, "model"), (result, "cut")))
    check(result, data, "lenet-fc", "sbp", dense)
    left, x = units(small, "lenet-fc"), pixels(data.test, "lenet-fc")
    scores = pd.read_csv(result / "units.csv")
    for (layer, side), site in {
        ("fc1", "inputs"): (1, 0),
        ("fc1", "outputs"): (0, 1),
        ("fc2", "outputs"): (0, 0),
    }.items():
        law = [whole[f"{layer}.parametrizations.weight.{site[1]}.{name}"] for name in ("mu", "log_sigma")]
        rows = scores[(scores["layer"] == layer) & (scores["side"] == side)]
        assert rows["score"].to_numpy() == pytest.approx(snr(*law).numpy(), rel=1e-5)
        assert rows["kept"].tolist() == (snr(*law) >= 1).int().tolist() and rows["unit"].tolist() == [*range(len(rows))]
        assert 0 < rows["kept"].sum() < len(rows)
        assert left[f"{layer}.inputs" if side == "inputs" else layer] == rows["kept"].sum()
    expected, _ = computed(at_test_time(whole, "sbp", "lenet-fc", gone=True), x, "lenet-fc")
    torch.testing.assert_close(computed(small, x, "lenet-fc")[0], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("model", ["lenet-fc", "lenet5"])
@pytest.mark.parametrize("c, threshold", [("ssl", 1e-5), ("sparsevd", -3)])
def test_units_without_weights_are_cut(start, pictures, network, model, c, threshold):
    """They leave a constant, so that the network computes what it did."""
    side, empty = (12, {"fc1": 5, "fc2": 3}) if model == "lenet-fc" else (28, {"conv1": 2, "conv2": 4, "fc1": 30})
    path, scale, folder = network(model, KINDS[model][2], side, empty=empty), KINDS[model][2], pictures(side=side)
    flags = ("-data", "folder", "-data_dir", folder, "-model", model, "-scale", scale, "-train", 20, "-speed", 0)
    result = start(*flags, "-c", c, "-pretrained", path, "-sn", 1, *STILL)
    data, before, small = images.load("folder", str(folder)), load_file(path), load(result, "cut")
    check(result, data, model, c, before)
    gone = {name: whole - units(small, model)[name] for name, whole in units(before, model).items()}
    assert gone == empty | {"fc1.inputs": 0 if model == "lenet-fc" else 16 * empty["conv2"]}
    assert result.table["empty_layers"].item() == 0
    whole = at_test_time(load(result, "model"), c, model)
    logits = [computed(w, pixels(data.test, model), model)[0] for w in (whole, small)]
    torch.testing.assert_close(*logits, rtol=1e-4, atol=1e-5)
    scores = pd.read_csv(result / "units.csv")
    assert scores[scores["kept"] == 1]["score"].min() > threshold
    filters = scores[(scores["side"] == "outputs") & (scores["layer"] == next(iter(empty)))]
    assert (filters["kept"] == (filters["score"] > threshold)).all()


def test_single_features_of_channels_are_cut(start, pictures, network):
    """And the network that selects the others is fine-tuned."""
    path, folder = network("lenet5", 0.2, 28), pictures(side=28)
    weights = load_file(path)
    weights["fc1.weight"][:, ::7] *= 1e-8  # 23 of 160 positions, of all channels
    save_file(weights, path)
    flags = ("-data", "folder", "-data_dir", folder, "-model", "lenet5", "-scale", 0.2, "-train", 20, "-speed", 0)
    result = start(*flags, "-c", "ssl", "-pretrained", path, "-sn", 1, "-finetune", 2, *STILL)
    small, data = load(result, "cut"), images.load("folder", str(folder))
    assert small["fc1_inputs.index"].tolist() == [i for i in range(160) if i % 7]
    assert units(small, "lenet5") == {"conv1": 4, "conv2": 10, "fc1.inputs": 137, "fc1": 100}
    check(result, data, "lenet5", "ssl", weights)
    assert metrics(result / "finetune")["epoch"].tolist() == [1, 2]


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
    result = few("-c", c, "-pretrained", FORMS[form](path), *STILL, "-kl_weight", 0)
    found = {name.replace("parametrizations.weight.original", "weight"): x for name, x in load(result, "model").items()}
    assert {name for name in start if not torch.equal(found[name], start[name])} == set()
    assert not any(name.startswith("dense/") for name in files(result.folder))
    data = images.load("folder", str(Path(result.folder).parent / "pictures"))
    assert result.table["accuracy_dense"].item() == pytest.approx(accuracy(start, data.test, "lenet-fc"))


def test_noise_starts_at_its_published_values(few, network):
    found = load(few("-pretrained", network(), *STILL), "model")
    for name, value in (("mu", 0), ("log_sigma", -5)):
        noise = [x for key, x in found.items() if key.endswith(f".{name}")]
        assert len(noise) == 3 and all(((x - value).abs() < 1e-20).all() for x in noise)
    variances = load(few("-c", "sparsevd", "-pretrained", network(), *STILL, out="other"), "model")
    assert all((x == -10).all() for name, x in variances.items() if name.endswith("log_sigma2"))


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


def test_a_larger_threshold_removes_more(removing):
    """Of the same trained network."""
    results = {snr: removing("-snr", snr, out=f"snr{snr}") for snr in (0, 1, 20)}
    first, *others = (load(result, "model") for result in results.values())
    assert all(same_weights(first, other) for other in others)
    tables = [result.table for result in results.values()]
    for name, whole in (("units_fc1.inputs", 64), ("units_fc1", 25), ("units_fc2", 15)):
        all_, some, few_ = (table[name].item() for table in tables)
        assert whole == all_ >= some > few_ > 0, name
    assert tables[0]["parameters"].item() == tables[0]["parameters_dense"].item() > tables[1]["parameters"].item()
    for snr_, result in results.items():
        table = pd.read_csv(result / "units.csv")
        assert (table["kept"] == (table["score"] >= snr_)).all()


@pytest.mark.parametrize(
    "flags, factors",
    [
        ((), [1, 1, 4 / 7, 1 / 7]),
        (("-decay", 1), [1, 0.7, 0.4, 0.1]),
        (("-decay", 0), [10 / 13, 7 / 13, 4 / 13, 1 / 13]),
        (("-decay", 4), [1, 1, 1, 1]),
        (("-decay", 3, "-c", "dense"), [1, 1, 1, 1 / 4]),
        (("-c", "sparsevd"), [1, 1, 4 / 7, 1 / 7]),
    ],
    ids=text,
)
def test_the_step_falls_to_nothing(few, flags, factors):
    """Of the 3rd, 6th, 9th and 12th iteration; it would reach zero in the one after."""
    result = few("-sn", 4, "-lr", 2e-3, *flags)
    assert metrics(result)["lr"].to_numpy() == pytest.approx(2e-3 * np.array(factors))


PENALTIES = {"sbp": (1, 1, 1), "sbpa": (10, 10, 5)}


@pytest.mark.parametrize("c", PENALTIES)
def test_the_divergence_of_the_first_layers_weighs_more_in_sbpa(few, c):
    """144 pixels, 20 and 12 neurons, all with the initial noise."""
    each = kl(torch.zeros(1), torch.full((1,), -5.0)).item()
    expected = each * np.dot(PENALTIES[c], (144, 20, 12))
    assert metrics(few("-c", c, *STILL))["penalty"].to_numpy() == pytest.approx(expected)


def test_the_weights_of_sbpa_on_all_layers(start, pictures):
    folder = pictures(side=32)
    flags = ("-data", "folder", "-data_dir", folder, "-model", "vgglike", "-scale", 0.05, "-train", 20, "-speed", 0)
    result = start(*flags, "-c", "sbpa", "-sn", 1, "-dense_sn", 1, *STILL)
    saved = load(result, "model")
    widths = [len(saved[f"{layer}.parametrizations.weight.0.mu"]) for layer in SITES["vgglike"]]
    assert len(widths) == 15 and widths[:5] == [3, 3, 6, 6, 13]
    each = kl(torch.zeros(1), torch.full((1,), -5.0)).item()
    assert metrics(result)["penalty"].item() == pytest.approx(each * np.dot((10, 10, 5, 5, *[1] * 11), widths))


class Reference:
    """The optimisation of LeNet-fc written down again, in float64 and with Adam by hand.

    wrong: a part of it that is left out or done otherwise.
    """

    def __init__(self, args, start: dict[str, Tensor], data: ImageData, wrong: str = ""):
        self.args, self.x, self.y, self.wrong = args, pixels(data.train, "lenet-fc").double(), data.train.y, wrong
        self.w = {name: x.double() for name, x in start.items()}
        self.centre, self.noise = self.w.pop("centre.mean"), stream(args.seed, "noise")
        sizes = {"in1": len(self.w["fc1.weight"][0]), "out1": len(self.w["fc1.bias"]), "out2": len(self.w["fc2.bias"])}
        if args.c in ("sbp", "sbpa"):
            self.w |= {f"{site}.mu": torch.zeros(n, dtype=torch.float64) for site, n in sizes.items()}
            self.w |= {f"{site}.log_sigma": torch.full((n,), -5.0, dtype=torch.float64) for site, n in sizes.items()}
        if args.c == "sparsevd":
            self.w |= {f"fc{i}.log_sigma2": torch.full_like(self.w[f"fc{i}.weight"], -10) for i in (1, 2, 3)}
        self.moments = {name: (torch.zeros_like(x), torch.zeros_like(x)) for name, x in self.w.items()}

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.noise).double()

    def loss(self, w: dict[str, Tensor], rows: Tensor) -> tuple[Tensor, Tensor | float]:
        """Cross entropy and penalty of a minibatch."""
        h, penalty, theta, c = (self.x[rows] - self.centre).flatten(1), 0.0, {}, self.args.c
        if c in ("sbp", "sbpa"):
            laws = {site: (w[f"{site}.mu"], w[f"{site}.log_sigma"]) for site in ("in1", "out1", "out2")}
            u = torch.rand(sum(len(mu) for mu, _ in laws.values()), generator=self.noise).double()
            parts = u.split([len(mu) for mu, _ in laws.values()])
            theta = {site: sample(*law, part) for (site, law), part in zip(laws.items(), parts, strict=True)}
            weights = [*self.args.kl_layers, 1, 1, 1][:3]
            penalty = sum(weight * kl(*law).sum() for weight, law in zip(weights, laws.values(), strict=True))
        for i in (1, 2, 3):
            weight, bias = w[f"fc{i}.weight"], w[f"fc{i}.bias"]
            h = h * theta.get(f"in{i}", 1)
            if c == "sparsevd":
                log_alpha = (w[f"fc{i}.log_sigma2"] - (weight**2 + 1e-8).log()).clamp(-8, 8)
                sd = (h**2 @ (weight**2 * log_alpha.exp()).T + 1e-8).sqrt()
                h = h @ weight.T + bias + sd * self.normal(*sd.shape)
                rate = 0.63576 * torch.sigmoid(1.8732 + 1.48695 * log_alpha) - 0.5 * torch.log1p((-log_alpha).exp())
                penalty = penalty + (0.63576 - rate).sum()
            else:
                h = h @ weight.T * theta.get(f"out{i}", 1) + bias
            h = h.relu() if i < 3 else h
            if c == "ssl":
                norms = [weight.norm(dim=0)] + [weight.norm(dim=1)] * (i < 3)
                penalty = penalty + sum(norm.sum() for norm in norms)
        return cross_entropy(h, self.y[rows]), penalty

    def run(self) -> dict[str, Tensor]:
        args, n, wrong = self.args, len(self.y), self.wrong
        batches, order, k = n // args.train, stream(args.seed, "order"), 0
        for epoch in range(args.sn):
            warm = min(1, (epoch + 1) / args.warmup) if args.warmup else 1
            l2 = args.l2 * (1 if wrong == "l2 that stays" else 1e-3 + (1 - 1e-3) * epoch / args.sn)
            for rows in torch.randperm(n, generator=order)[: batches * args.train].split(args.train):
                k += 1
                w = {name: x.requires_grad_() for name, x in self.w.items()}
                likelihood, penalty = self.loss(w, rows)
                ((1 if wrong == "no N" else n) * likelihood + args.kl_weight * warm * penalty).backward()
                self.w = {name: self.adam(name, x, k, batches, l2) for name, x in w.items()}
        return self.w

    def adam(self, name: str, x: Tensor, k: int, batches: int, l2: float) -> Tensor:
        args, noisy = self.args, name.endswith((".mu", ".log_sigma"))
        x, grad, (m, v) = x.detach(), x.grad, self.moments[name]
        if name.endswith(".weight") or self.wrong == "l2 of all":
            grad = grad + l2 * x
        m, v = args.beta1 * m + (1 - args.beta1) * grad, 0.999 * v + 0.001 * grad**2
        self.moments[name] = m, v
        total, flat = args.sn * batches, args.decay * batches
        lr = args.lr * min(1, (total + 1 - k) / (total + 1 - flat)) * (args.noise_lr if noisy else 1)
        x = x - lr * (m / (1 - args.beta1**k)) / ((v / (1 - 0.999**k)).sqrt() + 1e-8)
        return x.clamp(-20, 5) if noisy and self.wrong != "not clipped" else x


NAMES = {"in1": "fc1.parametrizations.weight.0", "out1": "fc1.parametrizations.weight.1"}
NAMES |= {"out2": "fc2.parametrizations.weight.0"}
BOTH = ("-kl_weight", 1e-3)  # the penalty and the likelihood are felt alike
OTHER = ("-lr", 2e-3, "-decay", 0, "-beta1", 0.5, "-noise_lr", 2, "-warmup", 6, "-l2", 100)
STEPS = {  # flags, and what the reference must not do with them
    ("-c", "sbp", *BOTH): ["no N", {"c": "dense"}, {"seed": 2}, {"kl_weight": 2e-3}, {"warmup": 2}],
    ("-c", "sbp", *BOTH, *OTHER): [
        *({"lr": 1e-3}, {"decay": 2}, {"beta1": 0.95}, {"noise_lr": 1}, {"warmup": 0}, {"l2": 0}),
        *("l2 that stays", "l2 of all"),
    ],
    ("-c", "sbp", "-noise_lr", 3000): ["not clipped"],
    ("-c", "sbpa", *BOTH): [{"kl_layers": []}],
    ("-c", "sbp", "-kl_layers", 7, 20, *BOTH): [{"kl_layers": [10, 10, 5]}, {"kl_layers": [7]}],
    ("-c", "ssl", "-kl_weight", 2): ["no N", {"kl_weight": 1}],
    ("-c", "sparsevd", *BOTH): ["no N", {"kl_weight": 2e-3}],
    ("-c", "sparsevd", "-l2", 100): ["l2 of all"],
    ("-c", "dense", "-l2", 100): ["l2 of all"],
}


@pytest.mark.parametrize("flags", STEPS, ids=text)
def test_the_steps_are_those_of_the_equations(start, pictures, network, flags):
    """12 iterations; an oracle that does one thing otherwise disagrees."""
    wrongs = STEPS[flags]
    path, folder = network(), pictures()
    flags = ("-data", "folder", "-data_dir", folder, "-scale", 0.04, "-train", 20, "-sn", 4, "-lr", 1e-3, *flags)
    _, args = sbp_cnn.parse([*map(str, flags)])
    result = load(start(*flags, "-speed", 0, "-pretrained", path), "model")
    data, before = images.load("folder", str(folder)), load_file(path)

    def error(**changed) -> float:
        """Largest difference, in units of how far the parameter has moved."""
        told = vars(args) | {name: x for name, x in changed.items() if name != "wrong"}
        reference = Reference(type(args)(**told), before, data, changed.get("wrong", ""))
        first = {name: x.clone() for name, x in reference.w.items()}
        found = {}
        for name, x in reference.run().items():
            site, _, kind = name.partition(".")
            ours = result.get(f"{NAMES.get(site, site)}.{kind}", result.get(f"{site}.parametrizations.weight.original"))
            found[name] = float((ours - x).norm() / (x - first[name]).norm())
        return max(found.values())

    assert error() < 0.01
    for wrong in wrongs:
        assert error(**(wrong if isinstance(wrong, dict) else {"wrong": wrong})) > 0.05, wrong


def test_fine_tuning_trains_the_network_as_cut(removing, files):
    """In a folder of its own, from a tenth of the step to nothing; the noisy network and what it removed stay."""
    plain, tuned = removing(out="plain"), removing("-finetune", 3, out="tuned")
    assert files(tuned.folder) - files(plain.folder) == {f"finetune/{name}" for name in BEGUN}
    assert same_weights(load(plain, "model"), load(tuned, "model"))
    before, after, data = load(plain, "cut"), load(tuned, "cut"), images.load("digits")
    assert {name: x.shape for name, x in before.items()} == {name: x.shape for name, x in after.items()}
    assert not torch.equal(before["fc1.weight"], after["fc1.weight"])
    check(tuned, data, "lenet-fc", "sbp", load(tuned / "dense", "model"))
    assert accuracy(after, data.train, "lenet-fc") > accuracy(before, data.train, "lenet-fc")
    table, args = metrics(tuned / "finetune"), json.loads((tuned / "finetune/args.json").read_text())
    assert table["lr"].to_numpy() == pytest.approx(3e-4 * np.array([23, 12, 1]) / 34)
    assert table["accuracy"].iloc[-1] == tuned.table["accuracy"].item()
    assert [args[name] for name in ("c", "sn", "decay", "lr")] == ["dense", 3, 0, pytest.approx(3e-4)]
    still = removing("-finetune", 1, *STILL, "-pretrained", tuned / "dense", out="still")
    whole = at_test_time(load(still, "model"), "sbp", "lenet-fc")
    assert same_weights({name: x for name, x in whole.items() if name != "centre.mean"},
                        {name: x for name, x in load(still, "cut").items() if name != "centre.mean"})  # fmt: skip


def test_the_sweep_cuts_at_every_threshold(removing):
    result = removing("-threshold_sweep", 4)
    table, (row,), data = pd.read_csv(result / "sweep.csv"), result.table.to_dict("records"), images.load("digits")
    left = ["units_fc1.inputs", "units_fc1", "units_fc2"]
    assert list(table) == ["threshold", "accuracy", "parameters", "flops", *left]
    assert table["threshold"].tolist() == [0, 0.5, 1, 1.5, 2]
    names = ["accuracy", "parameters", "flops", *left]
    assert table[names].iloc[2].tolist() == [row[name] for name in names]
    assert table[left].iloc[0].tolist() == [64, 25, 15] and (table[left].diff().dropna() <= 0).all(axis=None)
    assert table["flops"].iloc[0] == row["flops_dense"]
    whole = at_test_time(load(result, "model"), "sbp", "lenet-fc")
    assert table["accuracy"].iloc[0] == pytest.approx(accuracy(whole, data.test, "lenet-fc"))
    assert not (removing(out="other") / "sweep.csv").exists()


EMPTY = ("-kl_weight", 100, "-noise_lr", 1000, "-lr", 3e-3)  # of which no unit is left


def test_a_layer_that_would_be_empty_keeps_its_best_unit(start):
    result = start(*TINY, *EMPTY)
    note = "note: digits lenet-fc sbp seed 1: no unit of "
    (line,) = (line for line in result.stderr.splitlines() if line.startswith(note))
    layers, what = line.removeprefix(note).split(" is left; ")
    assert layers.split(", ") == ["fc1", "fc1.inputs", "fc2"] and "-allow_empty 1" in what
    assert result.table["empty_layers"].item() == 3
    scores = pd.read_csv(result / "units.csv")
    best = scores.loc[scores.groupby(["layer", "side"])["score"].idxmax()]
    assert scores["score"].max() < 1 and (best["kept"] == 1).all() and scores["kept"].sum() == 3
    check(result, images.load("digits"), "lenet-fc", "sbp", load(result / "dense", "model"))
    assert units(load(result, "cut"), "lenet-fc") == {"fc1.inputs": 1, "fc1": 1, "fc2": 1}
    left = metrics(result).filter(like="units_").iloc[-1]
    assert (left == 0).all()  # what would be left


def test_an_empty_layer_leaves_a_constant_on_request(start, quickly):
    result = start(*TINY, *EMPTY, "-allow_empty", 1, "-finetune", 2, "-threshold_sweep", 1, "-speed", 1)
    (row,) = result.table.to_dict("records")
    assert result.stderr.count("no unit of fc1, fc1.inputs, fc2 is left; removed whole") == 1
    left = [row[f"units_{name}"] for name in ("fc1.inputs", "fc1", "fc2")]
    assert left == [0, 0, 0] and row["empty_layers"] == 3 and row["parameters"] == row["flops"] == 0
    assert row["flops_ratio"] == math.inf and result.summary["flops_ratio"] is None
    saved = load(result, "predictions")
    assert (saved["probabilities"] == saved["probabilities"][0]).all()
    check_constant = load(result, "cut")
    assert check_constant.keys() == {"constant.logits"}
    torch.testing.assert_close(saved["probabilities"][0].float(), check_constant["constant.logits"].softmax(0))
    whole = load(result, "model")
    w = at_test_time(whole, "sbp", "lenet-fc", gone=True)  # without any weight, biases are what is left
    logits, _ = computed(w, pixels(images.load("digits").test, "lenet-fc")[:1], "lenet-fc")
    torch.testing.assert_close(check_constant["constant.logits"], logits[0], rtol=1e-5, atol=1e-6)
    assert row["accuracy"] == pytest.approx(100 * (saved["labels"] == logits.argmax()).double().mean().item())


def test_a_collapse_is_reported(start):
    """The plain network is good, the one that is cut is a constant."""
    flags = (*SHORT, "-scale", 0.1, "-dense_sn", 6, "-sn", 2, *EMPTY)
    for empty in (0, 1):
        result = start(*flags, "-allow_empty", empty, out=f"empty{empty}")
        (row,) = result.table.to_dict("records")
        assert row["accuracy_dense"] > 60 and row["accuracy"] < 30 and row["collapsed"] == 1
        said = f"note: digits lenet-fc sbp seed 1: collapsed: {row['accuracy']:.2f}% as cut, "
        assert f"{said}{row['accuracy_dense']:.2f}% dense" in result.stderr
    fine = start(*flags[:-6], *STILL, "-c", "sbp", out="fine")
    assert fine.table["collapsed"].item() == 0 and "collapsed" not in fine.stderr


def test_the_network_as_cut_is_timed(few, files, monkeypatch):
    """After the training, which does not happen again."""
    monkeypatch.setattr(shrunk, "SECONDS", 0.05)
    untimed, timed = few(out="untimed"), few("-speed", 1, out="timed")
    assert files(timed.folder) - files(untimed.folder) == {"speed.csv"}
    assert (timed / "table.csv").read_bytes() == (untimed / "table.csv").read_bytes()
    (row,) = pd.read_csv(timed / "speed.csv").to_dict("records")
    names = [f"speedup_{what}_{batch}" for batch in (1, 256) for what in ("cpu", "onnx")]
    assert list(row) == ["seed", *names] and all(0.1 < row[name] < 10 for name in names)
    assert all(name in timed.stdout for name in names) and "speedup" not in untimed.stdout
    assert timed.stderr.count("epoch/s") == untimed.stderr.count("epoch/s")


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


LOADED = """
import sys
import numpy, onnxruntime, torch
x = numpy.load("images.npy")
with torch.no_grad():
    exported = torch.export.load("network.pt2").module()(torch.from_numpy(x))
numpy.save("pt2.npy", exported.numpy())
session = onnxruntime.InferenceSession("network.onnx", providers=["CPUExecutionProvider"])
numpy.save("onnx.npy", session.run(None, {"images": x})[0])
assert not {"model", "experiment", "sbp_cnn"} & set(sys.modules)
"""


def elsewhere(folder: Path, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Logits of the exported network, in a process that does not know this repository."""
    np.save(folder / "images.npy", x.numpy())
    command = [sys.executable, "-I", "-c", LOADED]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    return np.load(folder / "pt2.npy"), np.load(folder / "onnx.npy")


@pytest.mark.slow
def test_the_network_as_cut_is_exported(removing, files, snapshot, tmp_path):
    """Of a finished run, whose files stay; it runs elsewhere with the accuracy of the table."""
    data, run = images.load("digits"), removing("-finetune", 1)
    before = snapshot(run.folder)
    result = removing("-finetune", 1, "-resume", 1, "-export", tmp_path / "exported")
    assert snapshot(run.folder) == before and files(tmp_path / "exported") == {"network.pt2", "network.onnx"}
    left = "-".join(str(run.table[f"units_{name}"].item()) for name in ("fc1.inputs", "fc1", "fc2"))
    assert f"{tmp_path / 'exported'}: {left}, " in result.stdout
    expected, _ = computed(load(run, "cut"), pixels(data.test, "lenet-fc"), "lenet-fc")
    for logits in elsewhere(tmp_path / "exported", pixels(data.test, "lenet-fc")):
        np.testing.assert_allclose(logits, expected.numpy(), rtol=1e-4, atol=1e-5)
        right = 100 * np.mean(logits.argmax(1) == data.test.y.numpy())
        assert right == pytest.approx(run.table["accuracy"].item())


def test_several_seeds_are_exported_even_if_they_are_constants(few, files, tmp_path):
    out = tmp_path / "exported"
    result = few("-seeds", 2, "-val", 0.2, *EMPTY, "-sn", 4, "-allow_empty", 1, "-export", out)
    assert files(out) == {f"seed{seed}/network.{kind}" for seed in (1, 2) for kind in ("pt2", "onnx")}
    assert f"{out / 'seed1'}: 0-0-0, " in result.stdout
    for seed in (1, 2):
        session = onnxruntime.InferenceSession(out / f"seed{seed}/network.onnx", providers=["CPUExecutionProvider"])
        logits = load(result / f"seed{seed}", "cut")["constant.logits"]
        for n in (1, 5):
            (found,) = session.run(None, {"images": np.random.default_rng(0).random((n, 1, 12, 12), np.float32)})
            np.testing.assert_allclose(found, logits.expand(n, -1), rtol=1e-6)


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
    assert start(*flags, "-c", c, "-kl_weight", 0.01, "-lr", 3e-3).table["accuracy"].item() > 85


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
