"""The README's commands and its example are true."""

import importlib
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
COMMANDS = [
    shlex.split(line, comments=True)[1:]
    for block in re.findall(r"```\n(.*?)```", README, re.S)
    for line in block.splitlines()
    if line.startswith("python ")
]


def test_every_script_has_a_command():
    assert {path.name for path in ROOT.glob("*.py")} == {command[0] for command in COMMANDS}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_flags_of_every_command_exist(command):
    _, args = importlib.import_module(command[0].removesuffix(".py")).parse(command[1:])
    given = [word.lstrip("-") for word in command[1:] if re.match(r"-[a-zA-Z]", word)]
    assert all(name in vars(args) for name in given)


def printed_by(example: str) -> str:
    run = subprocess.run([sys.executable, "-c", example], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    return run.stdout


def test_the_examples_run():
    sampler, noise, groups = re.findall(r"```python\n(.*?)```", README, re.S)
    sparsity = float(re.search(r"tensor\((.*)\)", printed_by(sampler)).group(1))
    assert 0.42 < sparsity < 0.44  # 0.5 (1 - 0.99^200)
    hidden = int(re.search(r"in_features=(\d+), out_features=3", printed_by(noise)).group(1))
    assert hidden < 50
    assert printed_by(groups) == "tensor([0, 1, 2])\n"


def test_every_link_leads_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (ROOT / target).exists(), target
