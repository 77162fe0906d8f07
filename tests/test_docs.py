"""The commands, links, numbers of lines and examples of README.md and docs/ are true."""

import functools
import importlib
import itertools
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from data.uci import SOURCES
from tests.conftest import free_port

ROOT = Path(__file__).parents[1]
PAGES = {page.name: page.read_text() for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))}
SCRIPTS = {path.stem for path in ROOT.glob("*.py")}
EXAMPLES = sorted(path.stem for path in (ROOT / "examples").glob("new_*.py"))
SMALL = {  # flags that come behind a command's own, and make it small
    "lr_simulation": "-iterations 100 -thin 10 -burn 2 -n 20 -p 20 -compile 0",
    "uci_run": "-sn 2 -burn 1 -thin 1 -seeds 2",
    "posterior_cnn": "-sn 2 -burn 1 -thin 1 -train 16 -seeds 1 -attack_images 4 -pgd_images 2 -pgd_steps 1",
    "bayes_cnn": "-sn 1 -train 8",
    "sbp_cnn": "-sn 1 -dense_sn 1 -train 8 -scale 0.1 -speed 0",
    "em_cnn": "-sn 2 -cycles 2 -samples_per_cycle 1 -train 16 -speed 0",
    "em_regression": "-epochs 4 -cycles 2 -warmup 2 -n 64 -test 32 -train 32 -seeds 2 -record 1",
    "sa_convergence": "-iterations 50 -count 20",
}
CELLS = {"table2": ["method=vanilla"], "table3": ["method=dense"]}  # of reproduce.py: small ones
WHERE_GIVEN = {"-warm": "2", "-threshold_sweep": "2", "-compile": "0", "-device": "cpu", "-amp": "0"}
DIGITS = {"posterior_cnn": "128", "bayes_cnn": "256", "sbp_cnn": "256", "em_cnn": "256"}  # -train: more images


def blocks(text: str, language: str = "") -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.S | re.M)


def commands(text: str, every: bool = True) -> list[list[str]]:
    """The words of every command of a script, `X.py` first; in loops with all values, or with the first ones only."""
    found = []
    for block in blocks(text):
        loops = {name: values.split() for name, values in re.findall(r"for (\w+) in ([^;]*);", block)}
        loops = loops if every else {name: values[:1] for name, values in loops.items()}
        for line in block.splitlines():
            start = re.match(r"\s*(python|torchrun .*?) (?=\w+\.py)", line)
            if not start or (start.group(1) != "python" and not every):
                continue
            used = {name: values for name, values in loops.items() if f"${name}" in line}
            for values in itertools.product(*used.values()):
                one = line[start.end() :]
                for name, value in zip(used, values, strict=True):
                    one = one.replace(f"${name}", value)
                found.append(shlex.split(one, comments=True))
    return found


COMMANDS = list(dict.fromkeys(tuple(command) for text in PAGES.values() for command in commands(text)))


def test_every_script_has_a_command_in_the_readme():
    assert {command[0] for command in commands(PAGES["README.md"])} == {f"{s}.py" for s in SCRIPTS}


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_the_flags_of_every_command_exist(command):
    _, args = importlib.import_module(command[0].removesuffix(".py")).parse(list(command[1:]))
    given = [word.lstrip("-") for word in command[1:] if re.match(r"-[a-zA-Z]", word)]
    assert all(name in vars(args) for name in given)


def test_the_targets_of_make_exist():
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.M))
    named = {name for text in PAGES.values() for name in re.findall(r"(?:^|`)make ([\w-]+)", text, re.M)}
    assert {"demo", "test", "results"} <= named <= targets


def test_the_modules_of_commands_exist():
    modules = {name for text in PAGES.values() for name in re.findall(r"python -m ([\w.]+)", text)}
    assert {"figures.choosing", *(f"examples.{name}" for name in EXAMPLES)} <= modules
    assert all(importlib.util.find_spec(name) for name in modules)


# links


def slug(heading: str) -> str:
    """The anchor that GitHub makes of a heading."""
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def links(text: str) -> list[tuple[str, str]]:
    """Texts and targets of the links outside code."""
    text = re.sub(r"^```.*?^```", "", text, flags=re.S | re.M)
    return re.findall(r"\[([^\]]*)\]\(([^)]+)\)", text)


