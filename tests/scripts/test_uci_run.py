"""uci_run.py as a user runs it, in small, on the data set that needs no file."""

import dataclasses
import itertools
import json
import shutil
import signal
import socket
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors import safe_open

import uci_run
from data import uci

SCRIPT = "uci_run.py"
TINY = ("-data", "diabetes", "-sn", 4, "-burn", 1)
MOVING = ("-data", "diabetes", "-sn", 30, "-burn", 10)  # long enough for the chains to leave their start
COLUMNS = ["data", "method", "anneal", "seed", "rmse", "rmse_averaged", "nll", "coverage95", "sparsity"]
PARAMETERS, PRUNABLE = 601, 550  # 10 features, 50 hidden units
SMALL_VALUES = {
    "-data": ("diabetes",), "-data_dir": ("nowhere",), "-c": ("all",), "-table": (0,), "-invT": (2,),
    "-anneal": (1.01,), "-lr": (1e-8,), "-momentum": (0.8,), "-wdecay": (0.001,), "-hidden": (7,), "-sn": (5,),
    "-train": (40,), "-burn": (1,), "-thin": (2,), "-val": (0.2,), "-v0": (0.2,), "-v1": (5,), "-a": (1.5,),
    "-b": (4,), "-nu": (2,), "-lamda": (0.5,), "-sd": (3,), "-fix_scale": (1,), "-dc": (0.5,), "-da": (10,),
    "-dalpha": (0.8,), "-thres": (0.3,), "-warm": (3,), "-sparse": (0.4,), "-cut": (0.5,), "-gap": (3,),
    "-seed": (4,), "-seeds": (2,), "-resume": (1,), "-save_every": (0,),
}  # fmt: skip


@pytest.fixture(scope="module")
def full(shared_run):
    """Three methods on two splits."""
    return shared_run("uci_full", SCRIPT, *MOVING, "-c", "all", "-seeds", 2)


@pytest.fixture(scope="module")
def all_flags(shared_run):
    return shared_run("uci_flags", SCRIPT, *itertools.chain(*((flag, *v) for flag, v in SMALL_VALUES.items())))


@pytest.fixture(scope="module")
def partly_diverged(shared_run):
    """A fixed sigma near zero makes the spike-and-slab prior as steep as no step size allows; SGHMC has none."""
    return shared_run("uci_diverged", SCRIPT, *TINY, "-c", "all", "-fix_scale", 1, "-sd", 1e-8, "-seeds", 2)


def test_a_run_is_a_folder(full):
    assert full.code == 0, full.stderr
    assert {str(path.relative_to(full.folder)) for path in Path(full.folder).rglob("*") if path.is_file()} == {
        "args.json", "command.sh", "environment.json", "metrics.csv", "checkpoint.safetensors", "table.csv",
        "summary.json",
    }  # fmt: skip
    assert "Warning" not in full.stderr and "Traceback" not in full.stderr
    assert json.loads((full / "args.json").read_text())["data"] == "diabetes"
    assert (full / "command.sh").read_text().startswith("python uci_run.py -data diabetes ")


def test_the_table(full):
    assert (full / "table.csv").read_text().splitlines()[0].split(",") == COLUMNS
    table = full.table
    assert list(zip(table["method"], table["seed"], strict=True)) == list(
        itertools.product(("sa", "em", "sghmc"), (1, 2))
    )
    assert np.isfinite(table[COLUMNS[4:]].to_numpy()).all()
    assert table["coverage95"].between(0, 1).all() and (table["sparsity"] == 0).all()
    assert (table["rmse"] < 100).all()  # the targets have mean 152 and the networks start near 0


def test_the_summary(full):
    summary, table = full.summary, full.table
    assert summary["diverged"] == 0 and summary["evaluated_on"] == "test" and len(summary["cells"]) == 3
    for cell in summary["cells"]:
        rows = table[table["method"] == cell["method"]]
        assert cell["n"] == 2 and cell["rmse_mean"] == pytest.approx(rows["rmse"].mean())
        assert cell["nll_sd"] == pytest.approx(rows["nll"].std())


def test_the_summary_of_one_cell_has_plain_names(in_process, tmp_path):
    result = in_process(uci_run, *TINY, out=tmp_path / "run")
    row = result.table.iloc[0]
    for name in COLUMNS[4:]:
        assert result.summary[name] == pytest.approx(row[name])


