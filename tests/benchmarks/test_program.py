"""python -m benchmarks: all of them leave rows, some may be chosen, and bad input is refused in one line."""

import sys
from pathlib import Path

import pandas as pd
import pytest

from benchmarks import __main__ as program
from experiment import options

ROOT = Path(__file__).parents[2]
ROWS = {  # module: how the names of its benchmarks begin
    "lr_simulation": ["lr_simulation"],
    "uci": ["uci_run"],
    "posterior_cnn": ["posterior_cnn, batch", "posterior_cnn, mnist", "posterior_cnn, fmnist", "augmentation"],
    "bayes_cnn": ["bayes_cnn, ResNet20, batch", "inference, ResNet20"],
    "sbp_cnn": ["sbp_cnn, lenet5", "sbp_cnn, vgglike"],
    "em_cnn": ["em_cnn, ResNet20"],
    "latent_update": ["parts of a step", "add_grad and update"],
    "pruning": ["pruning, ResNet20"],
    "memory": ["peak memory of the posterior average"],
    "scaling_p": ["lr_simulation, cost against p"],
    "scaling_depth": ["bayes_cnn, batch"],
    "scaling_chains": ["lr_simulation, cost against chains", "uci_run, cost against chains"],
}
CURVES = {"memory": "samples", "scaling_p": "p", "scaling_depth": "depth", "scaling_chains": "chains"}


@pytest.fixture(scope="module")
def everything(shared_run):
    """The rows of a quick run of all, made once for all workers."""
    committed = (ROOT / "results" / "benchmarks.csv").read_bytes()
    done = shared_run("quick_benchmarks.csv", "-m", "benchmarks", "-quick", 1)
    assert done.code == 0, done.stderr
    assert (ROOT / "results" / "benchmarks.csv").read_bytes() == committed
    return pd.read_csv(done.folder)


def test_every_benchmark_is_known_here():
    assert tuple(ROWS) == program.NAMES
    files = {path.stem for path in (ROOT / "benchmarks").glob("*.py") if "\ndef main(" in path.read_text()}
    assert files == {*ROWS, "__main__"}


@pytest.mark.slow
@pytest.mark.parametrize("name", ROWS)
def test_every_benchmark_leaves_rows(everything, name):
    for prefix in ROWS[name]:
        found = everything[
            everything["benchmark"].str.startswith(prefix) & (everything["against"].notna() == (name in CURVES))
        ]
        for _, rows in found.groupby("benchmark"):
            assert (rows["value"] > 0).all() and (rows["ratio"] > 0).all() and rows["value"].max() < float("inf")
            cases = list(dict.fromkeys(rows["case"]))
            assert len(cases) >= 2 and (rows[rows["case"] == cases[0]]["ratio"] == 1).all()
            assert rows["hardware"].str.contains("torch").all()
        assert len(found), prefix


@pytest.mark.slow
@pytest.mark.parametrize("name", CURVES)
def test_curves_have_an_exponent(everything, name):
    rows = everything[everything["against"] == CURVES[name]]
    assert rows["exponent"].notna().all() and (rows["exponent_se"] >= 0).all()
    for _, curve in rows.groupby(["benchmark", "case"]):
        assert curve["at"].is_monotonic_increasing and len(curve) >= 3 and curve["exponent"].nunique() == 1
    assert not everything["against"].isna().all() and everything["exponent"].isna().any()  # and the others none


def test_only_some(script, tmp_path):
    file = tmp_path / "rows.csv"
    before = (ROOT / "results" / "benchmarks.csv").read_text().splitlines()
    file.write_text("\n".join(before) + "\n")
    done = script.run("-m", "benchmarks", "-only", "uci", "-quick", 1, out=file)
    assert done.code == 0, done.stderr
    old = pd.read_csv(ROOT / "results" / "benchmarks.csv", dtype=str)
    new = pd.read_csv(file, dtype=str)
    shared = list(old.columns)
    kept = old[old["benchmark"] != "uci_run"].reset_index(drop=True)
    pd.testing.assert_frame_equal(new[new["benchmark"] != "uci_run"].reset_index(drop=True)[shared], kept)
    assert new[new["benchmark"] == "uci_run"]["case"].tolist() == ["torch loop, 1 chain", "60 chains"]
    assert new.iloc[-1]["benchmark"] == "uci_run"


def test_the_others_go_on_when_one_fails(tmp_path, monkeypatch, capsys):
    ran = []

    def fresh(_, module, bench):
        ran.append(module)
        if module == "benchmarks.uci":
            raise RuntimeError("out of memory")

    monkeypatch.setattr(program, "fresh", fresh)
    monkeypatch.setattr(sys, "argv", ["benchmarks", "-only", "uci", "pruning", "-out", str(tmp_path / "rows.csv")])
    assert program.main() == 1
    assert ran == ["benchmarks.uci", "benchmarks.pruning"]
    error = capsys.readouterr().err
    assert "out of memory" in error and error.endswith("failed: uci\n")


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["-only", "uci", "everything"], ["-only", "'everything'", "scaling_p"]),
        (["-only"], ["-only"]),
        (["-quick", "1"], ["-quick", "-out"]),
        (["-quick", "2", "-out", "rows.csv"], ["-quick", "'2'"]),
        (["-out", "no/such/folder/rows.csv"], ["-out", "no/such/folder/rows.csv"]),
        (["-out", "."], ["-out"]),
        (["-onl", "uci"], ["-onl"]),
    ],
)
def test_bad_input_is_refused_in_one_line(flags, words, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["benchmarks", *flags])
    with pytest.raises(SystemExit) as stop:
        options.run_script(program.main)
    output = capsys.readouterr()
    assert stop.value.code == 2 and output.out == "" and not list(tmp_path.iterdir())
    (line,) = output.err.splitlines()
    assert line.startswith("benchmarks: error: ") and all(word in line for word in words), line
