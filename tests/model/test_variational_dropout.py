"""Sparse variational dropout: the KL by quadrature, the law of the outputs, and the ordinary network it becomes."""

import copy
import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from torch import nn
from torch.nn import functional as F
from torchvision.models import mobilenet_v3_small

from model.variational_dropout import SparseVDConv2d, SparseVDLinear, add_sparse_vd, fold_sparse_vd, kl

LAYERS = {
    "linear": (lambda: nn.Linear(6, 5), (6,)),
    "linear without bias": (lambda: nn.Linear(6, 5, bias=False), (6,)),
    "convolution": (lambda: nn.Conv2d(2, 4, 3), (2, 6, 5)),
    "stride and padding": (lambda: nn.Conv2d(2, 4, (3, 2), stride=(2, 1), padding=(1, 0), bias=False), (2, 6, 5)),
    "groups": (lambda: nn.Conv2d(4, 6, 3, groups=2, padding="same"), (4, 5, 5)),
    "dilation": (lambda: nn.Conv2d(2, 3, 2, dilation=2), (2, 5, 6)),
}
layers = pytest.mark.parametrize("kind", LAYERS)


def replaced(kind: str, seed: int = 0, mixed: bool = True) -> tuple[nn.Module, nn.Module, tuple[int, ...]]:
    """An ordinary layer, its replacement, and the shape of an input; mixed: log alpha is between -6 and 6."""
    torch.manual_seed(seed)
    make, shape = LAYERS[kind]
    layer = make()
    layer.weight.data.add_(0.1 * layer.weight.data.sign())  # away from zero, where sigma^2 is not alpha w^2
    net = nn.Sequential(copy.deepcopy(layer))
    add_sparse_vd(net)
    if mixed:
        with torch.no_grad():
            uniform = 12 * torch.rand(layer.weight.shape) - 6
            net[0].log_sigma2.copy_(uniform + layer.weight.square().log())
    return layer, net[0], shape


def linear(layer: nn.Module, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """The ordinary layer with other weights."""
    other = copy.deepcopy(layer).to(x.dtype)
    other.weight = nn.Parameter(weight.to(x.dtype))
    other.bias = None if bias is None else nn.Parameter(bias.to(x.dtype))
    with torch.no_grad():
        return other(x)


def true_kl(log_alpha: float) -> float:
    """E log|eps| - log(alpha) / 2 + c with eps ~ N(1, alpha), by quadrature; it vanishes for large alpha."""
    sd = math.exp(log_alpha / 2)

    def integrand(z: float) -> float:
        return math.log(abs(1 + sd * z)) * stats.norm.pdf(z)

    singular = -1 / sd
    ends = sorted({-12.0, 12.0, min(max(singular, -12.0), 12.0), 0.0})
    pieces = [integrate.quad(integrand, a, b, limit=200)[0] for a, b in pairwise(ends)]
    return sum(pieces) - log_alpha / 2 + (np.euler_gamma + math.log(2)) / 2


def test_the_kl_is_the_published_approximation_of_the_true_one():
    points = np.linspace(-8, 8, 33)
    ours = kl(torch.tensor(points)).numpy()
    true = np.array([true_kl(float(p)) for p in points])
    assert np.abs(ours - true).max() < 0.01 and true[0] > 4
    k1, k2, k3 = 0.63576, 1.87320, 1.48695
    published = -k1 / (1 + np.exp(-(k2 + k3 * points))) + 0.5 * np.log(1 + np.exp(-points)) + k1
    np.testing.assert_allclose(ours, published, rtol=1e-12)
    assert (np.diff(ours) < 0).all()


def test_the_limits_of_the_kl():
    small, large = torch.tensor([-200.0, -100.0, -30.0]), torch.tensor([10.0, 20.0, 100.0])
    torch.testing.assert_close(kl(small), 0.63576 - small / 2, rtol=1e-6, atol=0)
    assert (kl(large) >= 0).all() and kl(large)[0] < 1e-4 and kl(large)[1] < 1e-8 and kl(large)[2] < 1e-20
    log_alpha = torch.cat([small, torch.zeros(1), large]).requires_grad_()
    kl(log_alpha).sum().backward()
    assert (log_alpha.grad <= 0).all() and log_alpha.grad[:3].tolist() == pytest.approx([-0.5] * 3)


@layers
def test_log_alpha_of_every_weight_and_their_kl(kind):
    _, layer, _ = replaced(kind)
    expected = layer.log_sigma2.detach().double() - layer.weight.detach().double().square().log()
    assert expected.min() < -3 and expected.max() > 4
    torch.testing.assert_close(layer.log_alpha().double(), expected, rtol=0, atol=1e-4)
    total = sum(float(kl(a)) for a in expected.flatten())
    assert layer.kl().item() == pytest.approx(total, rel=1e-4)
    fresh = replaced(kind, mixed=False)[1]
    assert (fresh.log_sigma2 == -10).all() and isinstance(fresh.log_sigma2, nn.Parameter)


def test_log_alpha_is_clipped_and_never_infinite():
    layer = SparseVDLinear(nn.Linear(4, 1))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.0, 1e-3, 100.0, 1.0]]))
        layer.log_sigma2.copy_(torch.tensor([[0.0, 10.0, -10.0, 2.0]]))
    assert layer.log_alpha().tolist() == [[8.0, 8.0, -8.0, 2.0]]
    (layer.kl() + layer(torch.ones(3, 4)).sum()).backward()
    assert all(p.grad.isfinite().all() for p in layer.parameters())
    assert layer.weight.grad[0, 3] != 0 and layer.log_sigma2.grad[0, 3] != 0


