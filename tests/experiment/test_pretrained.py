"""Weights of a trained network: every format that loads, and what is refused in one line without running it."""

import io
import json
import pickle
import random
import warnings
from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from safetensors.torch import save, save_file
from torch import nn

from experiment.pretrained import load_pretrained, read_weights
from model.resnet import ResNet

ZIPPED = {"_use_new_zipfile_serialization": True}
LEGACY = {"_use_new_zipfile_serialization": False}  # what torch.save wrote until 2020
FORMATS = {"zipped": "x.pth", "legacy": "x.pth", "safetensors": "x.safetensors"}


def network(depth: int = 8, seed: int = 0, classes: int = 3) -> ResNet:
    torch.manual_seed(seed)
    net = ResNet(depth, (1, 8, 8), classes)
    net(torch.randn(4, 1, 8, 8))  # moves the statistics of batch norm
    return net


def content(obj, kind: str) -> bytes:
    """A file of the format."""
    if kind == "safetensors":
        return save(obj)
    buffer = io.BytesIO()
    torch.save(obj, buffer, **(ZIPPED if kind == "zipped" else LEGACY))
    return buffer.getvalue()


def write(folder: Path, kind: str, obj) -> Path:
    path = folder / FORMATS[kind]
    path.write_bytes(content(obj, kind))
    return path


def refusal(net: nn.Module, path: Path) -> str:
    """The one line, which names flag and file, of a refusal that has left the network as it was."""
    before = {name: x.clone() for name, x in net.state_dict().items()}
    with pytest.raises(ValueError) as error:
        load_pretrained(net, path)
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())
    message = str(error.value)
    assert message.startswith(f"argument -pretrained: {path}: ") and "\n" not in message
    return message.removeprefix(f"argument -pretrained: {path}: ")


def same(a: nn.Module, b: nn.Module) -> bool:
    state = b.state_dict()
    return all(torch.equal(x, state[name]) for name, x in a.state_dict().items())


every_format = pytest.mark.parametrize("kind", FORMATS)


@every_format
def test_a_file_loads(tmp_path, kind):
    trained, net = network(), network(seed=1)
    assert not same(trained, net)
    load_pretrained(net, write(tmp_path, kind, trained.state_dict()))
    assert same(trained, net)


@every_format
def test_a_file_is_read_as_names_and_tensors_only(tmp_path, kind):
    state = network().state_dict()
    weights = read_weights(write(tmp_path, kind, state))
    assert type(weights) is dict and weights.keys() == state.keys()
    assert all(torch.equal(x, state[name]) and x.dtype == state[name].dtype for name, x in weights.items())


@pytest.mark.parametrize("kind", ["zipped", "legacy"])
@pytest.mark.parametrize("mapping", [dict, OrderedDict])
@pytest.mark.parametrize("suffix", ["pth", "pt", "th", "model"])
def test_a_state_dict_loads_whatever_its_suffix(tmp_path, kind, mapping, suffix):
    trained, net = network(), network(seed=1)
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(content(mapping(trained.state_dict()), kind))
    load_pretrained(net, path)
    assert same(trained, net)


def test_the_folder_of_a_run_loads(tmp_path):
    trained, net = network(), network(seed=1)
    save_file(trained.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "args.json").write_text(json.dumps({"depth": 8}))
    load_pretrained(net, tmp_path)
    assert same(trained, net)


def test_the_layout_in_memory_of_the_network_stays(tmp_path):
    trained, net = network(), network(seed=1).to(memory_format=torch.channels_last)
    addresses = [p.data_ptr() for p in net.parameters()]
    load_pretrained(net, write(tmp_path, "legacy", trained.state_dict()))
    assert same(trained, net)
    assert [p.data_ptr() for p in net.parameters()] == addresses  # samplers and priors hold these tensors
    assert net.layer2[0].conv2.weight.is_contiguous(memory_format=torch.channels_last)


def test_nothing_there_is_said(tmp_path):
    net = network()
    assert refusal(net, tmp_path / "none.pth") == "does not exist"
    assert refusal(net, tmp_path / "none" / "x.safetensors") == "does not exist"
    assert refusal(net, tmp_path) == "there is no model.safetensors"
    (tmp_path / "model.safetensors").mkdir()
    assert refusal(net, tmp_path) == "there is no model.safetensors"