def test_progress_is_recorded(full):
    metrics = pd.read_csv(full / "metrics.csv")
    assert metrics["epoch"].unique().tolist() == list(range(1, 31)) and len(metrics) == 90
    assert (metrics["chains"] == 2).all()
    last = metrics[metrics["epoch"] == 30].set_index("method")
    for method, rows in full.table.groupby("method"):
        assert last.loc[method, "rmse"] == pytest.approx(rows["rmse"].mean(), rel=1e-6)
    assert (metrics[metrics["method"] == "sghmc"]["sigma"] == 1).all()


@pytest.mark.parametrize("flags", [("-c", "sa", "-seeds", 2), ("-c", "all", "-seed", 2)])
def test_a_chain_does_not_depend_on_its_neighbours(full, script, tmp_path, same_table, flags):
    alone = script.run(SCRIPT, *MOVING, *flags, out=tmp_path / "run")
    keys = list(zip(alone.table["method"], alone.table["seed"], strict=True))
    together = full.table.set_index(["method", "seed"], drop=False).loc[keys]
    same_table(together, alone.table, rtol=1e-4)


def test_the_latent_variables_of_a_method_do_not_depend_on_its_neighbours(full, in_process, tmp_path, same_table):
    alone = in_process(uci_run, *MOVING, "-c", "em", "-seeds", 2, out=tmp_path / "run")
    columns = ["epoch", "rmse", "sigma", "rho"]
    ours, theirs = (pd.read_csv(run / "metrics.csv") for run in (full, alone))
    same_table(ours.loc[ours["method"] == "em", columns], theirs[columns], rtol=1e-3)
    sa = ours.loc[ours["method"] == "sa", "rho"].to_numpy()
    assert not np.isclose(sa, theirs["rho"], rtol=1e-3).any()


def test_every_flag_is_accepted(all_flags):
    parser, _ = uci_run.parse([])
    flags = {action.option_strings[0] for action in parser._actions} - {"-h", "-out"}
    assert flags == set(SMALL_VALUES)
    assert all_flags.code == 0, all_flags.stderr
    args = json.loads((all_flags / "args.json").read_text())
    for flag, (value,) in SMALL_VALUES.items():
        assert args.get(flag[1:], value) == value, flag
    assert len(all_flags.table) == 6 and all_flags.table["seed"].unique().tolist() == [4, 5]
    assert all_flags.summary["evaluated_on"] == "validation"
    assert not Path("nowhere").exists()


def test_validation_does_not_look_at_the_test_rows(in_process, tmp_path, monkeypatch):
    """The same numbers with every test row of both splits replaced by NaN, and other numbers without -val."""
    x, y = uci.load("diabetes")
    flags = (*TINY, "-val", 0.2, "-seed", 2)
    clean = in_process(uci_run, *flags, out=tmp_path / "clean")
    rows = np.isin(y + 1e-6 * np.arange(len(y)), uci.split(x, y + 1e-6 * np.arange(len(y)), 2).y_test)
    assert rows.sum() == 45
    x[rows], y[rows] = np.nan, np.nan
    monkeypatch.setattr(uci, "load", lambda name, data_dir: (x, y))
    spoiled = in_process(uci_run, *flags, out=tmp_path / "spoiled")
    assert (clean.code, spoiled.code) == (0, 0)
    assert (spoiled / "table.csv").read_bytes() == (clean / "table.csv").read_bytes()
    assert in_process(uci_run, *TINY, "-seed", 2, out=tmp_path / "test").code == 3  # the NaN are seen


def sparsities(result) -> list[float]:
    assert result.code == 0, result.stderr
    metrics = pd.read_csv(result / "metrics.csv")
    assert metrics["sparsity"].iloc[-1] == pytest.approx(result.table["sparsity"].mean())
    return metrics["sparsity"].tolist()


@pytest.mark.parametrize("thres, pruned", [(0.6, PRUNABLE), (0.4, 0)])
def test_one_shot_pruning_masks_what_is_below_the_threshold(in_process, tmp_path, thres, pruned):
    """SGHMC keeps rho at 1/2. 7 iterations an epoch; the mask is made at iteration 15, in the third."""
    flags = (*TINY, "-c", "sghmc", "-thres", thres, "-warm", 15)
    result = in_process(uci_run, *flags, out=tmp_path / "run")
    assert sparsities(result) == pytest.approx([0, 0, pruned / PARAMETERS, pruned / PARAMETERS])


