"""Networks by name: the published sizes, torchvision's own networks behind their stems, images of all sizes."""

import importlib
import sys

import pytest
import torch
from torch import nn
from torchvision import models

from model.image_networks import MODELS, SCALABLE, build
from model.preact_resnet import SMALL

PARAMETERS = {  # CIFAR10; published: 11.2 M, 21.3 M, 0.27 M, 36.5 M, 11.2 M, 0.8 M
    "resnet18": 11_173_962,
    "resnet34": 21_282_122,
    "resnet20": 272_474,
    "wrn28-10": 36_479_194,
    "preact_resnet18": 11_172_170,
    "densenet": 769_162,
}
LARGE = (3, 224, 224)


def narrow(name: str, shape: tuple[int, int, int], classes: int = 7) -> nn.Module:
    """As quick as it can be."""
    return build(name, shape, classes, 0.1 if name in SCALABLE else 1.0)


def pixels(n: int, *shape: int) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(1))


def test_the_networks_have_as_many_parameters_as_published():
    with torch.device("meta"):
        nets = {name: build(name, (3, 32, 32), 10) for name in MODELS}
    assert {name: sum(p.numel() for p in net.parameters()) for name, net in nets.items()} == PARAMETERS


@pytest.mark.parametrize("name", MODELS)
def test_the_small_stem_keeps_the_sides(name):
    for side, kernel, stride in [(SMALL, 3, 1), (SMALL + 1, 7, 2)]:
        with torch.device("meta"):
            net = build(name, (2, side, 100), 10)
        first = next(module for module in net.modules() if isinstance(module, nn.Conv2d))
        pools = [module for module in net.modules() if isinstance(module, nn.MaxPool2d)]
        if name == "resnet20":
            kernel, stride = 3, 1
        assert (first.in_channels, first.kernel_size, first.stride) == (2, (kernel, kernel), (stride, stride))
        assert first.bias is None and len(pools) == stride - 1


@pytest.mark.parametrize("name", ["resnet18", "resnet34"])
def test_large_images_get_the_network_of_torchvision(name):
    with torch.device("meta"):
        assert str(build(name, LARGE, 9)) == str(models.get_model(name, num_classes=9))


def test_small_images_change_nothing_but_the_stem():
    with torch.device("meta"):
        net, published = build("resnet18", (1, 28, 28), 9), models.resnet18(num_classes=9)
        published.conv1, published.maxpool = net.conv1, nn.Identity()
    assert str(net) == str(published)


def test_outputs_are_those_of_torchvision_with_its_weights():
    torch.manual_seed(0)
    net, published = build("resnet18", LARGE, 9).eval(), models.resnet18(num_classes=9).eval()
    net.load_state_dict(published.state_dict())
    x = pixels(1, *LARGE)
    with torch.no_grad():
        assert torch.equal(net(x), published(x))


def test_densenet_is_that_of_torchvision_but_for_the_stem():
    with torch.device("meta"):
        published = models.DenseNet(12, (16, 16, 16), 24, num_classes=9)
        assert str(build("densenet", LARGE, 9)) == str(published)
        net = build("densenet", (3, 32, 32), 9)
    assert all(isinstance(net.features.get_submodule(part), nn.Identity) for part in ("norm0", "relu0", "pool0"))
    assert str(net.features[4:]) == str(published.features[4:])


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("shape", [(1, 8, 8), (1, 28, 28), (3, 32, 32)], ids=str)
def test_two_small_images_give_logits_and_gradients(name, shape):
    torch.manual_seed(0)
    net = narrow(name, shape)
    logits = net(pixels(2, *shape))
    assert logits.shape == (2, 7) and logits.isfinite().all()
    logits.square().sum().backward()
    assert all(p.grad.isfinite().all() and p.grad.any() for p in net.parameters())


@pytest.mark.parametrize("name", MODELS)
def test_one_logit_per_class_for_large_images(name):
    with torch.device("meta"):
        assert build(name, LARGE, 1000)(torch.empty(2, *LARGE)).shape == (2, 1000)


@pytest.mark.parametrize("name", MODELS)
def test_loaded_weights_give_the_same_outputs(name):
    torch.manual_seed(0)
    net, same, x = narrow(name, (3, 8, 8)), narrow(name, (3, 8, 8)).eval(), pixels(4, 3, 8, 8)
    net(x)  # moves the running statistics
    net.eval()
    with torch.no_grad():
        assert not torch.equal(same(x), net(x))
        same.load_state_dict(net.state_dict())
        assert torch.equal(same(x), net(x))


@pytest.mark.parametrize("name", sorted({*MODELS} - {"resnet34"}))  # as resnet18, and slower
def test_convolutions_start_with_the_spread_of_their_fan_out(name):
    torch.manual_seed(0)
    for module in narrow(name, (3, 32, 32)).modules():
        if isinstance(module, nn.Conv2d):
            z = module.weight.detach().double() * (module.kernel_size[0] ** 2 * module.out_channels / 2) ** 0.5
            assert abs(float(z.square().mean()) - 1) / (2 / z.numel()) ** 0.5 < 6


@pytest.mark.parametrize("name", sorted({*MODELS} - {"densenet"}))
def test_other_networks_take_images_of_one_pixel(name):
    assert narrow(name, (1, 1, 1)).eval()(pixels(1, 1, 1, 1)).shape == (1, 7)


@pytest.mark.parametrize("sides", [(3, 32), (32, 3), (1, 1)])
def test_too_small_images_are_refused_by_densenet(sides):
    with pytest.raises(ValueError, match=f"at least 4 x 4, not {sides[0]} x {sides[1]}$"):
        build("densenet", (3, *sides), 10)
    assert narrow("densenet", (3, 4, 32))(pixels(2, 3, 4, 32)).shape == (2, 7)


def test_the_width_is_of_the_channels():
    assert build("preact_resnet18", (3, 8, 8), 10, 0.25).fc.in_features == 128
    assert build("wrn28-10", (3, 8, 8), 10, 0.1).fc.in_features == 64  # WideResNet-28-1
    assert build("densenet", (3, 8, 8), 10, 0.5).classifier.in_features == 342 // 2


@pytest.mark.parametrize("name", sorted({*MODELS} - {*SCALABLE}))
def test_a_width_is_refused_by_the_others(name):
    with pytest.raises(ValueError, match=rf"^{name} has no width 0\.5; wrn28-10, preact_resnet18, densenet have"):
        build(name, (3, 8, 8), 10, 0.5)


@pytest.mark.parametrize("width", [0.0, -1.0, float("nan")])
def test_a_width_is_above_zero(width):
    with pytest.raises(ValueError, match="any above 0"):
        build("densenet", (3, 8, 8), 10, width)


def test_an_unknown_network_is_refused():
    with pytest.raises(ValueError, match=r"^no network 'vgg16': one of resnet18, resnet34, resnet20, wrn28-10, "):
        build("vgg16", (3, 8, 8), 10)


def test_torchvision_is_imported_by_its_own_networks_only(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    monkeypatch.delitem(sys.modules, "model.image_networks")
    afresh = importlib.import_module("model.image_networks")
    afresh.build("resnet20", (3, 8, 8), 10)
    with pytest.raises(ImportError):
        afresh.build("resnet18", (3, 8, 8), 10)
