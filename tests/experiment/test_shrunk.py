"""Networks before and after units were cut out: operations by hand, the published ratios, timings, files elsewhere."""

import importlib.util
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from experiment import report, shrunk, timing
from experiment.shrunk import flops, parameters, shrink, speed_ups, sweep, unit_table
from experiment.structured import SBP, Dense
from experiment.timing import interleaved
from model.lenet import lenet5, lenet_fc
from model.surgery import Constant, Select, shapes, sites
from model.vgg import vgglike

CPU = torch.device("cpu")
SHAPE = (1, 20, 16)  # LeNet5 at a tenth: 2-5, 2 positions, 50
WHOLE = {"conv1": 2, "conv2": 5, "fc1.inputs": 10, "fc1": 50}


class Scored(Dense):
    """A method with given scores."""

    threshold = 0.5

    def __init__(self, net: nn.Sequential, **scores: torch.Tensor):
        """scores: by layer and side, as fc1_inputs."""
        super().__init__(net, torch.Generator())
        sides = ("outputs", "inputs")
        self.given = {(name.split("_")[0], sides.index(name.split("_")[1])): score for name, score in scores.items()}

    def scores(self) -> dict:
        return self.given


def small_lenet5(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    net = lenet5(SHAPE, 3, 0.1).eval()
    net.centre.mean.uniform_()
    return net


def images(n: int, shape: tuple[int, int, int] = SHAPE) -> torch.Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return net(x)


def zeros_at(n: int, *zeros: int) -> torch.Tensor:
    score = torch.ones(n)
    score[list(zeros)] = 0
    return score


def noisy() -> SBP:
    """LeNet5 with noise everywhere, of all strengths."""
    net = small_lenet5()
    method = SBP(net, torch.Generator().manual_seed(0), tuple(sites(shapes(net))))
    with torch.no_grad():
        for layer in method.noise.layers.values():
            layer.mu.uniform_(-4, 0)
            layer.log_sigma.uniform_(-2, 1)
    return method


def test_the_operations_of_the_networks_of_the_paper_by_hand():
    assert flops(lenet_fc((1, 28, 28), 10), (1, 28, 28)) == 2 * (784 * 500 + 500 * 300 + 300 * 10)
    conv1, conv2 = 24 * 24 * 25 * 20, 8 * 8 * 25 * 20 * 50  # outputs times weights of each
    assert flops(lenet5((1, 28, 28), 10), (1, 28, 28)) == 2 * (conv1 + conv2 + 800 * 500 + 500 * 10)
    with torch.device("meta"):
        net = vgglike((3, 32, 32), 10).eval()
    channels = [3, 64, 64, 128, 128, 256, 256, 256, *[512] * 6]
    sides = [32, 32, 16, 16, 8, 8, 8, 4, 4, 4, 2, 2, 2]
    total = sum(side**2 * 9 * channels[i] * channels[i + 1] for i, side in enumerate(sides))
    assert flops(net, (3, 32, 32)) == 2 * (total + 512 * 512 + 512 * 10)


def test_the_operations_of_other_layers_by_hand():
    net = nn.Sequential(
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), groups=2, bias=False), nn.BatchNorm2d(6), nn.ReLU(),
        nn.AvgPool2d(2), nn.Flatten(), nn.Linear(6 * 2 * 3, 5),
    ).eval()  # fmt: skip
    outputs = 6 * 4 * 7  # of images 8 x 8
    assert flops(net, (4, 8, 8)) == 2 * (outputs * 2 * 3 * 2 + 36 * 5)
    assert flops(nn.Sequential(Constant(torch.zeros(3))), (1, 4, 4)) == 0
    assert flops(nn.Flatten(), (1, 4, 4)) == 0


@pytest.mark.parametrize("training", [False, True])
def test_counting_leaves_the_network_alone(training):
    net = small_lenet5().train(training)
    flops(net, SHAPE)
    assert net.training is training and all(p.grad is None for p in net.parameters())


def test_parameters_are_no_buffers():
    assert parameters(lenet5((1, 28, 28), 10)) == 431_080
    small, _ = shrink(Scored(small_lenet5(), fc1_inputs=zeros_at(10, 3)), SHAPE)
    assert any(isinstance(module, Select) for module in small)
    assert parameters(small) == (2 * 25 + 2) + (5 * 2 * 25 + 5) + (50 * 9 + 50) + (3 * 50 + 3)


