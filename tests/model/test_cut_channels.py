"""Channels cut out of residual networks."""

import copy

import pytest
import torch
import torchvision
from torch import nn

from model.resnet import ResNet
from model.surgery import cut_channels

SHAPE = (3, 32, 32)
NETS = {"resnet20": lambda: ResNet(20, SHAPE, 10), "resnet18": lambda: torchvision.models.resnet18(num_classes=10)}


def trained(kind: str) -> nn.Module:
    """A network whose batch norms are not the identity."""
    torch.manual_seed(0)
    net = NETS[kind]().eval()
    with torch.no_grad():
        for module in net.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1)
                module.bias.normal_()
                module.running_mean.normal_()
                module.running_var.uniform_(0.5, 2)
    return net


def convolutions(net: nn.Module) -> dict[str, nn.Conv2d]:
    return {name: module for name, module in net.named_modules() if isinstance(module, nn.Conv2d)}


def some(net: nn.Module, share: float) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {
        name: torch.rand(conv.out_channels, generator=generator) < share for name, conv in convolutions(net).items()
    }


def silenced(net: nn.Module, gone: dict[str, torch.Tensor]) -> nn.Module:
    """The whole network with zeros for what the batch norms of these convolutions put out."""
    net = copy.deepcopy(net)
    with torch.no_grad():
        for name, mask in gone.items():
            norm = net.get_submodule(name.replace("conv", "bn").replace("downsample.0", "downsample.1"))
            norm.weight[mask], norm.bias[mask] = 0, 0
    return net


@pytest.mark.parametrize("kind", NETS)
def test_channels_inside_a_block_go_by_themselves(kind):
    net, x = trained(kind), torch.randn(2, *SHAPE)
    gone = {name: mask for name, mask in some(net, 0.5).items() if name.endswith(".conv1")}
    small = cut_channels(net, SHAPE, gone)
    torch.testing.assert_close(small(x), silenced(net, gone)(x), rtol=1e-4, atol=1e-5)
    for name, conv in convolutions(small).items():
        lost = int(gone[name].sum()) if name in gone else 0
        assert conv.out_channels == convolutions(net)[name].out_channels - lost
    assert (net(x) - small(x)).abs().max() > 0.01


def test_channels_that_are_added_go_together():
    net, x = trained("resnet20"), torch.randn(2, *SHAPE)
    first = [name for name in convolutions(net) if name == "conv1" or (name.startswith("layer1.") and "conv2" in name)]
    masks = some(net, 0.7)
    small = cut_channels(net, SHAPE, {name: masks[name] for name in first})
    together = torch.stack([masks[name] for name in first]).all(0)
    assert 0 < int(together.sum()) < min(int(masks[name].sum()) for name in first)
    assert all(convolutions(small)[name].out_channels == 16 - int(together.sum()) for name in first)
    reference = silenced(net, dict.fromkeys(first, together))
    torch.testing.assert_close(small(x), reference(x), rtol=1e-4, atol=1e-5)


def test_channels_stay_where_one_of_their_sum_stays():
    net = trained("resnet20")
    small = cut_channels(net, SHAPE, {"layer1.0.conv2": torch.arange(16) < 8})
    assert [c.out_channels for c in convolutions(small).values()] == [
        c.out_channels for c in convolutions(net).values()
    ]


def test_a_layer_does_not_vanish():
    with pytest.raises(ValueError, match=r"no channel of layer2\.1\.conv1"):
        cut_channels(trained("resnet20"), SHAPE, {"layer2.1.conv1": torch.ones(32, dtype=torch.bool)})
