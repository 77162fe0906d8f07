"""Cutting removed units out of a network, so that it really becomes smaller.

A network here is a chain: an nn.Sequential of Linear, Conv2d, batch norm and layers without parameters that keep units
apart. Its units are removed at sites (name of a weight layer, dim): dim 0 are the layer's outputs, dim 1 its inputs.
The outputs of one layer and the inputs of the next are the same units, or, across a Flatten, the same units times their
positions.

An input that is removed is zero. An output that is removed has zero weights, and so the constant activation(bias): this
constant goes into the next layer's bias where that is exact, in a linear layer or a convolution without padding;
elsewhere the unit is removed whole, and its output is zero.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval, fuse_linear_bn_eval

Site = tuple[str, int]
WEIGHTED = (nn.Linear, nn.Conv2d)
POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.Flatten)  # a constant unit stays the same constant


class Select(nn.Module):
    """Some of the features of x (n, features)."""

    def __init__(self, index: Tensor):
        super().__init__()
        self.register_buffer("index", index)

    def forward(self, x: Tensor) -> Tensor:
        return x.index_select(1, self.index)


class Constant(nn.Module):
    """The same logits for every input: what is left of a chain that lost a whole layer."""

    def __init__(self, logits: Tensor):
        super().__init__()
        self.register_buffer("logits", logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.logits.expand(x.shape[0], -1)


def shapes(net: nn.Sequential) -> dict[str, torch.Size]:
    """Shapes of the weights of its linear layers and convolutions by name, in their order: all that `sites` and
    `removal` need to know of a chain."""
    return {name: module.weight.shape for name, module in net.named_children() if isinstance(module, WEIGHTED)}


def sites(shapes: dict[str, torch.Size]) -> list[Site]:
    """All sites of a chain: its pixels, if the first layer is linear, then outputs and inputs of all neighbours."""
    names = list(shapes)
    first = [(names[0], 1)] if len(shapes[names[0]]) == 2 else []
    return first + [site for pair in pairwise(names) for site in zip(pair, (0, 1), strict=True)]


@dataclass(frozen=True)
class Removal:
    """What goes of a chain.

    kept: masks of the units that stay, for every site of `sites`, consistent with each other.
    constant: by layer, masks of its removed inputs that are not zero but a constant.
    empty: names of the layers of which no unit would stay, or `<first layer>.inputs`; their best unit is in `kept`.
    """

    kept: dict[Site, Tensor]
    constant: dict[str, Tensor]
    empty: frozenset[str]

    def units(self, allow_empty: bool = False) -> dict[str, int]:
        """Units left per layer, as the papers count them: the flattened inputs of a linear layer count by themselves.

        allow_empty: empty layers have none, not their best.
        """
        counts, before = {}, None
        for (name, dim), mask in self.kept.items():
            if dim == 0:
                before = name
            elif before and len(mask) == len(self.kept[before, 0]):
                continue
            label = name if dim == 0 else f"{name}.inputs"
            gone = allow_empty and (before or label) in self.empty
            counts[label] = 0 if gone else int(mask.sum())
        return counts


def removal(shapes: dict[str, torch.Size], scores: dict[Site, Tensor], threshold: float) -> Removal:
    """What goes when units with a score below the threshold, at any of their sites, go.

    A channel goes as well when all its positions go.
    """
    kept, constant, empty = {}, {}, set()
    device = next(iter(scores.values())).device if scores else torch.device("cpu")

    def score(name: str, dim: int) -> Tensor:
        return scores.get((name, dim), torch.full((shapes[name][dim],), torch.inf, device=device))

    def keep(worst: Tensor, name: str) -> Tensor:
        mask = worst >= threshold  # false for NaN
        if not bool(mask.any()):
            empty.add(name)
            mask[worst.nan_to_num(-torch.inf).argmax()] = True
        return mask

    first = next(iter(shapes))
    if (first, 1) in sites(shapes):
        kept[first, 1] = keep(score(first, 1), f"{first}.inputs")
    for before, after in pairwise(shapes):
        inputs = score(after, 1)
        positions = len(inputs) // shapes[before][0]
        outputs = score(before, 0).repeat_interleave(positions)
        worst = torch.minimum(outputs, inputs)
        mask = keep(worst, before)
        kept[before, 0], kept[after, 1] = mask.view(-1, positions).any(1), mask
        constant[after] = ~(worst >= threshold) & (inputs >= threshold)
    return Removal(kept, constant, frozenset(empty))


def fused(net: nn.Sequential) -> nn.Sequential:
    """The chain in evaluation mode as a new chain, batch norm folded into the layer before it, dropout left out."""
    layers = OrderedDict()
    for name, module in copy.deepcopy(net).eval().named_children():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            previous = next(reversed(layers))
            fuse = fuse_conv_bn_eval if isinstance(layers[previous], nn.Conv2d) else fuse_linear_bn_eval
            layers[previous] = fuse(layers[previous], module)
        elif not isinstance(module, nn.Dropout):
            layers[name] = module
    return nn.Sequential(layers).eval()


@torch.no_grad()
def _sliced(layer: nn.Linear | nn.Conv2d, outputs: Tensor, inputs: Tensor) -> nn.Linear | nn.Conv2d:
    small = copy.deepcopy(layer)
    small.weight = nn.Parameter(layer.weight[outputs][:, inputs].clone())
    if layer.bias is not None:
        small.bias = nn.Parameter(layer.bias[outputs].clone())
    for name, size in zip(("out", "in"), small.weight.shape, strict=False):
        setattr(small, f"{name}_{'channels' if isinstance(layer, nn.Conv2d) else 'features'}", size)
    return small


def _exact(layer: nn.Linear | nn.Conv2d) -> bool:
    return isinstance(layer, nn.Linear) or layer.padding in ((0, 0), "valid")


@torch.no_grad()
def _add_constants(layer: nn.Linear | nn.Conv2d, inputs: Tensor) -> None:
    """Put what constant inputs contribute into the bias, where that is exact."""
    if _exact(layer):
        total = layer.weight.sum(tuple(range(2, layer.weight.ndim))) if layer.weight.ndim > 2 else layer.weight
        bias = layer.bias if layer.bias is not None else 0
        layer.bias = nn.Parameter(total @ inputs + bias)


def cut(net: nn.Sequential, gone: Removal) -> nn.Sequential:
    """The smaller chain without the removed units: an ordinary network, in evaluation mode."""
    layers = OrderedDict()
    present, constants = None, None  # units that the last layer still computes; what they all put out without weights
    for name, module in fused(net).named_children():
        if isinstance(module, WEIGHTED):
            sizes, device = module.weight.shape, module.weight.device
            outputs, inputs = (
                gone.kept.get((name, dim), torch.ones(sizes[dim], dtype=torch.bool, device=device)) for dim in (0, 1)
            )
            bias = module.bias.detach().clone() if module.bias is not None else module.weight.new_zeros(sizes[0])
            if present is None:
                before = torch.ones_like(inputs)
            else:
                positions = len(inputs) // len(present)
                before = present.repeat_interleave(positions)
                _add_constants(module, constants.repeat_interleave(positions) * (gone.constant[name] & ~inputs))
            if not torch.equal(inputs, before):
                layers[f"{name}_inputs"] = Select(inputs[before].nonzero().squeeze(1))
            module, present, constants = _sliced(module, outputs, inputs), outputs, bias
        elif present is not None and not isinstance(module, POOLING):
            constants = module(constants)  # pooling leaves them as they are
        layers[name] = module
    return nn.Sequential(layers).eval()


@torch.no_grad()
def emptied(net: nn.Sequential, gone: Removal, shape: tuple[int, ...]) -> nn.Sequential:
    """What a chain computes without the best units of its empty layers as well: the same for every image.

    net: the whole chain.  shape: of an image.
    """
    small, whole = cut(net, gone), fused(net)
    after = dict(pairwise(shapes(net)))
    for name in gone.empty:
        layer = small.get_submodule(name.removesuffix(".inputs"))
        layer.weight.zero_()
        if name in after:  # its own constant where that is exact, without what other units add; zero elsewhere
            constant = (gone.constant[after[name]] & gone.kept[after[name], 1]).any()
            bias = whole.get_submodule(name).bias
            exact = bool(constant) and _exact(small.get_submodule(after[name])) and bias is not None
            layer.bias = nn.Parameter(bias[gone.kept[name, 0]] if exact else layer.weight.new_zeros(len(layer.weight)))
    image = torch.zeros(1, *shape, device=next(small.parameters()).device)
    return nn.Sequential(OrderedDict(constant=Constant(small(image)[0])))


def zero_channels(net: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Channels of the convolutions and linear layers whose weights are all zero, by layer: of their outputs, and of
    their inputs."""
    layers = {name: m.weight.detach() for name, m in net.named_modules() if isinstance(m, WEIGHTED)}
    return tuple({name: (w.transpose(0, dim).flatten(1) == 0).all(1) for name, w in layers.items()} for dim in (0, 1))