NETS = {"lenet-fc": (lenet_fc, (1, 28, 28)), "lenet5": (lenet5, (1, 28, 28)), "vgglike": (vgglike, (3, 32, 32))}
PUBLISHED = [row for row in report.published("sbp").itertuples() if row.method != "dense"]
PUBLISHED_IDS = [f"{row.model}-{row.method}" for row in PUBLISHED]


@pytest.fixture(scope="module")
def networks() -> dict[str, nn.Sequential]:
    return {name: make(shape, 10).eval() for name, (make, shape) in NETS.items()}


def of_units(net: nn.Sequential, units: list[int]) -> Scored:
    """The method that leaves so many units; flattened inputs are shared by the channels as evenly as they can be."""
    layers, left, method = shapes(net), list(units), Scored(net)
    if ("fc1", 1) in sites(layers) and "conv1" not in layers:
        method.given["fc1", 1] = (torch.arange(784) < left.pop(0)).float()
    for before, after in zip(layers, list(layers)[1:], strict=False):
        (outputs, *_), (_, inputs, *_) = layers[before], layers[after]
        channels, positions = left.pop(0), inputs // outputs
        method.given[before, 0] = (torch.arange(outputs) < channels).float()
        if positions > 1:
            order = torch.arange(inputs).view(outputs, positions)[:channels].T.flatten()
            method.given[after, 1] = zeros_at(inputs, *order[left.pop(0) :].tolist())
    assert not left
    return method


@pytest.mark.parametrize("row", PUBLISHED, ids=PUBLISHED_IDS)
def test_the_published_ratios_come_from_the_published_units(networks, row):
    """Those of LeNet5 do not; these are its own."""
    net, shape = networks[row.model], NETS[row.model][1]
    units = [int(count) for count in row.units.split("-")]
    small, gone = shrink(of_units(net, units), shape)
    assert not gone.empty
    whole, left = flops(net, shape), flops(small, shape)
    if row.model != "lenet5":
        assert list(gone.units().values()) == units
        assert round(whole / left, 2) == row.flops_ratio
    elif row.method == "ssl":  # 12 channels of 16 positions have 192 inputs, not 800
        assert list(gone.units().values()) == [3, 12, 192, 500]
        assert round(whole / left, 2) == 11.36
        assert round(whole / (left + 2 * (800 - 192) * 500), 2) == 4.53 != row.flops_ratio
    else:
        assert list(gone.units().values()) == units
        assert round(whole / left, 2) == {"sparsevd": 2.01, "sbp": 10.78}[row.method] != row.flops_ratio


def test_the_published_networks_say_their_own_units(networks):
    for row in report.published("sbp").itertuples():
        if row.method == "dense":
            counts = shrink(Dense(networks[row.model], torch.Generator()), NETS[row.model][1])[1].units()
            assert "-".join(map(str, counts.values())) == row.units


def test_shrink_cuts_what_the_method_removes_and_leaves_the_method_alone():
    method, x = noisy(), images(4)
    state = {name: value.clone() for name, value in method.net.state_dict().items()}
    small, gone = shrink(method, SHAPE)
    assert gone.units() == {name: small.get_submodule(name.removesuffix(".inputs")).weight.shape[int("." in name)]
                            for name in WHOLE}  # fmt: skip
    assert sum(gone.units().values()) < sum(WHOLE.values())
    assert all(torch.equal(value, state[name]) for name, value in method.net.state_dict().items())
    method.train()
    method.penalty().backward()
    whole, gone = shrink(method, SHAPE, 0.0)
    assert gone.units() == WHOLE
    torch.testing.assert_close(logits(whole, x), logits(method.net.eval(), x), rtol=1e-5, atol=1e-5)
    assert shrink(method, SHAPE, 1.0)[1].units() == shrink(method, SHAPE)[1].units()