@pytest.mark.parametrize("page", PAGES)
def test_every_link_leads_somewhere(page):
    folder = ROOT if page == "README.md" else ROOT / "docs"
    for _, target in links(PAGES[page]):
        if target.startswith("http"):
            continue
        path, _, anchor = target.partition("#")
        place = (folder / path).resolve() if path else ROOT / page if page == "README.md" else folder / page
        assert place.exists() and place.is_relative_to(ROOT), target
        if anchor:
            headings = re.findall(r"^#+ (.*)", place.read_text(), re.M)
            assert anchor in map(slug, headings), target


@pytest.mark.parametrize("page", [page for page in PAGES if page != "README.md"])
def test_every_name_in_a_link_exists(page):
    """[`module.name`](../folder/module.py) names something in that module."""
    named = [(text, target) for text, target in links(PAGES[page]) if re.fullmatch(r"`[\w.]+`", text)]
    for text, target in named:
        module, *names = text.strip("`").split(".")
        path = (ROOT / "docs" / target).resolve().relative_to(ROOT)
        assert path.stem == module, (text, target)
        found = importlib.import_module(".".join(path.with_suffix("").parts))
        assert names and functools.reduce(getattr, names, found) is not None, text


# programs


@pytest.fixture
def printed_by(script, tmp_path):
    """printed_by(program): what it prints, with every warning an error."""

    def run(program: str) -> str:
        (tmp_path / "program.py").write_text(f"import warnings\nwarnings.simplefilter('error')\n{program}")
        result = script.run(str(tmp_path / "program.py"), out=None)
        assert result.code == 0, result.stderr
        return result.stdout

    return run


def test_the_programs_of_the_readme_run(printed_by):
    sampler, noise, groups = blocks(PAGES["README.md"], "python")
    sparsity = float(re.search(r"tensor\((.*)\)", printed_by(sampler)).group(1))
    assert 0.42 < sparsity < 0.44  # 0.5 (1 - 0.99^200)
    hidden = int(re.search(r"in_features=(\d+), out_features=3", printed_by(noise)).group(1))
    assert hidden < 50
    assert printed_by(groups) == "tensor([0, 1, 2])\n"


@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_is_short_and_prints_what_the_page_says(name, printed_by):
    source = (ROOT / "examples" / f"{name}.py").read_text()
    assert len(source.splitlines()) < 60
    assert not re.search(rf"import ({'|'.join(SCRIPTS)})\b", source)
    head = f"$ python -m examples.{name}\n"
    (shown,) = [block.removeprefix(head) for block in blocks(PAGES["extending.md"]) if block.startswith(head)]
    output = printed_by(f"import runpy\nrunpy.run_module('examples.{name}', run_name='__main__')")
    number = r"\d+\.\d+"
    assert re.sub(number, "", output) == re.sub(number, "", shown)
    numbers = ([float(x) for x in re.findall(number, text)] for text in (output, shown))
    np.testing.assert_allclose(*numbers, rtol=0.03, atol=0.1)  # another processor rounds in another way


# every command, at small size


@pytest.fixture(scope="module")
def small_data(tmp_path_factory):
    """A data folder with a small stand-in for every data set of the commands."""
    rng, root = np.random.default_rng(0), tmp_path_factory.mktemp("data")
    for name in ("MNIST", "FashionMNIST"):
        folder = root / name / "raw"
        folder.mkdir(parents=True)
        for part, count in (("train", 64), ("t10k", 32)):
            x, y = rng.integers(256, size=(count, 28, 28), dtype=np.uint8), np.arange(count, dtype=np.uint8) % 10
            for kind, array in (("images-idx3", x), ("labels-idx1", y)):
                header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
                (folder / f"{part}-{kind}-ubyte").write_bytes(header + array.tobytes())
    for tree, side in ((".", 32), ("cifar10", 32), ("cifar100", 8)):
        for part, label, i in itertools.product(("train", "test"), ("cat", "dog"), range(8)):
            file = root / tree / part / label / f"{i}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(256, size=(side, side, 3), dtype=np.uint8)).save(file)
    (root / "uci").mkdir()
    for source in (source for name, source in SOURCES.items() if name != "power-plant"):
        path, columns = root / source.file.path, source.features + 1 + len(source.drop)
        frame = pd.DataFrame(rng.standard_normal((source.rows, columns)))
        if source.read:
            frame.to_csv(
                path, sep=source.read["sep"].replace(r"\s+", " "), header="header" not in source.read, index=False
            )
        else:
            with path.open("wb") as file:
                frame.to_excel(file, index=False, engine="openpyxl")
    return root


