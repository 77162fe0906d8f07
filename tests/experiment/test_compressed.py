"""A pruned network as a small file: the table of its layers by hand, the same logits, damage, ONNX elsewhere."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save, save_file
from torch import nn

from experiment.compressed import export, layer_table, load_compressed, save_compressed, save_onnx
from experiment.packing import pack
from model.resnet import ResNet
from sampler.magnitude_pruning import keep_largest

CIFAR = {"depth": 20, "shape": (3, 32, 32), "classes": 10}
SMALL = {"depth": 8, "shape": (1, 8, 8), "classes": 3}
BOTTLENECK = {"depth": 44, "shape": (1, 8, 8), "classes": 3}


def network(arguments: dict, pruned: float = 0.0, seed: int = 0) -> ResNet:
    """With moved statistics; the given share of every sparse layer is zero, and nothing else."""
    torch.manual_seed(seed)
    net = ResNet(**arguments)
    net(torch.randn(8, *arguments["shape"]))
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim == 1:
                p.add_(0.1 * torch.randn_like(p))
        for name in net.sparse_layers:
            w = net.get_parameter(name)
            w.mul_(keep_largest(w, pruned))
    return net.eval()


def pixels(n: int, shape: tuple[int, int, int]) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(1))


@torch.no_grad()
def logits(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return net(x)


def convolutions() -> dict[str, tuple[int, int]]:
    """ResNet20 by hand: parameters and positions of every layer."""
    table = {"conv1": (3 * 16 * 9, 32 * 32)}
    before = 16
    for stage, (width, side) in enumerate(((16, 32), (32, 16), (64, 8)), 1):
        for block in range(3):
            table[f"layer{stage}.{block}.conv1"] = (before * width * 9, side * side)
            table[f"layer{stage}.{block}.conv2"] = (width * width * 9, side * side)
            if before != width:
                table[f"layer{stage}.{block}.downsample.0"] = (before * width, side * side)
            before = width
    return table | {"fc": (640, 1)}


def test_the_table_of_a_dense_resnet20_is_the_count_by_hand():
    net = network(CIFAR)
    table, expected = layer_table(net, CIFAR["shape"]), convolutions()
    assert list(table["layer"]) == [f"{name}.weight" for name in expected]
    assert list(table["parameters"]) == [n for n, _ in expected.values()]
    assert list(table["multiply_adds"]) == [n * positions for n, positions in expected.values()]
    assert (table["kept"] == table["parameters"]).all() and (table["density"] == 1).all()
    shapes = {f"{name}.weight": "x".join(map(str, p.shape)) for name, p in weights_of(net).items()}
    assert dict(zip(table["layer"], table["shape"], strict=True)) == shapes
    # published: 40.8 million multiply-adds, shortcuts included
    assert table["multiply_adds"].sum() == 40_813_184
    shortcuts = table["layer"].str.contains("downsample")
    assert table["multiply_adds"][~shortcuts].sum() == 40_551_040


def weights_of(net: nn.Module) -> dict[str, torch.Tensor]:
    return {name: m.weight for name, m in net.named_modules() if isinstance(m, (nn.Conv2d, nn.Linear))}


def test_what_is_kept_of_a_pruned_network():
    net = network(CIFAR, pruned=0.9)
    with torch.no_grad():
        net.layer1[0].conv1.weight[3] = -0.0
        net.layer2[1].conv2.weight.zero_()
    table, positions = layer_table(net, CIFAR["shape"]).set_index("layer"), convolutions()
    for name, w in weights_of(net).items():
        row, kept = table.loc[f"{name}.weight"], int(np.count_nonzero(w.detach().numpy()))
        assert row["kept"] == kept
        assert row["density"] == pytest.approx(kept / w.numel(), abs=1e-12)
        assert row["sparsity"] == pytest.approx(1 - kept / w.numel(), abs=1e-12)
        assert row["multiply_adds_kept"] == kept * positions[name][1]
    assert table.loc["layer2.1.conv2.weight", "density"] == 0
    assert table.loc["layer3.2.conv2.weight", "kept"] == 36_864 - 33_177


@pytest.mark.parametrize("training", [True, False])
def test_counting_leaves_the_network_alone(training):
    net = network(SMALL).train(training)
    before = {name: x.clone() for name, x in net.state_dict().items()}
    layer_table(net, SMALL["shape"])
    assert net.training is training and all(m.training is training for m in net.modules())
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())
    assert not any(m._forward_hooks for m in net.modules())
    assert all(p.requires_grad and p.grad is None for p in net.parameters())


def test_multiply_adds_of_bottlenecks_and_odd_images():
    net = network({"depth": 44, "shape": (2, 9, 5), "classes": 3})
    table = layer_table(net, (2, 9, 5)).set_index("layer")["multiply_adds"]
    assert table["conv1.weight"] == 2 * 16 * 9 * 45
    assert table["layer2.0.conv1.weight"] == 64 * 32 * 45  # the stride is in the 3x3 convolution
    assert table["layer2.0.conv2.weight"] == 32 * 32 * 9 * (5 * 3)
    assert table["layer2.0.downsample.0.weight"] == 64 * 128 * (5 * 3)
    assert table["fc.weight"] == 256 * 3


def zero_layer(net: ResNet) -> None:
    net.layer2[0].conv1.weight.zero_()


def negative_zeros(net: ResNet) -> None:
    for name in net.sparse_layers:
        w = net.get_parameter(name)
        w[w == 0] = -0.0


KINDS = {
    "dense": (0.0, lambda net: None),
    "half": (0.5, lambda net: None),
    "sparse": (0.95, lambda net: None),
    "zero layer": (0.9, zero_layer),
    "all zero": (0.9, lambda net: [p.zero_() for p in net.parameters()]),
    "negative zeros": (0.9, negative_zeros),
    "tiny and huge": (0.9, lambda net: net.fc.weight.mul_(1e-42).view(-1)[0].fill_(3e38)),
}


@pytest.mark.parametrize("arguments", [CIFAR, SMALL, BOTTLENECK], ids=["cifar", "small", "bottleneck"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_same_logits_come_back(tmp_path, kind, arguments):
    pruned, change = KINDS[kind]
    net = network(arguments, pruned)
    with torch.no_grad():
        change(net)
    save_compressed(net, arguments, tmp_path / "x.safetensors")
    back = load_compressed(tmp_path / "x.safetensors")
    x = pixels(4, arguments["shape"])
    assert not back.training and type(back) is ResNet
    assert torch.equal(logits(back, x), logits(net, x))
    state = back.state_dict()
    assert state.keys() == net.state_dict().keys()
    for name, value in net.state_dict().items():
        assert torch.equal(state[name], value) and state[name].dtype == value.dtype, name


def test_a_network_in_channels_last_is_written_as_the_same_network(tmp_path):
    net = network(SMALL, 0.9)
    files = [tmp_path / name for name in "ab"]
    save_compressed(net, SMALL, files[0])
    save_compressed(net.to(memory_format=torch.channels_last), SMALL, files[1])
    first, second = (load_file(file) for file in files)
    assert first.keys() == second.keys()
    assert all(torch.equal(x, second[name]) for name, x in first.items())


@pytest.mark.parametrize("pruned", [0.0, 0.9])
def test_half_precision_is_one_rounding(tmp_path, pruned):
    net, file = network(SMALL, pruned), tmp_path / "x.safetensors"
    with torch.no_grad():
        net.fc.weight[0, 0] = 1e-9  # rounds to zero
    save_compressed(net, SMALL, file, half=True)
    state, rounded = load_compressed(file).state_dict(), 0
    for name, x in net.state_dict().items():
        expected = x.half().float() if x.is_floating_point() else x
        assert torch.equal(state[name], expected) and state[name].dtype == x.dtype
        rounded += int((expected != x).sum())
    assert rounded > 1000 and state["fc.weight"][0, 0] == 0
    whole = tmp_path / "whole.safetensors"
    save_compressed(net, SMALL, whole)
    values = sum(int((x != 0).sum()) for x in net.state_dict().values() if x.is_floating_point())
    assert whole.stat().st_size - file.stat().st_size == pytest.approx(2 * values, rel=0.02)


def test_a_pruned_resnet20_is_a_small_file(tmp_path):
    file = tmp_path / "x.safetensors"
    net = network(CIFAR, 0.917)  # what the network needs to be 90% sparse
    zeros = sum(int((p == 0).sum()) for p in net.parameters())  # of the sparse layers only
    assert zeros / 272_474 == pytest.approx(0.9, abs=0.001)
    save_compressed(net, CIFAR, file)
    size, dense = file.stat().st_size, len(save(net.state_dict()))
    assert size <= 0.2 * dense
    # a bit for every weight, four bytes for the others, and less than 16 KiB of names
    least = 267_264 / 8 + 4 * (272_474 - zeros)
    assert least < size < least + 8 * 784 + 16 * 1024
    save_compressed(net, CIFAR, file, half=True)
    assert file.stat().st_size <= 0.12 * dense


def test_a_dense_network_is_not_larger_than_its_plain_file(tmp_path):
    file, net = tmp_path / "x.safetensors", network(CIFAR)
    save_compressed(net, CIFAR, file)
    assert file.stat().st_size <= len(save(net.state_dict())) + 200


def test_saving_leaves_no_other_file_and_replaces_the_old_one(tmp_path):
    file = tmp_path / "x.safetensors"
    for seed in (0, 1):
        save_compressed(network(SMALL, seed=seed), SMALL, file)
    assert list(tmp_path.iterdir()) == [file]
    assert torch.equal(load_compressed(file).fc.weight, network(SMALL, seed=1).fc.weight)


def refusal(file: Path) -> str:
    with pytest.raises(ValueError) as error:
        load_compressed(file)
    message = str(error.value)
    assert message.startswith(f"{file} holds no compressed network: ") and "\n" not in message
    return message


@pytest.fixture(scope="module")
def compressed(tmp_path_factory) -> bytes:
    file = tmp_path_factory.mktemp("compressed") / "x.safetensors"
    save_compressed(network(SMALL, 0.9), SMALL, file)
    return file.read_bytes()


def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, compressed):
    file, header = tmp_path / "x.safetensors", 8 + struct.unpack("<Q", compressed[:8])[0]
    places = {0, 1, 7, 8, 9, header - 1, header, header + 1, len(compressed) - 1}
    for end in sorted(places | set(range(0, len(compressed), 1499))):
        file.write_bytes(compressed[:end])
        refusal(file)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"<html>", b"\xff" * 64, b"\0" * 64])
def test_a_file_of_another_kind_is_refused(tmp_path, content):
    file = tmp_path / "x.safetensors"
    file.write_bytes(content)
    refusal(file)


def test_a_missing_file_is_refused(tmp_path):
    refusal(tmp_path / "none.safetensors")
    refusal(tmp_path)


HEADER = {"class": "ResNet", "arguments": json.dumps(SMALL)}


@pytest.mark.parametrize(
    "header",
    [
        None,
        {},
        {"class": "ResNet"},
        {"arguments": HEADER["arguments"]},
        HEADER | {"class": "VGG"},
        HEADER | {"arguments": "{"},
        HEADER | {"arguments": "[8]"},
        HEADER | {"arguments": "{}"},
        HEADER | {"arguments": json.dumps(SMALL | {"depth": 9})},
        HEADER | {"arguments": json.dumps(SMALL | {"depth": 14})},
        HEADER | {"arguments": json.dumps(SMALL | {"classes": 4})},
        HEADER | {"arguments": json.dumps(SMALL | {"classes": -1})},
        HEADER | {"arguments": json.dumps(SMALL | {"classes": "3"})},
        HEADER | {"arguments": json.dumps(SMALL | {"shape": 3})},
        HEADER | {"arguments": json.dumps(SMALL | {"shape": []})},
        HEADER | {"arguments": json.dumps(SMALL | {"size": 3})},
    ],
    ids=str,
)
def test_weights_with_another_header_are_refused(tmp_path, header):
    file = tmp_path / "x.safetensors"
    save_file(pack(network(SMALL, 0.9).state_dict()), file, metadata=header)
    refusal(file)


W = "layer3.0.conv1.weight"
CHANGES = {
    "no values": lambda p: {f"{W}:values": None},
    "no shape": lambda p: {f"{W}:shape": None},
    "no bits": lambda p: {f"{W}:bits": None},
    "no bias": lambda p: {"fc.bias": None},
    "one more": lambda p: {"fc.bias2": torch.zeros(3)},
    "a value less": lambda p: {f"{W}:values": p[f"{W}:values"][:-1]},
    "another shape": lambda p: {f"{W}:shape": torch.tensor([32, 64, 3, 3])},
    "a negative shape": lambda p: {f"{W}:shape": torch.tensor([64, 32, -3, -3])},
    "a shape of floats": lambda p: {f"{W}:shape": torch.tensor([64.0, 32.0, 3.0, 3.0])},
    "no dimensions": lambda p: {f"{W}:shape": torch.tensor([], dtype=torch.int64)},
    "an endless shape": lambda p: {f"{W}:shape": torch.tensor([2**40, 2**40])},
    "a shape beyond memory": lambda p: {f"{W}:shape": torch.tensor([2**50])},
    "bits as floats": lambda p: {f"{W}:bits": p[f"{W}:bits"].float()},
    "one value": lambda p: {f"{W}:values": torch.tensor(1.0)},
}


@pytest.mark.parametrize("change", CHANGES)
def test_contents_that_do_not_fit_are_refused(tmp_path, change):
    file, packed = tmp_path / "x.safetensors", pack(network(SMALL, 0.9).state_dict())
    assert f"{W}:bits" in packed
    changed = packed | CHANGES[change](packed)
    save_file({name: x for name, x in changed.items() if x is not None}, file, metadata=HEADER)
    refusal(file)


def evaluated(file: Path, x: torch.Tensor) -> np.ndarray:
    """Logits by ONNX Runtime on one thread."""
    runtime = pytest.importorskip("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    session = runtime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    assert [i.name for i in session.get_inputs()] == ["images"]
    (found,) = session.run(["logits"], {"images": x.numpy()})
    return found


def test_onnx_gives_the_same_logits_for_any_number_of_images(tmp_path):
    pytest.importorskip("onnxscript")
    net, file = network(CIFAR, 0.9), tmp_path / "x.onnx"
    save_onnx(net, CIFAR["shape"], file)
    assert list(tmp_path.iterdir()) == [file]  # the weights are inside
    for n in (1, 7):
        x = pixels(n, CIFAR["shape"])
        found, expected = evaluated(file, x), logits(net, x)
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)
    assert expected.std() > 0.05


def test_an_export_has_all_files_and_says_their_sizes(tmp_path):
    pytest.importorskip("onnxscript")
    net, folder = network(SMALL, 0.9), tmp_path / "new" / "folder"
    layers, sizes = export(net, SMALL, folder)
    assert sorted(file.name for file in folder.iterdir()) == ["layers.csv", "network.onnx", "network.safetensors"]
    assert sizes["compact"] == (folder / "network.safetensors").stat().st_size
    assert sizes["onnx"] == (folder / "network.onnx").stat().st_size
    assert sizes["dense"] == len(save(net.state_dict()))
    x = pixels(3, SMALL["shape"])
    assert torch.equal(logits(load_compressed(folder / "network.safetensors"), x), logits(net, x))
    assert len((folder / "layers.csv").read_text().splitlines()) == len(layers) + 1 == 11
