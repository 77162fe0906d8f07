"""What the tests of the image scripts share: small image data sets on disk, runs that stop, and comparisons.

The constant SCRIPT of a test module names the script that it tests.
"""

from __future__ import annotations

import importlib
import itertools
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch.nn.functional import cross_entropy

from tests.conftest import Result, done, free_port
from tests.forked import ROOT

pytest.register_assert_rewrite("tests.scripts.sbp_cnn_shared")  # its checks say what differs, as a test does

CLASSES = {"cat": 30, "dog": 30}
FEW = {"cat": 8, "dog": 8}
SAME = ("table.csv", "metrics.csv", "model.safetensors", "predictions.safetensors")


@pytest.fixture
def pictures(tmp_path):
    """pictures(train, test, side, root): {train,test}/<class>/*.png with so many grey images of every class."""

    def make(train: dict = CLASSES, test: dict = FEW, side: int = 12, root: str = "pictures") -> Path:
        rng = np.random.default_rng(0)
        for part, counts in (("train", train), ("test", test)):
            for level, (name, count) in enumerate(sorted(counts.items()), 1):
                folder = tmp_path / root / part / name
                folder.mkdir(parents=True)
                for i in range(count):
                    Image.fromarray(rng.integers(80 * level, size=(side, side), dtype=np.uint8)).save(
                        folder / f"{i:03d}.png"
                    )
        return tmp_path / root

    return make


@pytest.fixture
def idx_files(tmp_path):
    """A data folder with 300 + 100 images of 28 x 28 pixels in the place of MNIST and of Fashion-MNIST."""
    rng = np.random.default_rng(0)
    for name, noise in (("MNIST", 60), ("FashionMNIST", 200)):
        folder = tmp_path / "idx" / name / "raw"
        folder.mkdir(parents=True)
        for part, count in (("train", 300), ("t10k", 100)):
            y = np.arange(count) % 10
            x = rng.integers(noise, size=(count, 28, 28), dtype=np.uint8)
            for i, label in enumerate(y):  # a bright stroke whose place is the class
                x[i, 4 + 2 * label : 6 + 2 * label, 4:24] = 255
            for file, array in ((f"{part}-images-idx3-ubyte", x), (f"{part}-labels-idx1-ubyte", y.astype(np.uint8))):
                header = bytes([0, 0, 8, array.ndim]) + b"".join(n.to_bytes(4, "big") for n in array.shape)
                (folder / file).write_bytes(header + array.tobytes())
    return tmp_path / "idx"


@pytest.fixture
def tested(request):
    """The module of the script."""
    return importlib.import_module(request.module.SCRIPT.removesuffix(".py"))


@pytest.fixture
def start(tested, in_process, tmp_path):
    """start(*flags, out, code): the script in this process, with the exit status that it must have.

    out=None: in its default folder.
    """

    def run(*flags, out: Path | str | None = "run", code: int = 0):
        result = in_process(tested, *flags, out=tmp_path / out if out else None)
        assert result.code == code, result.stderr
        return result

    return run


@pytest.fixture
def on_pictures(request, start, pictures):
    """on_pictures(*flags, out, code): the script with the flags FEW of the test module on 60 grey pictures."""
    flags = (*request.module.FEW, "-data", "folder", "-data_dir", pictures())
    return lambda *more, **kwargs: start(*flags, *more, **kwargs)


@pytest.fixture
def interrupted(tested, start, monkeypatch):
    """interrupted(*flags, at, out, resume): the same, interrupted by the user in the iteration `at` of this piece."""

    def run(*flags, at: int, out: str = "pieces", resume: int = 1):
        calls = itertools.count(1)

        def potential(logits, y):
            if next(calls) == at:
                raise KeyboardInterrupt
            return cross_entropy(logits, y)

        with monkeypatch.context() as stopping:
            stopping.setattr(tested, "cross_entropy", potential)
            result = start(*flags, "-save_every", 0, "-resume", resume, out=out, code=130)
        assert not (result / "summary.json").exists() and result.stdout == ""
        return result

    return run


@pytest.fixture
def infinite_at(tested, monkeypatch):
    """infinite_at(iteration): the potential of this iteration of the script, counted from now on, is infinite."""

    def spoil(iteration: int) -> None:
        calls = itertools.count(1)

        def potential(logits, y):
            return cross_entropy(logits, y) * (math.inf if next(calls) == iteration else 1)

        monkeypatch.setattr(tested, "cross_entropy", potential)

    return spoil


