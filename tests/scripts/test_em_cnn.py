"""Runs of em_cnn.py: what they write, and whether the numbers are those of the networks."""

import itertools
import json
import math
import subprocess
import sys
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import em_cnn
from data import images
from experiment import classification, shrunk
from model.image_networks import build
from model.surgery import cut_channels, zero_channels

SCRIPT = "em_cnn.py"
CYCLES = ("-sn", 4, "-cycles", 2, "-samples_per_cycle", 1)
FEW = ("-model", "resnet20", *CYCLES, "-train", 20, "-speed", 0)  # 3 iterations an epoch
PRUNING = ("-eps0", 0.05, "-hard", 0.37, "-soft", 1)  # some of the channels of the last stage go
SCORES = ["accuracy", "nll", "ece", "brier"]
AVERAGED, BEST = ([f"{name}_{of}" for name in SCORES] for of in ("averaged", "best_sample"))
KEY = ["data", "model", "scale", "aug", "method", "dense", "seed"]
NUMBERS = [*SCORES, *AVERAGED, *BEST, "samples", "sparsity", "density", "parameters_kept", "groups_spike"]
NUMBERS += ["groups_pruned", "accuracy_cut", "channels_cut", "channels", "empty_layers", "parameters_cut", "flops"]
NUMBERS += ["flops_dense"]
GROUPS, TAU = ["groups_spike", "groups_pruned"], ["tau_mean", "tau_sd"]
METRICS = ["epoch", "iterations", "samples", "lr", *SCORES, "sparsity"]
FILES = {"args.json", "command.sh", "environment.json", "metrics.csv", "checkpoint.safetensors", "table.csv"}
FILES |= {"summary.json", "predictions.safetensors", "model.safetensors", "members.csv", "layers.csv"}
OF_SEEDS = {"args.json", "command.sh", "environment.json", "table.csv", "summary.json"}
SMALL_VALUES = {
    "-data": "digits", "-data_dir": "nowhere", "-size": 9, "-workers": 0, "-aug": 0, "-train": 400, "-test": 99,
    "-val": 0.2, "-model": "preact_resnet18", "-scale": 0.05, "-c": "sgd", "-sn": 2, "-samples_per_cycle": 1,
    "-lr": 0.1, "-momentum": 0.5, "-eta": 0.2, "-temperature": 0.01, "-cycles": 2, "-dense": 1, "-eps0": 0.01,
    "-eps1": 0.002, "-soft": 0.1, "-hard": 0.2, "-warmup": 1, "-group": "filter", "-rule": "square",
    "-device": "cpu", "-amp": 0, "-compile": 0, "-seed": 4, "-seeds": 2, "-resume": 1, "-save_every": 0, "-save": 0,
    "-tensorboard": 1, "-speed": 0,
}  # fmt: skip