@pytest.mark.parametrize("allow_empty", [False, True])
def test_an_empty_layer_keeps_its_best_unit_unless_it_may_go(allow_empty):
    net, x = small_lenet5(), images(4)
    net.fc1.bias.data[:25] = 1.0
    method = Scored(net, fc1_outputs=torch.linspace(0, 0.4, 50), conv1_outputs=zeros_at(2, 0))
    small, gone = shrink(method, SHAPE, allow_empty=allow_empty)
    assert gone.empty == {"fc1"}
    assert gone.units(allow_empty) == {"conv1": 1, "conv2": 5, "fc1.inputs": 10, "fc1": 0 if allow_empty else 1}
    assert (parameters(small), flops(small, SHAPE)) == (0, 0) if allow_empty else small.fc1.out_features == 1
    if allow_empty:  # the hidden units are constants
        expected = net.fc1.bias.clamp(min=0) @ net.fc2.weight.T + net.fc2.bias
        torch.testing.assert_close(logits(small, x), expected.detach().expand(4, -1), rtol=1e-5, atol=1e-5)
    whole, gone = shrink(Scored(net, fc1_outputs=zeros_at(50, 7)), SHAPE, allow_empty=allow_empty)
    assert not gone.empty and whole.fc1.out_features == 49  # it makes no other difference


def test_the_table_of_units():
    scores = {"conv2_outputs": torch.tensor([0.5, 0.4, 3.0, 0.1, 0.9]), "fc1_inputs": torch.linspace(0.11, 1.01, 10)}
    method = Scored(small_lenet5(), **scores)
    for threshold, conv2, inputs in [
        (None, [1, 0, 1, 0, 1], [0, 0, 0, 0, 1, 1, 0, 0, 1, 1]),
        (0.05, [1] * 5, [1] * 10),
        (0.85, [0, 0, 0, 0, 1], [0] * 8 + [1, 1]),
    ]:
        if threshold is None:
            conv2[0] = 0  # both of its positions go
        table = unit_table(method, threshold)
        assert list(table) == ["layer", "side", "unit", "score", "kept"]
        assert table["layer"].tolist() == ["conv2"] * 5 + ["fc1"] * 10
        assert table["side"].tolist() == ["outputs"] * 5 + ["inputs"] * 10
        assert table["unit"].tolist() == [*range(5), *range(10)]
        np.testing.assert_array_equal(table["score"], torch.cat(list(scores.values())))
        assert table["kept"].tolist() == conv2 + inputs


def test_a_sweep_cuts_more_at_every_threshold():
    method = noisy()
    thresholds, seen = torch.linspace(0, 4, 9), []

    def accuracy(net: nn.Module) -> float:
        seen.append(net)
        return 10.0 * len(seen)

    table = sweep(method, SHAPE, thresholds, accuracy)
    columns = [f"units_{name}" for name in WHOLE]
    assert list(table) == ["threshold", "accuracy", "parameters", "flops", *columns] and len(table) == 9
    assert table["threshold"].tolist() == thresholds.tolist()
    assert table["accuracy"].tolist() == [10.0 * i for i in range(1, 10)]
    assert table["parameters"].tolist() == [parameters(net) for net in seen]
    assert table["flops"].tolist() == [flops(net, SHAPE) for net in seen]
    assert table.loc[0, columns].tolist() == list(WHOLE.values())
    assert table["flops"][0] == flops(small_lenet5(), SHAPE) > 2 * table["flops"][8]
    for name in ("parameters", "flops", *columns):
        assert table[name].is_monotonic_decreasing, name
    scores = method.scores()
    for row in table.itertuples():
        worst = torch.minimum(scores["conv1", 0], scores["conv2", 1])
        assert row.units_conv1 == max(1, int((worst >= row.threshold).sum()))


def test_alternatives_take_turns_and_their_median_counts(monkeypatch):
    clock, calls = [0.0], []
    seconds = {"a": iter([100, 1, 7, 2]), "b": iter([50, 3, 4, 9])}

    def run(name: str) -> None:
        calls.append(name)
        clock[0] += next(seconds[name])

    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    found = interleaved({"a": lambda: run("a"), "b": lambda: run("b")}, rounds=3)
    assert found == {"a": 2.0, "b": 4.0} and "".join(calls) == "ab" * 4  # the first round does not count


class Slow(nn.Module):
    """Takes some seconds for every image."""

    def __init__(self, seconds: float):
        super().__init__()
        self.seconds, self.sizes = seconds, []

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        time.sleep(self.seconds * len(x))
        return x.flatten(1)


