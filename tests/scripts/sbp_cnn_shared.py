"""What the tests of sbp_cnn.py share: runs in small, and what a network computes, again from its weights alone.

A test module takes the fixtures that it needs by name: few = sbp_cnn_shared.few.
"""

import itertools
import math
from pathlib import Path

import pandas as pd
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor

import sbp_cnn
from data.image_sets import ImageData, MemoryImages
from experiment import classification, shrunk
from model.multiplicative_noise import mean, snr

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
KINDS = {  # side of the images, classes, scale
    "lenet-fc": (12, 2, 0.04),
    "lenet5": (28, 10, 0.2),
    "vgglike": (32, 2, 0.05),
}
COLUMNS = ["data", "model", "scale", "method", "seed", "accuracy", "nll", "ece", "brier", "error", "accuracy_uncut"]
COLUMNS += ["accuracy_dense", "accuracy_train", "collapsed", "empty_layers"]
SIZES = ["parameters", "parameters_dense", "flops", "flops_dense", "flops_ratio"]
BEGUN = {"args.json", "command.sh", "environment.json", "metrics.csv", "checkpoint.safetensors"}


def text(flags) -> str:
    return " ".join(map(str, flags))


def metrics(of) -> pd.DataFrame:
    return pd.read_csv(of / "metrics.csv")


def load(of, name: str) -> dict[str, Tensor]:
    return load_file(of / f"{name}.safetensors")


def same_weights(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@pytest.fixture
def few(start, pictures):
    """few(*flags, out): 3 iterations an epoch on 60 grey pictures of two classes; 144-20-12."""
    flags = ("-data", "folder", "-data_dir", pictures(), "-scale", 0.04, "-sn", 2, "-dense_sn", 1, "-train", 20)

    def run(*more, **kwargs):
        return start(*flags, "-speed", 0, *more, **kwargs)

    return run


@pytest.fixture
def removing(start):
    """removing(*flags, out): sbp on the digits, which removes about half of the units."""
    return lambda *flags, **kwargs: start(*TINY, *REMOVING, *flags, **kwargs)


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