@pytest.fixture
def killed(request, script):
    """killed(*flags, out, part, after, wait): a process of its own; returns how many epochs were done at kill -9.

    It comes `wait` seconds after a checkpoint in `out` / `part` says that `after` epochs are done.
    """

    def kill(*flags, out: Path, part: str = "", after: int, wait: float = 0.0) -> int:
        again = ("-save_every", 0, "-resume", 1)
        script.kill(request.module.SCRIPT, *flags, *again, out=out, part=part, after=after, wait=wait)
        return done(out / part)

    return kill


@pytest.fixture(scope="session")
def torchrun():
    """torchrun(program, *arguments): two processes of the CPU, started by torchrun."""

    def run(program, *arguments) -> Result:
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        done = subprocess.run(
            [*command, str(program), *map(str, arguments)],
            cwd=ROOT, capture_output=True, text=True, timeout=200,
        )  # fmt: skip
        return Result(done.returncode, done.stdout, done.stderr, "")

    return run


@pytest.fixture(scope="session")
def two_ranks(script):
    """two_ranks(program, *arguments): the same, sooner: forked with the variables that torchrun sets; their results
    as one."""

    def run(program, *arguments) -> Result:
        where = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port(), "WORLD_SIZE": "2"}
        ranks = [{"RANK": rank, "LOCAL_RANK": rank} for rank in "01"]
        both = [script.start(str(program), *arguments, **where, **rank) for rank in ranks]
        first, second = (running.result(seconds=200) for running in both)
        return Result(first.code or second.code, first.stdout + second.stdout, first.stderr + second.stderr, "")

    return run


@pytest.fixture
def two_processes(request, two_ranks):
    """two_processes(*flags, out): the script in two of them."""

    def run(*flags, out: Path) -> Result:
        return two_ranks(request.module.SCRIPT, *flags, "-device", "cpu", "-out", out)

    return run


SLOW_DISK = """
import itertools, sys, time
sys.path.insert(0, {root!r})
import {module}
from experiment import options, run, shrunk

replace = run.replace_file
shrunk.SECONDS, shrunk._sessions = 1e-3, lambda *networks: []  # no time for timings

def slow(path, write):
    time.sleep(0.5 * (path.name in {names!r}))
    replace(path, write)

run.replace_file = slow
for same, flags in itertools.groupby(sys.argv[1:], lambda flag: flag == "then"):
    if not same:
        sys.argv = ["{module}.py", *flags]
        try:
            options.run_script({module}.main)
        except SystemExit as stop:
            if stop.code:
                raise
"""


@pytest.fixture
def slow_disk(request, tmp_path):
    """slow_disk(*names): a program that is the script, but takes half a second more to write each of these files.

    Its arguments may be several command lines with "then" between them.
    """

    def make(*names: str) -> Path:
        module = request.module.SCRIPT.removesuffix(".py")
        (tmp_path / "slow_disk.py").write_text(SLOW_DISK.format(root=str(ROOT), module=module, names=names))
        return tmp_path / "slow_disk.py"

    return make


@pytest.fixture(scope="session")
def snapshot():
    """snapshot(folder): the files in it and below, with their contents."""

    def take(folder) -> dict[str, bytes]:
        return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}

    return take


@pytest.fixture
def files(snapshot):
    """files(folder): names of the files in it and below."""
    return lambda folder: set(snapshot(folder))


@pytest.fixture(scope="session")
def same_numbers():
    """same_numbers(a, b): the results in two run folders are the same to the last bit."""

    def check(a, b) -> None:
        for name in SAME:
            assert (Path(a) / name).read_bytes() == (Path(b) / name).read_bytes(), name

    return check


@pytest.fixture
def one_line(request):
    """one_line(result, *words): nothing but one line on standard error, apart from the progress of a training."""

    def check(result, *words: str) -> None:
        assert result.code == 2 and "Traceback" not in result.stderr
        start = f"{request.module.SCRIPT}: error: "
        (line,) = [line for line in result.stderr.splitlines() if line.startswith(start)]
        assert result.stderr.endswith(f"{line}\n") and all(word in line for word in words), line

    return check
