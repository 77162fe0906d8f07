"""The steps of sbp_cnn.py against the same optimisation written down again in float64: noise, penalties, step size.

An oracle that does one thing otherwise must disagree.
"""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from torch.nn.functional import cross_entropy

import sbp_cnn
from data import images
from data.image_sets import ImageData
from model.multiplicative_noise import kl, sample
from sampler.noise import stream
from tests.scripts import sbp_cnn_shared
from tests.scripts.sbp_cnn_shared import SITES, STILL, load, metrics, pixels, text

SCRIPT = "sbp_cnn.py"
few, network = sbp_cnn_shared.few, sbp_cnn_shared.network


def test_noise_starts_at_its_published_values(few, network):
    found = load(few("-pretrained", network(), *STILL), "model")
    for name, value in (("mu", 0), ("log_sigma", -5)):
        noise = [x for key, x in found.items() if key.endswith(f".{name}")]
        assert len(noise) == 3 and all(((x - value).abs() < 1e-20).all() for x in noise)
    variances = load(few("-c", "sparsevd", "-pretrained", network(), *STILL, out="other"), "model")
    assert all((x == -10).all() for name, x in variances.items() if name.endswith("log_sigma2"))


@pytest.mark.parametrize(
    "flags, factors",
    [
        ((), [1, 1, 4 / 7, 1 / 7]),
        (("-decay", 1), [1, 0.7, 0.4, 0.1]),
        (("-decay", 0), [10 / 13, 7 / 13, 4 / 13, 1 / 13]),
        (("-decay", 4), [1, 1, 1, 1]),
        (("-decay", 3, "-c", "dense"), [1, 1, 1, 1 / 4]),
        (("-c", "sparsevd"), [1, 1, 4 / 7, 1 / 7]),
    ],
    ids=text,
)
def test_the_step_falls_to_nothing(few, flags, factors):
    """Of the 3rd, 6th, 9th and 12th iteration; it would reach zero in the one after."""
    result = few("-sn", 4, "-lr", 2e-3, *flags)
    assert metrics(result)["lr"].to_numpy() == pytest.approx(2e-3 * np.array(factors))


PENALTIES = {"sbp": (1, 1, 1), "sbpa": (10, 10, 5)}


@pytest.mark.parametrize("c", PENALTIES)
def test_the_divergence_of_the_first_layers_weighs_more_in_sbpa(few, c):
    """144 pixels, 20 and 12 neurons, all with the initial noise."""
    each = kl(torch.zeros(1), torch.full((1,), -5.0)).item()
    expected = each * np.dot(PENALTIES[c], (144, 20, 12))
    assert metrics(few("-c", c, *STILL))["penalty"].to_numpy() == pytest.approx(expected)


def test_the_weights_of_sbpa_on_all_layers(start, pictures):
    folder = pictures(side=32)
    flags = ("-data", "folder", "-data_dir", folder, "-model", "vgglike", "-scale", 0.05, "-train", 20, "-speed", 0)
    result = start(*flags, "-c", "sbpa", "-sn", 1, "-dense_sn", 1, *STILL)
    saved = load(result, "model")
    widths = [len(saved[f"{layer}.parametrizations.weight.0.mu"]) for layer in SITES["vgglike"]]
    assert len(widths) == 15 and widths[:5] == [3, 3, 6, 6, 13]
    each = kl(torch.zeros(1), torch.full((1,), -5.0)).item()
    assert metrics(result)["penalty"].item() == pytest.approx(each * np.dot((10, 10, 5, 5, *[1] * 11), widths))