def test_one_shot_pruning_before_its_iteration_does_nothing(in_process, tmp_path):
    result = in_process(uci_run, *TINY, "-c", "sghmc", "-thres", 0.6, "-warm", 29, out=tmp_path / "run")
    assert sparsities(result) == [0, 0, 0, 0]  # 28 iterations in all


def test_one_shot_pruning_is_permanent_and_by_rho(in_process, tmp_path):
    flags = (*TINY, "-c", "em", "-thres", 0.5, "-warm", 7, "-v0", 0.02)
    result = in_process(uci_run, *flags, out=tmp_path / "run")
    first, *later = sparsities(result)
    assert 0 < first < PRUNABLE / PARAMETERS and later == pytest.approx([first] * 3)
    with safe_open(result / "checkpoint.safetensors", framework="pt") as file:
        zeros = sum(int((file.get_tensor(f"net.{name}") == 0).sum()) for name in ("weight1", "weight2"))
        masked = sum(int((~file.get_tensor(f"permanent.keep.{i}")).sum()) for i in range(2))
    assert zeros == masked == round(first * PARAMETERS)


@pytest.mark.parametrize("sparse", [0.3, 0.5, 0.9])
def test_magnitude_pruning_reaches_its_target(in_process, tmp_path, sparse):
    """With a schedule that is at its target after few iterations; the layers' target is floored to 0.001."""
    flags = (*TINY, "-c", "sa", "-sparse", sparse, "-cut", 0.01, "-gap", 0.5, "-seeds", 2)
    result = in_process(uci_run, *flags, out=tmp_path / "run")
    assert sparsities(result)[-1] == pytest.approx(sparse, abs=0.001 * PRUNABLE / PARAMETERS + 2 / PARAMETERS)
    target = np.floor(1000 * sparse * PARAMETERS / PRUNABLE) / 1000
    zeros = np.floor(target * 500 + 1e-9) + np.floor(target * 50 + 1e-9)
    assert result.table["sparsity"].tolist() == pytest.approx([zeros / PARAMETERS] * 2)


def test_magnitude_pruning_follows_its_schedule(in_process, tmp_path):
    result = in_process(uci_run, *TINY, "-sparse", 0.5, "-cut", 0.9, "-gap", 3, out=tmp_path / "run")
    target = np.floor(1000 * 0.5 * PARAMETERS / PRUNABLE) / 1000
    fraction = target * (1 - 0.9 ** (7 * np.arange(1, 5) / 3))
    zeros = np.floor(fraction * 500) + np.floor(fraction * 50)
    assert sparsities(result) == pytest.approx((zeros / PARAMETERS).tolist())


