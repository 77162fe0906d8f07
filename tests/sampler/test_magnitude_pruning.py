import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sampler import MagnitudePruner, Mask
from sampler.magnitude_pruning import keep_largest, layer_target


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
