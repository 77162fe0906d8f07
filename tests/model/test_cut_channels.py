"""Channels cut out of networks that add or concatenate."""

import copy
from collections.abc import Iterator

import pytest
import torch
import torchvision
from torch import nn

from model.image_networks import build
from model.resnet import ResNet
from model.surgery import cut_channels, zero_channels

SHAPE = (3, 32, 32)
NETS = {"resnet20": lambda: ResNet(20, SHAPE, 10), "resnet18": lambda: torchvision.models.resnet18(num_classes=10)}
SMALL = (3, 16, 16)
PREACTIVATED = {
    "preact_resnet18": lambda: build("preact_resnet18", SMALL, 10, 0.1),
    "wrn28-10": lambda: build("wrn28-10", SMALL, 10, 0.1),
}
CONCATENATED = {"densenet": lambda: build("densenet", SMALL, 10, 0.25)}
MAKERS = NETS | PREACTIVATED | CONCATENATED


def trained(kind: str) -> nn.Module:
    """A network whose batch norms are not the identity."""
    torch.manual_seed(0)
    net = MAKERS[kind]().eval()
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


def images(net: nn.Module) -> torch.Tensor:
    return torch.randn(3, *SMALL, dtype=next(net.parameters()).dtype, generator=torch.Generator().manual_seed(2))


def close(small: nn.Module, net: nn.Module) -> None:
    torch.testing.assert_close(small(images(net)), net(images(net)), rtol=0, atol=1e-10)


def outputs(net: nn.Module) -> dict[str, int]:
    return {name: conv.out_channels for name, conv in convolutions(net).items()}


def readers(net: nn.Module) -> dict[str, torch.Tensor]:
    """Weights of the layers that read channels, not images."""
    layers = {name: m.weight.detach() for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    return {name: w for name, w in layers.items() if w.shape[1] != SMALL[0]}


def every_fifth(channels: int) -> torch.Tensor:
    return torch.arange(channels) % 5 == 1


@pytest.mark.parametrize("kind", [*NETS, *PREACTIVATED])
def test_channels_that_no_layer_reads_go_and_nothing_changes(kind):
    net = trained(kind).double()
    for w in readers(net).values():
        w[:, every_fifth(w.shape[1])] = 0
    small = cut_channels(net, SMALL, {}, zero_channels(net)[1])
    assert outputs(small) == {name: n - int(every_fifth(n).sum()) for name, n in outputs(net).items()}
    close(small, net)


def concatenations(net: nn.Module) -> Iterator[tuple[list[str], nn.Module, nn.Module]]:
    """Names of the convolutions whose outputs a layer of a DenseNet reads, its batch norm, and the layer itself."""
    features, stream = net.features, ["features.conv0"]
    for block in (1, 2, 3):
        for name, layer in features.get_submodule(f"denseblock{block}").named_children():
            path = f"features.denseblock{block}.{name}"
            yield [*stream], layer.norm1, layer.conv1
            yield [f"{path}.conv1"], layer.norm2, layer.conv2
            stream.append(f"{path}.conv2")
        if block < 3:
            transition = features.get_submodule(f"transition{block}")
            yield stream, transition.norm, transition.conv
            stream = [f"features.transition{block}.conv"]
    yield stream, features.norm5, net.classifier


def test_of_what_is_concatenated_goes_what_no_layer_reads():
    """Many cuts that move each other's channels."""
    net, masks = trained("densenet").double(), some(trained("densenet"), 0.4)
    for names, _, reader in concatenations(net):
        reader.weight.data[:, torch.cat([masks[name] for name in names])] = 0
    small = cut_channels(net, SMALL, {}, zero_channels(net)[1], keep_one=True)
    assert outputs(small) == {name: max(1, int((~mask).sum())) for name, mask in masks.items()}
    assert len({int(mask.sum()) for mask in masks.values()}) > 5
    close(small, net)


@pytest.mark.parametrize("kind", MAKERS)
def test_one_reader_is_enough_for_a_channel_to_stay(kind):
    """The classifier reads nothing but the channels that another layer does not read."""
    net = trained(kind).double()
    weights = readers(net)
    last = list(weights)[-1]
    for name, w in weights.items():
        w[:, every_fifth(w.shape[1]) if name == last else ~every_fifth(w.shape[1])] = 0
    small = cut_channels(net, SMALL, {}, zero_channels(net)[1], keep_one=True)
    assert sum(outputs(small).values()) < sum(outputs(net).values())
    close(small, net)


@pytest.mark.parametrize("kind", MAKERS)
def test_channels_without_weights_and_batch_norm_go_and_nothing_changes(kind):
    """Their outputs are zero wherever they are read."""
    net = trained(kind).double()
    for conv in convolutions(net).values():
        conv.weight.data[every_fifth(conv.out_channels)] = 0
    if kind in CONCATENATED:
        widths = outputs(net)
        norms = [(n, torch.cat([every_fifth(widths[name]) for name in names])) for names, n, _ in concatenations(net)]
    else:
        norms = [(m, every_fifth(m.num_features)) for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    for norm, mask in norms:
        norm.weight.data[mask], norm.bias.data[mask] = 0, 0
    small = cut_channels(net, SMALL, zero_channels(net)[0])
    assert outputs(small) == {name: n - int(every_fifth(n).sum()) for name, n in outputs(net).items()}
    close(small, net)


def test_a_layer_that_would_vanish_keeps_its_first_channel():
    net, name = trained("resnet20").double(), "layer2.1.conv1"
    block = net.layer2[1]
    with torch.no_grad():
        block.conv1.weight.zero_()
        block.bn1.weight.zero_()
        block.bn1.bias.zero_()
    small = cut_channels(net, SMALL, *zero_channels(net), keep_one=True)
    assert outputs(small) == outputs(net) | {name: 1}
    close(small, net)
    assert torch.equal(small.layer2[1].conv2.weight, block.conv2.weight[:, :1])


def test_classes_stay():
    net = trained("resnet20").double()
    with torch.no_grad():
        net.fc.weight[3] = 0
    close(cut_channels(net, SMALL, *zero_channels(net)), net)


def test_the_network_itself_stays_whole():
    net = trained("resnet20").train()
    before = {name: x.clone() for name, x in net.state_dict().items()}
    cut_channels(net, SMALL, {name: mask for name, mask in some(net, 0.5).items() if name.endswith(".conv1")})
    assert net.training and all(torch.equal(x, before[name]) for name, x in net.state_dict().items())


def test_zero_channels_are_those_of_a_loop():
    net = trained("resnet20")
    generator = torch.Generator().manual_seed(4)
    layers = {name: m for name, m in net.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    for layer in layers.values():
        w = layer.weight.data
        w[torch.rand(w.shape, generator=generator) < 0.3] = 0
        w[torch.rand(w.shape[0], generator=generator) < 0.3] = 0
        w[:, torch.rand(w.shape[1], generator=generator) < 0.3] = 0
    found = zero_channels(net)
    for side, masks in enumerate(found):
        assert masks.keys() == layers.keys()
        for name, layer in layers.items():
            w = layer.weight if side == 0 else layer.weight.transpose(0, 1)
            assert masks[name].tolist() == [not bool(channel.any()) for channel in w], name
        assert 0 < sum(int(mask.sum()) for mask in masks.values()) < sum(len(mask) for mask in masks.values())