def cut_channels(
    net: nn.Module,
    shape: tuple[int, ...],
    gone: dict[str, Tensor],
    unread: dict[str, Tensor] | None = None,
    keep_one: bool = False,
) -> nn.Module:
    """Any network, a residual one for example, without some output channels, whose outputs are then zero.

    Follows the network's graph by torch-pruning. Channels that are added to each other go only where all of them go.

    shape: of an image.  gone: masks of the channels that go, by layer.  unread: masks of input channels that a layer
    does not read; a channel that no layer reads goes as well, and nothing changes by that.  keep_one: a layer that
    would lose all its channels keeps the first.

    Raises:
        ValueError: a layer would lose all its channels, and keep_one is false.
    """
    import torch_pruning

    net = copy.deepcopy(net).eval()
    image = next(net.parameters()).new_zeros(1, *shape)
    graph = torch_pruning.DependencyGraph().build_dependency(net, example_inputs=image)
    names = {module: name for name, module in net.named_modules()}
    cuts = []  # all found before the first is made: cutting one renumbers the inputs of layers that concatenate
    for group in graph.get_all_groups(root_module_types=WEIGHTED):
        out, read = [], []
        for dep, index in group:
            if isinstance(dep.target.module, WEIGHTED):
                outputs = graph.is_out_channel_pruning_fn(dep.handler)
                mask = (gone if outputs else unread or {}).get(names[dep.target.module])
                (out if outputs else read).append(mask if mask is None else mask[list(map(int, index))])
        if not read:  # these are the network's outputs
            continue
        together = torch.zeros(len(group[0].idxs), dtype=torch.bool)
        for masks in (out, read):
            if masks and all(mask is not None and len(mask) == len(together) for mask in masks):
                together |= torch.stack(masks).all(0).cpu()
        if bool(together.all()):
            if not keep_one:
                raise ValueError(f"no channel of {names[group[0].dep.target.module]} would be left")
            together[0] = False
        if bool(together.any()):
            cuts.append((group, together.nonzero().squeeze(1).tolist()))
    for group, channels in cuts:
        group.prune(channels)
    return net
