"""What is timed computes the same as its baseline, and memory is measured as it is."""

import pytest
import torch

from benchmarks import memory, pruning
from benchmarks.fresh import fresh
from benchmarks.latent_update import LayerByLayer, chain
from sampler.magnitude_pruning import keep_largest


def test_layer_by_layer_is_the_prior():
    sampled = chain(torch.device("cpu"))
    prior, net = sampled.prior, sampled.net
    loop = LayerByLayer(prior)
    before = [rho.clone() for rho in prior.rho]
    grads = []
    for part in (prior, loop):
        for p in net.parameters():
            p.grad = torch.zeros_like(p)
        for _ in range(3):
            part.update()
        part.add_grad()
        grads.append([p.grad.clone() for p in net.parameters()])
    for name in ("rho", "kappa0", "kappa1"):
        for a, b in zip(getattr(prior, name), getattr(loop, name), strict=True):
            torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(prior.delta, torch.stack(loop.delta), rtol=1e-5, atol=0)
    torch.testing.assert_close(prior.sigma2, loop.sigma2, rtol=1e-5, atol=0)
    for a, b in zip(*grads, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)
    assert not any(torch.equal(a, b) for a, b in zip(before, prior.rho, strict=True))  # it did move


@pytest.mark.parametrize("rule", [pruning.bisection, pruning.by_sorting, pruning.by_torch_prune])
@pytest.mark.parametrize("fraction", [0.1, 0.5, 0.917])
def test_every_way_of_pruning_drops_the_same_weights(rule, fraction):
    beta = torch.randn(16, 8, 3, 3, generator=torch.Generator().manual_seed(0)).to(memory_format=torch.channels_last)
    assert torch.equal(rule(beta, fraction), keep_largest(beta, fraction))


def test_both_averages_are_the_same():
    kept, summed = (case(5, 3) for case in memory.CASES.values())
    torch.testing.assert_close(kept, summed)
    assert kept.sum().item() == pytest.approx(3)


def test_the_memory_of_kept_samples_is_seen():
    few, many = 8, 72
    grown = {case: fresh(memory.megabytes, case, many) - fresh(memory.megabytes, case, few) for case in memory.CASES}
    samples = (many - few) * memory.INPUTS * memory.CLASSES * 4 / 1e6  # MB
    assert grown["every sample kept"] == pytest.approx(samples, rel=0.1)
    assert abs(grown["running sum"]) < 0.1 * samples  # a temporary, 0.8 MB, may find no place in the heap
