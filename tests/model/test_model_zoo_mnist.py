"""The networks of the MNIST experiments: sizes, dropout, and the same computation by torch.nn.Sequential."""

import pytest
import torch
from torch import nn

from model.model_zoo_mnist import MODELS, BatchNormConvNet, ConvNet

both = pytest.mark.parametrize("kind", [ConvNet, BatchNormConvNet])


def randomised(net: nn.Module) -> nn.Module:
    """Nothing in it is zero or one any more, batch norm's statistics included."""
    generator = torch.Generator().manual_seed(0)
    for name, x in net.state_dict().items():
        if x.is_floating_point():
            noise = torch.rand(x.shape, generator=generator)
            x.copy_(0.5 + noise if name.endswith("var") else (2 * noise - 1) / max(1, x[0].numel()) ** 0.5)
    return net


def images(n: int, *shape: int) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("kind, parameters", [(ConvNet, 681_506), (BatchNormConvNet, 493_772)])
def test_parameter_counts(kind, parameters):
    net = kind((1, 28, 28), 10)
    assert sum(p.numel() for p in net.parameters()) == parameters


def test_the_models_by_name():
    assert MODELS["convnet"] is ConvNet and MODELS["convnet-bn"] is BatchNormConvNet and len(MODELS) == 2


@both
@pytest.mark.parametrize(
    "shape, classes", [((1, 28, 28), 10), ((3, 32, 32), 100), ((1, 9, 9), 2), ((2, 15, 33), 7), ((1, 30, 11), 3)]
)
def test_one_logit_per_class_for_images_of_any_shape(kind, shape, classes):
    net = kind(shape, classes)
    logits = net(images(3, *shape))
    assert logits.shape == (3, classes) and logits.isfinite().all()
    logits.sum().backward()
    assert all(p.grad is not None for p in net.parameters())


@pytest.mark.parametrize("kind, side", [(ConvNet, 4), (BatchNormConvNet, 9)])
def test_the_smallest_images(kind, side):
    assert kind((1, side, side), 10).eval()(images(2, 1, side, side)).shape == (2, 10)
    for h, w in ((side - 1, side), (side, side - 1), (1, 100)):
        with pytest.raises(ValueError, match=f"at least {side} x {side} pixels, not {h} x {w}"):
            kind((1, h, w), 10)


@pytest.mark.parametrize("kind, share", [(ConvNet, 0.92), (BatchNormConvNet, 0.83)])
def test_sparse_layers_are_most_of_the_network(kind, share):
    net = kind((1, 28, 28), 10)
    params = dict(net.named_parameters())
    assert set(kind.sparse_layers) <= params.keys()
    sparse = sum(params[name].numel() for name in kind.sparse_layers)
    assert sparse / sum(p.numel() for p in params.values()) == pytest.approx(share, abs=0.005)


def reference(net: nn.Module) -> nn.Sequential:
    """An independent network with the same weights, in the order of the parameters."""
    if isinstance(net, ConvNet):
        copy = nn.Sequential(
            nn.Conv2d(1, 32, 5, 1, 2), nn.MaxPool2d(2), nn.ReLU(),
            nn.Conv2d(32, 64, 5, 1, 2), nn.MaxPool2d(2), nn.ReLU(),
            nn.Flatten(), nn.Linear(3136, 200), nn.ReLU(), nn.Linear(200, 10),
        )  # fmt: skip
    else:
        copy = nn.Sequential(
            nn.BatchNorm2d(1), nn.Conv2d(1, 64, 4, 1, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.1),
            nn.Conv2d(64, 64, 4), nn.ReLU(), nn.MaxPool2d(2), nn.Dropout(0.3),
            nn.Flatten(), nn.Linear(1600, 256), nn.ReLU(), nn.Linear(256, 64), nn.BatchNorm1d(64), nn.ReLU(),
            nn.Linear(64, 10),
        )  # fmt: skip
    values = list(net.state_dict().values())
    copy.load_state_dict(dict(zip(copy.state_dict(), values, strict=True)))
    return copy


@both
def test_logits_and_gradients_are_those_of_the_layers_in_a_row(kind):
    net = randomised(kind((1, 28, 28), 10))
    copy = reference(net).double().eval()
    net.double().eval()
    x = images(4, 1, 28, 28).double()
    logits, expected = net(x), copy(x)
    assert logits.std() > 1e-3
    torch.testing.assert_close(logits, expected, rtol=1e-10, atol=1e-12)
    logits.square().sum().backward()
    expected.square().sum().backward()
    for p, q in zip(net.parameters(), copy.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-9, atol=1e-12)


def test_batch_norm_uses_the_batch_in_training():
    """Without dropout, whose random numbers depend on the order of calls."""
    net = randomised(BatchNormConvNet((1, 28, 28), 10))
    copy = reference(net)
    for module in (*net.modules(), *copy.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    x = images(6, 1, 28, 28)
    torch.testing.assert_close(net.train()(x), copy.train()(x))
    for a, b in zip(net.buffers(), copy.buffers(), strict=True):
        torch.testing.assert_close(a, b)
    assert not torch.allclose(net(x), net.eval()(x), atol=1e-3)


@both
@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_dropout_acts_in_training_only(kind, dropout):
    torch.manual_seed(0)
    net, x = kind((1, 12, 12), 10, dropout=dropout), images(8, 1, 12, 12)
    net.eval()
    quiet = net(x)
    assert torch.equal(net(x), quiet)
    net.train()
    acts = dropout > 0 or kind is BatchNormConvNet
    assert torch.equal(net(x), net(x)) == (not acts)
    if kind is ConvNet and not dropout:
        assert torch.equal(net(x), quiet)


@pytest.mark.parametrize(
    "kind, expected",
    [(ConvNet, {"dropout": 0.5}), (BatchNormConvNet, {"dropout1": 0.1, "dropout2": 0.3, "dropout": 0.5})],
)
def test_the_shares_that_are_dropped(kind, expected):
    torch.manual_seed(0)
    net, dropped = kind((1, 28, 28), 10, dropout=0.5), {}
    for name, module in net.named_modules():
        if isinstance(module, nn.Dropout):

            def record(module, inputs, output, name=name):
                alive = inputs[0] != 0
                dropped[name] = float((output[alive] == 0).double().mean()), int(alive.sum())

            module.register_forward_hook(record)
    net.train()(images(32, 1, 28, 28))
    assert dropped.keys() == expected.keys()
    for name, (share, n) in dropped.items():
        p = expected[name]
        assert abs(share - p) / (p * (1 - p) / n) ** 0.5 < 5


@both
def test_a_seed_decides_the_initial_weights(kind):
    def weights(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in kind((1, 12, 12), 10).parameters()])

    assert torch.equal(weights(1), weights(1)) and not torch.equal(weights(1), weights(2))


@both
def test_memory_layout_does_not_matter(kind):
    net = kind((3, 16, 16), 10).eval()
    x = images(4, 3, 16, 16)
    expected = net(x)
    net = net.to(memory_format=torch.channels_last)
    torch.testing.assert_close(net(x.contiguous(memory_format=torch.channels_last)), expected, rtol=1e-4, atol=1e-5)