@every_format
def test_a_truncated_file_is_refused_wherever_it_ends(tmp_path, kind):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    whole, path = content(net.state_dict(), kind), tmp_path / FORMATS[kind]
    ends = {0, 1, 7, 8, 9, len(whole) // 2, len(whole) - 1} | set(random.Random(0).sample(range(len(whole)), 150))
    leaked = {}
    for end in sorted(ends):
        path.write_bytes(whole[:end])
        try:
            refusal(net, path)
        except Exception as error:
            leaked[end] = f"{type(error).__name__}: {error}"
    assert leaked == {}


@every_format
def test_a_damaged_file_loads_or_is_refused(tmp_path, kind):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    whole, path, rng = content(net.state_dict(), kind), tmp_path / FORMATS[kind], random.Random(0)
    leaked, outcomes = {}, set()
    for _ in range(200):
        damaged = bytearray(whole)
        damaged[place := rng.randrange(min(len(whole), 2000))] = rng.randrange(256)
        path.write_bytes(damaged)
        try:
            load_pretrained(net, path)
            outcomes.add("loaded")
        except ValueError as error:
            outcomes.add("refused")
            assert "\n" not in str(error)
        except Exception as error:
            leaked[place] = f"{type(error).__name__}: {error}"
    assert leaked == {}
    assert outcomes == {"loaded", "refused"}


@pytest.mark.parametrize("name", FORMATS.values())
@pytest.mark.parametrize(
    "text", [b"<html><p>Not found</p></html>\n", b"\x80\x02", b"PK\x03\x04", b"0", b"\0" * 100, b"c", b"\xff" * 9]
)
def test_a_file_of_another_kind_is_refused(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(text)
    assert "holds no " in refusal(network(), path)


class Bomb:
    """An object whose unpickling creates a file."""

    def __init__(self, file: Path):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def bombs(file: Path) -> dict[str, bytes]:
    """Pickles that create the file when they are loaded as pickles."""
    state = network().state_dict()
    objects = {"alone": Bomb(file), "among weights": state | {"extra": Bomb(file)}, "as a name": {Bomb(file): 1}}
    files = {f"{kind} {name}": content(x, kind) for kind in ("zipped", "legacy") for name, x in objects.items()}
    return files | {f"pickle {name}": pickle.dumps(x, protocol=2) for name, x in objects.items()}


@pytest.mark.parametrize("name", list(bombs(Path("nowhere"))))
def test_a_pickle_is_never_executed(tmp_path, name):
    executed, path = tmp_path / "executed", tmp_path / "x.pth"
    path.write_bytes(bombs(executed)[name])
    refusal(network(), path)
    assert not executed.exists()


def test_the_pickles_of_the_test_above_would_execute(tmp_path):
    executed = tmp_path / "executed"
    pickle.loads(bombs(executed)["pickle among weights"])
    assert executed.exists()
    executed.unlink()
    torch.load(io.BytesIO(bombs(executed)["legacy alone"]), weights_only=False)
    assert executed.exists()


@pytest.mark.parametrize("kind", ["zipped", "legacy"])
def test_a_whole_network_is_no_state_dict_and_its_refusal_does_not_advise_to_unpickle_it(tmp_path, kind):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4))
    message = refusal(net, write(tmp_path, kind, net))
    assert "holds no " in message
    assert message.isprintable() and "can still be loaded" not in message


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_a_plain_pickle_of_any_protocol_is_refused_without_a_warning(tmp_path, protocol):
    path = tmp_path / "x.pth"
    path.write_bytes(pickle.dumps({"fc.bias": [1.0, 2.0]}, protocol))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        refusal(network(), path)
    assert said == []


@pytest.mark.parametrize("kind", ["zipped", "legacy"])
@pytest.mark.parametrize(
    "change",
    [
        lambda state: list(state.values()),
        lambda state: state["fc.bias"],
        lambda state: 3,
        lambda state: None,
        lambda state: {"epoch": 3, "state_dict": state},
        lambda state: state | {"epoch": 3},
        lambda state: {"net": dict(state)},
        lambda state: dict(enumerate(state.values())),
        lambda state: state | {None: torch.zeros(1)},
    ],
    ids=["list", "tensor", "number", "none", "checkpoint", "with a number", "nested", "numbered", "nameless"],
)
def test_other_objects_are_refused(tmp_path, kind, change):
    assert "holds no state_dict" in refusal(network(), write(tmp_path, kind, change(network().state_dict())))


@every_format
def test_another_depth_is_refused_by_the_first_difference(tmp_path, kind):
    path = write(tmp_path, kind, network(14).state_dict())
    assert refusal(network(8), path).startswith("layer1.1.bn1.bias is only in the checkpoint")
    path = write(tmp_path, kind, network(8).state_dict())
    assert refusal(network(14), path).startswith("layer1.1.bn1.bias is only in the network")


@every_format
def test_other_shapes_are_refused_by_the_first_difference(tmp_path, kind):
    path = write(tmp_path, kind, network(classes=5).state_dict())
    assert refusal(network(), path) == "fc.bias has shape (5,), the network here (3,)"
    state = network().state_dict()
    missing = {name: x.clone() for name, x in state.items() if name != "layer2.0.conv1.weight"}
    expected = "layer2.0.conv1.weight is only in the network"
    assert refusal(network(), write(tmp_path, kind, missing)).startswith(expected)


@every_format
def test_no_weights_at_all_are_those_of_another_network(tmp_path, kind):
    assert refusal(network(), write(tmp_path, kind, {})).startswith("bn1.bias is only in the network")


def test_weights_of_a_gpu_load_without_one(tmp_path):
    """A legacy file whose storages say that they were on a GPU, as the authors' does."""
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    trained, net = network(), network(seed=1)
    path = write(tmp_path, "legacy", trained.state_dict())
    moved = path.read_bytes().replace(b"X\x03\0\0\0cpu", b"X\x06\0\0\0cuda:0")
    path.write_bytes(moved)
    with pytest.raises(RuntimeError, match="CUDA"):
        torch.load(path, weights_only=True)
    load_pretrained(net, path)
    assert same(trained, net)


def test_double_precision_is_rounded_to_the_network(tmp_path):
    trained, net = network(), network(seed=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_pretrained(net, write(tmp_path, "zipped", trained.double().state_dict()))
    assert same(trained.float(), net)
    assert net.fc.weight.dtype == torch.float32


def test_weights_that_are_not_finite_are_refused(tmp_path):
    weights = dict(network().state_dict())
    weights["fc.weight"] = weights["fc.weight"] * torch.nan
    save_file(weights, tmp_path / "x.safetensors")
    assert "fc.weight is not finite" in refusal(network(), tmp_path / "x.safetensors")