def snapshot(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.fixture
def finished(full, tmp_path):
    return shutil.copytree(full.folder, tmp_path / "finished")


def test_resuming_a_finished_run_prints_its_table_and_changes_nothing(full, finished, in_process):
    before = snapshot(finished)
    again = in_process(uci_run, *MOVING, "-c", "all", "-seeds", 2, "-resume", 1, out=finished)
    assert again.code == 0 and again.stderr == ""
    assert again.stdout.splitlines()[:5] == full.stdout.splitlines()[:5]
    after = snapshot(finished)
    assert after.keys() == before.keys()
    assert {name for name in before if before[name] != after[name]} <= {"command.sh", "environment.json"}


def test_a_run_stopped_before_its_last_file_is_completed(full, finished, in_process):
    for missing in (["summary.json"], ["summary.json", "table.csv"]):
        for name in missing:
            (finished / name).unlink()
        again = in_process(uci_run, *MOVING, "-c", "all", "-seeds", 2, "-resume", 1, out=finished)
        assert again.code == 0, again.stderr
        assert again.summary["cells"] == full.summary["cells"]
        for name in ("table.csv", "metrics.csv"):
            assert (finished / name).read_bytes() == (full / name).read_bytes()


def test_a_damaged_checkpoint_is_a_one_line_error(finished, in_process):
    (finished / "summary.json").unlink()
    checkpoint = finished / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    again = in_process(uci_run, *MOVING, "-c", "all", "-seeds", 2, "-resume", 1, out=finished)
    assert again.code == 2
    assert again.stderr.count("\n") == 1 and str(finished) in again.stderr and "damaged" in again.stderr


@pytest.mark.parametrize("resume", [0, 1])
def test_other_settings_in_the_same_folder_are_refused(finished, refused, resume):
    flags = (*MOVING, "-c", "all", "-seeds", 2, "-hidden", 20)
    message = refused(uci_run, *flags, "-out", finished, "-resume", resume)
    assert "-hidden 50, not 20" in message and str(finished) in message


BAD = [
    (("-data", "protein"), ("-data", "protein", "boston", "diabetes")),
    (("-c", "adam"), ("-c", "adam", "sghmc")),
    (("-v0", 0), ("-v0", "'0'", "> 0")),
    (("-v0", -1), ("-v0", "'-1'", "> 0")),
    (("-lr", "inf"), ("-lr", "'inf'", "> 0")),
    (("-lr", 0.5, "-momentum", 0.9), ("-momentum", "0.9", "0.5")),
    (("-momentum", 1), ("-momentum", "'1'", "[0, 1)")),
    (("-train", 398), ("-train", "398", "397")),
    (("-train", 0), ("-train", "'0'", ">= 1")),
    (("-train", 50, "-val", 0.9), ("-train", "50", "39")),
    (("-val", 1), ("-val", "'1'", "[0, 1)")),
    (("-val", 0.999), ("-val", "0.999")),
    (("-burn", 4), ("-burn", "4")),
    (("-thin", 4), ("leaves no sample", "4")),
    (("-anneal", 0.9), ("-anneal", "'0.9'", ">= 1")),
    (("-invT", 0), ("-invT", "'0'", "> 0")),
    (("-sparse", 1), ("-sparse", "'1'", "[0, 1)")),
    (("-sparse", 0.95), ("-sparse", "0.95", "0.915")),
    (("-cut", 1), ("-cut", "'1'", "(0, 1)")),
    (("-thres", 1.5), ("-thres", "'1.5'", "[0, 1]")),
    (("-dalpha", 1.5), ("-dalpha", "1.5", "1")),
    (("-seed", 2**32), ("-seed", str(2**32))),
    (("-unknown", 50), ("-unknown",)),
]


@pytest.mark.parametrize("flags, words", BAD, ids=[" ".join(map(str, flags)) for flags, _ in BAD])
def test_bad_input_is_one_line_and_writes_nothing(refused, flags, words):
    message = refused(uci_run, *TINY, *flags)
    assert all(word in message for word in words)


@pytest.mark.parametrize("below", ["", "a/b"])
def test_an_unwritable_folder_is_refused(refused, tmp_path, below):
    (tmp_path / "file").write_text("x")
    message = refused(uci_run, *TINY, "-out", tmp_path / "file" / below)
    assert "-out" in message and str(tmp_path / "file" / below) in message


def test_a_data_set_that_cannot_be_had_is_refused(refused, tmp_path, monkeypatch):
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with socket.socket() as closed:  # bound and not listening: refuses every connection
        closed.bind(("127.0.0.1", 0))
        source = uci.SOURCES["yacht"]
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/yacht"
        remote = dataclasses.replace(source.file, url=url)
        monkeypatch.setitem(uci.SOURCES, "yacht", dataclasses.replace(source, file=remote))
        message = refused(uci_run, *TINY, "-data", "yacht", "-data_dir", tmp_path / "data")
    assert url in message and str(tmp_path / "data" / remote.path) in message


def test_a_damaged_data_file_is_refused(refused, tmp_path):
    path = tmp_path / "data" / uci.SOURCES["yacht"].file.path
    path.parent.mkdir(parents=True)
    rows = np.arange(308 * 7.0).reshape(308, 7).astype(object)
    rows[4, 2] = "?"
    path.write_text("\n".join(" ".join(map(str, row)) for row in rows))
    message = refused(uci_run, *TINY, "-data", "yacht", "-data_dir", tmp_path / "data")
    assert str(path) in message and "row 5, column 3" in message


def test_bad_input_in_a_process_of_its_own(script, tmp_path):
    result = script.run(SCRIPT, *TINY, "-train", 398, out=tmp_path / "run")
    assert result.code == 2 and result.stdout == ""
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("uci_run.py: error: argument -train: 398 ")
    assert not (tmp_path / "run").exists()


def test_when_every_chain_diverges_the_run_stops(script, tmp_path):
    result = script.run(SCRIPT, *TINY, "-lr", 1e-2, out=tmp_path / "run")
    assert result.code == 3 and result.stdout == "" and "Traceback" not in result.stderr
    last = result.stderr.splitlines()[-1]
    assert (
        last.startswith("diverged: 1 of 1 chains of diabetes")
        and "iteration 3;" in last
        and "smaller step: -lr " in last
    )
    assert float(last.split()[-1]) < 1e-2
    assert not (result / "summary.json").exists() and not (result / "table.csv").exists()


def test_the_step_size_that_is_recommended_works(in_process, tmp_path):
    message = in_process(uci_run, *TINY, "-lr", 1e-2, out=tmp_path / "run").stderr.splitlines()[-1]
    assert in_process(uci_run, *TINY, "-lr", message.split()[-1], out=tmp_path / "smaller").code == 0


def test_the_last_good_checkpoint_of_a_diverged_run_is_kept(in_process, tmp_path):
    flags = (*TINY, "-sn", 40, "-train", 397, "-lr", 1e-4, "-save_every", 0)  # one iteration an epoch
    result = in_process(uci_run, *flags, out=tmp_path / "run")
    assert result.code == 3
    metrics = pd.read_csv(result / "metrics.csv")
    with safe_open(result / "checkpoint.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["state"])["done"] == len(metrics)
        assert all(file.get_tensor(name).isfinite().all() for name in file.keys() if name.startswith("net."))  # noqa: SIM118
    assert np.isfinite(metrics["rmse"]).all()


@pytest.mark.parametrize("epochs", [2, 3, 4, 5])
def test_a_chain_that_diverges_in_its_last_step_is_reported(in_process, tmp_path, epochs):
    """One iteration an epoch; at some number of epochs the last step is the first non-finite one."""
    flags = ("-data", "diabetes", "-burn", 1, "-train", 397, "-lr", 1e-4, "-sn", epochs)
    result = in_process(uci_run, *flags, out=tmp_path / "run")
    if result.code == 0:
        assert np.isfinite(result.table[COLUMNS[4:]].to_numpy()).all()
    else:
        assert result.code == 3


def test_when_some_chains_diverge_the_others_finish(partly_diverged, in_process, tmp_path, same_table):
    assert partly_diverged.code == 3 and "Traceback" not in partly_diverged.stderr
    last = partly_diverged.stderr.splitlines()[-1]
    assert last.startswith("diverged: 4 of 6 chains") and "-lr" in last
    table = partly_diverged.table
    gone = table["method"] != "sghmc"
    assert table.loc[gone, COLUMNS[4:]].isna().all(axis=None) and gone.sum() == 4
    alone = in_process(uci_run, *TINY, "-c", "sghmc", "-fix_scale", 1, "-sd", 1e-8, "-seeds", 2, out=tmp_path / "run")
    assert alone.code == 0
    same_table(table[~gone], alone.table, rtol=1e-4)
    assert partly_diverged.summary["diverged"] == 4
    cells = {cell["method"]: cell for cell in partly_diverged.summary["cells"]}
    assert (cells["sa"]["n"], cells["sa"]["rmse_mean"], cells["sghmc"]["n"]) == (0, None, 2)


def test_a_finished_run_with_diverged_chains_ends_as_before_when_it_is_resumed(partly_diverged, in_process, tmp_path):
    out = shutil.copytree(partly_diverged.folder, tmp_path / "again")
    before = snapshot(out)
    flags = (*TINY, "-c", "all", "-fix_scale", 1, "-sd", 1e-8, "-seeds", 2, "-resume", 1)
    again = in_process(uci_run, *flags, out=out)
    assert again.code == 3 and snapshot(out) == before
    assert again.stdout.splitlines()[:-1] == partly_diverged.stdout.splitlines()[:-1]  # the last one names the folder
    assert again.stderr.startswith("diverged: 4 of 6 rows of table.csv") and again.stderr.count("\n") == 1


def test_the_iteration_of_a_divergence_in_a_batch_is_named(partly_diverged):
    assert "iteration " in partly_diverged.stderr.splitlines()[-1]


@pytest.fixture
def invented(monkeypatch):
    """Small random data in place of the published files; the targets of one set can be made too large to train on."""
    scale = dict.fromkeys(uci_run.PAPER_DATA, 1.0)

    def load(name, data_dir):
        rng = np.random.default_rng(len(name))
        return rng.normal(size=(90, 3)), scale[name] * rng.normal(size=90)

    monkeypatch.setattr(uci, "load", load)
    return scale


TABLE = ("-table", 1, "-sn", 3, "-burn", 1, "-seeds", 2)


def test_the_whole_table_resumes_between_its_data_sets(in_process, tmp_path, invented, monkeypatch):
    whole = in_process(uci_run, *TABLE, out=tmp_path / "whole")
    assert whole.code == 0, whole.stderr
    names, methods = uci_run.PAPER_DATA, ("sa", "em", "sghmc")
    keys = list(zip(*(whole.table[name] for name in ("data", "method", "anneal", "seed")), strict=True))
    assert set(keys) == set(itertools.product(names, methods, (1.0, uci_run.ANNEAL), (1, 2)))
    assert len(keys) == 60 and np.isfinite(whole.table[COLUMNS[4:]].to_numpy()).all()

    train = uci_run.train

    def stops(regression, *settings):
        if regression.name == names[2]:
            raise KeyboardInterrupt
        return train(regression, *settings)

    with monkeypatch.context() as stopping:
        stopping.setattr(uci_run, "train", stops)
        assert in_process(uci_run, *TABLE, out=tmp_path / "pieces").code == 130
    assert [name for name in names if (tmp_path / "pieces" / name / "metrics.csv").exists()] == list(names[:2])
    pieces = in_process(uci_run, *TABLE, "-resume", 1, out=tmp_path / "pieces")
    assert pieces.code == 0
    assert (pieces / "table.csv").read_bytes() == (whole / "table.csv").read_bytes()
    assert pieces.summary["cells"] == whole.summary["cells"]


def test_a_data_set_on_which_every_chain_diverges_does_not_take_the_table_with_it(in_process, tmp_path, invented):
    invented["yacht"] = 1e25
    result = in_process(uci_run, *TABLE, out=tmp_path / "run")
    assert result.code == 3 and "yacht" in result.stderr.splitlines()[-1]
    gone = result.table["data"] == "yacht"
    assert result.table.loc[gone, "rmse"].isna().all() and result.table.loc[~gone, "rmse"].notna().all()


FLAGS = (
    "-data", "diabetes", "-sn", 150, "-burn", 20, "-c", "all", "-seeds", 2, "-thres", 0.02, "-warm", 300,
    "-sparse", 0.3, "-cut", 0.5, "-save_every", 0,
)  # fmt: skip


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(script, tmp_path):
    """Killed three times, in the burn-in, in the middle and near the end, with all that a checkpoint holds in use."""
    whole = script.run(SCRIPT, *FLAGS, out=tmp_path / "whole")
    assert whole.code == 0, whole.stderr
    assert (whole.table["sparsity"] > 0.25).all()
    for after in (10, 70, 125):
        killed = script.kill(SCRIPT, *FLAGS, "-resume", 1, out=tmp_path / "pieces", after=after)
        assert killed.code == -signal.SIGKILL, killed.stderr
        assert not (killed / "table.csv").exists()
    pieces = script.run(SCRIPT, *FLAGS, "-resume", 1, out=tmp_path / "pieces")
    assert pieces.code == 0, pieces.stderr
    for name in ("table.csv", "metrics.csv"):
        assert (pieces / name).read_bytes() == (whole / name).read_bytes(), name
    assert pieces.summary["cells"] == whole.summary["cells"]


@pytest.mark.slow
def test_an_interrupted_run_is_readable(script, tmp_path):
    flags = ("-data", "diabetes", "-sn", 5000, "-save_every", 0)
    result = script.stop(SCRIPT, *flags, out=tmp_path / "run", after=10, with_signal=signal.SIGINT)
    assert result.code == 130 and result.stdout == ""
    assert "interrupted; the same command with -resume 1" in result.stderr
    assert "Traceback" not in result.stderr
    metrics = pd.read_csv(result / "metrics.csv")
    with safe_open(result / "checkpoint.safetensors", framework="pt") as file:
        state = json.loads(file.metadata()["state"])
        assert all(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118, not a dict
    assert 10 <= state["done"] < 5000 and 0 < len(metrics) <= len(state["metrics"])
    assert [path.name for path in Path(result.folder).iterdir() if path.name.endswith(".tmp")] == []