class Reference:
    """The optimisation of LeNet-fc written down again, in float64 and with Adam by hand.

    wrong: a part of it that is left out or done otherwise.
    """

    def __init__(self, args, start: dict[str, Tensor], data: ImageData, wrong: str = ""):
        self.args, self.x, self.y, self.wrong = args, pixels(data.train, "lenet-fc").double(), data.train.y, wrong
        self.w = {name: x.double() for name, x in start.items()}
        self.centre, self.noise = self.w.pop("centre.mean"), stream(args.seed, "noise")
        sizes = {"in1": len(self.w["fc1.weight"][0]), "out1": len(self.w["fc1.bias"]), "out2": len(self.w["fc2.bias"])}
        if args.c in ("sbp", "sbpa"):
            self.w |= {f"{site}.mu": torch.zeros(n, dtype=torch.float64) for site, n in sizes.items()}
            self.w |= {f"{site}.log_sigma": torch.full((n,), -5.0, dtype=torch.float64) for site, n in sizes.items()}
        if args.c == "sparsevd":
            self.w |= {f"fc{i}.log_sigma2": torch.full_like(self.w[f"fc{i}.weight"], -10) for i in (1, 2, 3)}
        self.moments = {name: (torch.zeros_like(x), torch.zeros_like(x)) for name, x in self.w.items()}

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self.noise).double()

    def loss(self, w: dict[str, Tensor], rows: Tensor) -> tuple[Tensor, Tensor | float]:
        """Cross entropy and penalty of a minibatch."""
        h, penalty, theta, c = (self.x[rows] - self.centre).flatten(1), 0.0, {}, self.args.c
        if c in ("sbp", "sbpa"):
            laws = {site: (w[f"{site}.mu"], w[f"{site}.log_sigma"]) for site in ("in1", "out1", "out2")}
            u = torch.rand(sum(len(mu) for mu, _ in laws.values()), generator=self.noise).double()
            parts = u.split([len(mu) for mu, _ in laws.values()])
            theta = {site: sample(*law, part) for (site, law), part in zip(laws.items(), parts, strict=True)}
            weights = [*self.args.kl_layers, 1, 1, 1][:3]
            penalty = sum(weight * kl(*law).sum() for weight, law in zip(weights, laws.values(), strict=True))
        for i in (1, 2, 3):
            weight, bias = w[f"fc{i}.weight"], w[f"fc{i}.bias"]
            h = h * theta.get(f"in{i}", 1)
            if c == "sparsevd":
                log_alpha = (w[f"fc{i}.log_sigma2"] - (weight**2 + 1e-8).log()).clamp(-8, 8)
                sd = (h**2 @ (weight**2 * log_alpha.exp()).T + 1e-8).sqrt()
                h = h @ weight.T + bias + sd * self.normal(*sd.shape)
                rate = 0.63576 * torch.sigmoid(1.8732 + 1.48695 * log_alpha) - 0.5 * torch.log1p((-log_alpha).exp())
                penalty = penalty + (0.63576 - rate).sum()
            else:
                h = h @ weight.T * theta.get(f"out{i}", 1) + bias
            h = h.relu() if i < 3 else h
            if c == "ssl":
                norms = [weight.norm(dim=0)] + [weight.norm(dim=1)] * (i < 3)
                penalty = penalty + sum(norm.sum() for norm in norms)
        return cross_entropy(h, self.y[rows]), penalty

    def run(self) -> dict[str, Tensor]:
        args, n, wrong = self.args, len(self.y), self.wrong
        batches, order, k = n // args.train, stream(args.seed, "order"), 0
        for epoch in range(args.sn):
            warm = min(1, (epoch + 1) / args.warmup) if args.warmup else 1
            l2 = args.l2 * (1 if wrong == "l2 that stays" else 1e-3 + (1 - 1e-3) * epoch / args.sn)
            for rows in torch.randperm(n, generator=order)[: batches * args.train].split(args.train):
                k += 1
                w = {name: x.requires_grad_() for name, x in self.w.items()}
                likelihood, penalty = self.loss(w, rows)
                ((1 if wrong == "no N" else n) * likelihood + args.kl_weight * warm * penalty).backward()
                self.w = {name: self.adam(name, x, k, batches, l2) for name, x in w.items()}
        return self.w

    def adam(self, name: str, x: Tensor, k: int, batches: int, l2: float) -> Tensor:
        args, noisy = self.args, name.endswith((".mu", ".log_sigma"))
        x, grad, (m, v) = x.detach(), x.grad, self.moments[name]
        if name.endswith(".weight") or self.wrong == "l2 of all":
            grad = grad + l2 * x
        m, v = args.beta1 * m + (1 - args.beta1) * grad, 0.999 * v + 0.001 * grad**2
        self.moments[name] = m, v
        total, flat = args.sn * batches, args.decay * batches
        lr = args.lr * min(1, (total + 1 - k) / (total + 1 - flat)) * (args.noise_lr if noisy else 1)
        x = x - lr * (m / (1 - args.beta1**k)) / ((v / (1 - 0.999**k)).sqrt() + 1e-8)
        return x.clamp(-20, 5) if noisy and self.wrong != "not clipped" else x


