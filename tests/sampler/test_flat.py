"""Several layers as one vector, against loops over the layers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sampler.flat import Flat

SHAPES = [(4, 3, 3, 3), (5, 7), (6, 2, 1, 1), (1,), (3, 1, 2, 2), (2, 3, 5, 1)]
CHAINS = [(), (3,), (2, 3)]
of_chains = pytest.mark.parametrize("chains", CHAINS, ids=str)


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def tensors(chains: tuple[int, ...] = (), seed: int = 0) -> list[torch.Tensor]:
    return [numbers(*chains, *shape, seed=seed + i) for i, shape in enumerate(SHAPES)]


def images_first(layers: list[torch.Tensor]) -> list[torch.Tensor]:
    """The same numbers, convolutions in channels_last."""
    return [w.contiguous(memory_format=torch.channels_last) if w.ndim == 4 else w for w in layers]


def in_memory(w: torch.Tensor) -> torch.Tensor:
    """The numbers of a dense tensor in the order of its storage."""
    return w.as_strided((w.numel(),), (1,))


@of_chains
def test_what_is_gathered_comes_back(chains):
    layers = tensors(chains)
    flat = Flat(layers, len(chains))
    x = tensors(chains, seed=10)
    gathered = flat.gather(x)
    assert gathered.shape == (*chains, sum(flat.sizes))
    assert all(torch.equal(a, b) for a, b in zip(flat.split(gathered), x, strict=True))


def test_what_is_gathered_comes_back_in_channels_last():
    layers = images_first(tensors())
    flat = Flat(layers)
    back = flat.split(flat.gather(layers))
    for a, b in zip(back, layers, strict=True):
        assert torch.equal(a, b)
        wide = [d for d in range(b.ndim) if b.shape[d] > 1]  # a dimension of size 1 has any stride
        assert [a.stride(d) for d in wide] == [b.stride(d) for d in wide]


def test_gathering_follows_memory():
    for layers in (tensors(), images_first(tensors())):
        assert torch.equal(Flat(layers).gather(layers), torch.cat([in_memory(w) for w in layers]))
    last = images_first(tensors())[0]
    assert not torch.equal(in_memory(last), last.flatten())


def test_the_layers_decide_on_the_order_and_not_what_is_gathered():
    plain, layers = tensors(), images_first(tensors())
    flat = Flat(layers)
    assert torch.equal(flat.gather(plain), flat.gather(layers))
    assert all(torch.equal(a, b) for a, b in zip(flat.split(flat.gather(plain)), plain, strict=True))


def test_chains_are_gathered_one_by_one():
    layers = tensors((2, 3))
    gathered = Flat(layers, 2).gather(layers)
    for s in range(2):
        for c in range(3):
            alone = [w[s, c] for w in layers]
            assert torch.equal(gathered[s, c], Flat(alone).gather(alone))


@of_chains
def test_gathering_copies_and_splitting_does_not(chains):
    layers = tensors(chains)
    flat, before = Flat(layers, len(chains)), [w.clone() for w in layers]
    vector = flat.gather(layers)
    for i, part in enumerate(flat.split(vector)):
        part.fill_(i)
    expected = [torch.full((*chains, size), float(i)) for i, size in enumerate(flat.sizes)]
    assert torch.equal(vector, torch.cat(expected, -1))
    assert all(torch.equal(a, b) for a, b in zip(layers, before, strict=True))
    vector.zero_()
    assert all(torch.all(part == 0) for part in flat.split(vector))


def test_a_single_layer_is_copied_too():
    layer = numbers(3, 4)
    Flat([layer]).gather([layer]).zero_()
    assert layer.abs().min() > 0


def test_splits_of_one_layer_in_channels_last_are_written_in_their_places():
    layer = images_first([numbers(4, 3, 2, 5)])[0]
    flat = Flat([layer])
    vector = torch.zeros(layer.numel())
    flat.split(vector)[0].copy_(layer)
    assert torch.equal(vector, in_memory(layer))


@of_chains
def test_expanding_and_summing_are_loops_over_the_layers(chains):
    layers = tensors(chains)
    flat = Flat(layers, len(chains))
    sums = flat.sums(flat.gather(layers))
    assert sums.shape == (*chains, len(layers))
    for i, w in enumerate(layers):
        torch.testing.assert_close(sums[..., i], w.flatten(len(chains)).sum(-1))
    per_layer = numbers(*chains, len(layers), seed=9)
    for i, part in enumerate(flat.split(flat.expand(per_layer))):
        assert torch.equal(part, per_layer[..., i].view(*chains, *[1] * (part.ndim - len(chains))).expand_as(part))


@pytest.mark.parametrize("change", [lambda x: x[:-1], lambda x: [*x, x[0]]], ids=["fewer", "more"])
def test_another_number_of_tensors_is_an_error(change):
    layers = tensors()
    with pytest.raises(ValueError):
        Flat(layers).gather(change(layers))


@st.composite
def some_layers(draw) -> tuple[list[torch.Tensor], int]:
    """Tensors of any layout without overlaps, and the number of their chain dimensions."""
    chains = tuple(draw(st.lists(st.integers(1, 3), max_size=2)))
    layers = []
    for _ in range(draw(st.integers(1, 4))):
        shape = draw(st.lists(st.integers(1, 4), min_size=1, max_size=4))
        order = draw(st.permutations(range(len(shape))))
        stored = torch.empty(*chains, *(shape[d] for d in order)).normal_()
        inverse = sorted(range(len(order)), key=order.__getitem__)
        layers.append(stored.permute(*range(len(chains)), *(len(chains) + d for d in inverse)))
    return layers, len(chains)


@given(some_layers())
@settings(max_examples=150, deadline=None)
def test_any_layout_comes_back_and_is_gathered_in_its_order(case):
    layers, dims = case
    flat = Flat(layers, dims)
    vector = flat.gather(layers)
    assert all(torch.equal(a, b) for a, b in zip(flat.split(vector), layers, strict=True))
    starts = [sum(flat.sizes[:i]) for i in range(len(layers))]
    for w, start, size in zip(layers, starts, flat.sizes, strict=True):
        chain_size = (size,) * (dims > 0)
        stored = w.as_strided((w.numel(),), (1,)).view(-1, *chain_size)
        assert torch.equal(vector[..., start : start + size].reshape(stored.shape), stored)
