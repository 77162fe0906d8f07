"""What em_cnn.py refuses, and what it says when a chain diverges."""

import json

import pandas as pd
import pytest
from safetensors import safe_open

import em_cnn

SCRIPT = "em_cnn.py"
CYCLES = ("-sn", 4, "-cycles", 2, "-samples_per_cycle", 1)
TINY = ("-data", "digits", "-model", "resnet20", *CYCLES, "-train", 200, "-speed", 0)
FEW = ("-model", "resnet20", *CYCLES, "-train", 20, "-speed", 0)  # 3 iterations an epoch


def text(flags) -> str:
    return " ".join(map(str, flags))


def test_the_last_values_that_are_allowed(on_pictures):
    """Next to those that test_image_scripts_refused.py has refused."""
    flags = ("-warmup", 3, "-samples_per_cycle", 2, "-eps0", 5e-4, "-train", 60)
    assert on_pictures(*flags).table["samples"].item() == 1


@pytest.mark.parametrize("flags", [(), ("-scale", 0.5)], ids=text)
def test_images_that_are_too_small_for_a_network(refused, pictures, flags):
    folder = pictures(side=3)
    message = refused(em_cnn, *TINY, "-data", "folder", "-data_dir", folder, "-train", 20, "-model", "densenet", *flags)
    assert "argument -model: densenet needs images of at least 4 x 4, not 3 x 3" in message


def diverged(result) -> str:
    """The last line of a run that has diverged and has no results."""
    assert result.stdout == "" and "Traceback" not in result.stderr
    assert not (result / "summary.json").exists() and not (result / "table.csv").exists()
    *_, last = result.stderr.splitlines()
    assert last.startswith("diverged: folder resnet20 ")
    return last


@pytest.mark.parametrize("flags", [("-lr", 1e4), ("-c", "sgd", "-lr", 1e25), ("-temperature", 1e15)], ids=text)
def test_a_diverged_run_stops(on_pictures, flags):
    iteration, advice = diverged(on_pictures(*flags, code=3)).split("at iteration ")[1].split("; ")
    assert 1 <= int(iteration) <= 13 and float(advice.removeprefix("use a smaller step: -lr ")) > 0


@pytest.mark.parametrize("warmup", [0, 2])
def test_a_diverged_run_names_the_iteration_and_keeps_its_last_good_checkpoint(on_pictures, infinite_at, warmup):
    infinite_at(5)
    result = on_pictures("-save_every", 0, "-warmup", warmup, code=3)
    assert diverged(result) == "diverged: folder resnet20 em seed 1 at iteration 5; use a smaller step: -lr 0.1"
    assert pd.read_csv(result / "metrics.csv")["epoch"].tolist() == [1]
    with safe_open(result / "checkpoint.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["state"])["done"] == 1
        assert all(file.get_tensor(name).isfinite().all() for name in file.keys())  # noqa: SIM118, not a dict


def test_when_one_seed_diverges_the_others_finish(on_pictures, infinite_at):
    alone = on_pictures("-seed", 2, out="alone")
    infinite_at(3)
    result = on_pictures("-seeds", 2, code=3)
    *_, last = result.stderr.splitlines()
    assert last.startswith("diverged: folder resnet20 em seed 1 at iteration 3; ") and "seed 2" not in last
    assert not (result / "seed1/table.csv").exists()
    assert (result / "seed2/table.csv").read_bytes() == (alone / "table.csv").read_bytes()
    assert result.table["seed"].tolist() == [2] and result.summary["seeds"] == 1