@pytest.mark.parametrize("threshold", [None, -1.0])
def test_weights_of_large_alpha_are_removed(threshold):
    layer = SparseVDLinear(nn.Linear(5, 2))
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([0.5, -1.0, 2.0, 0.01, -3.0]).expand(2, 5))
        log_alpha = torch.tensor([[2.99, 3.01, -1.01, -0.99, 7.0], [-7.0, 5.0, 2.9, 3.1, 0.0]])
        layer.log_sigma2.copy_(log_alpha + (layer.weight.square() + 1e-8).log())
    kept = layer.kept() if threshold is None else layer.kept(threshold)
    folded = layer.folded() if threshold is None else layer.folded(threshold)
    expected = log_alpha < (3 if threshold is None else threshold)
    assert torch.equal(kept, expected) and torch.equal(folded.weight, layer.weight * expected)
    assert torch.equal(folded.bias, layer.bias)  # stays, also of an output without weights


@layers
def test_an_output_is_its_mean_and_standard_deviation_times_noise(kind):
    ordinary, layer, shape = replaced(kind)
    x = torch.randn(4, *shape)
    sigma2 = layer.log_sigma2.detach().exp()
    mean = linear(ordinary, x.double(), layer.weight, layer.bias)
    sd = linear(ordinary, x.double().square(), sigma2, None).sqrt()
    noise = torch.randn(mean.shape)
    layer.randn = lambda y: noise
    torch.testing.assert_close(layer(x).double(), mean + sd * noise, rtol=1e-4, atol=1e-4)
    layer.randn = torch.zeros_like
    torch.testing.assert_close(layer(x).double(), mean, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(linear(ordinary, x, ordinary.weight, ordinary.bias), mean.float(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["linear", "groups"])
def test_the_law_of_the_outputs_is_that_of_random_weights(kind):
    """Of independent draws for every image: the same marginal law as weights drawn anew for every image."""
    ordinary, layer, shape = replaced(kind)
    layer.log_sigma2.data.clamp_(max=1.0)
    torch.manual_seed(1)
    n, image = 20_000, torch.randn(shape)
    x = image.expand(n, *shape)
    with torch.no_grad():
        outputs = layer(x).double().flatten(1)
    sigma2 = layer.log_sigma2.detach().exp()
    mean = linear(ordinary, image[None].double(), layer.weight, layer.bias).flatten()
    variance = linear(ordinary, image[None].double().square(), sigma2, None).flatten()
    z = (outputs - mean) / variance.sqrt()
    assert (z.mean(0).abs() * n**0.5).max() < 5
    assert ((z.square().mean(0) - 1).abs() * (n / 2) ** 0.5).max() < 5
    assert ((z[1:] * z[:-1]).mean(0).abs() * n**0.5).max() < 5  # images do not share their noise
    assert min(stats.kstest(column, "norm").pvalue for column in z[:, :4].T.numpy()) > 1e-6
    correlation = z.T @ z / n - torch.eye(z.shape[1])
    assert correlation.abs().max() * n**0.5 < 6  # nor do outputs: local reparametrisation
    # the same by weights drawn for every image
    weights = layer.weight.detach() + sigma2.sqrt() * torch.randn(2000, *layer.weight.shape)
    drawn = torch.cat([linear(ordinary, image[None], w, layer.bias).flatten(1) for w in weights]).double()
    assert ((drawn - mean).mean(0) / (variance / 2000).sqrt()).abs().max() < 5
    assert ((drawn.var(0) / variance - 1) * (2000 / 2) ** 0.5).abs().max() < 5


@layers
def test_in_evaluation_it_is_the_folded_layer(kind):
    ordinary, layer, shape = replaced(kind)
    x, folded = torch.randn(4, *shape), layer.folded()
    layer.eval()
    removed = layer.log_sigma2.detach() - layer.weight.detach().square().log() > 3
    assert 0 < removed.sum() < removed.numel()
    expected = linear(ordinary, x, layer.weight * ~removed, layer.bias)
    with torch.no_grad():
        assert torch.equal(layer(x), layer(x))
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(folded(x), expected, rtol=1e-5, atol=1e-6)
        assert not torch.equal(layer.train()(x), layer(x))
    assert type(folded) is type(ordinary) and repr(folded) == repr(ordinary)


def chain() -> nn.Sequential:
    """No weight is so close to zero that its first log alpha is above 3."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Sequential(
            nn.Conv2d(2, 4, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.Conv2d(4, 6, 3, groups=2, dilation=2, padding="same"),
        ),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(6 * 16, 5),
        nn.Linear(5, 3, bias=False),
    ).double()
    for p in net.parameters():
        p.data.add_(0.01 * p.data.sign())
    return net


def test_adding_and_folding_is_the_identity_where_nothing_is_removed():
    net = chain()
    same, x = copy.deepcopy(net), torch.randn(3, 2, 8, 8, dtype=torch.float64)
    found = add_sparse_vd(net)
    assert list(found) == ["0.0", "0.2", "3", "4"] and all(net.get_submodule(name) is m for name, m in found.items())
    assert [type(m) for m in found.values()] == [SparseVDConv2d, SparseVDConv2d, SparseVDLinear, SparseVDLinear]
    assert found["0.0"].bias is None and found["4"].bias is None
    assert all(p.dtype == torch.float64 for p in net.parameters())
    assert len(list(net.parameters())) == len(list(same.parameters())) + 4
    with torch.no_grad():
        assert torch.equal(net.eval()(x), same.eval()(x))
        assert not torch.equal(net.train()(x), net(x))
    fold_sparse_vd(net)
    assert repr(net) == repr(same) and net.state_dict().keys() == same.state_dict().keys()
    for name, p in same.named_parameters():
        assert torch.equal(net.get_parameter(name), p) and net.get_parameter(name).dtype == p.dtype


def test_the_layers_take_the_parameters_and_leave_other_copies_alone():
    net = chain()
    weight, bias, copied = net[3].weight, net[3].bias, copy.deepcopy(net)
    found = add_sparse_vd(net)
    assert found["3"].weight is weight and found["3"].bias is bias
    assert type(copied[3]) is nn.Linear
    fold_sparse_vd(net)
    before = weight.detach().clone()
    net[3].weight.data.zero_()  # the folded layer has its own
    assert torch.equal(weight, before)


def test_the_threshold_of_folding():
    net = chain()
    add_sparse_vd(net)
    fold_sparse_vd(net, threshold=-20.0)
    assert all((m.weight == 0).all() for m in net.modules() if isinstance(m, (nn.Linear, nn.Conv2d)))


def test_a_network_of_torchvision():
    torch.manual_seed(0)
    net = mobilenet_v3_small(weights=None, num_classes=4)  # depthwise convolutions, strides, squeeze and excitation
    ordinary, same = {name for name, m in net.named_modules() if type(m) in (nn.Linear, nn.Conv2d)}, repr(net)
    x = torch.randn(4, 3, 48, 48)
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    net(x)
    with torch.no_grad():
        plain = net.eval()(x)
    found = add_sparse_vd(net)
    assert found.keys() == ordinary and len(found) > 50
    net.train()
    (F.cross_entropy(net(x), torch.arange(4)) + sum(layer.kl() for layer in found.values())).backward()
    assert all(layer.log_sigma2.grad.isfinite().all() and layer.log_sigma2.grad.any() for layer in found.values())
    with torch.no_grad():
        for layer in found.values():
            layer.log_sigma2.copy_(torch.where(torch.rand_like(layer.weight) < 0.2, 20.0, -20.0))
        expected = net.eval()(x)
        fold_sparse_vd(net)
        torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-6)
    assert (expected - plain).abs().max() > 0.01 and expected.std(0).min() > 1e-4
    zeros = sum(int((net.get_submodule(name).weight == 0).sum()) for name in found)
    assert zeros / sum(net.get_submodule(name).weight.numel() for name in found) == pytest.approx(0.2, abs=0.01)
    assert repr(net).replace("momentum=1.0", "momentum=0.01") == same


@pytest.mark.parametrize("mode", ["zeros", "circular", "reflect", "replicate"])
def test_every_way_of_padding_is_kept(mode):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1, padding_mode=mode)).eval()
    x = torch.randn(2, 2, 5, 6)
    with torch.no_grad():
        expected = net(x)
        add_sparse_vd(net)
        net.eval()
        torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-6)
        fold_sparse_vd(net)
        torch.testing.assert_close(net(x), expected, rtol=1e-5, atol=1e-6)
