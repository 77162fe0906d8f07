"""Cutting removed units out of a network, so that it really becomes smaller.

A network here is a chain: an nn.Sequential of Linear, Conv2d, batch norm and layers without parameters that keep units
apart. Its units are removed at sites (name of a weight layer, dim): dim 0 are the layer's outputs, dim 1 its inputs.
The outputs of one layer and the inputs of the next are the same units, or, across a Flatten, the same units times their
positions. A removed unit is removed whole, with its bias and its batch norm: its output is zero.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn.utils import fuse_conv_bn_eval, fuse_linear_bn_eval

Site = tuple[str, int]
WEIGHTED = (nn.Linear, nn.Conv2d)


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
        return self.logits.expand(len(x), -1)


def shapes(net: nn.Sequential) -> dict[str, torch.Size]:
    """Shapes of the weights of its linear layers and convolutions by name, in their order: all that `sites` and
    `removable` need to know of a chain."""
    return {name: module.weight.shape for name, module in net.named_children() if isinstance(module, WEIGHTED)}


def sites(shapes: dict[str, torch.Size]) -> list[Site]:
    """All sites of a chain: its pixels, if the first layer is linear, then outputs and inputs of all neighbours."""
    names = list(shapes)
    first = [(names[0], 1)] if len(shapes[names[0]]) == 2 else []
    return first + [site for pair in pairwise(names) for site in zip(pair, (0, 1), strict=True)]


def removable(
    shapes: dict[str, torch.Size], scores: dict[Site, Tensor], threshold: float
) -> tuple[dict[Site, Tensor], set[str]]:
    """Which units of every site stay, and the layers of which none would.

    A unit goes when its score at any of its sites is below the threshold, and a channel when all its positions go. In
    a layer that would lose all, the unit with the largest score stays.

    Returns:
        Masks for every site of `sites(shapes)`, consistent with each other, and the names of the empty layers.
    """
    empty, kept = set(), {}
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
        outputs, inputs = score(before, 0), score(after, 1)
        positions = len(inputs) // len(outputs)
        mask = keep(torch.minimum(outputs.repeat_interleave(positions), inputs), before)
        kept[before, 0], kept[after, 1] = mask.view(-1, positions).any(1), mask
    return kept, empty


def units(kept: dict[Site, Tensor], empty: set[str] = frozenset()) -> dict[str, int]:
    """Units left per layer, as the papers count them: the flattened inputs of a linear layer count by themselves."""
    counts = {}
    for (name, dim), mask in kept.items():
        previous = list(counts)[-1] if counts else None
        if dim == 0:
            counts[name] = 0 if name in empty else int(mask.sum())
        elif previous is None or len(mask) != len(kept[previous, 0]):
            gone = previous in empty if previous else f"{name}.inputs" in empty
            counts[f"{name}.inputs"] = 0 if gone else int(mask.sum())
    return counts


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


def cut(net: nn.Sequential, kept: dict[Site, Tensor]) -> nn.Sequential:
    """The smaller chain without the removed units: an ordinary network, in evaluation mode.

    kept: masks of `removable`.
    """
    layers, present = OrderedDict(), None  # present: the units that the chain computes so far, None: all
    for name, module in fused(net).named_children():
        if isinstance(module, WEIGHTED):
            sizes, device = module.weight.shape, module.weight.device
            outputs, inputs = (
                kept.get((name, dim), torch.ones(sizes[dim], dtype=torch.bool, device=device)) for dim in (0, 1)
            )
            before = torch.ones_like(inputs) if present is None else present
            before = before.repeat_interleave(len(inputs) // len(before))
            if not torch.equal(inputs, before):
                layers[f"{name}_inputs"] = Select(inputs[before].nonzero().squeeze(1))
            module, present = _sliced(module, outputs, inputs), outputs
        layers[name] = module
    return nn.Sequential(layers).eval()


@torch.no_grad()
def constant(net: nn.Sequential, empty: set[str], shape: tuple[int, ...]) -> nn.Sequential:
    """What the chain computes without the last units of its empty layers: the same for every image.

    net: cut, with one unit in each of them.  shape: of an image.
    """
    net = copy.deepcopy(net)
    for name in empty:
        layer = net.get_submodule(name.removesuffix(".inputs"))
        layer.weight.zero_()
        if not name.endswith(".inputs") and layer.bias is not None:
            layer.bias.zero_()
    image = torch.zeros(1, *shape, device=layer.weight.device)
    return nn.Sequential(OrderedDict(constant=Constant(net(image)[0])))
