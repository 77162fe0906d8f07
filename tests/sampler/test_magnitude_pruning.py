import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model.resnet import ResNet
from sampler import MagnitudePruner, Mask
from sampler.magnitude_pruning import keep_largest, keep_largest_units, keep_likeliest, layer_target


@given(st.integers(1, 200), st.floats(0, 0.999), st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_exactly_the_smallest_go(size, fraction, seed):
    beta = torch.randn(size, generator=torch.Generator().manual_seed(seed))
    keep = keep_largest(beta, fraction)
    assert (~keep).sum() == int(fraction * size)
    if 0 < keep.sum() < size:
        assert beta[keep].abs().min() > beta[~keep].abs().max()


def test_chains_are_pruned_one_by_one():
    beta = torch.randn(2, 3, 4, 5) * torch.logspace(-3, 3, 6).view(2, 3, 1, 1)
    keep = keep_largest(beta, 0.7, chain_dims=2)
    for s in range(2):
        for c in range(3):
            assert torch.equal(keep[s, c], keep_largest(beta[s, c], 0.7))


def test_ties_at_the_threshold_go_together():
    assert keep_largest(torch.tensor([0.0, 0.0, 0.0, 1.0]), 0.5).tolist() == [False, False, False, True]
    assert keep_largest(torch.tensor([1.0, -1.0]), 0.0).all()


def test_layer_target_reaches_the_network_sparsity():
    assert layer_target(0.9, total=1000, prunable=950) == 0.947
    assert layer_target(0.5, total=1000, prunable=1000) == 0.5
    assert layer_target(0.3, total=10, prunable=10) == 0.3
    with pytest.raises(ValueError, match="cannot be reached"):
        layer_target(0.9, total=1000, prunable=800)
    with pytest.raises(ValueError, match="sparsity must lie"):
        layer_target(1.0, total=10, prunable=10)


def test_the_schedule_reaches_its_target_and_weights_may_regrow():
    layers = [torch.randn(40, 50), torch.randn(1000)]
    total = 3100  # 100 parameters outside the sparse layers
    pruner = MagnitudePruner(layers, total, sparsity=0.8, cut=0.5, gap=1)
    fractions = []
    for _ in range(40):
        for w in layers:
            w.add_(torch.randn_like(w), alpha=1e-3)  # a sampler's step: zeroed weights move again
        pruner.step()
        fractions.append(pruner.mask.sparsity.item())
        zeros = sum((w == 0).sum().item() for w in layers)
        assert zeros == pytest.approx(pruner.mask.sparsity.item() * total)
    assert fractions == sorted(fractions)
    assert fractions[0] == pytest.approx(0.4, abs=2e-3) and fractions[-1] == pytest.approx(0.8, abs=2e-3)
    assert pruner.mask.density.item() == pytest.approx(1 - fractions[-1])


def test_no_pruning_is_the_dense_network():
    w = torch.randn(10)
    before = w.clone()
    pruner = MagnitudePruner([w], 10, sparsity=0.0)
    for _ in range(3):
        pruner.step()
    assert torch.equal(w, before) and pruner.mask.sparsity == 0


def test_offset_counts_from_a_later_iteration():
    a, b = torch.randn(1000), None
    b = a.clone()
    late = MagnitudePruner([a], 1000, 0.9, cut=0.9, gap=1, offset=1)
    plain = MagnitudePruner([b], 1000, 0.9, cut=0.9, gap=1)
    late.step()
    plain.step()
    plain.step()
    assert late.mask.sparsity == plain.mask.sparsity


def test_state_dict_round_trip():
    w = torch.randn(100)
    pruner = MagnitudePruner([w], 100, 0.5, cut=0.9, gap=1)
    pruner.step()
    copy = MagnitudePruner([w.clone()], 100, 0.5, cut=0.9, gap=1)
    copy.load_state_dict(pruner.state_dict())
    pruner.step()
    copy.step()
    assert torch.equal(pruner.mask.keep[0], copy.mask.keep[0])


@pytest.mark.parametrize("schedule", [{"cut": 1.0}, {"cut": 0.0}, {"gap": 0}])
def test_impossible_schedules_are_refused(schedule):
    with pytest.raises(ValueError, match="pruning schedule"):
        MagnitudePruner([torch.zeros(2)], 2, 0.5, **schedule)


def test_mask_of_chains():
    keep = torch.tensor([[[True, False], [True, True]]])
    mask = Mask([keep], total=4, chain_dims=2)
    assert mask.sparsity.tolist() == [[0.25, 0.0]]
    w = torch.ones(1, 2, 2)
    mask.apply_([w])
    assert w.tolist() == [[[1, 0], [1, 1]]]


def by_kthvalue(beta: torch.Tensor, fraction: float, chain_dims: int = 0) -> torch.Tensor:
    """`keep_largest` by its definition: larger than the floor(fraction p)-th smallest magnitude."""
    size = beta.abs().flatten(chain_dims)
    k = math.floor(fraction * size.shape[-1])
    return (size > (size.kthvalue(k, -1, True).values if k else -1)).view(beta.shape)


@given(
    st.sampled_from([(1,), (50,), (4, 25), (6, 3, 3, 3), (2, 3, 20)]),
    st.integers(0, 2),
    st.floats(0, 0.999),
    st.integers(1, 5),
    st.integers(0, 10**6),
)
@settings(max_examples=200, deadline=None)
def test_the_threshold_is_the_kth_value_also_with_ties(shape, chain_dims, fraction, levels, seed):
    generator = torch.Generator().manual_seed(seed)
    chain_dims = min(chain_dims, len(shape) - 1)
    for beta in (torch.randint(-levels, levels + 1, shape, generator=generator).float(),
                 torch.randn(shape, generator=generator)):  # fmt: skip
        keep = keep_largest(beta, fraction, chain_dims)
        assert keep.dtype == torch.bool
        assert torch.equal(keep, by_kthvalue(beta, fraction, chain_dims))


def test_weights_are_not_changed_by_the_search_for_the_threshold():
    w = torch.randn(300)
    before = w.clone()
    keep_largest(w, 0.5)
    keep_largest(w.requires_grad_(), 0.5)
    assert torch.equal(w, before)


@given(st.integers(1, 30), st.integers(1, 9), st.floats(0, 0.999), st.integers(0, 10**6))
@settings(max_examples=150, deadline=None)
def test_whole_filters_of_the_smallest_norm_go(units, fan_in, fraction, seed):
    beta = torch.randn(units, fan_in, 3, 1, generator=torch.Generator().manual_seed(seed))
    keep = keep_largest_units(beta, fraction)
    kept = keep.flatten(1)
    assert keep.shape == beta.shape and torch.equal(kept.any(1), kept.all(1))
    kept = kept.all(1)
    assert int((~kept).sum()) == math.floor(fraction * units)
    norms = (beta.double() ** 2).sum((1, 2, 3)) ** 0.5
    if 0 < kept.sum() < units:
        assert norms[kept].min() > norms[~kept].max()


def test_the_norm_of_a_filter_counts_and_not_its_largest_weight():
    beta = torch.tensor([[3.0, 0.0, 0.0, 0.0], [2.0, 2.0, 2.0, 2.0], [1.0, 1.0, 1.0, 1.0]])
    assert keep_largest_units(beta, 0.34)[:, 0].tolist() == [True, True, False]
    assert keep_largest_units(beta, 0.67)[:, 0].tolist() == [False, True, False]


@given(st.integers(1, 120), st.integers(1, 6), st.integers(1, 6), st.floats(0, 0.999), st.integers(0, 10**6))
@settings(max_examples=200, deadline=None)
def test_the_least_probable_weights_go_and_of_equal_ones_the_smallest(size, levels, sizes, fraction, seed):
    generator = torch.Generator().manual_seed(seed)
    rho = torch.randint(0, levels, (size,), generator=generator) / levels
    beta = torch.randint(-sizes, sizes + 1, (size,), generator=generator).float()
    keep = keep_likeliest(beta, rho, fraction)
    assert int((~keep).sum()) == math.floor(fraction * size)  # exactly, ties or not
    rank = list(zip(rho.tolist(), beta.abs().tolist(), strict=True))
    kept, gone = ([r for r, k in zip(rank, keep.tolist(), strict=True) if k is side] for side in (True, False))
    if kept and gone:
        assert max(gone) <= min(kept)


def test_rho_and_not_magnitude_decides():
    beta, rho = torch.tensor([[9.0, 1.0], [8.0, 2.0]]), torch.tensor([[0.1, 0.9], [0.2, 0.8]])
    assert keep_likeliest(beta, rho, 0.5).tolist() == [[False, True], [False, True]]
    assert keep_likeliest(beta, torch.ones(2, 2), 0.5).tolist() == [[True, False], [True, False]]


RULES = ["weight", "unit", "rho"]


def resnet20() -> tuple[list[torch.Tensor], int]:
    """The sparse layers of a network as the script holds it, and the number of all parameters."""
    torch.manual_seed(0)
    net = ResNet(20, (3, 32, 32), 10).to(memory_format=torch.channels_last)
    params = dict(net.named_parameters())
    return [params[name].detach() for name in net.sparse_layers], sum(p.numel() for p in params.values())


def like(layers: list[torch.Tensor]) -> list[torch.Tensor]:
    """Probabilities in the layout of the layers, many of them exactly 0 or 1."""
    return [torch.rand_like(w).mul(3).sub(1).clamp(0, 1) for w in layers]


def rule_of(name: str, rho: list[torch.Tensor]):
    return {
        "weight": None,
        "unit": lambda _, beta, fraction: keep_largest_units(beta, fraction),
        "rho": lambda i, beta, fraction: keep_likeliest(beta, rho[i], fraction),
    }[name]


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.7, 0.9])
@pytest.mark.parametrize("name", RULES)
def test_the_network_reaches_its_sparsity_when_the_schedule_has_run_out(name, sparsity):
    layers, total = resnet20()
    pruner = MagnitudePruner(layers, total, sparsity, offset=1, rule=rule_of(name, like(layers)))
    pruner.k = 100_000
    pruner.step()
    found = float(pruner.mask.sparsity)
    zeros = sum(int((w == 0).sum()) for w in layers)
    assert zeros == round(found * total)
    if name == "unit":  # in every layer less than one filter is missing
        allowed = 0.001 + sum(w[0].numel() for w in layers) / total
        assert allowed < 0.025
    else:
        allowed = 0.001
    assert sparsity - allowed <= found <= sparsity


