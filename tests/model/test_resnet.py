"""ResNets for small images: the published checkpoint's names and sizes, and the same computation by functions."""

import math
import os
import shutil
import tarfile
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from data import images
from data.augment import RECIPES
from experiment.classification import accuracy
from experiment.evaluation import member, predict
from experiment.pretrained import load_pretrained, read_weights
from model.resnet import Block, ResNet, basic, bottleneck

REAL = Path(os.environ.get("BSDL_DATA", "nowhere"))
PUBLISHED = REAL / "resnet20_cifar10_dense_2019.pth"
JPEG = REAL / "cifar10-jpeg.tar.xz"
needs_published = pytest.mark.skipif(not PUBLISHED.is_file(), reason="BSDL_DATA names no folder with the checkpoint")

DEPTHS = [8, 20, 32, 44, 56]
SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 9, 17)]
STATISTICS = ("weight", "bias", "running_mean", "running_var", "num_batches_tracked")


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """In evaluation mode and float64; nothing in batch norm is zero or one any more."""
    generator = torch.Generator().manual_seed(seed)
    net = net.double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for name in STATISTICS[:4]:
                x = getattr(module, name).data
                noise = torch.rand(x.shape, generator=generator, dtype=x.dtype)
                x.copy_(2 * noise - 1 if name.endswith(("mean", "bias")) else 0.5 + noise)
    return net


def pixels(n: int, *shape: int) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(1))


def published_shapes(stages: int = 3, blocks: int = 3) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the authors' ResNet20 for CIFAR10, written down from its description."""
    shapes = {"conv1.weight": (16, 3, 3, 3)} | norm("bn1", 16)
    channels = 16
    for stage in range(stages):
        width = 16 * 2**stage
        for block in range(blocks):
            stem = f"layer{stage + 1}.{block}"
            shapes[f"{stem}.conv1.weight"] = (width, channels, 3, 3)
            shapes[f"{stem}.conv2.weight"] = (width, width, 3, 3)
            shapes |= norm(f"{stem}.bn1", width) | norm(f"{stem}.bn2", width)
            if channels != width:
                shapes[f"{stem}.downsample.0.weight"] = (width, channels, 1, 1)
                shapes |= norm(f"{stem}.downsample.1", width)
            channels = width
    return shapes | {"fc.weight": (10, 64), "fc.bias": (10,)}


def norm(name: str, channels: int) -> dict[str, tuple[int, ...]]:
    return {f"{name}.{part}": () if part == "num_batches_tracked" else (channels,) for part in STATISTICS}


def test_resnet20_has_the_names_and_shapes_of_the_published_checkpoint():
    net = ResNet(20, (3, 32, 32), 10)
    assert {name: tuple(x.shape) for name, x in net.state_dict().items()} == published_shapes()


def test_resnet20_has_as_many_parameters_as_published():
    net = ResNet(20, (3, 32, 32), 10)
    params = dict(net.named_parameters())
    assert sum(p.numel() for p in params.values()) == 272_474
    assert sum(params[name].numel() for name in net.sparse_layers) == 267_264
    # the authors' log counts the buffers of batch norm as well
    assert sum(x.numel() for x in net.state_dict().values()) == 272_474 + 2 * 784 + 21


@pytest.mark.parametrize("depth", DEPTHS)
def test_sparse_layers_are_all_convolutions_but_the_first_and_the_shortcuts(depth):
    net = ResNet(depth, (3, 32, 32), 10)
    params = dict(net.named_parameters())
    convs = [name for name, p in params.items() if p.ndim == 4]
    assert list(net.sparse_layers) == [name for name in convs if name != "conv1.weight" and "downsample" not in name]
    per_block = 3 if depth >= 44 else 2
    assert len(net.sparse_layers) == (depth - 2) // 6 * 3 * per_block
    shortcuts = [name for name in convs if "downsample" in name]
    assert [name.split(".")[0] for name in shortcuts] == ["layer1"] * (depth >= 44) + ["layer2", "layer3"]


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_depth_counts_the_layers_of_basic_networks_and_the_blocks_of_all(depth):
    net = ResNet(depth, (3, 32, 32), 10)
    blocks = [module for module in net.modules() if isinstance(module, Block)]
    assert len(blocks) == (depth - 2) // 2
    assert {block.depth for block in blocks} == ({3} if depth >= 44 else {2})
    if depth < 44:
        assert len(net.sparse_layers) + 2 == depth  # conv1, and fc


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("depth", DEPTHS)
def test_one_logit_per_class_for_images_of_any_shape(depth, shape):
    net = ResNet(depth, shape, 7)
    logits = net(pixels(3, *shape))
    assert logits.shape == (3, 7) and logits.isfinite().all()
    logits.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())


@pytest.mark.parametrize("depth", [20, 44])
def test_convolutions_start_with_the_published_spread(depth):
    torch.manual_seed(0)
    net = ResNet(depth, (3, 32, 32), 10)
    convs = [module.weight.detach() for module in net.modules() if isinstance(module, nn.Conv2d)]
    scaled = [w.double() / math.sqrt(2 / (w.shape[2] ** 2 * w.shape[0])) for w in convs]
    for z in scaled:  # the mean of z^2 over n standard normals has sd sqrt(2 / n)
        n = z.numel()
        assert abs(float(z.square().mean()) - 1) / math.sqrt(2 / n) < 5
        assert abs(float(z.mean())) * math.sqrt(n) < 5
    everything = torch.cat([z.flatten() for z in scaled])
    assert abs(float(everything.square().mean()) - 1) / math.sqrt(2 / len(everything)) < 5


