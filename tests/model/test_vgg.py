"""The VGG-like network: the computation by functions, its sizes, where dropout stands."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from model.vgg import vgglike

WIDTHS = [64, 64, 128, 128, 256, 256, 256, *[512] * 6]
POOLED = (2, 4, 7, 10, 13)  # after these convolutions


def randomised(net: nn.Sequential, seed: int = 0) -> nn.Sequential:
    """In evaluation mode and float64; nothing in batch norm is zero or one, and images differ in their logits."""
    generator = torch.Generator().manual_seed(seed)
    net = net.double().eval()

    def normal(x: torch.Tensor) -> torch.Tensor:
        return torch.randn(x.shape, generator=generator, dtype=x.dtype)

    with torch.no_grad():
        for name, x in net.state_dict().items():
            if x.ndim > 1:
                x.copy_((2 / x[0].numel()) ** 0.5 * normal(x))
            elif name.endswith("var") or (name.startswith("bn") and name.endswith("weight")):
                x.copy_(1 + 0.5 * torch.rand(x.shape, generator=generator, dtype=x.dtype))
            elif x.ndim == 1:
                x.copy_(0.3 * normal(x))
    return net


def pixels(n: int, *shape: int) -> torch.Tensor:
    return torch.randn(n, *shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


def normalised(y: torch.Tensor, w: dict, name: str) -> torch.Tensor:
    """Batch norm in evaluation mode by its definition, then ReLU."""
    weight, bias, mean, variance = (
        w[f"{name}.{part}"].view(-1, *[1] * (y.ndim - 2)) for part in ("weight", "bias", "running_mean", "running_var")
    )
    return ((y - mean) / torch.sqrt(variance + 1e-5) * weight + bias).clamp(min=0)


@pytest.mark.parametrize("dropout", [False, True])
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 33, 70)], ids=str)
def test_the_network_is_its_definition(shape, dropout):
    net = randomised(vgglike(shape, 7, 0.1, dropout))
    w, y = net.state_dict(), pixels(3, *shape)
    for i in range(1, 14):
        y = normalised(F.conv2d(y, w[f"conv{i}.weight"], w[f"conv{i}.bias"], padding=1), w, f"bn{i}")
        if i in POOLED:
            y = F.max_pool2d(y, 2)
    y = normalised(y.reshape(3, -1) @ w["fc1.weight"].T + w["fc1.bias"], w, "bn14")
    y = y @ w["fc2.weight"].T + w["fc2.bias"]
    with torch.no_grad():
        torch.testing.assert_close(net(pixels(3, *shape)), y, rtol=1e-9, atol=1e-10)
    assert y.shape == (3, 7) and y.std(0).min() > 0.01


def test_the_sizes_of_the_paper():
    with torch.device("meta"):
        net = vgglike((3, 32, 32), 10)
    params = dict(net.named_parameters())
    before = [3, *WIDTHS]
    expected = {f"conv{i}": (out, into, 3, 3) for i, (into, out) in enumerate(zip(before, WIDTHS, strict=False), 1)}
    expected |= {"fc1": (512, 512), "fc2": (10, 512)}
    assert {name[:-7]: tuple(p.shape) for name, p in params.items() if p.ndim > 1} == expected
    assert all(f"{name}.bias" in params for name in expected)
    assert sum(p.numel() for p in params.values()) == 14_991_946


def test_the_scale_is_of_all_widths():
    net = vgglike((3, 32, 32), 10, 0.1)
    widths = [len(net.get_submodule(f"conv{i}").bias) for i in range(1, 14)]
    assert widths == [6, 6, 13, 13, 26, 26, 26, *[51] * 6] and len(net.fc1.bias) == 51 and len(net.fc2.bias) == 10


def test_dropout_stands_where_it_is_usual_and_has_no_weights():
    dense, plain = vgglike((3, 32, 32), 10, 0.05, dropout=True), vgglike((3, 32, 32), 10, 0.05)
    assert not any(isinstance(module, nn.Dropout) for module in plain)
    names = list(dict(dense.named_children()))
    behind = {names[i - 1]: m.p for i, m in enumerate(dense) if isinstance(m, nn.Dropout)}
    assert behind == {
        "relu1": 0.3, "relu3": 0.4, "relu5": 0.4, "relu6": 0.4, "relu8": 0.4, "relu9": 0.4, "relu11": 0.4,
        "relu12": 0.4, "pool5": 0.5, "relu14": 0.5,
    }  # fmt: skip
    plain.load_state_dict(dense.state_dict())  # the other methods start from the dense network
    x = pixels(2, 3, 32, 32).float()
    assert torch.equal(plain.eval()(x), dense.eval()(x))


@pytest.mark.parametrize("sides", [(31, 32), (32, 31), (8, 8)])
def test_too_small_images_are_refused(sides):
    with pytest.raises(ValueError, match=f"at least 32 x 32, not {sides[0]} x {sides[1]}"):
        vgglike((3, *sides), 10)