@pytest.mark.parametrize("name", RULES)
def test_a_rule_makes_the_mask_of_every_layer_from_its_own_weights(name):
    layers, total = resnet20()
    rho, before = like(layers), [w.clone() for w in layers]
    pruner = MagnitudePruner(layers, total, 0.8, cut=0.5, gap=1, rule=rule_of(name, rho))
    for s in (0.5, 0.75):  # of the target
        pruner.step()
        for i, (w, keep, dense) in enumerate(zip(layers, pruner.mask.keep, before, strict=True)):
            fraction = s * layer_target(0.8, total, 267_264)
            kept, gone = dense.abs()[keep], dense.abs()[~keep]
            assert torch.equal(w, dense * keep)
            if name == "weight":
                assert len(gone) == math.floor(fraction * dense.numel())
                assert kept.min() >= gone.max()
            elif name == "unit":
                assert len(gone) == math.floor(fraction * len(dense)) * dense[0].numel()
                norms = dense.flatten(1).norm(dim=1)
                alive = keep.flatten(1).all(1)
                assert norms[alive].min() >= norms[~alive].max()
            else:
                assert len(gone) == math.floor(fraction * dense.numel())
                assert rho[i][keep].min() >= rho[i][~keep].max()
                level = rho[i][~keep].max()  # both kept and gone only in case of a tie
                tied = rho[i] == level
                if (tied & keep).any():
                    assert dense.abs()[tied & keep].min() >= dense.abs()[tied & ~keep].max()
            w.copy_(dense)


def test_layers_in_channels_last_are_pruned_as_the_same_layers_in_the_usual_order():
    layers, total = resnet20()
    rho, usual = like(layers), [w.contiguous() for w in layers]
    assert not layers[0].is_contiguous()
    for name in RULES:
        masks = []
        for some, probabilities in ((layers, rho), (usual, [r.contiguous() for r in rho])):
            some = [w.clone() for w in some]
            pruner = MagnitudePruner(some, total, 0.6, cut=0.5, gap=1, rule=rule_of(name, probabilities))
            pruner.step()
            masks.append(pruner.mask.keep)
        assert all(torch.equal(a, b) for a, b in zip(*masks, strict=True))
