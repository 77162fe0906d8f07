"""The attacks against foolbox, autograd of the explicit mixture, and cases with a known optimum."""

import contextlib
import warnings

import numpy as np
import pytest
import torch
from torch import nn

from data.augment import RAW, to_unit
from data.image_sets import MemoryImages
from experiment.adversarial import ATTACKS, accuracy_curves, fgsm, gradient, log_mixture, pgd
from experiment.evaluation import member

CLASSES, SIDE = 4, 6
ZETAS = [0.0, 0.05, 0.2, 0.5]


def convnet(seed: int, scale: float = 4.0) -> nn.Sequential:
    """A small network in float64 with predictions that are neither certain nor uniform."""
    generator = torch.Generator().manual_seed(seed)
    net = nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.Tanh(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(54, 8), nn.Tanh(),
        nn.Linear(8, CLASSES),
    ).double().eval()  # fmt: skip
    with torch.no_grad():
        for p in net.parameters():
            fan_in = p[0].numel() if p.ndim > 1 else 10
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) / fan_in**0.5)
        net[-1].weight.mul_(scale)
    return net


NETS = [convnet(seed) for seed in range(3)]
MEMBERS = [member(net, RAW) for net in NETS]


@pytest.fixture(scope="module")
def batch() -> tuple[torch.Tensor, torch.Tensor]:
    """Images in float64, black and white pixels among them, and labels."""
    generator = torch.Generator().manual_seed(1)
    x = torch.rand(50, 1, SIDE, SIDE, generator=generator, dtype=torch.float64)
    return (1.4 * x - 0.2).clamp(0, 1), torch.randint(CLASSES, (50,), generator=generator)


def explicit(x: torch.Tensor, nets) -> torch.Tensor:
    """p(y | x) of the mixture."""
    return torch.stack([net(x).softmax(-1) for net in nets]).mean(0)


@pytest.mark.parametrize("count", [1, 2, 3])
def test_the_mixture_and_its_gradient(batch, count):
    x, y = batch
    found = log_mixture(MEMBERS[:count], x)
    assert not found.requires_grad and found.shape == (50, CLASSES)
    pixels = x.clone().requires_grad_()
    p = explicit(pixels, NETS[:count])
    torch.testing.assert_close(found, p.log().detach(), rtol=1e-12, atol=1e-13)
    (expected,) = torch.autograd.grad(p.gather(1, y[:, None]).log().sum(), pixels)
    assert p.max(-1).values.std() > 0.05
    torch.testing.assert_close(gradient(MEMBERS[:count], x, y), expected, rtol=1e-9, atol=1e-12)


def test_the_mixture_does_not_underflow(batch):
    """Where every member finds the label nearly impossible, and one less so than the others."""
    x, y = batch

    def against(net: nn.Module, distance: float):
        return lambda x: (net(x) - distance * nn.functional.one_hot(y, CLASSES)).log_softmax(-1)

    far = [against(net, distance) for net, distance in zip(NETS, (3000.0, 2000.0, 1000.0), strict=True)]
    of_label = [log_p.gather(1, y[:, None]) for log_p in (log_mixture(far, x), far[2](x).detach())]
    assert of_label[0].max() < -900
    torch.testing.assert_close(of_label[0], of_label[1] - np.log(3), rtol=1e-12, atol=0)
    torch.testing.assert_close(gradient(far, x, y), gradient(far[2:], x, y), rtol=1e-12, atol=0)


def test_gradients_leave_no_trace(batch):
    x, y = batch
    before = x.clone()
    with torch.no_grad():  # as in an evaluation
        found = gradient(MEMBERS, x, y)
    assert not found.requires_grad and not x.requires_grad and torch.equal(x, before)
    assert all(p.grad is None for net in NETS for p in net.parameters())


def saturated(gap: float) -> tuple[nn.Sequential, torch.Tensor, torch.Tensor]:
    """A float32 network, images, and the gradient of log p_0 where logit 0 is larger by about `gap`."""
    generator = torch.Generator().manual_seed(3)
    net = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 3))
    with torch.no_grad():
        weight = torch.randn(3, SIDE * SIDE, generator=generator) / SIDE
        net[1].weight.copy_(weight)
        net[1].bias.copy_(torch.tensor([gap, 0.0, 1.0]))
    x = torch.rand(20, 1, SIDE, SIDE, generator=generator)
    logits = x.double().flatten(1) @ weight.double().T + torch.tensor([gap, 0.0, 1.0])
    odds = (logits[:, 1:] - logits[:, :1]).exp()  # log p_0 = -log(1 + sum odds)
    slope = (odds / (1 + odds.sum(-1, keepdim=True))) @ (weight[:1] - weight[1:]).double()
    return net, x, slope.view_as(x)


@pytest.mark.parametrize("gap", [10.0, 25.0, 33.0, 50.0, 75.0])
def test_a_confident_network_has_the_right_gradient(gap):
    net, x, slope = saturated(gap)
    found = gradient([member(net, RAW)], x, torch.zeros(20, dtype=torch.int64))
    assert found.dtype == torch.float32 and (found != 0).all()
    assert (found.sign() == slope.sign()).double().mean() > 0.99
    torch.testing.assert_close(found.double(), slope, rtol=0.05, atol=0.01 * float(slope.abs().max()))


