import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sampler.schedules import (
    RobbinsMonro,
    adaptation,
    annealed,
    cosine_cycle,
    linear_decay,
    polynomial_decay,
    sparsity_schedule,
    stepwise,
)


def test_robbins_monro():
    omega = RobbinsMonro(1000, 100, 0.7, cap=0.1)
    assert omega(1) == 0.1 and omega(500_000) == pytest.approx(0.1)  # the released one never falls
    assert 1000 / 500_100**0.7 > 0.1
    paper = RobbinsMonro(10, 1000, 0.7, cap=0.1)
    assert paper(1) == pytest.approx(10 / 1001**0.7) and paper(500_000) == pytest.approx(10 / 501_000**0.7)
    k = torch.arange(1, 50, dtype=torch.float64)
    assert omega(k).tolist() == [omega(int(i)) for i in k]
    assert paper(k).tolist() == pytest.approx([paper(int(i)) for i in k], rel=1e-15)


@pytest.mark.parametrize("arguments", [(0, 1, 0.7), (1, -1, 0.7), (1, 1, 1.5), (1, 1, 0.0), (1, 1, 0.7, 2.0)])
def test_step_sizes_outside_their_range_are_refused(arguments):
    with pytest.raises(ValueError, match="omega_k"):
        RobbinsMonro(*arguments)


def test_the_method_chooses_omega_only():
    sa = RobbinsMonro(1, 100, 0.7)
    assert adaptation("sa", sa) is sa
    assert [adaptation(m, sa)(7) for m in ("em", "sgld", "sghmc")] == [1.0, 0.0, 0.0]
    k = torch.arange(3.0)
    assert adaptation("em", sa)(k).tolist() == [1, 1, 1]


def test_the_others():
    assert polynomial_decay(0.001, 1 / 3, 8) == pytest.approx(0.0005)
    assert annealed(2.0, 1.5, 2) == pytest.approx(4.5)
    assert annealed(2.0, 1e200, 2) == float("inf")
    assert sparsity_schedule(0.9, 0.99, 50, 0) == 0
    assert sparsity_schedule(0.9, 0.99, 50, 50) == pytest.approx(0.009)
    assert sparsity_schedule(0.9, 0.99, 50, 1e6) == pytest.approx(0.9)
    assert all(math.isclose(sparsity_schedule(0.5, 0.9, 10, 10 * i), 0.5 * (1 - 0.9**i)) for i in range(5))


@given(
    st.floats(1e-12, 1),
    st.lists(st.integers(0, 50), max_size=4),
    st.integers(0, 60),
)
@settings(max_examples=100, deadline=None)
def test_the_step_size_falls_to_a_tenth_at_every_milestone(lr, milestones, done):
    expected = lr
    for epoch in range(1, done + 1):
        expected /= 10 ** milestones.count(epoch)
    expected /= 10 ** milestones.count(0)
    assert stepwise(lr, milestones, done) == pytest.approx(expected, rel=1e-12)


def test_the_published_step_sizes():
    assert [stepwise(2e-9, [700, 900], done) for done in (0, 699, 700, 899, 900, 999)] == pytest.approx(
        [2e-9, 2e-9, 2e-10, 2e-10, 2e-11, 2e-11], rel=1e-12
    )
    assert stepwise(0.3, [], 1000) == 0.3


def test_the_linear_decay_is_flat_and_then_a_line_to_zero_after_the_last_iteration():
    lr = [linear_decay(0.2, 10, 20, k) for k in range(1, 22)]
    assert lr[:10] == [0.2] * 10
    assert lr[10:] == pytest.approx([0.2 * i / 11 for i in range(10, -1, -1)], rel=1e-12)
    assert lr[19] == pytest.approx(0.2 / 11) and lr[20] == 0.0  # iteration 20 is the last


@given(st.floats(1e-8, 1), st.integers(0, 1000), st.integers(1, 1000))
@settings(max_examples=100, deadline=None)
def test_the_linear_decay_falls_by_equal_steps(lr, start, length):
    end = start + length
    assert linear_decay(lr, start, end, 1) == (lr if start else pytest.approx(lr * end / (end + 1)))
    assert linear_decay(lr, start, end, start) == lr
    ends = [linear_decay(lr, start, end, k) for k in (start + 1, end, end + 1)]
    assert ends == pytest.approx([lr * length / (length + 1), lr / (length + 1), 0], rel=1e-12, abs=1e-300)
    steps = [linear_decay(lr, start, end, k) - linear_decay(lr, start, end, k + 1) for k in range(start, end + 1)]
    assert steps == pytest.approx([lr / (length + 1)] * len(steps), rel=1e-6, abs=1e-12 * lr)


def test_a_linear_decay_that_starts_at_the_end_is_flat():
    assert [linear_decay(0.1, 5, 5, k) for k in (1, 5, 6)] == [0.1, 0.1, 0.0]


@given(st.floats(1e-6, 10), st.integers(1, 500), st.integers(1, 4))
@settings(max_examples=100, deadline=None)
def test_a_cosine_cycle_falls_from_lr_to_zero_and_starts_again(lr, period, cycle):
    start = (cycle - 1) * period
    total = 5 * period
    values = [cosine_cycle(lr, total, 5, start + k) for k in range(1, period + 1)]
    assert values == pytest.approx([lr * math.cos(math.pi * t / period / 2) ** 2 for t in range(period)], rel=1e-6)
    assert values[0] == lr and values == sorted(values, reverse=True) and values[-1] > 0
    assert cosine_cycle(lr, total, 5, start + period + 1) == lr
    if period % 2 == 0:
        assert values[period // 2] == pytest.approx(lr / 2)


def test_a_cosine_cycle_of_a_broken_number_of_iterations():
    values = [cosine_cycle(1.0, 5, 2, k) for k in range(1, 7)]
    assert values == pytest.approx([(1 + math.cos(math.pi * t / 2.5)) / 2 for t in (0, 1, 2, 0.5, 1.5, 0)])


@pytest.mark.parametrize("total, cycles", [(350, 6), (200 * 782, 6), (7, 3)])
def test_no_restart_of_a_cosine_cycle_is_missed(total, cycles):
    values = [cosine_cycle(1.0, total, cycles, k) for k in range(1, total + 1)]
    assert min(values) > 0
    assert sum(b > a for a, b in pairwise(values)) == cycles - 1
