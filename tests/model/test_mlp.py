"""ChainMLP against torch.nn, chain by chain."""

import itertools
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from model.mlp import ChainMLP

GROUPS, CELLS, FEATURES, HIDDEN, ROWS = 3, 2, 5, 7, 4


def generators(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@pytest.fixture
def net() -> ChainMLP:
    """Chains that all differ."""
    net = ChainMLP(generators(1, 2, 3), CELLS, FEATURES, HIDDEN).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn_like(p))
    return net


def alone(net: ChainMLP, group: int, cell: int) -> nn.Sequential:
    """The chain as torch.nn modules."""
    copy = nn.Sequential(nn.Linear(FEATURES, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, 1)).double()
    with torch.no_grad():
        for layer, i in ((copy[0], 1), (copy[2], 2)):
            layer.weight.copy_(getattr(net, f"weight{i}")[group, cell].T)
            layer.bias.copy_(getattr(net, f"bias{i}")[group, cell, 0])
    return copy


def test_every_chain_is_its_network(net):
    x = torch.randn(GROUPS, ROWS, FEATURES, dtype=torch.float64)
    y = torch.randn(GROUPS, CELLS, ROWS, dtype=torch.float64)
    output = net(x)
    assert output.shape == (GROUPS, CELLS, ROWS)
    (y - output).square().sum().backward()
    for g in range(GROUPS):
        for c in range(CELLS):
            copy = alone(net, g, c)
            expected = copy(x[g])[:, 0]
            torch.testing.assert_close(output[g, c], expected)
            (y[g, c] - expected).square().sum().backward()
            for layer, i in ((copy[0], 1), (copy[2], 2)):
                torch.testing.assert_close(getattr(net, f"weight{i}").grad[g, c], layer.weight.grad.T)
                torch.testing.assert_close(getattr(net, f"bias{i}").grad[g, c, 0], layer.bias.grad)


def test_a_chain_without_data_gets_no_gradient(net):
    net(torch.randn(GROUPS, ROWS, FEATURES, dtype=torch.float64))[1, 0].sum().backward()
    for p in net.parameters():
        touched = p.grad.flatten(2).abs().sum(-1) > 0
        assert touched.nonzero().tolist() == [[1, 0]]


def test_cells_of_a_group_start_equal_and_move_apart():
    net = ChainMLP(generators(1, 2), 3, FEATURES, HIDDEN)
    for p in net.parameters():
        assert p.shape[:2] == (2, 3)
        assert torch.equal(p, p[:, :1].expand_as(p))
        assert not torch.equal(p[0], p[1])
    with torch.no_grad():
        net.weight1[0, 0] += 1
    assert not torch.equal(net.weight1[0, 0], net.weight1[0, 1])


def test_a_group_is_the_same_whatever_is_beside_it():
    together = ChainMLP(generators(1, 2, 3), 4, FEATURES, HIDDEN)
    by_itself = ChainMLP(generators(2), 1, FEATURES, HIDDEN)
    for a, b in zip(together.parameters(), by_itself.parameters(), strict=True):
        assert torch.equal(a[1, 2], b[0, 0])


def test_initial_weights_follow_the_law_of_linear():
    features, hidden = 16, 400
    net = ChainMLP(generators(*range(20)), 1, features, hidden)
    for name, fan_in in (("weight1", features), ("bias1", features), ("weight2", hidden), ("bias2", hidden)):
        u = getattr(net, name).detach().double() * math.sqrt(fan_in)  # U(-1, 1): variance 1/3, of squares 4/45
        assert u.abs().max() <= 1 + 1e-6
        assert abs(u.mean()) / math.sqrt(1 / 3 / u.numel()) < 5
        assert abs(u.square().mean() - 1 / 3) / math.sqrt(4 / 45 / u.numel()) < 5


def test_sparse_layers_are_the_weights():
    net = ChainMLP(generators(1), 1, FEATURES, HIDDEN)
    assert set(net.sparse_layers) == {name for name, _ in net.named_parameters() if name.startswith("weight")}


@pytest.mark.parametrize("groups, cells", [(1, 1), (3, 2)])
def test_parameters_per_chain(groups, cells):
    net = ChainMLP(generators(*range(groups)), cells, FEATURES, HIDDEN)
    assert net.parameters_per_chain() == sum(p.numel() for p in alone(net.double(), 0, 0).parameters())
    assert sum(p.numel() for p in net.parameters()) == groups * cells * net.parameters_per_chain()


def as_modules(net: ChainMLP, sizes: tuple[int, ...], group: int, cell: int) -> nn.Sequential:
    """A chain with several hidden layers as torch.nn modules."""
    layers = []
    for i, (fan_in, out) in enumerate(pairwise(sizes), 1):
        layers += [nn.Linear(fan_in, out).double(), nn.ReLU()]
        with torch.no_grad():
            layers[-2].weight.copy_(getattr(net, f"weight{i}")[group, cell].T)
            layers[-2].bias.copy_(getattr(net, f"bias{i}")[group, cell, 0])
    return nn.Sequential(*layers[:-1])


@pytest.mark.parametrize("hidden", [[6], [6, 3], (4, 5, 3)])
def test_every_chain_of_several_layers_is_its_network(hidden):
    sizes = (FEATURES, *hidden, 1)
    net = ChainMLP(generators(1, 2, 3), CELLS, FEATURES, hidden).double()
    names = [f"{kind}{i}" for i in range(1, len(sizes)) for kind in ("weight", "bias")]
    assert [name for name, _ in net.named_parameters()] == names and net.sparse_layers == tuple(names[::2])
    assert net.parameters_per_chain() == sum(fan_in * out + out for fan_in, out in pairwise(sizes))
    with torch.no_grad():
        for p in net.parameters():
            p.add_(torch.randn(p.shape, dtype=p.dtype, generator=generators(4)[0]))
    x = torch.randn(GROUPS, ROWS, FEATURES, dtype=torch.float64)
    output = net(x)
    output.square().sum().backward()
    assert output.shape == (GROUPS, CELLS, ROWS)
    for g, c in itertools.product(range(GROUPS), range(CELLS)):
        copy = as_modules(net, sizes, g, c)
        expected = copy(x[g])[:, 0]
        torch.testing.assert_close(output[g, c], expected)
        expected.square().sum().backward()
        for i, layer in enumerate(copy[::2], 1):
            torch.testing.assert_close(getattr(net, f"weight{i}").grad[g, c], layer.weight.grad.T)
            torch.testing.assert_close(getattr(net, f"bias{i}").grad[g, c, 0], layer.bias.grad)


def test_one_hidden_layer_may_be_a_number():
    for a, b in zip(ChainMLP(generators(1), 2, FEATURES, 6).parameters(),
                    ChainMLP(generators(1), 2, FEATURES, [6]).parameters(), strict=True):  # fmt: skip
        assert torch.equal(a, b)


def test_initial_weights_of_several_layers_follow_their_fan_in():
    sizes = (16, 300, 40, 1)
    net = ChainMLP(generators(*range(20)), 1, 16, sizes[1:-1])
    for i, fan_in in enumerate(sizes[:-1], 1):
        for name in (f"weight{i}", f"bias{i}"):
            u = getattr(net, name).detach().double() * math.sqrt(fan_in)
            assert u.abs().max() <= 1 + 1e-6 and abs(u.square().mean() - 1 / 3) / math.sqrt(4 / 45 / u.numel()) < 5