def test_batch_norm_starts_as_the_identity():
    for name, x in ResNet(8, (3, 32, 32), 10).state_dict().items():
        if "bn" in name or "downsample.1" in name:
            assert torch.all(x == (1 if name.endswith(("weight", "var")) else 0)), name


@pytest.mark.parametrize("depth", [-4, 0, 2, 7, 9, 18, 21, 52])
def test_other_depths_are_refused(depth):
    with pytest.raises(ValueError, match=rf"6 n \+ 2 .*, not {depth}$"):
        ResNet(depth, (3, 32, 32), 10)


def normalised(x: torch.Tensor, state: dict, name: str) -> torch.Tensor:
    """Batch norm in evaluation mode by its definition."""
    weight, bias, mean, variance = (state[f"{name}.{part}"][:, None, None] for part in STATISTICS[:4])
    return (x - mean) / torch.sqrt(variance + 1e-5) * weight + bias


def block_by_hand(x: torch.Tensor, state: dict, stem: str, strides: list[int]) -> torch.Tensor:
    """A residual block whose convolutions have the given strides; odd kernels are padded to keep the size."""
    y = x
    for i, stride in enumerate(strides, 1):
        weight = state[f"{stem}conv{i}.weight"]
        y = normalised(F.conv2d(y, weight, stride=stride, padding=weight.shape[-1] // 2), state, f"{stem}bn{i}")
        y = y.clamp(min=0) if i < len(strides) else y
    if f"{stem}downsample.0.weight" in state:
        shortcut = F.conv2d(x, state[f"{stem}downsample.0.weight"], stride=math.prod(strides))
        x = normalised(shortcut, state, f"{stem}downsample.1")
    return (x + y).clamp(min=0)


def network_by_hand(x: torch.Tensor, net: ResNet) -> torch.Tensor:
    state, per_block = net.state_dict(), 3 if "layer1.0.conv3.weight" in net.state_dict() else 2
    x = normalised(F.conv2d(x, state["conv1.weight"], padding=1), state, "bn1").clamp(min=0)
    blocks = sorted({tuple(map(int, name[5:].split(".")[:2])) for name in state if name.startswith("layer")})
    for stage, block in blocks:
        strides = [1] * per_block
        strides[per_block - 2] = 2 if stage > 1 and block == 0 else 1  # a bottleneck's 3x3 convolution
        x = block_by_hand(x, state, f"layer{stage}.{block}.", strides)
    return x.mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


@pytest.mark.parametrize(
    "make, channels, width, strides",
    [
        (basic, 16, 16, [1, 1]),
        (basic, 16, 32, [1, 1]),
        (basic, 16, 32, [2, 1]),
        (basic, 32, 32, [2, 1]),
        (bottleneck, 64, 16, [1, 1, 1]),
        (bottleneck, 16, 16, [1, 1, 1]),
        (bottleneck, 64, 32, [1, 2, 1]),
        (bottleneck, 64, 16, [1, 2, 1]),
    ],
)
def test_a_block_is_its_definition(make, channels, width, strides):
    block = randomised(make(channels, width, math.prod(strides)))
    x = pixels(2, channels, 9, 6).double()
    before = x.clone()
    expected = block_by_hand(x, block.state_dict(), "", strides)
    with torch.no_grad():
        torch.testing.assert_close(block(x), expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(x, before)  # the in-place ReLU leaves the input of the shortcut alone
    assert ("downsample.0.weight" in block.state_dict()) == (x.shape != expected.shape)


@pytest.mark.parametrize("depth", [8, 20, 44])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_the_network_is_its_definition(depth, memory_format):
    net = randomised(ResNet(depth, (3, 12, 10), 5)).to(memory_format=memory_format)
    x = pixels(3, 3, 12, 10).double()
    with torch.no_grad():
        logits = net(x)
    torch.testing.assert_close(logits, network_by_hand(x, net), rtol=1e-9, atol=1e-10)
    assert logits.std() > 0.01


@needs_published
def test_the_published_checkpoint_loads():
    net = ResNet(20, (3, 32, 32), 10)
    load_pretrained(net, PUBLISHED)
    weights, state = read_weights(PUBLISHED), net.state_dict()
    assert weights.keys() == state.keys()
    assert all(torch.equal(x, state[name]) for name, x in weights.items())
    assert sum(int((p == 0).sum()) for p in net.parameters()) == 0


def unpack_test_images(archive: Path, folder: Path, few: int = 2) -> Path:
    """The tree of the archive with its test images, of which a few stand in the place of the training images."""
    with tarfile.open(archive) as tar:
        for entry in tar:
            if "/train/" in entry.name:  # these come after all test images
                break
            tar.extract(entry, folder, filter="data")
    (root,) = folder.iterdir()
    for name in (root / "test").iterdir():
        target = root / "train" / name.name
        target.mkdir(parents=True)
        for file in sorted(name.iterdir())[:few]:
            shutil.copy(file, target)
    return root


@needs_published
@pytest.mark.skipif(not JPEG.is_file(), reason="BSDL_DATA names no folder with the JPEG images")
@pytest.mark.slow
def test_the_published_checkpoint_has_its_accuracy(tmp_path):
    root = unpack_test_images(JPEG, tmp_path)
    data = images.load("cifar10", str(root.parent))
    assert len(data.test) == 10_000 and data.shape == (3, 32, 32)
    net = ResNet(20, data.shape, len(data.classes))
    load_pretrained(net, PUBLISHED)
    net.to(memory_format=torch.channels_last)
    found = accuracy(predict(member(net, RECIPES["cifar10"]), data.test), data.test.y)
    assert found == pytest.approx(82.72, abs=0.02)
