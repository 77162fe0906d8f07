"""Pre-activation ResNets and WideResNets: the published sizes, and the same computation by functions."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model.preact_resnet import SMALL, PreActBlock, PreActResNet, preact_resnet18, wide_resnet

SHAPES = [(1, 8, 8), (1, 28, 28), (3, 32, 32), (2, 9, 17), (3, 1, 1)]


def randomised(net: nn.Module, seed: int = 0) -> nn.Module:
    """In evaluation mode and float64; batch norm has weights of both signs, so that it does not commute with a pool."""
    generator = torch.Generator().manual_seed(seed)
    net = net.double().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            for name in ("weight", "bias", "running_mean", "running_var"):
                x = getattr(module, name).data
                noise = torch.rand(x.shape, generator=generator, dtype=x.dtype)
                x.copy_(0.5 + noise if name == "running_var" else 3 * noise - 1.5)
    return net


def pixels(n: int, *shape: int) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(1))


def activated(x: torch.Tensor, state: dict, name: str) -> torch.Tensor:
    """Batch norm in evaluation mode by its definition, then ReLU."""
    weight, bias, mean, variance = (
        state[f"{name}.0.{part}"][:, None, None] for part in ("weight", "bias", "running_mean", "running_var")
    )
    return ((x - mean) / torch.sqrt(variance + 1e-5) * weight + bias).clamp(min=0)


def block_by_hand(x: torch.Tensor, state: dict, stem: str, stride: int, first: bool) -> torch.Tensor:
    a = x if first else activated(x, state, f"{stem}act1")
    y = F.conv2d(a, state[f"{stem}conv1.weight"], stride=stride, padding=1)
    y = F.conv2d(activated(y, state, f"{stem}act2"), state[f"{stem}conv2.weight"], padding=1)
    shortcut = state.get(f"{stem}shortcut.weight")
    return y + (x if shortcut is None else F.conv2d(a, shortcut, stride=stride))


def network_by_hand(x: torch.Tensor, net: PreActResNet) -> torch.Tensor:
    state = net.state_dict()
    small = min(x.shape[2:]) <= 64
    x = F.conv2d(x, state["conv1.weight"], stride=1 if small else 2, padding=1 if small else 3)
    x = activated(x, state, "act1")
    x = x if small else F.max_pool2d(x, 3, 2, padding=1)
    blocks = sorted({tuple(map(int, name.split(".")[1:3])) for name in state if name.startswith("stages")})
    for stage, block in blocks:
        stride = 2 if stage > 0 and block == 0 else 1
        x = block_by_hand(x, state, f"stages.{stage}.{block}.", stride, first=stage == block == 0)
    return activated(x, state, "act2").mean((2, 3)) @ state["fc.weight"].T + state["fc.bias"]


def count(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def test_the_networks_have_as_many_parameters_as_published():
    with torch.device("meta"):
        assert count(preact_resnet18((3, 32, 32), 10)) == 11_172_170
        assert count(wide_resnet((3, 32, 32), 10)) == 36_479_194  # published: 36.5 M
        published = {(40, 1): 0.6, (40, 2): 2.2, (40, 4): 8.9, (40, 8): 35.7, (28, 12): 52.5, (22, 8): 17.2}
        published |= {(22, 10): 26.8, (16, 8): 11.0, (16, 10): 17.1}
        for (depth, widen), millions in published.items():
            assert count(wide_resnet((3, 32, 32), 10, depth, widen)) / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.parametrize("depth", [10, 16, 28, 40])
def test_the_depth_counts_convolutions(depth):
    net = wide_resnet((3, 32, 32), 10, depth, 0.5)
    convs = [module for module in net.modules() if isinstance(module, nn.Conv2d)]
    assert len(convs) == depth  # the stem, (depth - 4) convolutions 3x3 and three shortcuts
    assert sum(conv.kernel_size == (1, 1) for conv in convs) == 3
    assert all(conv.bias is None for conv in convs)
    assert not any(conv.kernel_size == (1, 1) and conv.stride != (1, 1) for conv in convs)  # see PreActBlock


@pytest.mark.parametrize("depth", [-2, 4, 7, 9, 18, 20, 29])
def test_other_depths_are_refused(depth):
    with pytest.raises(ValueError, match=rf"6 n \+ 4 .*, not {depth}$"):
        wide_resnet((3, 32, 32), 10, depth)


@pytest.mark.parametrize("channels, width, stride", [(6, 6, 1), (6, 10, 1), (6, 10, 2), (6, 6, 2)])
@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("grad", [False, True])
def test_a_block_is_its_definition(channels, width, stride, first, grad):
    block = randomised(PreActBlock(channels, width, stride, activated=first))
    x = pixels(2, channels, 9, 6).double()
    before = x.clone()
    expected = block_by_hand(x, block.state_dict(), "", stride, first)
    with torch.set_grad_enabled(grad):
        torch.testing.assert_close(block(x).detach(), expected, rtol=1e-10, atol=1e-12)
    assert torch.equal(x, before)  # the in-place ReLU leaves the input of the shortcut alone
    assert expected.shape == (2, width, -(-9 // stride), 6 // stride)
    assert (block.shortcut is not None) == (x.shape != expected.shape)


@pytest.mark.parametrize("shape", [(3, 12, 10), (1, SMALL, 70), (2, SMALL + 1, 70)], ids=str)
@pytest.mark.parametrize("make", [lambda s: preact_resnet18(s, 5, 0.1), lambda s: wide_resnet(s, 5, 16, 0.5)])
def test_the_network_is_its_definition(make, shape):
    torch.manual_seed(0)
    net = randomised(make(shape))
    x = pixels(3, *shape).double()
    with torch.no_grad():
        logits = net(x)
    torch.testing.assert_close(logits, network_by_hand(x, net), rtol=1e-9, atol=1e-10)
    assert logits.std(0).min() > 1e-3


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("make", [lambda s: preact_resnet18(s, 7, 0.1), lambda s: wide_resnet(s, 7, 28, 0.5)])
def test_one_logit_per_class_and_gradients_for_images_of_any_shape(make, shape):
    torch.manual_seed(0)
    net = make(shape)
    logits = net(pixels(3, *shape))
    assert logits.shape == (3, 7) and logits.isfinite().all()
    logits.square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in net.parameters())


def test_convolutions_start_with_the_published_spread():
    torch.manual_seed(0)
    net = wide_resnet((3, 32, 32), 10, 16, 2)
    convs = [module.weight.detach() for module in net.modules() if isinstance(module, nn.Conv2d)]
    for w in convs:  # the mean of z^2 over n standard normals has sd sqrt(2 / n)
        z, n = w.double() / math.sqrt(2 / (w.shape[2] ** 2 * w.shape[0])), w.numel()
        assert abs(float(z.square().mean()) - 1) / math.sqrt(2 / n) < 5
        assert abs(float(z.mean())) * math.sqrt(n) < 5


def test_scales_are_of_the_channels():
    net = preact_resnet18((3, 32, 32), 10, 0.25)
    assert [net.conv1.out_channels, *(stage[1].conv2.out_channels for stage in net.stages)] == [16, 16, 32, 64, 128]
    net = wide_resnet((3, 32, 32), 10, widen=0.5)
    assert [net.conv1.out_channels, *(stage[3].conv2.out_channels for stage in net.stages)] == [16, 8, 16, 32]