NAMES = {"in1": "fc1.parametrizations.weight.0", "out1": "fc1.parametrizations.weight.1"}
NAMES |= {"out2": "fc2.parametrizations.weight.0"}
BOTH = ("-kl_weight", 1e-3)  # the penalty and the likelihood are felt alike
OTHER = ("-lr", 2e-3, "-decay", 0, "-beta1", 0.5, "-noise_lr", 2, "-warmup", 6, "-l2", 100)
STEPS = {  # flags, and what the reference must not do with them
    ("-c", "sbp", *BOTH): ["no N", {"c": "dense"}, {"seed": 2}, {"kl_weight": 2e-3}, {"warmup": 2}],
    ("-c", "sbp", *BOTH, *OTHER): [
        *({"lr": 1e-3}, {"decay": 2}, {"beta1": 0.95}, {"noise_lr": 1}, {"warmup": 0}, {"l2": 0}),
        *("l2 that stays", "l2 of all"),
    ],
    ("-c", "sbp", "-noise_lr", 3000): ["not clipped"],
    ("-c", "sbpa", *BOTH): [{"kl_layers": []}],
    ("-c", "sbp", "-kl_layers", 7, 20, *BOTH): [{"kl_layers": [10, 10, 5]}, {"kl_layers": [7]}],
    ("-c", "ssl", "-kl_weight", 2): ["no N", {"kl_weight": 1}],
    ("-c", "sparsevd", *BOTH): ["no N", {"kl_weight": 2e-3}],
    ("-c", "sparsevd", "-l2", 100): ["l2 of all"],
    ("-c", "dense", "-l2", 100): ["l2 of all"],
}


@pytest.mark.parametrize("flags", STEPS, ids=text)
def test_the_steps_are_those_of_the_equations(start, pictures, network, flags):
    """12 iterations; an oracle that does one thing otherwise disagrees."""
    wrongs = STEPS[flags]
    path, folder = network(), pictures()
    flags = ("-data", "folder", "-data_dir", folder, "-scale", 0.04, "-train", 20, "-sn", 4, "-lr", 1e-3, *flags)
    _, args = sbp_cnn.parse([*map(str, flags)])
    result = load(start(*flags, "-speed", 0, "-pretrained", path), "model")
    data, before = images.load("folder", str(folder)), load_file(path)

    def error(**changed) -> float:
        """Largest difference, in units of how far the parameter has moved."""
        told = vars(args) | {name: x for name, x in changed.items() if name != "wrong"}
        reference = Reference(type(args)(**told), before, data, changed.get("wrong", ""))
        first = {name: x.clone() for name, x in reference.w.items()}
        found = {}
        for name, x in reference.run().items():
            site, _, kind = name.partition(".")
            ours = result.get(f"{NAMES.get(site, site)}.{kind}", result.get(f"{site}.parametrizations.weight.original"))
            found[name] = float((ours - x).norm() / (x - first[name]).norm())
        return max(found.values())

    assert error() < 0.01
    for wrong in wrongs:
        assert error(**(wrong if isinstance(wrong, dict) else {"wrong": wrong})) > 0.05, wrong
