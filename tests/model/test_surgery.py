"""Networks cut to their units, against the whole network in which the weights or the inputs that go are zero."""

import copy
from itertools import pairwise

import pytest
import torch
from torch import nn

from model.lenet import Centre, lenet5, lenet_fc
from model.surgery import Constant, Removal, Select, cut, emptied, fused, removal, shapes, sites
from model.vgg import vgglike

WEIGHTED, NORMS = (nn.Linear, nn.Conv2d), (nn.BatchNorm1d, nn.BatchNorm2d)
SEEDS = [0, 1, 2]


def mixed(shape: tuple[int, int, int], classes: int) -> nn.Sequential:
    """What the networks of the paper do not have: strides, average pooling, layers without bias, dropout."""
    return nn.Sequential(
        nn.Conv2d(shape[0], 6, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(6),
        nn.ReLU(),
        nn.AvgPool2d(2),
        nn.Dropout(0.5),
        nn.Conv2d(6, 5, (3, 1), bias=False),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * (shape[1] // 4 - 2) * (shape[2] // 4), 9, bias=False),
        nn.BatchNorm1d(9),
        nn.ReLU(),
        nn.Linear(9, classes, bias=False),
    )


NETS = {
    "lenet-fc": (lambda shape, classes: lenet_fc(shape, classes, 0.03), (2, 6, 5)),  # 15-9
    "lenet5": (lambda shape, classes: lenet5(shape, classes, 0.15), (2, 20, 26)),  # 3-8, 2 x 3 positions, 75
    "lenet5, one position": (lambda shape, classes: lenet5(shape, classes, 0.15), (1, 16, 16)),
    "vgglike": (lambda shape, classes: vgglike(shape, classes, 0.1), (3, 32, 32)),
    "vgglike, positions": (lambda shape, classes: vgglike(shape, classes, 0.1, dropout=True), (1, 64, 33)),
    "mixed": (mixed, (2, 16, 20)),
}
nets = pytest.mark.parametrize("kind", NETS)


def randomised(net: nn.Sequential, seed: int = 0) -> nn.Sequential:
    """In evaluation mode; biases, statistics and mean image are large, images differ in their logits."""
    generator = torch.Generator().manual_seed(seed)
    net = net.eval()

    def normal(x: torch.Tensor) -> torch.Tensor:
        return torch.randn(x.shape, generator=generator).to(x.dtype)

    with torch.no_grad():
        for module in net:
            if isinstance(module, Centre):
                module.mean.copy_(0.5 * normal(module.mean))
            if isinstance(module, WEIGHTED):
                module.weight.copy_((4 / module.weight[0].numel()) ** 0.5 * normal(module.weight))
            if isinstance(module, NORMS):
                module.running_mean.copy_(0.3 * normal(module.running_mean))
                module.running_var.copy_(0.7 + torch.rand(module.running_var.shape, generator=generator))
                module.weight.copy_(0.8 + 0.5 * torch.rand(module.weight.shape, generator=generator))
            if getattr(module, "bias", None) is not None:
                module.bias.copy_(0.3 * normal(module.bias))
    return net


def network(kind: str, seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[nn.Sequential, torch.Tensor]:
    """A network of three classes, and images for it."""
    make, shape = NETS[kind]
    torch.manual_seed(seed)
    return randomised(make(shape, 3), seed).to(dtype), images(8, shape, dtype)


def images(n: int, shape: tuple[int, int, int], dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Of different colours."""
    generator = torch.Generator().manual_seed(1)
    colour = 2 * torch.rand(n, shape[0], 1, 1, generator=generator)
    return (colour * torch.rand(n, *shape, generator=generator)).to(dtype)


def weighted(net: nn.Sequential) -> dict[str, nn.Module]:
    return {name: module for name, module in net.named_children() if isinstance(module, WEIGHTED)}


def neighbours(net: nn.Sequential) -> list[tuple[str, str, int]]:
    """Names of two layers, and the positions that an output of the first has among the inputs of the second."""
    layers = {name: module.weight.shape for name, module in weighted(net).items()}
    return [(a, b, layers[b][1] // layers[a][0]) for a, b in pairwise(layers)]


def low(scores: dict, name: str, dim: int, units: int, threshold: float) -> torch.Tensor:
    """Which units go by this score; those without a number do."""
    return torch.tensor([not score >= threshold for score in scores.get((name, dim), [9] * units)])


@torch.no_grad()
def forced(net: nn.Sequential, scores: dict, threshold: float, x: torch.Tensor) -> torch.Tensor:
    """Logits of the whole network where outputs that go have no weights, and inputs that go are zero.

    A padded convolution reads zeros of the outputs that go.
    """
    net = copy.deepcopy(net).eval()
    layers = weighted(net)
    for before, after in pairwise([None, *layers]):
        layer = layers[after]
        zero = low(scores, after, 1, layer.weight.shape[1], threshold)
        if before is not None:
            gone = low(scores, before, 0, layers[before].weight.shape[0], threshold)
            layers[before].weight[gone] = 0
            if isinstance(layer, nn.Conv2d) and layer.padding != (0, 0):
                zero |= gone
        stay = ~zero.view(-1, *[1] * (layer.weight.ndim - 2))
        layer.register_forward_pre_hook(lambda _, args, stay=stay: args[0] * stay)
    return net(x)


@torch.no_grad()
def logits(net: nn.Module, x: torch.Tensor) -> torch.Tensor:
    return net(x)


def random_scores(net: nn.Sequential, seed: int) -> dict[tuple[str, int], torch.Tensor]:
    """Uniform in [0, 1) at most of the sites; of every layer some unit scores 1."""
    generator = torch.Generator().manual_seed(seed)
    chosen, scores = {}, {}

    def put(name: str, dim: int, best: int) -> None:
        score = torch.rand(weighted(net)[name].weight.shape[dim], generator=generator)
        score[best] = 1.0
        if torch.rand(1, generator=generator) < 0.8:
            scores[name, dim] = score

    (first, layer), *_ = weighted(net).items()
    if isinstance(layer, nn.Linear):
        put(first, 1, seed % layer.in_features)
    for before, after, positions in neighbours(net):
        chosen = int(torch.randint(weighted(net)[after].weight.shape[1], (), generator=generator))
        put(before, 0, chosen // positions)
        put(after, 1, chosen)
    return scores


def by_hand(net: nn.Sequential, scores: dict, threshold: float) -> dict[tuple[str, int], torch.Tensor]:
    """Masks of the units that stay, unit by unit: those with no score below the threshold."""
    stay = {}
    (first, layer), *_ = weighted(net).items()
    if isinstance(layer, nn.Linear):
        stay[first, 1] = ~low(scores, first, 1, layer.in_features, threshold)
    for before, after, positions in neighbours(net):
        outputs = weighted(net)[before].weight.shape[0]
        left, right = (
            low(scores, before, 0, outputs, threshold),
            low(scores, after, 1, outputs * positions, threshold),
        )
        places = [[not left[i] and not right[i * positions + p] for p in range(positions)] for i in range(outputs)]
        stay[before, 0] = torch.tensor([any(place) for place in places])
        stay[after, 1] = torch.tensor([kept for place in places for kept in place])
    return stay


@nets
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("dtype, tolerance", [(torch.float32, 1e-5), (torch.float64, 1e-12)])
def test_the_cut_network_is_the_whole_one_without_the_removed_units(kind, seed, dtype, tolerance):
    net, x = network(kind, seed, dtype)
    scores = random_scores(net, seed)
    gone, stay = removal(shapes(net), scores, 0.4), by_hand(net, scores, 0.4)
    assert not gone.empty and gone.kept.keys() == stay.keys() == set(sites(shapes(net)))
    assert all(torch.equal(gone.kept[site], mask) for site, mask in stay.items())
    assert any(not mask.all() for mask in stay.values())
    small = cut(net, gone)
    for (name, dim), mask in stay.items():
        assert small.get_submodule(name).weight.shape[dim] == mask.sum()
    found, expected = logits(small, x), forced(net, scores, 0.4, x)
    torch.testing.assert_close(found, expected, rtol=tolerance, atol=tolerance)
    assert (expected - logits(net, x)).abs().max() > 0.01 and expected.std(0).min() > 1e-3
    torch.testing.assert_close(logits(small, x[:1]), found[:1], rtol=tolerance, atol=tolerance)


@nets
@pytest.mark.parametrize("scored", [False, True])
def test_a_network_with_nothing_removed_is_unchanged(kind, scored):
    folded = "lenet" not in kind  # whose rounding in float32 depends on the processor
    net, x = network(kind, dtype=torch.float64 if folded else torch.float32)
    scores = {site: torch.full((shapes(net)[site[0]][site[1]],), 0.5) for site in sites(shapes(net))} if scored else {}
    gone = removal(shapes(net), scores, 0.5)
    assert not gone.empty and all(mask.all() for mask in gone.kept.values())
    small = cut(net, gone)
    torch.testing.assert_close(logits(small, x), logits(net, x), rtol=1e-12, atol=1e-12)
    assert not any(isinstance(module, Select) for module in small) and shapes(small) == shapes(net)
    if not folded:
        assert torch.equal(logits(small, x), logits(net, x))
        assert small.state_dict().keys() == net.state_dict().keys()
        assert all(torch.equal(p, small.get_parameter(name)) for name, p in net.named_parameters())


@nets
def test_the_cut_network_is_an_ordinary_one_that_says_its_sizes(kind):
    net, x = network(kind)
    small = cut(net, removal(shapes(net), random_scores(net, 3), 0.4))
    assert type(small) is nn.Sequential and not any(module.training for module in small.modules())
    allowed = (*WEIGHTED, nn.ReLU, nn.MaxPool2d, nn.AvgPool2d, nn.Flatten, Centre, Select)
    assert all(isinstance(module, allowed) for module in small)
    for layer in weighted(small).values():
        if isinstance(layer, nn.Linear):
            assert layer.weight.shape == (layer.out_features, layer.in_features)
        else:
            assert layer.weight.shape == (layer.out_channels, layer.in_channels, *layer.kernel_size)
        assert layer.bias is None or layer.bias.shape == layer.weight.shape[:1]
    torch.nn.functional.cross_entropy(small.train()(x), torch.zeros(len(x), dtype=torch.long)).backward()
    assert all(isinstance(p, nn.Parameter) and p.grad.isfinite().all() for p in small.parameters())


@nets
@pytest.mark.parametrize("training", [False, True])
def test_the_whole_network_stays_as_it_is(kind, training):
    net, x = network(kind)
    net.train(training)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    kinds = [type(module) for module in net.modules()]
    small = cut(net, removal(shapes(net), random_scores(net, 4), 0.4))
    found = logits(small, x)
    with torch.no_grad():
        for value in [*small.parameters(), *small.buffers()]:
            value.zero_()
    assert [type(module) for module in net.modules()] == kinds
    assert all(module.training is training for module in net.modules())
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    again = cut(net, removal(shapes(net), random_scores(net, 4), 0.4))
    assert torch.equal(logits(again, x), found)


@pytest.mark.parametrize("training", [False, True])
def test_fused_is_the_network_in_evaluation_mode_without_batch_norm_and_dropout(training):
    net, x = network("vgglike, positions")
    whole = fused(net.train(training))
    assert not any(isinstance(module, (*NORMS, nn.Dropout)) for module in whole) and not whole.training
    torch.testing.assert_close(logits(whole, x), logits(net.eval(), x), rtol=1e-5, atol=1e-5)


def test_the_sites():
    fc, conv = lenet_fc((1, 4, 4), 3, 0.01), lenet5((1, 16, 16), 3, 0.1)
    assert sites(shapes(fc)) == [("fc1", 1), ("fc1", 0), ("fc2", 1), ("fc2", 0), ("fc3", 1)]
    # the channels of an image stay
    assert sites(shapes(conv)) == [("conv1", 0), ("conv2", 1), ("conv2", 0), ("fc1", 1), ("fc1", 0), ("fc2", 1)]
    assert list(shapes(conv)) == ["conv1", "conv2", "fc1", "fc2"] and shapes(conv)["fc1"] == (50, 5)


def of_lenet5(**masks: list[int]) -> tuple[nn.Sequential, nn.Sequential, Removal]:
    """LeNet5 3-8-75 with 6 positions a channel, whole and where some of the scores are 0, and what goes."""
    net, _ = network("lenet5")
    scores = {}
    for name, zeros in masks.items():
        layer, side = name.split("_")
        dim = ("outputs", "inputs").index(side)
        scores[layer, dim] = torch.ones(shapes(net)[layer][dim])
        scores[layer, dim][zeros] = 0
    gone = removal(shapes(net), scores, 0.5)
    assert not gone.empty
    return net, cut(net, gone), gone


def test_some_positions_of_a_channel():
    net, small, gone = of_lenet5(fc1_inputs=[0, 4, 5, 13])
    assert gone.units() == {"conv1": 3, "conv2": 8, "fc1.inputs": 44, "fc1": 75}
    assert small.conv2.out_channels == 8 and small.fc1.in_features == 44
    names = list(dict(small.named_children()))
    assert names[names.index("flatten") :] == ["flatten", "fc1_inputs", "fc1", "relu3", "fc2"]
    left = [i for i in range(48) if i not in (0, 4, 5, 13)]
    assert small.fc1_inputs.index.tolist() == left
    assert torch.equal(small.fc1.weight, net.fc1.weight[:, left]) and torch.equal(small.fc1.bias, net.fc1.bias)


def test_a_channel_goes_with_its_last_position():
    net, small, gone = of_lenet5(fc1_inputs=[*range(12, 18), 3])
    assert gone.units() == {"conv1": 3, "conv2": 7, "fc1.inputs": 41, "fc1": 75}
    assert gone.kept["conv2", 0].tolist() == [i != 2 for i in range(8)]
    assert torch.equal(small.conv2.weight, net.conv2.weight[[0, 1, 3, 4, 5, 6, 7]])
    # among the inputs that are still computed
    assert small.fc1_inputs.index.tolist() == [i for i in range(42) if i != 3]
    assert torch.equal(small.fc1.bias, net.fc1.bias)


def test_positions_go_with_their_channel():
    net, small, gone = of_lenet5(conv2_outputs=[2, 7])
    assert gone.units() == {"conv1": 3, "conv2": 6, "fc1.inputs": 36, "fc1": 75}
    left = [*range(12), *range(18, 42)]
    assert gone.kept["fc1", 1].nonzero().flatten().tolist() == left
    assert "fc1_inputs" not in dict(small.named_children()) and small.fc1.in_features == 36
    assert torch.equal(small.fc1.weight, net.fc1.weight[:, left])


@pytest.mark.parametrize("site", ["conv1_outputs", "conv2_inputs"])
def test_the_score_of_either_side_removes_a_channel(site):
    net, small, gone = of_lenet5(**{site: [1]})
    assert gone.kept["conv1", 0].tolist() == gone.kept["conv2", 1].tolist() == [True, False, True]
    assert torch.equal(small.conv1.weight, net.conv1.weight[[0, 2]])
    assert torch.equal(small.conv1.bias, net.conv1.bias[[0, 2]])
    assert torch.equal(small.conv2.weight, net.conv2.weight[:, [0, 2]])


def test_an_output_without_weights_is_a_constant_in_the_next_bias():
    net, small, _ = of_lenet5(conv1_outputs=[1], conv2_outputs=[0, 5], fc1_inputs=[4, 31, 40], fc1_outputs=[6])
    before, after = ({name: p.detach().double() for name, p in n.named_parameters()} for n in (net, small))
    constant = before["conv1.bias"][1].clamp(min=0)
    bias = before["conv2.bias"] + before["conv2.weight"][:, 1].sum((1, 2)) * constant
    torch.testing.assert_close(after["conv2.bias"], bias[[1, 2, 3, 4, 6, 7]], rtol=1e-5, atol=1e-5)
    # of itself, not with what goes into its own bias; and not at positions that are zero
    constant, positions = before["conv2.bias"].clamp(min=0), before["fc1.weight"].view(75, 8, 6).clone()
    positions[:, 0, 4] = positions[:, 5, 1] = 0
    bias = before["fc1.bias"] + positions[:, 0].sum(1) * constant[0] + positions[:, 5].sum(1) * constant[5]
    torch.testing.assert_close(after["fc1.bias"], bias[torch.arange(75) != 6], rtol=1e-5, atol=1e-5)
    bias = before["fc2.bias"] + before["fc2.weight"][:, 6] * before["fc1.bias"][6].clamp(min=0)
    torch.testing.assert_close(after["fc2.bias"], bias, rtol=1e-5, atol=1e-5)
    for name, unit in (("conv1", 1), ("conv2", 0), ("conv2", 5), ("fc1", 6)):
        assert before[f"{name}.bias"][unit] > 0


@pytest.mark.parametrize("sides", [["fc2_inputs"], ["fc1_outputs", "fc2_inputs"]], ids="-".join)
def test_an_input_that_goes_is_zero(sides):
    net, small, _ = of_lenet5(**{side: [1, 2, 3, 4] for side in sides})
    assert (net.fc1.bias[1:5] > 0).any() and small.fc1.out_features == 71
    assert torch.equal(small.fc2.bias, net.fc2.bias)


def test_a_padded_convolution_reads_no_constant():
    net, _ = network("vgglike")
    scores = {("conv1", 0): torch.tensor([0.0, 0, 0, 1, 1, 1])}
    small, whole = cut(net, removal(shapes(net), scores, 0.5)), fused(net)
    assert (whole.conv1.bias[:3] > 0).any() and small.conv1.out_channels == 3
    assert torch.equal(small.conv2.bias, whole.conv2.bias)


def test_pixels_of_a_linear_network():
    net, _ = network("lenet-fc")
    gone = removal(shapes(net), {("fc1", 1): torch.arange(60.0)}, 10)
    assert gone.units() == {"fc1.inputs": 50, "fc1": 15, "fc2": 9}
    small = cut(net, gone)
    assert list(dict(small.named_children()))[:4] == ["centre", "flatten", "fc1_inputs", "fc1"]
    assert small.fc1_inputs.index.tolist() == list(range(10, 60)) and small.centre.mean.shape == (2, 6, 5)
    assert torch.equal(small.fc1.bias, net.fc1.bias)


def test_units_are_counted_as_in_the_tables():
    with torch.device("meta"):
        whole = [lenet_fc((1, 28, 28), 10), lenet5((1, 28, 28), 10), vgglike((3, 32, 32), 10)]
    counts = [removal(shapes(net), {}, 1.0).units() for net in whole]
    assert counts[0] == {"fc1.inputs": 784, "fc1": 500, "fc2": 300}
    assert counts[1] == {"conv1": 20, "conv2": 50, "fc1.inputs": 800, "fc1": 500}
    assert list(counts[2].values()) == [64, 64, 128, 128, 256, 256, 256, *[512] * 7]
    assert list(counts[2]) == [*(f"conv{i}" for i in range(1, 14)), "fc1"]


def test_a_unit_at_the_threshold_stays_and_one_without_a_number_goes():
    net, x = network("lenet-fc")
    score = torch.ones(15)
    score[3], score[4], score[5] = 1 - 1e-6, torch.nan, torch.inf
    for site in (("fc1", 0), ("fc2", 1)):
        gone = removal(shapes(net), {site: score}, 1.0)
        assert gone.kept["fc1", 0].tolist() == [i not in (3, 4) for i in range(15)] and not gone.empty
        expected = forced(net, {site: score}, 1.0, x)
        torch.testing.assert_close(logits(cut(net, gone), x), expected, rtol=1e-5, atol=1e-5)


BEST = {"conv1": ("conv1", 0, 2), "conv2": ("fc1", 1, 31), "fc1": ("fc1", 0, 70)}  # site, unit of the largest score


@pytest.mark.parametrize("name", BEST)
def test_a_layer_that_would_be_empty_keeps_its_best_unit_and_is_named(name):
    net, x = network("lenet5")
    layer, dim, best = BEST[name]
    score = torch.linspace(0, 0.1, shapes(net)[layer][dim])
    score[best] = 0.2
    gone = removal(shapes(net), {(layer, dim): score}, 0.5)
    assert gone.empty == {name}
    assert gone.kept[layer, dim].nonzero().flatten().tolist() == [best]
    assert gone.kept["conv2", 0].nonzero().flatten().tolist() == ([5] if name == "conv2" else list(range(8)))
    whole = {"conv1": 3, "conv2": 8, "fc1.inputs": 48, "fc1": 75}
    flat = ["fc1.inputs"] if name == "conv2" else []
    assert gone.units() == whole | {name: 1} | dict.fromkeys(flat, 1)
    assert gone.units(allow_empty=True) == whole | {name: 0} | dict.fromkeys(flat, 0)
    expected = forced(net, {(layer, dim): score}, 0.15, x)
    torch.testing.assert_close(logits(cut(net, gone), x), expected, rtol=1e-5, atol=1e-5)


def test_the_best_unit_is_the_best_of_the_worse_of_its_scores():
    net, _ = network("lenet5")
    scores = {("conv1", 0): torch.tensor([0.4, 0.1, 0.3]), ("conv2", 1): torch.tensor([0.1, 0.4, 0.2])}
    gone = removal(shapes(net), scores, 0.5)
    assert gone.empty == {"conv1"}
    assert gone.kept["conv1", 0].tolist() == gone.kept["conv2", 1].tolist() == [False, False, True]


def test_pixels_and_several_layers_may_be_empty():
    net, x = network("lenet-fc")
    scores = {site: torch.rand(shapes(net)[site[0]][site[1]]) for site in sites(shapes(net))}
    scores["fc1", 1][17] = 2
    scores["fc2", 0][:] = torch.nan
    gone = removal(shapes(net), scores, 3.0)
    assert gone.empty == {"fc1.inputs", "fc1", "fc2"}
    assert gone.units() == {"fc1.inputs": 1, "fc1": 1, "fc2": 1} and gone.kept["fc1", 1][17]
    assert gone.units(allow_empty=True) == {"fc1.inputs": 0, "fc1": 0, "fc2": 0}
    some = Removal(gone.kept, gone.constant, frozenset({"fc2"}))
    assert some.units(allow_empty=True) == {"fc1.inputs": 1, "fc1": 1, "fc2": 0}
    assert logits(cut(net, gone), x).isfinite().all()


EMPTY = [  # sites all of whose scores are low
    ("lenet-fc", ["fc1.1"]), ("lenet-fc", ["fc1.0"]), ("lenet-fc", ["fc2.0"]), ("lenet-fc", ["fc1.1", "fc2.0"]),
    ("lenet-fc", ["fc2.1"]), ("lenet-fc", ["fc2.0", "fc3.1"]),
    ("lenet5", ["conv1.0"]), ("lenet5", ["conv2.0"]), ("lenet5", ["fc1.0"]), ("lenet5", ["conv1.0", "fc1.0"]),
    ("lenet5", ["fc1.1"]), ("lenet5", ["conv2.1"]),
    ("vgglike", ["conv7.0"]), ("vgglike", ["fc1.0"]), ("vgglike, positions", ["conv13.0"]), ("mixed", ["5.0"]),
]  # fmt: skip


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind, low_sites", EMPTY, ids=str)
def test_what_is_left_without_a_whole_layer_is_a_constant(kind, low_sites, seed):
    net, x = network(kind, seed)
    scores = random_scores(net, seed)
    for site in low_sites:
        name, dim = site.split(".")
        scores[name, int(dim)] = 0.1 * torch.rand(shapes(net)[name][int(dim)])
    gone = removal(shapes(net), scores, 0.4)
    assert gone.empty
    small = cut(net, gone)
    before = {name: p.clone() for name, p in small.named_parameters()}
    left = emptied(net, gone, x.shape[1:])
    assert not list(left.parameters()) and isinstance(left.constant, Constant)
    expected = forced(net, scores, 0.4, x)
    torch.testing.assert_close(expected, expected[:1].expand_as(expected), rtol=1e-5, atol=1e-5)
    assert all(torch.equal(p, before[name]) for name, p in small.named_parameters())
    assert left(x[:1]).shape == (1, 3) and left(x[:0]).shape == (0, 3)
    torch.testing.assert_close(left(x), expected, rtol=1e-5, atol=1e-5)
