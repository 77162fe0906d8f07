"""Norms of the weights of every unit, unit by unit."""

import math

import pytest
import torch

from model.group_lasso import group_norms


@pytest.mark.parametrize("shape", [(7, 5), (4, 6, 3, 2), (3, 1, 5, 5), (1, 9)], ids=str)
@pytest.mark.parametrize("dim", [0, 1])
def test_a_norm_is_that_of_all_weights_of_the_unit(shape, dim):
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight.select(dim, 0).zero_()
    ours = group_norms(weight, dim)
    by_hand = [math.sqrt(sum(w**2 for w in weight.select(dim, i).flatten().tolist())) for i in range(shape[dim])]
    assert ours.tolist() == pytest.approx(by_hand, rel=1e-12) and by_hand[0] == 0


@pytest.mark.parametrize("dim", [0, 1])
def test_the_gradient_is_the_direction_and_nothing_at_zero(dim):
    weight = torch.randn(5, 4, 3, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weight.select(dim, 2).zero_()
    weight.requires_grad_()
    group_norms(weight, dim).sum().backward()
    for i in range(weight.shape[dim]):
        group, grad = weight.select(dim, i).detach(), weight.grad.select(dim, i)
        torch.testing.assert_close(grad, group / group.square().sum().sqrt() if i != 2 else torch.zeros_like(group))
