"""LeNet-fc and LeNet5: the computation by functions, the sizes of the paper, the mean image."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model.lenet import centre, lenet5, lenet_fc, scaled


def randomised(net: nn.Sequential, seed: int = 0) -> nn.Sequential:
    """In float64, with a mean image and large biases."""
    generator = torch.Generator().manual_seed(seed)
    net = net.double()
    with torch.no_grad():
        for x in [net.centre.mean, *net.parameters()]:
            spread = 1.0 if x.ndim != 2 and x.ndim != 4 else (2 / x[0].numel()) ** 0.5
            x.copy_(spread * torch.randn(x.shape, generator=generator, dtype=x.dtype))
    return net


def pixels(n: int, *shape: int) -> torch.Tensor:
    return torch.rand(n, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 5, 6)], ids=str)
def test_lenet_fc_is_its_definition(shape):
    net = randomised(lenet_fc(shape, 7, 0.1))
    w, x = net.state_dict(), pixels(4, *shape)
    y = (x - w["centre.mean"]).reshape(4, -1)
    for name in ("fc1", "fc2"):
        y = (y @ w[f"{name}.weight"].T + w[f"{name}.bias"]).clamp(min=0)
    y = y @ w["fc3.weight"].T + w["fc3.bias"]
    torch.testing.assert_close(net(x), y, rtol=1e-10, atol=1e-12)
    assert y.shape == (4, 7) and y.std(0).min() > 0.01


@pytest.mark.parametrize("shape", [(1, 28, 28), (3, 16, 21), (2, 23, 16)], ids=str)
def test_lenet5_is_its_definition(shape):
    net = randomised(lenet5(shape, 7, 0.2))
    w, y = net.state_dict(), pixels(4, *shape) - net.centre.mean
    for name in ("conv1", "conv2"):
        y = F.conv2d(y, w[f"{name}.weight"], w[f"{name}.bias"])  # without padding
        y = y[..., : y.shape[-2] // 2 * 2, : y.shape[-1] // 2 * 2].clamp(min=0)
        y = y.unflatten(-1, (-1, 2)).unflatten(-3, (-1, 2)).amax((-1, -3))
    y = (y.reshape(4, -1) @ w["fc1.weight"].T + w["fc1.bias"]).clamp(min=0)
    y = y @ w["fc2.weight"].T + w["fc2.bias"]
    torch.testing.assert_close(net(pixels(4, *shape)), y, rtol=1e-10, atol=1e-12)
    assert y.shape == (4, 7) and y.std(0).min() > 0.01


def test_the_sizes_of_the_paper():
    shape = (1, 28, 28)
    weights = {
        lenet_fc: {"fc1": (500, 784), "fc2": (300, 500), "fc3": (10, 300)},
        lenet5: {"conv1": (20, 1, 5, 5), "conv2": (50, 20, 5, 5), "fc1": (500, 800), "fc2": (10, 500)},
    }
    for make, expected in weights.items():
        params = dict(make(shape, 10).named_parameters())
        assert {name[:-7]: tuple(p.shape) for name, p in params.items() if p.ndim > 1} == expected
        assert [name for name, p in params.items() if p.ndim == 1] == [f"{name}.bias" for name in expected]
    count = [sum(p.numel() for p in make(shape, 10).parameters()) for make in weights]
    assert count == [545_810, 431_080]


def test_the_scale_is_of_the_hidden_widths():
    assert [scaled(500, 1.0), scaled(500, 0.1), scaled(3, 0.5), scaled(50, 0.001), scaled(300, 2.5)] == [
        500, 50, 2, 1, 750,
    ]  # fmt: skip
    net = lenet5((1, 28, 28), 10, 0.1)
    assert [len(net.get_submodule(name).bias) for name in ("conv1", "conv2", "fc1", "fc2")] == [2, 5, 50, 10]
    net = lenet_fc((1, 28, 28), 10, 0.02)
    assert [len(net.get_submodule(name).bias) for name in ("fc1", "fc2", "fc3")] == [10, 6, 10]


@pytest.mark.parametrize("sides", [(15, 28), (28, 15), (8, 8)])
def test_too_small_images_are_refused_by_lenet5(sides):
    with pytest.raises(ValueError, match=f"at least 16 x 16, not {sides[0]} x {sides[1]}"):
        lenet5((1, *sides), 10)
    assert lenet5((1, 16, 16), 10, 0.1)(torch.zeros(2, 1, 16, 16)).shape == (2, 10)


@pytest.mark.parametrize("make", [lenet_fc, lenet5])
def test_the_mean_image_is_a_part_of_the_network(make):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (23, 3, 16, 17), generator=generator, dtype=torch.uint8)
    images[:, 0, 0, 0] = 255
    net, same = make((3, 16, 17), 5, 0.1), make((3, 16, 17), 5, 0.1)
    weights = {name: p.clone() for name, p in net.named_parameters()}
    centre(net, ((x, torch.zeros(len(x))) for x in images.split(7)))  # the last one is smaller
    mean = images.double().mean(0) / 255
    torch.testing.assert_close(net.centre.mean.double(), mean, rtol=1e-6, atol=1e-7)
    assert net.centre.mean.dtype == torch.float32 and net.centre.mean[0, 0, 0] == 1
    assert all(torch.equal(p, weights[name]) for name, p in net.named_parameters())
    x = images / 255
    torch.testing.assert_close(net.centre(x), (x.double() - mean).float(), rtol=0, atol=1e-6)
    same.load_state_dict(net.state_dict())
    assert torch.equal(same(x), net(x))