@contextlib.contextmanager
def without_warnings_of_foolbox():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=r"(foolbox|eagerpy)\b")
        yield


def alike(a: torch.Tensor, b: torch.Tensor) -> bool:
    return ((a - b).abs() < 1e-6).double().mean() >= 0.999


@pytest.mark.parametrize("zeta", ZETAS[1:])
@pytest.mark.parametrize("label", ["true", "predicted"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("steps", [0, 1, 7, 20], ids=lambda steps: f"pgd{steps}" if steps else "fgsm")
def test_attacks_agree_with_foolbox(batch, steps, dtype, label, zeta):
    with without_warnings_of_foolbox():
        import foolbox
    net, x = convnet(0).to(dtype), batch[0].to(dtype)
    y = batch[1] if label == "true" else net(x).argmax(-1)
    members = [member(net, RAW)]
    if steps:
        ours = pgd(members, x, y, zeta, steps)
        attack = foolbox.attacks.LinfProjectedGradientDescentAttack(
            abs_stepsize=2.5 * zeta / steps, steps=steps, random_start=False
        )
    else:
        ours = fgsm(x, gradient(members, x, y), zeta)
        attack = foolbox.attacks.LinfFastGradientAttack(random_start=False)
    with without_warnings_of_foolbox():
        model = foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")
        _, theirs, _ = attack(model, x, y, epsilons=zeta)
    assert ours.dtype == theirs.dtype and alike(ours, theirs)
    assert torch.equal(net(ours).argmax(-1), net(theirs).argmax(-1))
    assert not torch.equal(net(ours).argmax(-1), net(x).argmax(-1))  # the attack does something


@pytest.mark.parametrize("zeta", ZETAS)
@pytest.mark.parametrize("random", [False, True])
def test_attacked_images_stay_in_the_ball_and_in_the_unit_interval(batch, zeta, random):
    x, y = (batch[0].float(), batch[1])
    members = [member(convnet(seed).float(), RAW) for seed in range(2)]
    start = torch.Generator().manual_seed(0) if random else None
    for attacked in (fgsm(x, gradient(members, x, y), zeta), pgd(members, x, y, zeta, 5, start)):
        assert attacked.min() >= 0 and attacked.max() <= 1
        assert (attacked - x).abs().max() <= zeta + 1e-7
        if zeta == 0:
            assert torch.equal(attacked, x)
        else:
            assert (attacked - x).abs().max() > 0.99 * zeta


def test_a_random_start_is_repeatable(batch):
    x, y = batch
    first, again, other = (
        pgd(MEMBERS, x, y, 0.2, 2, torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )  # fmt: skip
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(pgd(MEMBERS, x, y, 0.2, 2), pgd(MEMBERS, x, y, 0.2, 2))


def test_the_random_start_is_uniform_in_the_ball():
    """Against a member without a gradient the start is all there is."""
    x = torch.full((40, 1, 20, 20), 0.4)
    flat = [lambda x: (0 * x.flatten(1).sum(-1, keepdim=True)).double().expand(-1, 2).log_softmax(-1)]
    attacked = pgd(flat, x, torch.zeros(40, dtype=torch.int64), 0.3, 3, torch.Generator().manual_seed(0))
    u = ((attacked - x) / 0.3).double()  # U(-1, 1): variance 1/3, of squares 4/45
    assert u.abs().max() <= 1 + 1e-6
    assert abs(u.mean()) / np.sqrt(1 / 3 / u.numel()) < 5
    assert abs(u.square().mean() - 1 / 3) / np.sqrt(4 / 45 / u.numel()) < 5


def test_pgd_lowers_the_probability_further_than_fgsm(batch):
    x, y = batch

    def of_label(attacked: torch.Tensor) -> float:
        return float(log_mixture(MEMBERS, attacked).gather(1, y[:, None]).mean())

    one_step = of_label(fgsm(x, gradient(MEMBERS, x, y), 0.2))
    assert of_label(pgd(MEMBERS, x, y, 0.2, 20)) < one_step < of_label(x) - 0.1


# linear networks of two classes with one direction: all attacks but on the predicted class end in one corner


class Line(nn.Module):
    """logits = (score, -score), score = strength * <direction, x> + bias."""

    def __init__(self, direction: torch.Tensor, strength: float, bias: float):
        super().__init__()
        self.direction, self.strength, self.bias = direction, strength, bias
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        score = self.strength * (x.flatten(1) @ self.direction) + self.bias
        return torch.stack([score, -score], -1)


N = 1100
DIRECTION = torch.randn(25, generator=torch.Generator().manual_seed(0)).sign()
LINES = [member(Line(DIRECTION, strength, bias), RAW) for strength, bias in ((0.5, 0.0), (1.0, 0.2), (0.3, -0.4))]


@pytest.fixture(scope="module")
def images() -> MemoryImages:
    """More than two batches of 500; labels that the lines mostly predict."""
    generator = torch.Generator().manual_seed(2)
    x = torch.randint(0, 256, (N, 1, 5, 5), generator=generator, dtype=torch.uint8)
    right = log_mixture(LINES, to_unit(x)).argmax(-1)
    return MemoryImages(x, torch.where(torch.rand(N, generator=generator) < 0.8, right, 1 - right))


def share_right(x: np.ndarray, y: np.ndarray) -> float:
    """Accuracy in percent of the mixture of the lines, evaluated with numpy."""
    inner = x.reshape(len(x), -1) @ DIRECTION.double().numpy()
    p = np.mean([1 / (1 + np.exp(-2 * (s * inner + b))) for s, b in ((0.5, 0.0), (1.0, 0.2), (0.3, -0.4))], axis=0)
    return 100 * np.mean((p < 0.5) == y)


@pytest.mark.parametrize("pgd_images", [0, 1, 30, 500, 501, 700, 1100, 5000])
def test_accuracy_curves_against_direct_evaluation(images, pgd_images):
    rows, _ = accuracy_curves(LINES, images, ZETAS, steps=10, pgd_images=pgd_images, seed=0)
    seen = {"fgsm_predicted": N, "fgsm_true": N, "pgd": min(N, pgd_images)}
    present = [attack for attack in ATTACKS if seen[attack]]
    assert [(row["attack"], row["zeta"], row["n"]) for row in rows] == [
        (attack, zeta, seen[attack]) for attack in present for zeta in ZETAS
    ]
    x, y = images.x.numpy() / 255, images.y.numpy()
    predicted = log_mixture(LINES, to_unit(images.x)).argmax(-1).numpy()
    for row in rows:
        n = row["n"]
        away = 2 * (predicted if row["attack"] == "fgsm_predicted" else y)[:n] - 1  # class 0: down the direction
        corner = row["zeta"] * away[:, None] * DIRECTION.numpy()
        attacked = (x[:n] + corner.reshape(x[:n].shape)).clip(0, 1)
        assert row["accuracy"] == pytest.approx(share_right(attacked, y[:n]), abs=1e-9)
    accuracy = {attack: [row["accuracy"] for row in rows if row["attack"] == attack] for attack in present}
    assert 70 < accuracy["fgsm_true"][0] < 90 and accuracy["fgsm_true"][-1] < 10  # of everything right, nothing is left


@pytest.mark.parametrize("grad", [True, False])
def test_accuracy_curves_of_a_mixture_of_networks(batch, grad):
    members = [member(convnet(seed).float(), RAW) for seed in range(2)]
    images = MemoryImages((255 * batch[0]).round().to(torch.uint8), batch[1])
    with torch.set_grad_enabled(grad):
        rows, example = accuracy_curves(members, images, ZETAS, steps=3, pgd_images=20, seed=0)
        again, _ = accuracy_curves(members, images, ZETAS, steps=3, pgd_images=20, seed=0)
    assert rows == again
    found = {(row["attack"], row["zeta"]): row["accuracy"] for row in rows}
    x, y = to_unit(images.x), images.y
    predicted = log_mixture(members, x).argmax(-1)
    assert not torch.equal(predicted, y)
    for zeta in ZETAS:
        for attack, label in (("fgsm_predicted", predicted), ("fgsm_true", y)):
            attacked = fgsm(x, gradient(members, x, label), zeta)
            right = log_mixture(members, attacked).argmax(-1) == y
            assert found[attack, zeta] == pytest.approx(100 * float(right.double().mean()))
    start = torch.Generator().manual_seed(0)  # all draws come from one generator, zeta after zeta
    for zeta in ZETAS:
        right = log_mixture(members, pgd(members, x[:20], y[:20], zeta, 3, start)).argmax(-1) == y[:20]
        assert found["pgd", zeta] == pytest.approx(100 * float(right.double().mean()))
    first = gradient(members, x[:1], predicted[:1])
    assert example.shape == (len(ZETAS), 1, SIDE, SIDE)
    torch.testing.assert_close(example, torch.cat([fgsm(x[:1], first, zeta) for zeta in ZETAS]))
    assert torch.equal(example[0], x[0])


def test_the_seed_decides_the_random_start():
    generator = torch.Generator().manual_seed(4)
    images = MemoryImages(
        torch.randint(0, 256, (200, 1, SIDE, SIDE), generator=generator, dtype=torch.uint8),
        torch.randint(CLASSES, (200,), generator=generator),
    )
    members = [member(convnet(0).float(), RAW)]
    curves = [accuracy_curves(members, images, [0.02, 0.03, 0.04], 1, 200, seed)[0] for seed in range(6)]
    of_pgd = {tuple(row["accuracy"] for row in rows if row["attack"] == "pgd") for rows in curves}
    of_fgsm = {tuple(row["accuracy"] for row in rows if row["attack"] != "pgd") for rows in curves}
    assert len(of_pgd) > 1 and len(of_fgsm) == 1
