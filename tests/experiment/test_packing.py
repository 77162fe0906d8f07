"""Packed tensors come back exactly, take little room, and damage is seen."""

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from experiment.packing import pack, unpack

DTYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.uint8, torch.bool]


def sparse(*shape: int, zeros: float = 0.9, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Numbers of which the given share is zero."""
    generator = torch.Generator().manual_seed(len(shape))
    x = torch.randint(1, 100, shape, generator=generator).to(dtype)
    count = round(zeros * x.numel())
    return x.flatten().index_fill(0, torch.randperm(x.numel(), generator=generator)[:count], 0).view(shape)


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return a.keys() == b.keys() and all(
        x.dtype == b[name].dtype and x.shape == b[name].shape and torch.equal(x, b[name]) for name, x in a.items()
    )


def nbytes(tensors: dict[str, torch.Tensor]) -> int:
    return sum(x.nbytes for x in tensors.values())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("zeros", [0.0, 0.5, 0.9, 1.0])
@pytest.mark.parametrize("shape", [(1000,), (17, 13), (4, 3, 5, 5), (1,), (), (0,), (3, 0, 2)], ids=str)
def test_tensors_come_back_exactly(dtype, zeros, shape):
    tensors = {"x": sparse(*shape, zeros=zeros, dtype=dtype)}
    packed = pack(tensors)
    assert same(unpack(packed), tensors)
    assert nbytes(packed) <= nbytes(tensors)


def test_every_bit_of_a_number_is_kept():
    x = torch.zeros(100)
    x[:5] = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e-45, -1.0])
    back = unpack(pack({"x": x}))["x"]
    assert torch.equal(back.view(torch.int32), x.view(torch.int32))


def test_dense_tensors_stay_as_they_are():
    dense = {"a": torch.randn(50, 20), "b": sparse(1000, zeros=0.02), "count": torch.tensor(7)}
    packed = pack(dense)
    assert same(packed, dense)


def test_many_zeros_take_little_room():
    tensors = {"x": sparse(200, 300, zeros=0.9)}
    packed = pack(tensors)
    assert nbytes(packed) < 0.2 * nbytes(tensors)
    assert nbytes(packed) >= 0.1 * nbytes(tensors)


@pytest.mark.parametrize("zeros", [0.0, 0.9])
@pytest.mark.parametrize("name", ["fc1.weight", "a:b", "a:b.c:d", "a:values", "a:shape", "a:bits", ":", ""])
def test_names_come_back(name, zeros):
    tensors = {name: sparse(30, 40, zeros=zeros), "other.weight": sparse(100, zeros=0.9)}
    assert same(unpack(pack(tensors)), tensors)


def test_a_view_and_a_parameter_are_packed_as_what_they_show():
    whole = sparse(20, 30)
    tensors = {
        "transposed": whole.T,
        "strided": whole[::2, 1:],
        "channels_last": sparse(2, 3, 8, 8).contiguous(memory_format=torch.channels_last),
        "parameter": nn.Parameter(whole.clone()),
    }
    back = unpack(pack(tensors))
    assert same(back, {name: x.detach() for name, x in tensors.items()})
    assert not any(x.requires_grad for x in back.values())


def test_what_comes_back_is_a_tensor_of_its_own():
    x = sparse(100)
    before = x.clone()
    unpack(pack({"x": x}))["x"].add_(1)
    assert torch.equal(x, before)


def test_through_a_file(tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(64, 30))
    with torch.no_grad():
        net[3].weight.mul_(torch.rand(net[3].weight.shape) < 0.05)
    dense = torch.randn(2, 3, 5, 5).contiguous(memory_format=torch.channels_last)  # a file takes no such layout
    state = net.state_dict() | {"empty": torch.zeros(0, 3), "dense": dense}
    save_file(pack(state), tmp_path / "x.safetensors")
    stored = load_file(tmp_path / "x.safetensors")
    assert "3.weight:bits" in stored and "3.bias" in stored
    assert same(unpack(stored), state)


def damaged(how: str) -> dict[str, torch.Tensor]:
    packed = pack({"w": sparse(20, 50)})
    bits, values, shape = (packed[f"w:{part}"] for part in ("bits", "values", "shape"))
    changed = {
        "a value less": {"w:values": values[:-1]},
        "a value more": {"w:values": torch.cat([values, values[:1]])},
        "a bit more": {"w:bits": bits.clone().index_fill_(0, (bits == 0).nonzero()[:1, 0], 1)},
        "a mask too short": {"w:bits": bits[: len(bits) // 2]},
        "a mask too long": {"w:bits": torch.cat([bits, torch.zeros_like(bits)])},
        "a shape too small": {"w:shape": shape - 1},
        "a shape too large": {"w:shape": shape * 2},
    }
    return packed | changed[how]


@pytest.mark.parametrize(
    "how",
    [
        "a value less", "a value more", "a bit more", "a mask too short", "a mask too long", "a shape too small",
        "a shape too large",
    ],
)  # fmt: skip
def test_what_does_not_fit_together_is_an_error_that_names_the_tensor(how):
    with pytest.raises(ValueError, match="w: "):
        unpack(damaged(how))


@pytest.mark.parametrize("part", ["values", "shape"])
def test_a_missing_part_is_an_error(part):
    packed = pack({"w": sparse(20, 50)})
    del packed[f"w:{part}"]
    with pytest.raises((ValueError, KeyError), match="w"):
        unpack(packed)
