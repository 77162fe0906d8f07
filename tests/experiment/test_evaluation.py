"""Predictions on whole data sets against the network, image by image."""

import copy

import pytest
import torch
from torch import nn

from data.augment import RAW, Recipe
from data.image_sets import MemoryImages
from experiment.classification import entropy
from experiment.evaluation import member, predict, predictive

CLASSES = 5
RECIPE = Recipe(padding=2, degrees=15, flip=True, mean=(0.3, 0.4, 0.5), sd=(0.2, 0.3, 0.4), erase=(0.1, 0.1, 0.1))


def network(seed: int) -> nn.Sequential:
    """Dropout and batch norm, so that training and evaluation mode differ; weights that matter."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(4 * 36, CLASSES)
        )
        net[1].running_mean.uniform_(-0.5, 0.5)
        net[1].running_var.uniform_(0.5, 2)
    return net


@pytest.fixture(scope="module")
def images() -> MemoryImages:
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(0, 256, (23, 3, 8, 8), generator=generator, dtype=torch.uint8)
    return MemoryImages(x, torch.randint(CLASSES, (23,), generator=generator))


def one_by_one(net: nn.Module, recipe: Recipe, images: MemoryImages) -> torch.Tensor:
    """The same in float64, with a copy of the network."""
    net = copy.deepcopy(net).double().eval()
    mean, sd = (torch.tensor(v, dtype=torch.float64).view(-1, 1, 1) for v in (recipe.mean, recipe.sd))
    with torch.no_grad():
        return torch.cat([net(((x / 255.0).double() - mean) / sd)[None] for x in images.x.split(1)])[:, 0].log_softmax(
            -1
        )


@pytest.mark.parametrize("recipe", [RAW, RECIPE], ids=["raw", "normalised"])
@pytest.mark.parametrize("size", [1, 7, 23, 1000])
def test_predictions_are_those_of_every_image(images, size, recipe):
    net = network(0)
    assert net.training
    found = predict(member(net, recipe), images, size)
    assert found.dtype == torch.float64 and found.shape == (23, CLASSES) and not found.requires_grad
    torch.testing.assert_close(found, one_by_one(net, recipe, images), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(found.exp().sum(-1), torch.ones(23, dtype=torch.float64), rtol=1e-12, atol=0)


def test_a_prediction_changes_nothing(images):
    net = network(0)
    before = copy.deepcopy(net.state_dict())
    state = torch.get_rng_state()
    predictor = member(net, RAW)
    first = predict(predictor, images)
    net.train()
    assert torch.equal(predict(predictor, images), first)
    assert torch.equal(torch.get_rng_state(), state)  # no dropout was drawn
    assert all(torch.equal(x, before[name]) for name, x in net.state_dict().items())


def test_other_weights_are_as_if_loaded(images):
    base = network(0)
    before = copy.deepcopy(base.state_dict())
    others = [network(seed) for seed in (1, 2)]
    members = [member(base, RECIPE, copy.deepcopy(net.state_dict())) for net in others]
    for each, net in zip(members, others, strict=True):
        assert torch.equal(predict(each, images), predict(member(net, RECIPE), images))
        assert not torch.equal(predict(each, images), predict(member(base, RECIPE), images))
    assert all(torch.equal(x, before[name]) for name, x in base.state_dict().items())


def test_confident_predictions_keep_their_small_probabilities(images):
    """float32 would round the largest log-probability to zero."""
    net = network(0)
    with torch.no_grad():
        net[5].bias[2] += 60
    found = predict(member(net, RAW), images)
    assert found.isfinite().all() and (found[:, [0, 1, 3, 4]] < -40).all()
    with torch.no_grad():
        net[5].bias[2] -= 35
    assert (predict(member(net, RAW), images)[:, 2] < 0).all()


def test_a_member_can_be_differentiated(images):
    x = (images.x / 255.0).requires_grad_()
    member(network(0), RECIPE)(x).sum().backward()
    assert x.grad.abs().max() > 0


def test_amp_computes_in_bfloat16(images):
    net = network(0)
    seen = []
    net[5].register_forward_hook(lambda module, inputs, output: seen.append(output.dtype))
    exact, rounded = (predict(member(net, RECIPE, amp=amp), images) for amp in (False, True))
    assert seen == [torch.float32, torch.bfloat16] and rounded.dtype == torch.float64
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, rtol=0.1, atol=0.1)
    assert not torch.is_autocast_enabled("cpu")


@pytest.mark.parametrize("count", [1, 4])
def test_the_mixture_of_members(images, count):
    nets = [network(seed) for seed in range(count)]
    mixture = predictive([member(net, RECIPE) for net in nets], images, CLASSES)
    p = torch.stack([one_by_one(net, RECIPE, images).exp() for net in nets])
    assert mixture.samples == count
    torch.testing.assert_close(mixture.probabilities(), p.mean(0), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(mixture.mean_entropy(), entropy(p).mean(0), rtol=1e-4, atol=1e-5)