def files(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def metrics(result) -> pd.DataFrame:
    return pd.read_csv(result / "metrics.csv")


def row(result) -> dict:
    (found,) = result.table.to_dict("records")
    return found


def network(result, **flags) -> nn.Module:
    """The saved network of a run on the pictures, in evaluation mode."""
    net = build(flags.get("model", "resnet20"), (1, 12, 12), 2, flags.get("scale", 1.0))
    net.load_state_dict(load_file(result / "model.safetensors"))
    return net.to(memory_format=torch.channels_last).eval()


def pixels(tmp_path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Normalised test pictures and their classes."""
    data = images.load("folder", str(tmp_path / "pictures")).test
    ((x, y),) = data.batches(torch.arange(len(data)), len(data))
    return (x.float() / 255 - 0.5) / 0.25, y


@torch.no_grad()
def probabilities(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    training = net.training
    found = net.eval()(x).double().softmax(-1)
    net.train(training)
    return found


def same_scores(found: dict, expected: torch.Tensor, y: torch.Tensor, suffix: str = "") -> None:
    for name in SCORES:
        assert found[f"{name}{suffix}"] == pytest.approx(getattr(classification, name)(expected, y), rel=1e-5), name


def convolutions(net: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: module for name, module in net.named_modules() if isinstance(module, nn.Conv2d)}


def test_a_run_is_a_folder(on_pictures):
    for c, columns in (("em", [*GROUPS, *TAU]), ("sgd", [])):
        result = on_pictures("-c", c, out=c)
        assert files(result.folder) == FILES
        assert (result / "command.sh").read_text().startswith("python em_cnn.py -model resnet20 ")
        assert list(result.table) == [*KEY, *NUMBERS] and list(metrics(result)) == [*METRICS, *columns, *AVERAGED]
        assert [row(result)[name] for name in KEY] == ["folder", "resnet20", 1, 1, c, int(c == "sgd"), 1]
        assert result.summary.keys() == {*NUMBERS, "seeds", "evaluated_on", "device", "seconds"}
        assert result.summary["evaluated_on"] == "test" and result.summary["accuracy"] == row(result)["accuracy"]
        assert metrics(result)["iterations"].tolist() == [3, 6, 9, 12]
        for name in (*SCORES, *AVERAGED, "sparsity", "samples"):
            assert metrics(result)[name].iloc[-1] == row(result)[name]
        assert f"results: {result.folder}" in result.stdout and "accuracy_cut" in result.stdout
        assert "Warning" not in result.stderr and "Traceback" not in result.stderr


def test_the_default_folder_is_named_after_the_flags(on_pictures, tmp_path):
    for more in ((), ("-c", "sgd", "-seed", 3)):
        on_pictures(*more, out=None)
    changed = "train-20_sn-4_samples_per_cycle-1_cycles-2"
    found = {path.name for path in (tmp_path / "empty/runs/em_cnn").iterdir()}
    assert found == {f"em_folder_resnet20_seed1_{changed}", f"sgd_folder_resnet20_seed3_{changed}"}


def test_the_defaults_are_published():
    _, args = em_cnn.parse([])
    assert (args.eps0, args.eps1, args.soft, args.hard, args.lr, args.momentum) == (1e-3, 5e-4, 1e-4, 0.01, 1, 0.1)
    assert (args.train, args.sn, args.cycles, args.samples_per_cycle, args.eta) == (64, 200, 4, 3, 0.1)
    assert (args.model, args.data, args.group, args.rule) == ("resnet18", "cifar10", "kernel", "range")
    assert (args.warmup, args.dense) == (40, 0)  # the release's 300 of 200 epochs would never prune
    _, args = em_cnn.parse(["-c", "sgd"])
    assert (args.lr, args.momentum, args.dense) == (0.05, 0.9, 1)


def test_the_temperature_is_one_over_the_number_of_images_and_the_step_is_cosine(on_pictures):
    data = images.load("digits")
    _, args = em_cnn.parse(["-data", "digits", "-model", "resnet20"])
    group = em_cnn.Chain(args, data, 1).sampler.param_groups[0]
    assert (group["temperature"], group["observations"]) == (1 / 1437, 1437)
    found = metrics(on_pictures())["lr"].to_numpy()
    assert found == pytest.approx([(1 + math.cos(math.pi * t / 6)) / 2 for t in (2, 5, 2, 5)])


def test_every_flag_is_accepted(start, tmp_path):
    parser, _ = em_cnn.parse([])
    flags = {action.option_strings[0] for action in parser._actions} - {"-h", "-out", "-export"}
    assert flags == set(SMALL_VALUES)
    result = start(*itertools.chain(*SMALL_VALUES.items()))
    args = json.loads((result / "args.json").read_text())
    elsewhere = {"data_dir", "device", "workers", "resume", "save_every", "tensorboard", "speed"}
    assert args.keys() == {flag[1:] for flag in SMALL_VALUES} - elsewhere
    for flag, value in SMALL_VALUES.items():
        assert args.get(flag[1:], value) == value, flag
    assert result.table["seed"].tolist() == [4, 5] and result.summary["evaluated_on"] == "validation"
    assert not (tmp_path / "empty/nowhere").exists()
    found = files(result.folder)
    events = {name for name in found if "tensorboard" in name}
    assert {name.split("/")[0] for name in events} == {"seed4", "seed5"}
    each = FILES - {"model.safetensors"}
    assert found - events == OF_SEEDS | {f"seed{seed}/{name}" for seed in (4, 5) for name in each}


@pytest.mark.parametrize(
    "flags, epochs",
    [
        (("-dense", 1), [2, 4]),
        (("-warmup", 1), [2, 4]),
        (("-warmup", 2), [4]),
        (("-dense", 1, "-samples_per_cycle", 2), [1, 2, 3, 4]),
        (("-warmup", 1, "-samples_per_cycle", 2), [2, 3, 4]),
        (("-warmup", 3, "-cycles", 1, "-samples_per_cycle", 4), [4]),
        (("-c", "sgd", "-cycles", 4, "-warmup", 3), [1, 2, 3, 4]),
    ],
    ids=str,
)
def test_the_ensemble_is_the_mean_of_its_members(on_pictures, monkeypatch, tmp_path, flags, epochs):
    """The last networks of every cycle, of those that prune the sparse ones."""
    x, y = pixels(tmp_path)
    seen, plain = [], em_cnn.Chain.epoch

    def epoch(chain):
        plain(chain)
        seen.append(probabilities(chain.net, x))

    monkeypatch.setattr(em_cnn.Chain, "epoch", epoch)
    result = on_pictures(*PRUNING, *flags)
    members, mean = pd.read_csv(result / "members.csv"), torch.stack([seen[e - 1] for e in epochs]).mean(0)
    assert members["epoch"].tolist() == epochs and list(members) == ["epoch", *SCORES]
    for found, epoch in zip(members.to_dict("records"), epochs, strict=True):
        same_scores(found, seen[epoch - 1], y)
    same_scores(row(result), mean, y, "_averaged")
    same_scores(row(result), seen[-1], y)
    assert row(result)["samples"] == len(epochs)
    saved = load_file(result / "predictions.safetensors")
    torch.testing.assert_close(saved["probabilities"], mean, rtol=1e-5, atol=1e-7)
    done = [sum(e <= epoch for e in epochs) for epoch in (1, 2, 3, 4)]
    assert metrics(result)["samples"].tolist() == done
    for name in SCORES:
        best = max if name == "accuracy" else min
        assert row(result)[f"{name}_best_sample"] == pytest.approx(best(members[name]))


SPARSE = {
    "range": (*PRUNING, "-warmup", 1),
    "square": ("-rule", "square", "-hard", 0.004, "-warmup", 1),
    "filters": ("-group", "filter", "-rule", "square", "-hard", 0.0037, "-warmup", 0),
    "channels": ("-group", "channel", "-rule", "square", "-hard", 0.0037, "-warmup", 0),
}


@pytest.mark.parametrize("setting", SPARSE)
def test_a_sparse_run(on_pictures, tmp_path, setting):
    """Every number of the table from the weights of the run."""
    result = on_pictures(*SPARSE[setting], "-sn", 6)
    net, (x, y), found = network(result), pixels(tmp_path), row(result)
    convs, total = convolutions(net), sum(p.numel() for p in net.parameters())
    zeros = sum(int((conv.weight == 0).sum()) for conv in convs.values())
    assert 0.01 < zeros / total < 0.9 and found["sparsity"] == zeros / total
    assert found["parameters_kept"] == total - zeros and found["density"] == 1 - found["sparsity"]
    assert not any((p == 0).all() for name, p in net.named_parameters() if p.ndim == 1 and "weight" in name)
    assert (net.fc.weight != 0).all()
    course = metrics(result)
    for name in ("sparsity", "groups_pruned"):
        assert (course[name].diff().dropna() >= 0).all() and course[name].iloc[-1] > 0
    same_scores(found, probabilities(net, x), y)
    layers = pd.read_csv(result / "layers.csv").set_index("layer")
    weights = {f"{name}.weight": conv.weight for name, conv in convs.items()} | {"fc.weight": net.fc.weight}
    assert set(layers.index) == set(weights)
    for name, w in weights.items():
        assert layers.loc[name, ["parameters", "kept"]].tolist() == [w.numel(), int((w != 0).sum())]
    small = cut_channels(net, (1, 12, 12), *zero_channels(net), keep_one=True)
    counts = [sum(conv.out_channels for conv in convolutions(n).values()) for n in (net, small)]
    assert (found["channels"], found["channels_cut"]) == (counts[0], counts[0] - counts[1])
    assert (found["channels_cut"] > 0) == (setting != "square")
    assert found["parameters_cut"] == sum(p.numel() for p in small.parameters())
    assert found["accuracy_cut"] == pytest.approx(classification.accuracy(probabilities(small, x), y))
    assert (found["flops"] < found["flops_dense"]) == (setting != "square")
    assert found["empty_layers"] == 0


def test_what_is_pruned_stays_zero(on_pictures, monkeypatch):
    seen, plain = [], em_cnn.Chain.epoch

    def epoch(chain):
        plain(chain)
        assert all(
            torch.equal(w != 0, keep) for w, keep in zip(chain.pruner.layers, chain.pruner.mask.keep, strict=True)
        )
        seen.append([keep.clone() for keep in chain.pruner.mask.keep])

    monkeypatch.setattr(em_cnn.Chain, "epoch", epoch)
    on_pictures("-rule", "square", "-hard", 0.004, "-warmup", 0)
    for before, after in itertools.pairwise(seen):
        assert not any((now & ~then).any() for then, now in zip(before, after, strict=True))
        assert any((then & ~now).any() for then, now in zip(before, after, strict=True))


@pytest.mark.parametrize("warmup", [0, 1, 3])
def test_the_first_em_step_opens_the_first_epoch_past_the_warm_up(on_pictures, warmup):
    course = metrics(on_pictures(*PRUNING, "-warmup", warmup))
    for name in ("groups_spike", "groups_pruned", "sparsity"):
        assert (course[name] > 0).tolist() == [epoch > warmup for epoch in (1, 2, 3, 4)], name
    assert (course["groups_spike"][course["groups_spike"] > 0] == 1).all()  # the soft threshold is above all


def test_em_has_one_step_an_epoch(on_pictures, monkeypatch):
    calls, update = [], em_cnn.GroupSpikeSlab.update
    monkeypatch.setattr(em_cnn.GroupSpikeSlab, "update", lambda prior: calls.append(1) or update(prior))
    on_pictures(*PRUNING, "-warmup", 1)
    assert len(calls) == 3
    on_pictures(*PRUNING, "-dense", 1, out="dense")
    on_pictures(*PRUNING, "-warmup", 1, "-c", "sgd", out="sgd")
    assert len(calls) == 3


@pytest.mark.parametrize("flags", [("-dense", 1), ("-c", "sgd"), ("-c", "sgd", "-dense", 0)], ids=str)
def test_a_dense_run_never_prunes(on_pictures, flags):
    result = on_pictures("-hard", 10, "-warmup", 0, *flags)
    assert row(result)["sparsity"] == row(result)["channels_cut"] == row(result)["groups_pruned"] == 0
    assert row(result)["accuracy_cut"] == row(result)["accuracy"] and row(result)["dense"] == 1
    assert all((conv.weight != 0).all() for conv in convolutions(network(result)).values())


def test_a_network_that_loses_all_its_channels_is_cut_to_one_of_each(on_pictures):
    """It knows the classes' shares, and is measured all the same."""
    result = on_pictures("-hard", 10, "-warmup", 1)
    found, convs = row(result), convolutions(network(result))
    assert found["empty_layers"] == len(convs) == 21 and found["groups_pruned"] == 1 and found["groups_spike"] == 0
    assert found["channels"] - found["channels_cut"] == len(convs)


@pytest.mark.parametrize("flags, learnt", [(("-c", "sgd"), 80), (("-hard", 0.36, "-warmup", 1), 60)], ids=str)
def test_a_network_learns(start, flags, learnt):
    """Chance is 10%."""
    steps = ("-sn", 2, "-cycles", 1, "-samples_per_cycle", 1, "-train", 32, "-aug", 0, "-speed", 0)
    found = row(start("-data", "digits", "-model", "resnet20", *steps, *flags))
    assert found["accuracy"] > learnt and found["accuracy_averaged"] > learnt
    assert (found["sparsity"] > 0) == ("-hard" in flags)


MODELS = {  # flags, side of the images
    "resnet18": (("-train", 8), 8),
    "resnet34": (("-train", 8), 8),
    "resnet20": (("-train", 8), 8),
    "wrn28-10": (("-scale", 0.1, "-train", 8), 8),
    "preact_resnet18": (("-scale", 0.1, "-train", 8), 16),
    "densenet": (("-scale", 0.1, "-train", 8), 8),
}


@pytest.mark.parametrize("model", [pytest.param(m, marks=pytest.mark.slow) if m == "resnet34" else m for m in MODELS])
def test_every_network_runs(start, pictures, model):
    flags, side = MODELS[model]
    folder = pictures(train={"cat": 4, "dog": 4}, test={"cat": 2, "dog": 2}, side=side)
    once = ("-sn", 1, "-cycles", 1, "-samples_per_cycle", 1, "-warmup", 0, "-speed", 0)
    result = start("-data", "folder", "-data_dir", folder, "-model", model, *flags, *once)
    found, scale = row(result), dict(zip(flags[::2], flags[1::2], strict=True)).get("-scale", 1)
    net = build(model, (1, side, side), 2, scale)
    assert found["parameters_kept"] == sum(p.numel() for p in net.parameters()) and found["scale"] == scale
    assert set(em_cnn.MODELS) == set(MODELS) and files(result.folder) == FILES


def test_several_seeds_are_those_of_runs_of_their_own(on_pictures):
    result = on_pictures(*PRUNING, "-warmup", 1, "-seed", 2, "-seeds", 2, out="both")
    alone = [on_pictures(*PRUNING, "-warmup", 1, "-seed", seed, out=f"seed{seed}") for seed in (2, 3)]
    assert result.table["seed"].tolist() == [2, 3] and result.summary["seeds"] == 2
    for each in alone:
        for name in ("table.csv", "metrics.csv", "members.csv", "model.safetensors"):
            assert (result / Path(each.folder).name / name).read_bytes() == (each / name).read_bytes(), name
    pd.testing.assert_frame_equal(result.table, pd.concat([each.table for each in alone], ignore_index=True))
    assert result.summary["nll"] == pytest.approx(np.mean([row(each)["nll"] for each in alone]))


def test_a_validation_part_stands_in_the_place_of_the_test_part(on_pictures):
    result = on_pictures("-val", 0.2)
    labels = load_file(result / "predictions.safetensors")["labels"]
    assert labels.bincount().tolist() == [6, 6] and result.summary["evaluated_on"] == "validation"
    assert metrics(result)["iterations"].tolist() == [2, 4, 6, 8]  # of 48 images


def test_the_timings_are_of_the_network_as_cut(on_pictures, monkeypatch):
    """Where nothing was cut there is nothing to time."""
    monkeypatch.setattr(shrunk, "SECONDS", 1e-3)
    monkeypatch.setattr(shrunk, "_sessions", lambda *networks: [])
    result = on_pictures(*PRUNING, "-warmup", 1, "-speed", 1)
    speed = pd.read_csv(result / "speed.csv")
    assert speed["seed"].tolist() == [1] and (speed[["speedup_cpu_1", "speedup_cpu_256"]] > 0).all(axis=None)
    assert "seed 1: speedup_cpu_1 " in result.stdout
    assert not (on_pictures("-dense", 1, "-speed", 1, out="dense") / "speed.csv").exists()


LOAD = """
import sys
import numpy as np, torch
x = torch.from_numpy(np.load(sys.argv[1] + "/x.npy"))
np.save(sys.argv[1] + "/y.npy", torch.export.load(sys.argv[1] + "/network.pt2").module()(x).detach().numpy())
"""


@pytest.mark.slow
def test_an_exported_network_gives_the_logits_of_the_network_as_cut(on_pictures, tmp_path):
    import onnxruntime

    folder = tmp_path / "exported"
    result = on_pictures(*PRUNING, "-warmup", 1, "-export", folder)
    assert files(folder) == {"network.pt2", "network.onnx"} and str(folder) in result.stdout
    net, (x, _) = network(result), pixels(tmp_path)
    small = cut_channels(net, (1, 12, 12), *zero_channels(net), keep_one=True)
    expected = small(x[:5]).detach().numpy()
    np.save(folder / "x.npy", x[:5].contiguous().numpy())
    subprocess.run([sys.executable, "-c", LOAD, str(folder)], check=True, cwd=tmp_path)
    np.testing.assert_allclose(np.load(folder / "y.npy"), expected, rtol=1e-4, atol=1e-5)
    session = onnxruntime.InferenceSession(folder / "network.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": x[:5].contiguous().numpy()})
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    state = torch.export.load(folder / "network.pt2").state_dict
    assert sum(w.numel() for w in small.parameters()) == row(result)["parameters_cut"] < row(result)["parameters_kept"]
    assert {name: w.shape for name, w in small.state_dict().items()} == {name: w.shape for name, w in state.items()}


@pytest.mark.slow
def test_a_compiled_run_computes_what_an_eager_one_does(on_pictures, monkeypatch):
    """Up to rounding, measured against what the training changes."""

    def two_convolutions(_, shape, classes, __) -> nn.Sequential:
        parts = {"conv1": nn.Conv2d(shape[0], 8, 3), "bn1": nn.BatchNorm2d(8), "relu1": nn.ReLU()}
        parts |= {"conv2": nn.Conv2d(8, 8, 3), "bn2": nn.BatchNorm2d(8), "relu2": nn.ReLU()}
        parts |= {"pool": nn.AdaptiveAvgPool2d(1), "flatten": nn.Flatten(), "fc": nn.Linear(8, classes)}
        return nn.Sequential(OrderedDict(parts))

    monkeypatch.setattr(em_cnn, "build", two_convolutions)
    flags = ("-hard", 0.24, "-sn", 2, "-warmup", 1, "-temperature", 0, "-aug", 0)
    compiled = on_pictures(*flags, "-compile", 1, out="compiled")
    torch.compiler.reset()
    if "torch.compile failed" in compiled.stderr:
        pytest.skip(f"torch.compile does not work here: {compiled.stderr}")
    eager, still = on_pictures(*flags, out="eager"), on_pictures(*flags, "-lr", 1e-30, "-eta", 0, out="still")
    found, expected, start = (load_file(run / "model.safetensors") for run in (compiled, eager, still))
    for name in ("conv1.weight", "conv2.weight", "bn2.bias", "fc.weight"):
        error, change = (found[name] - expected[name]).norm(), (start[name] - expected[name]).norm()
        assert error < 0.1 * change, name
    assert row(compiled)["sparsity"] == pytest.approx(row(eager)["sparsity"], rel=0.05)
    assert row(eager)["sparsity"] > 0


def test_tensorboard_has_the_metrics(on_pictures):
    loader = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = on_pictures(*PRUNING, "-warmup", 1, "-tensorboard", 1)
    events = loader.EventAccumulator(str(result / "tensorboard")).Reload()
    for name in ("nll", "sparsity", "groups_pruned"):
        found = [event.value for event in events.Scalars(name)]
        assert found == pytest.approx(metrics(result)[name].tolist(), rel=1e-6)
