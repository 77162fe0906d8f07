"""sbp_cnn.py on two processes of a CPU, started as torchrun starts them, against one process."""

import itertools
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file, save_file

import sbp_cnn

SCRIPT = "sbp_cnn.py"

pytestmark = pytest.mark.slow


@pytest.fixture
def network(tmp_path):
    """network(model, scale, side): the file of a network that nobody has trained, in its first batches."""

    def make(model: str, scale: float, side: int) -> Path:
        torch.manual_seed(3)
        net = sbp_cnn.MODELS[model]((1, side, side), 2, scale).train()
        with torch.no_grad():
            net(torch.rand(50, 1, side, side))
        save_file(net.state_dict(), tmp_path / f"{model}.safetensors")
        return tmp_path / f"{model}.safetensors"

    return make


def close(one: Path, other: Path, rtol: float, normed: bool) -> None:
    """Weights, noise, moments and metrics up to rounding; the same random numbers and images.

    normed: in a network that trains batch norm, biases before it have no gradient but rounding, of which Adam makes
    steps of any sign: there the moments of all gradients that are more are compared, and not the weights.
    """
    a, b = (load_file(folder / "checkpoint.safetensors") for folder in (one, other))
    assert a.keys() == b.keys()
    largest = max(x.norm() for name, x in a.items() if name.endswith(".exp_avg"))
    compared = 0
    for name, x in a.items():
        if name.startswith(("random.", "own.")) or name.endswith((".step", "num_batches_tracked")):
            assert torch.equal(x, b[name]), name
        elif not normed or "running" in name or (name.endswith(".exp_avg") and x.norm() > 1e-4 * largest):
            error, size = (x - b[name]).double().norm(), x.double().norm()
            assert error <= rtol * size + 1e-7, (name, error, size)
            compared += name.endswith(".exp_avg")
    assert compared > 10 or not normed
    tables = [pd.read_csv(folder / "metrics.csv") for folder in (one, other)]
    pd.testing.assert_frame_equal(*tables, rtol=rtol, check_dtype=False)


def test_two_processes_compute_what_one_does(two_ranks, slow_disk, start, network, pictures, snapshot, tmp_path):
    """Of two processes the first one writes, and may be slower at that than the second one reads; and it speaks."""
    small, large = pictures(), pictures(side=32, root="large")
    fc = ("-data", "folder", "-data_dir", small, "-scale", 0.04, "-sn", 3, "-train", 20, "-finetune", 2)
    vgg = ("-data", "folder", "-data_dir", large, "-model", "vgglike", "-scale", 0.05, "-sn", 1, "-train", 20)
    vgg = (*vgg, "-lr", 1e-4, "-speed", 0, "-pretrained", network("vgglike", 0.05, 32))
    settings = {
        "sbp": (*fc, "-noise_lr", 300, "-dense_sn", 2, "-tensorboard", 1, "-export", tmp_path / "exported"),
        "sparsevd": (*fc[:-2], "-c", "sparsevd", "-dense_sn", 1, "-speed", 0),
        "vgg_sbp": (*vgg, "-c", "sbp"),
        "vgg_ssl": (*vgg, "-c", "ssl"),
        "vgg_sparsevd": (*vgg, "-c", "sparsevd", "-aug", 0),
    }
    commands = [
        (*flags, "-device", "cpu", "-out", tmp_path / f"two_{name}", "then") for name, flags in settings.items()
    ]
    two = two_ranks(slow_disk("model.safetensors", "summary.json"), *itertools.chain(*commands))
    assert two.code == 0, two.stderr
    assert two.stdout.count("results: ") == 5 and "Traceback" not in two.stderr
    warnings = [line for line in two.stderr.splitlines() if "Warning" in line]
    assert all("Grad strides do not match bucket view strides" in line for line in warnings), warnings  # of one channel
    for name, flags in settings.items():
        without = flags[: flags.index("-export")] if "-export" in flags else flags
        one, other = Path(start(*without, "-speed", 0, out=f"one_{name}").folder), tmp_path / f"two_{name}"
        normed = name in ("vgg_ssl", "vgg_sparsevd")
        rtol = 0.02 if normed else 1e-4
        for part in ("", "dense", "finetune") if name == "sbp" else ("",):
            close(one / part, other / part, rtol, normed)
        tables = [pd.read_csv(folder / "table.csv") for folder in (one, other)]
        pd.testing.assert_frame_equal(*tables, rtol=rtol, check_dtype=False)
        found = [{file for file in snapshot(folder) if "events" not in file} for folder in (one, other)]
        assert found[1] - {"speed.csv"} == found[0] and ("speed.csv" in found[1]) == (name == "sbp")
    events = [*(tmp_path / "two_sbp").rglob("events.out*")]
    assert sorted(path.parents[1].name for path in events) == ["dense", "finetune", "two_sbp"]
    assert {path.name for path in (tmp_path / "exported").iterdir()} == {"network.pt2", "network.onnx"}