def made_small(command: list[str], data: Path) -> list[str]:
    script = command[0].removesuffix(".py")
    flags = [*command[1:], *SMALL[script].split()]
    if "digits" in command:
        flags += ["-train", DIGITS[script]]
    if "wrn28-10" in command:
        flags += ["-scale", "0.1"]
    for name, value in WHERE_GIVEN.items():
        flags += [name, value] if name in command else []
    if hasattr(importlib.import_module(script).parse([])[1], "data_dir"):
        flags += ["-data_dir", str(data)]
    return flags


@pytest.mark.slow
@pytest.mark.parametrize("script", sorted(SCRIPTS - {"reproduce"}))
def test_every_command_runs(script, small_data, in_process, tmp_path):
    """In their order, in one folder: some start from the results of those before them."""
    module = importlib.import_module(script)
    found = [tuple(command) for text in PAGES.values() for command in commands(text, every=False)]
    for command in dict.fromkeys(command for command in found if command[0] == f"{script}.py"):
        if "resnet20.pth" in command:  # a network in a file
            weights = load_file(tmp_path / "empty/runs/bayes_cnn/dense_cifar10_resnet20_seed1/model.safetensors")
            torch.save(weights, tmp_path / "empty/resnet20.pth")
        result = in_process(module, *made_small(list(command), small_data))
        assert result.code == 0, f"{' '.join(command)}\n{result.stderr}"
        assert "results: " in result.stdout


@pytest.mark.slow
def test_the_commands_of_the_figures_run(small_data, in_process, tmp_path, monkeypatch, capsys):
    """From the runs of the commands above them."""
    page = PAGES["choosing.md"]
    for command in commands(page, every=False):
        module = importlib.import_module(command[0].removesuffix(".py"))
        assert in_process(module, *made_small(command, small_data)).code == 0
    monkeypatch.chdir(tmp_path / "empty")
    for folder in ("figures", "results"):
        Path(folder).mkdir()
    drawing = re.findall(r"^python -m (\S+) (.*)$", page, re.M)
    assert len(drawing) == 3
    for module, line in drawing:
        words = [str(path) for word in line.split() for path in (sorted(Path().glob(word)) or [word])]
        monkeypatch.setattr(sys, "argv", [module, *words])
        monkeypatch.delitem(sys.modules, module, raising=False)  # as in a new interpreter
        runpy.run_module(module, run_name="__main__")
        (written,) = capsys.readouterr().out.splitlines()
        assert Path(written).stat().st_size > 0 and (ROOT / written).exists()


@pytest.mark.slow
def test_the_commands_of_a_cluster_run(script, tmp_path):
    """Of a scheduler and a worker, on a free port of this machine."""
    shown, *more = [block for block in blocks(PAGES["reproducing.md"]) if "dask scheduler" in block]
    assert not more
    port = free_port()
    programs = [line.split("#")[0].removeprefix("PYTHONPATH=. ") for line in shown.splitlines()]
    words = [line.replace("host:8786", f"127.0.0.1:{port}").split() for line in programs]
    assert [found[:2] for found in words] == [["dask", "scheduler"], ["dask", "worker"]]
    words[0] += ["--host", "127.0.0.1", "--port", port, "--no-dashboard"]
    words[1] += ["--no-dashboard", "--local-directory", str(tmp_path)]
    started = [
        subprocess.Popen([sys.executable, "-m", *found], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.STDOUT)
        for found in words
    ]
    try:
        flags = ("uci", "-protocol", "quick", "-only", "data=diabetes", "method=sa")
        run = script.run("reproduce.py", "run", *flags, "-scheduler", f"tcp://127.0.0.1:{port}", out=tmp_path / "runs")
    finally:
        for process in reversed(started):
            process.terminate()
            process.wait(60)
    assert run.code == 0, run.stdout + run.stderr
    assert "1 cells, 0 finished before" in run.stdout and "uci: 1 finished" in run.stdout


@pytest.mark.slow
def test_every_command_of_reproduce_runs(in_process, tmp_path):
    """With one cell of the first table; the scheduler left out, which has a test of its own."""
    module = importlib.import_module("reproduce")
    for command in dict.fromkeys(command for command in COMMANDS if command[0] == "reproduce.py"):
        words = list(command[1:])
        if "-scheduler" in words:
            del words[words.index("-scheduler") : words.index("-scheduler") + 2]
        only = CELLS.get(words[1] if len(words) > 1 else "", ["data=diabetes", "method=sa"])
        result = in_process(module, *words, "-protocol", "quick", "-only", *only, out=tmp_path / "runs")
        assert result.code == 0, f"{' '.join(command)}\n{result.stdout}{result.stderr}"
        assert words[0] not in ("run", "report") or "report: " in result.stdout
