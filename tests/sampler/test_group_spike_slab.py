"""The spike-and-slab prior on groups against densities and loops, and the masks it makes."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm
from torch.nn import Parameter

from sampler import GroupSpikeSlab, PreconditionedSGHMC
from sampler.group_spike_slab import (
    CHANNEL,
    FILTER,
    INPUT_UNIT,
    KERNEL,
    NEURON,
    Groups,
    keep_large,
    keep_wide,
    switch,
)

EPS0, EPS1 = 1e-2, 1e-3


def random(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


@given(st.integers(1, 25), st.floats(0.5, 500), st.floats(1.01, 100), st.floats(0.01, 0.99), st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_the_switch_is_the_more_probable_density(d, lam1, ratio, spike, seed):
    """The documented soft threshold against the posterior probabilities of a group of d weights."""
    lam0, rng = lam1 * ratio, np.random.default_rng(seed)
    w = rng.normal(size=(20, d)) / math.sqrt(rng.choice([lam0, lam1]))
    log_spike = norm.logpdf(w, scale=lam0**-0.5).sum(1) + math.log(spike)
    log_slab = norm.logpdf(w, scale=lam1**-0.5).sum(1) + math.log(1 - spike)
    soft = (math.log(lam0 / lam1) + 2 / d * math.log(spike / (1 - spike))) / (lam0 - lam1)
    clear = np.abs(log_spike - log_slab) > 1e-6
    decay = switch(torch.tensor((w**2).mean(1)), soft, EPS0, EPS1).numpy()
    np.testing.assert_allclose(decay[clear], np.where(log_spike > log_slab, EPS0, EPS1)[clear], rtol=1e-6)


def test_a_mean_square_at_the_threshold_is_in_the_slab():
    decay = switch(torch.tensor([0.99, 1.0, 1.01]), 1.0, EPS0, EPS1)
    assert decay.dtype == torch.float32 and torch.equal(decay, torch.tensor([EPS0, EPS1, EPS1]))


OUT, IN, SIDE = 4, 3, 2
CONVOLUTION = {  # the weights of a group, by its place (output, input)
    KERNEL: ((OUT, IN, 1, 1), lambda w, o, i: w[o, i]),
    FILTER: ((OUT, 1, 1, 1), lambda w, o, i: w[o]),
    CHANNEL: ((1, IN, 1, 1), lambda w, o, i: w[:, i]),
}
LINEAR = {NEURON: ((OUT, 1), lambda w, o, i: w[o]), INPUT_UNIT: ((1, IN), lambda w, o, i: w[:, i])}


@pytest.mark.parametrize("groups", [*CONVOLUTION, *LINEAR], ids=lambda groups: groups.name)
@pytest.mark.parametrize("chains", [(), (2, 3)], ids=["one", "chains"])
def test_groups_are_what_their_names_say(groups, chains):
    shape, weights = {**CONVOLUTION, **LINEAR}[groups]
    w = random(*chains, OUT, IN, *((SIDE, SIDE) if groups in CONVOLUTION else ()))
    square, spread = groups.mean_square(w), groups.range(w)
    assert square.shape == spread.shape == (*chains, *shape)
    for *chain, o, i in itertools.product(*map(range, (*chains, OUT, IN))):
        group = weights(w[tuple(chain)], o, i).double().numpy()
        place = (*chain, o if shape[0] > 1 else 0, i if shape[1] > 1 else 0)
        assert square[place].item() == pytest.approx((group**2).mean(), rel=1e-5)
        assert spread[place].item() == pytest.approx(group.max() - group.min(), rel=1e-5)


def test_no_gradient_flows_through_the_groups():
    w = Parameter(random(OUT, IN))
    assert not NEURON.mean_square(w).requires_grad and not NEURON.range(w).requires_grad


def test_large_groups_stay():
    w = random(OUT, IN) * torch.tensor([0.1, 1.0, 3.0])
    hard = float(w[:, 1].square().mean())  # at the threshold: stays
    keep = keep_large(INPUT_UNIT)(w, hard)
    assert keep.shape == w.shape and keep.dtype == torch.bool
    for o, i in itertools.product(range(OUT), range(IN)):
        assert keep[o, i] == (w[:, i].double().square().mean() > hard - 1e-6)
    assert keep.any(0).tolist() == keep.all(0).tolist() == [False, True, True]


@given(st.integers(1, 6), st.integers(1, 6), st.floats(0, 4), st.integers(0, 10**6))
@settings(max_examples=100, deadline=None)
def test_channels_whose_weights_are_close_together_go(out, inside, hard, seed):
    rng = np.random.default_rng(seed)
    w = rng.normal(size=(out, inside, 3, 3)) * rng.choice([0.1, 1], (out, 1, 1, 1)) + rng.normal(size=(1, inside, 1, 1))
    keep = keep_wide(torch.tensor(w), hard)
    assert keep.shape == w.shape
    for o, i in itertools.product(range(out), range(inside)):
        wide = np.ptp(w[o]) >= hard and np.ptp(w[:, i]) >= hard
        assert keep[o, i].tolist() == np.full((3, 3), wide).tolist()


def test_both_sides_of_a_convolution_count():
    w = torch.zeros(3, 3, 2, 2)
    w[0, 0, 0, 0], w[1, 0, 0, 0], w[2, 1] = 1.0, 0.3, 1.0  # a large constant is narrow, but not beside zeros
    keep = keep_wide(w, 0.5)
    assert keep[:, :, 0, 0].tolist() == [[True, True, False], [False] * 3, [True, True, False]]
    assert not keep_wide(torch.full((3, 3, 2, 2), 5.0), 0.5).any()


def make(layers, total=1000, groups=INPUT_UNIT, rule=None, soft=1.0, hard=0.3, chain_dims=0) -> GroupSpikeSlab:
    rule = rule or keep_large(groups)
    setting = {"eps0": EPS0, "eps1": EPS1, "soft": soft, "hard": hard, "chain_dims": chain_dims}
    return GroupSpikeSlab(layers, total, groups=groups, rule=rule, **setting)


def test_all_groups_are_in_the_slab_before_the_first_update():
    layers = [Parameter(1e-3 * random(OUT, IN)), Parameter(random(2, OUT))]
    prior = make(layers)
    for w, shape in zip(layers, ((1, IN), (1, OUT)), strict=True):
        assert torch.equal(prior.decay(w), torch.full(shape, EPS1))
    before = [w.detach().clone() for w in layers]
    prior.prune()
    assert all(torch.equal(w, x) for w, x in zip(layers, before, strict=True)) and prior.mask.sparsity == 0
    assert prior.summary() == {"spike": 0.0, "pruned": 0.0}


def test_an_update_gives_every_group_its_decay_and_all_other_parameters_keep_theirs():
    layers, bias = [Parameter(random(OUT, IN)), Parameter(random(7, 5, seed=1))], Parameter(torch.zeros(OUT))
    prior = make(layers, soft=0.9)
    prior.update()
    for w in layers:
        small = [w.detach()[:, i].double().square().mean().item() < 0.9 for i in range(w.shape[1])]
        assert 0 < sum(small) < len(small)
        assert torch.equal(prior.decay(w), torch.where(torch.tensor(small), EPS0, EPS1)[None])
        assert prior.decay(w).dtype == w.dtype
    assert prior.decay(bias) == EPS1


def test_a_group_can_leave_the_spike_but_not_its_mask():
    w = Parameter(torch.tensor([[0.6, 0.1, 2.0]]))  # in the spike; pruned; in the slab
    prior = make([w], soft=1.0, hard=0.3)
    prior.update()
    assert prior.decay(w)[0].tolist() == pytest.approx([EPS0, EPS0, EPS1])
    assert torch.equal(w.detach(), torch.tensor([[0.6, 0.1, 2.0]]))  # nothing is set to zero before `prune`
    prior.prune()
    assert w.detach()[0].tolist() == pytest.approx([0.6, 0, 2])
    w.data.fill_(5.0)
    prior.update()
    prior.prune()
    assert prior.decay(w)[0, 0] == pytest.approx(EPS1) and w.detach()[0].tolist() == [5, 0, 5]


@given(st.sampled_from(["kernel", "wide", "input unit", "neuron"]), st.integers(0, 10**6))
@settings(max_examples=40, deadline=None)
def test_masks_only_shrink(kind, seed):
    rng = np.random.default_rng(seed)
    groups = {"kernel": KERNEL, "wide": KERNEL, "input unit": INPUT_UNIT, "neuron": NEURON}[kind]
    shape = (OUT, IN, SIDE, SIDE) if groups is KERNEL else (OUT, IN)
    layers = [torch.empty(shape), torch.empty(shape)]
    prior = make(layers, groups=groups, rule=keep_wide if kind == "wide" else None)
    for _ in range(4):
        before = [keep.clone() for keep in prior.mask.keep]
        for w in layers:
            w.copy_(torch.tensor(rng.normal(size=shape) * rng.choice([0.1, 1], shape[:2] + (1,) * (len(shape) - 2))))
        allowed = [prior.rule(w, prior.hard) for w in layers]
        prior.update()
        for old, new, one in zip(before, prior.mask.keep, allowed, strict=True):
            assert torch.equal(new, old & one)


def test_pruned_weights_stay_zero_while_the_sampler_moves_the_others():
    torch.manual_seed(0)
    w, bias = Parameter(random(OUT, 6) * torch.tensor([0.1, 1, 0.1, 2, 0.1, 3])), Parameter(torch.zeros(OUT))
    prior = make([w])
    sampler = PreconditionedSGHMC([w, bias], 0.5, observations=9, temperature=0.5, decay=prior.decay)
    prior.update()
    gone = ~prior.mask.keep[0]
    assert gone[0].tolist() == [True, False, True, False, True, False]
    for _ in range(5):
        w.grad, bias.grad = torch.randn_like(w), torch.randn_like(bias)
        before = w.detach().clone()
        sampler.step()
        assert (w.detach()[gone] != 0).all()
        prior.prune()
        assert (w.detach()[gone] == 0).all() and (w.detach()[~gone] != before[~gone]).all()


def test_the_sampler_decays_the_spike_faster():
    w = Parameter(torch.tensor([[0.8, 0.8, 2.0], [0.8, 0.8, 2.0]]))
    prior = make([w])
    w.grad = torch.zeros_like(w)
    sampler = PreconditionedSGHMC(
        [w], 0.5, observations=9, temperature=0, eta=0, decay=prior.decay, noise=lambda ps: [torch.zeros_like(w)]
    )
    prior.update()
    before = w.detach().clone()
    sampler.step()
    expected = before * (1 - 0.5 * 0.5 * torch.tensor([EPS0, EPS0, EPS1]))
    torch.testing.assert_close(w.detach(), expected, rtol=1e-6, atol=0)


def test_every_chain_is_pruned_as_if_it_were_alone():
    chains = random(2, 3, OUT, IN) * torch.logspace(-1, 0.5, 6).view(2, 3, 1, 1)
    together = make([chains], total=20, chain_dims=2)
    together.update()
    together.prune()
    for c in itertools.product(range(2), range(3)):
        w = random(2, 3, OUT, IN)[c] * torch.logspace(-1, 0.5, 6).view(2, 3, 1, 1)[c]
        alone = make([w], total=20)
        alone.update()
        alone.prune()
        assert torch.equal(chains[c], w) and torch.equal(together.decays[0][c], alone.decays[0])
        assert together.mask.sparsity[c] == alone.mask.sparsity == (w == 0).sum() / 20
    assert len(together.mask.sparsity.unique()) > 1


def test_the_summary_counts_groups():
    # of seven groups two are pruned, and of the five that are left three are in the spike
    layers = [torch.tensor([[0.1, 0.6, 2.0, 0.7], [0.1, 0.6, 2.0, 0.7]]), torch.tensor([[0.1, 0.9, 3.0]])]
    prior = make(layers)
    prior.update()
    assert prior.summary() == pytest.approx({"spike": 3 / 5, "pruned": 2 / 7})
    for w in layers:
        w.zero_()
    prior.update()
    assert prior.summary() == {"spike": 0.0, "pruned": 1.0}


def test_state_dict_round_trip():
    w = Parameter(random(OUT, 6) * torch.tensor([0.1, 1, 0.7, 2, 0.1, 3]))
    prior = make([w])
    prior.update()
    state = {name: x.clone() for name, x in prior.state_dict().items()}
    copy = make([w])
    assert not torch.equal(copy.decay(w), prior.decay(w))
    copy.load_state_dict(state)
    assert torch.equal(copy.decay(w), prior.decay(w)) and torch.equal(copy.mask.keep[0], prior.mask.keep[0])
    w.data.fill_(5.0)  # what is pruned stays so
    for one in (prior, copy):
        one.update()
    assert torch.equal(copy.mask.keep[0], prior.mask.keep[0]) and not copy.mask.keep[0].all()


def test_a_spike_wider_than_the_slab_is_refused():
    setting = {"groups": NEURON, "rule": keep_large(NEURON), "soft": 1.0, "hard": 0.3}
    with pytest.raises(ValueError, match=r"eps0 = 0\.001 is smaller than the slab's eps1 = 0\.01"):
        GroupSpikeSlab([torch.ones(2, 2)], 4, eps0=0.001, eps1=0.01, **setting)
    GroupSpikeSlab([torch.ones(2, 2)], 4, eps0=0.01, eps1=0.01, **setting)


def test_groups_of_the_regressions_are_the_rows_of_transposed_weights():
    w = random(2, 1, IN, OUT)  # (chain, cell, in, out)
    assert torch.equal(Groups("input unit", (-1,)).mean_square(w), INPUT_UNIT.mean_square(w.mT).mT)
