"""The device of the flag, and the settings of the whole process, in a process of its own."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from experiment.device import resolve

ROOT = Path(__file__).parents[2]


@pytest.fixture
def gpus(monkeypatch):
    """gpus(n): from now on this machine seems to have n of them."""

    def pretend(n: int) -> None:
        monkeypatch.setattr(torch.cuda, "device_count", lambda: n)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: n > 0)

    return pretend


@pytest.mark.parametrize("count, name, device", [
    (0, "auto", "cpu"), (1, "auto", "cuda"), (0, "cpu", "cpu"), (2, "cpu", "cpu"),
    (1, "cuda", "cuda"), (1, "cuda:0", "cuda:0"), (2, "cuda:1", "cuda:1"),
])  # fmt: skip
def test_a_device_that_is_there(gpus, count, name, device):
    gpus(count)
    assert resolve(name) == torch.device(device)


@pytest.mark.parametrize("count, name", [(0, "cuda"), (0, "cuda:0"), (1, "cuda:1"), (2, "cuda:7")])
def test_a_gpu_that_is_absent_is_refused(gpus, count, name):
    gpus(count)
    with pytest.raises(ValueError, match=f"argument -device: {name} .* {count} GPUs") as error:
        resolve(name)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["", "gpu", "Auto", "cuda:", "cuda:x", "cuda:-1", "cuda 1", "mps", "meta", "0"])
def test_nonsense_is_refused(gpus, name):
    gpus(2)
    with pytest.raises(ValueError, match="argument -device: ") as error:
        resolve(name)
    assert "\n" not in str(error.value) and f"'{name}'" in str(error.value)


PROGRAM = """
import json, torch
from experiment.device import prepare

def kept(n):
    denormal = torch.full((n,), 0x000FFFFF, dtype=torch.int32).view(torch.float32)
    return int((denormal * 0.5).view(torch.int32).count_nonzero())

before = kept(10)
prepare()
print(json.dumps({"before": before, "after": kept(10), "parallel": kept(2_000_000), "threads": torch.get_num_threads(),
                  "possible": torch.set_flush_denormal(True), "float": float(torch.ones(3).sum())}))
"""


def test_denormals_are_flushed_in_every_thread():
    environment = os.environ | {"OMP_NUM_THREADS": "2"}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, done.stderr) == (0, "")
    found = json.loads(done.stdout)
    if not found["possible"]:
        pytest.skip("this processor cannot flush denormals")
    assert found["threads"] == 2 and found["float"] == 3
    assert (found["before"], found["after"], found["parallel"]) == (10, 0, 0)
