"""What sbp_cnn.py removes from a network, and the network as cut: its outputs, fine-tuning, timing and export."""

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
from safetensors.torch import load_file, save_file
from torch import Tensor

from data import images
from experiment import shrunk
from model.multiplicative_noise import snr
from tests.scripts import sbp_cnn_shared
from tests.scripts.sbp_cnn_shared import (
    BEGUN,
    KINDS,
    SHORT,
    STILL,
    TINY,
    accuracy,
    at_test_time,
    check,
    computed,
    load,
    metrics,
    pixels,
    same_weights,
    units,
)

SCRIPT = "sbp_cnn.py"
few, network = sbp_cnn_shared.few, sbp_cnn_shared.network
quickly, removing = sbp_cnn_shared.quickly, sbp_cnn_shared.removing


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