def without(monkeypatch, *missing: str) -> None:
    """As if these packages were not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *args: None if name in missing else find(name, *args))


@pytest.mark.parametrize("missing", ["onnxruntime", "onnxscript"])
def test_the_speed_up_is_the_time_of_the_dense_network_over_that_of_the_small_one(monkeypatch, missing):
    without(monkeypatch, missing)
    monkeypatch.setattr(shrunk, "BATCHES", (1, 3))
    monkeypatch.setattr(shrunk, "SECONDS", 0.003)
    row = speed_ups(Slow(3e-3), Slow(1e-5), SHAPE, CPU)
    assert list(row) == ["speedup_cpu_1", "speedup_onnx_1", "speedup_cpu_3", "speedup_onnx_3"]
    assert row["speedup_onnx_1"] is None and row["speedup_onnx_3"] is None
    assert row["speedup_cpu_1"] > 3 and row["speedup_cpu_3"] > 3


def test_speed_ups_have_a_column_for_every_runtime_and_batch(monkeypatch):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    monkeypatch.setattr(shrunk, "SECONDS", 1e-4)
    dense, small = (nn.Sequential(nn.Flatten(), nn.Linear(20, width)).eval() for width in (4000, 1))
    row = speed_ups(dense, small, (1, 4, 5), CPU)
    assert list(row) == ["speedup_cpu_1", "speedup_onnx_1", "speedup_cpu_256", "speedup_onnx_256"]
    assert all(0 < ratio < np.inf for ratio in row.values())
    assert row["speedup_cpu_256"] > 2 and row["speedup_onnx_256"] > 2
    assert all(p.requires_grad for p in small.parameters()) and torch.is_grad_enabled()


ELSEWHERE = """
import importlib.util, sys
import torch

assert not any(importlib.util.find_spec(name) for name in ("model", "experiment", "data", "sampler"))
for name in sys.argv[1:]:
    net = torch.export.load(f"{name}/network.pt2").module()
    torch.save([net(x) for x in torch.load(f"{name}/images.pt")], f"{name}/logits.pt")
"""


def test_saved_networks_are_the_same_elsewhere_for_any_number_of_images(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    some = Scored(small_lenet5(), conv1_outputs=zeros_at(2, 1), fc1_inputs=zeros_at(10, 3, 4, 5))
    none = Scored(small_lenet5(), fc1_outputs=torch.zeros(50))  # a layer lost all its units
    nets = {"some": shrink(some, SHAPE)[0], "none": shrink(none, SHAPE, allow_empty=True)[0]}
    assert any(isinstance(module, Select) for module in nets["some"])
    batches, expected = [images(n) for n in (1, 5)], {}
    for name, net in nets.items():
        folder = tmp_path / "new" / name
        expected[name] = [logits(net, x).numpy() for x in batches]
        sizes = shrunk.save(net.train(), SHAPE, folder)
        assert net.training
        files = {"pt2": folder / "network.pt2", "onnx": folder / "network.onnx"}
        assert set(folder.iterdir()) == set(files.values())
        assert sizes == {kind: file.stat().st_size for kind, file in files.items()}
        torch.save(batches, folder / "images.pt")
    command = [sys.executable, "-I", "-c", ELSEWHERE, *nets]
    done = subprocess.run(command, cwd=tmp_path / "new", capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    for name in nets:
        folder = tmp_path / "new" / name
        session = runtime.InferenceSession(str(folder / "network.onnx"), providers=["CPUExecutionProvider"])
        for x, found, logit in zip(batches, torch.load(folder / "logits.pt"), expected[name], strict=True):
            np.testing.assert_allclose(found.detach(), logit, rtol=1e-5, atol=1e-6)
            np.testing.assert_allclose(session.run(None, {"images": x.numpy()})[0], logit, rtol=1e-4, atol=1e-5)
    assert expected["some"][1].std(0).min() > 1e-4


@pytest.mark.parametrize("missing", ["onnx", "onnxscript"])
def test_saving_without_onnx_is_refused_and_writes_nothing(tmp_path, monkeypatch, missing):
    without(monkeypatch, missing)
    with pytest.raises(ValueError, match="-export: needs `pip install onnx"):
        shrunk.save(small_lenet5(), SHAPE, tmp_path / "new")
    assert list(tmp_path.iterdir()) == []


def test_saving_to_where_nothing_can_be_is_refused(tmp_path):
    pytest.importorskip("onnxscript")
    (tmp_path / "file").write_text("")
    with pytest.raises(ValueError, match=f"-export: {tmp_path / 'file' / 'new'} cannot be written"):
        shrunk.save(small_lenet5(), SHAPE, Path(tmp_path / "file" / "new"))
