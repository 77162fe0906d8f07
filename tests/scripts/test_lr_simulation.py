"""lr_simulation.py as a user runs it, in small."""

import itertools
import json
import shutil
import signal
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.numpy import load_file

import lr_simulation
from data.simulation import minibatches
from lr_simulation import Chains, iteration, parse

SCRIPT = "lr_simulation.py"
TINY = ("-n", 20, "-p", 30, "-iterations", 400, "-thin", 10, "-burn", 10)
COLUMNS = ["method", "v0", "sd", "seed", "mae", "mse", "beta1", "beta2", "beta3", "sigma", "selected"]
ONE_SETTING = ("-v0", 0.1, "-sd", 1)
SMALL_VALUES = {
    "-c": ("sa", "em"), "-v0": (0.2,), "-v1": (5,), "-a": (1.5,), "-b": (20,), "-nu": (2,), "-lamda": (0.5,),
    "-sd": (1.5,), "-dc": (10,), "-da": (5,), "-dalpha": (0.6,), "-n": (12,), "-p": (8,), "-corr": (0.3,),
    "-lr": (0.002,), "-decay": (0.2,), "-invT": (2,), "-iterations": (60,), "-thin": (4,), "-burn": (2,),
    "-batch": (5,), "-chains": (2,), "-save_draws": (1,), "-compile": (0,), "-seed": (3,), "-seeds": (2,),
    "-resume": (1,), "-save_every": (0,),
}  # fmt: skip


@pytest.fixture(scope="module")
def full(shared_run):
    """Three methods on two data sets."""
    return shared_run("lr_full", SCRIPT, *TINY, *ONE_SETTING, "-seeds", 2)


@pytest.fixture(scope="module")
def all_flags(shared_run):
    return shared_run("lr_flags", SCRIPT, *itertools.chain(*((flag, *v) for flag, v in SMALL_VALUES.items())))


@pytest.fixture(scope="module")
def two_chains(shared_run):
    return shared_run("lr_chains", SCRIPT, *TINY, *ONE_SETTING, "-c", "sa", "-chains", 2, "-save_draws", 1)


@pytest.fixture(scope="module")
def partly_diverged(shared_run):
    """SGLD keeps sigma: from sigma_0 = 0.05 the step size is far too large, from 50 it is small."""
    return shared_run("lr_diverged", SCRIPT, *TINY, "-c", "sgld", "-v0", 0.1, "-sd", 0.05, 50, "-seeds", 3)


def test_a_run_is_a_folder(full):
    assert full.code == 0, full.stderr
    assert {str(path.relative_to(full.folder)) for path in Path(full.folder).rglob("*") if path.is_file()} == {
        "args.json", "command.sh", "environment.json", "metrics.csv", "checkpoint.safetensors", "table.csv",
        "summary.json", "posterior.safetensors", "figures/lr_simulation.png",
    }  # fmt: skip
    assert "Warning" not in full.stderr and "Traceback" not in full.stderr
    assert json.loads((full / "args.json").read_text())["iterations"] == 400
    assert (full / "command.sh").read_text().startswith("python lr_simulation.py -n 20 -p 30 ")


def test_the_table(full):
    assert (full / "table.csv").read_text().splitlines()[0].split(",") == COLUMNS
    table = full.table
    assert list(zip(table["method"], table["v0"], table["sd"], table["seed"], strict=True)) == [
        (method, 0.1, 1.0, seed) for seed in (1, 2) for method in ("sa", "em", "sgld")
    ]
    numbers = table[COLUMNS[4:-1]].to_numpy()
    assert np.isfinite(numbers).all() and (table["mse"] >= table["mae"] ** 2).all() and (table["mae"] > 0).all()
    sgld = table["method"] == "sgld"
    assert table["selected"].isna().equals(sgld) and (table["sigma"][sgld] == 1).all()
    assert full.stdout.count("sa - em") == 1 and str(full / "figures/lr_simulation.png") in full.stdout


def test_the_numbers_are_those_of_the_draws(full):
    """mae and mse of the posterior mean, beta and sigma of the trace, all from the saved tensors."""
    saved = load_file(full / "posterior.safetensors")
    for s, i in itertools.product(range(2), range(3)):
        row = full.table.iloc[3 * s + i]
        error = saved["x_test"][s] @ saved["mean_beta"][s, i] - saved["y_test"][s]
        assert row["mae"] == pytest.approx(np.abs(error).mean(), rel=1e-9)
        assert row["mse"] == pytest.approx(np.square(error).mean(), rel=1e-9)
        trace = saved["trace"][s, :, i].reshape(-1, 4).astype(np.float64)
        assert trace.shape[0] == 30
        assert list(row[["beta1", "beta2", "beta3", "sigma"]]) == pytest.approx(trace.mean(0).tolist(), rel=1e-9)
        assert saved["mean_beta"][s, i, :3] == pytest.approx(trace.mean(0)[:3], rel=1e-5)


def test_the_summary(full):
    summary = full.summary
    assert (summary["diverged"], summary["chains"], summary["iterations"], summary["compiled"]) == (0, 6, 400, False)
    assert len(summary["cells"]) == 6 and summary["seconds"] > 0
    table = full.table.set_index(["method", "seed"])
    difference = [table.loc[("sa", seed), "mse"] - table.loc[("em", seed), "mse"] for seed in (1, 2)]
    row = next(row for row in summary["differences"] if row["difference"] == "sa - em")
    assert row["mse_mean"] == pytest.approx(np.mean(difference)) and row["n"] == 2
    assert row["mse_se"] == pytest.approx(np.std(difference, ddof=1) / np.sqrt(2))


def test_the_figure_is_a_picture(full):
    image = (full / "figures/lr_simulation.png").read_bytes()
    assert image.startswith(b"\x89PNG") and len(image) > 20_000


def test_progress_is_recorded(full):
    metrics = pd.read_csv(full / "metrics.csv")
    assert list(metrics) == ["iteration", "method", "v0", "sd", "mse", "sigma"]
    assert metrics["iteration"].unique().tolist() == list(range(10, 401, 10)) and len(metrics) == 120


@pytest.mark.parametrize("flags", [("-c", "sa", "-seeds", 2), ("-seed", 2)])
def test_a_chain_does_not_depend_on_its_neighbours(full, script, tmp_path, same_table, flags):
    alone = script.run(SCRIPT, *TINY, *ONE_SETTING, *flags, out=tmp_path / "run").table
    keys = list(zip(alone["method"], alone["seed"], strict=True))
    together = full.table.set_index(["method", "seed"], drop=False).loc[keys]
    same_table(together, alone, rtol=1e-4)


def test_settings_in_one_batch_are_those_settings_alone(in_process, tmp_path, same_table):
    both = in_process(lr_simulation, *TINY, "-c", "sa", "-v0", 0.01, 0.1, "-sd", 1, 2, out=tmp_path / "both").table
    for v0, sd in itertools.product((0.01, 0.1), (1, 2)):
        folder = tmp_path / f"{v0} {sd}"
        alone = in_process(lr_simulation, *TINY, "-c", "sa", "-v0", v0, "-sd", sd, out=folder).table
        same_table(both[(both["v0"] == v0) & (both["sd"] == sd)], alone, rtol=1e-4)


def test_every_flag_is_accepted(all_flags):
    parser, _ = parse([])
    flags = {action.option_strings[0] for action in parser._actions} - {"-h", "-out"}
    assert flags == set(SMALL_VALUES)
    assert all_flags.code == 0, all_flags.stderr
    args = json.loads((all_flags / "args.json").read_text())
    for flag, values in SMALL_VALUES.items():
        given = args.get(flag[1:], "not kept")
        assert given in ("not kept", values[0], str(values[0])) or given == list(values), flag


def test_saved_draws(two_chains):
    import arviz

    posterior = arviz.from_netcdf(str(two_chains / "draws.nc")).posterior
    assert posterior["beta"].dims == ("chain", "draw", "seed", "cell", "coefficient")
    assert posterior["beta"].shape == (2, 30, 1, 1, 30)
    assert posterior["sigma"].dims == ("chain", "draw", "seed", "cell")
    assert posterior["seed"].values.tolist() == [1]
    row, beta = two_chains.table.iloc[0], posterior["beta"].values.astype(np.float64)
    for j in range(3):
        assert beta[..., j].mean() == pytest.approx(row[f"beta{j + 1}"], rel=1e-9)
    assert posterior["sigma"].values.astype(np.float64).mean() == pytest.approx(row["sigma"], rel=1e-9)
    posterior.close()
    assert not (two_chains / "draws.npy").exists()


def test_saved_draws_of_every_cell_and_seed(all_flags):
    import arviz

    posterior = arviz.from_netcdf(str(all_flags / "draws.nc")).posterior
    assert posterior["beta"].shape == (2, 13, 2, 2, 8)
    assert posterior["seed"].values.tolist() == [3, 4] and len(posterior["cell"]) == 2
    means = posterior["beta"].astype(np.float64).mean(("chain", "draw")).values  # (seed, cell, coefficient)
    table = all_flags.table
    assert table["seed"].tolist() == [3, 3, 4, 4] and table["method"].tolist() == ["sa", "em"] * 2
    assert means[..., 0].ravel().tolist() == pytest.approx(table["beta1"].tolist(), rel=1e-9)
    posterior.close()


def test_several_chains(full, two_chains):
    """The first chain is that of a run of one chain; the second differs; the table averages both."""
    trace = load_file(two_chains / "posterior.safetensors")["trace"][0, :, 0].astype(np.float64)  # (chain, draw, name)
    one = load_file(full / "posterior.safetensors")["trace"][0, 0, 0]
    np.testing.assert_allclose(trace[0], one, rtol=1e-3)
    assert not np.isclose(trace[0], trace[1], rtol=1e-3).any()
    row = two_chains.table.iloc[0]
    assert row["beta1"] == pytest.approx(trace[:, :, 0].mean(), rel=1e-9)
    rhat = two_chains.summary["cells"][0]
    assert "rhat" in json.dumps(rhat) and two_chains.summary["chains"] == 2


def test_a_minibatch_of_all_rows_is_the_full_gradient(full, in_process, tmp_path, same_table):
    batch = in_process(lr_simulation, *TINY, *ONE_SETTING, "-seeds", 2, "-batch", 20, out=tmp_path / "run")
    same_table(batch.table, full.table, rtol=1e-4)


def chains(p: int, rows: int) -> Chains:
    """Two cells of one group at a random state, float64."""
    generator = torch.Generator().manual_seed(0)

    def positive(*shape):
        return 0.1 + torch.rand(1, 2, *shape, generator=generator, dtype=torch.float64)

    beta = torch.randn(1, 2, p, generator=generator, dtype=torch.float64)
    rho, delta = positive(p).clamp(max=0.9), positive(1).clamp(max=0.9)
    residual = torch.zeros(1, 2, rows, dtype=torch.float64)
    return Chains(beta, residual, rho, positive(p), positive(p), delta, positive(1), torch.zeros(1, 2, 1))


def gradient(state: Chains, x, y, observations: int) -> torch.Tensor:
    """What one noise-free step of size 1 subtracts from beta."""
    state = state._replace(residual=y - state.beta @ x.mT)
    one, zero = torch.tensor(1.0, dtype=torch.float64), torch.zeros(1, 1, 1, dtype=torch.float64)
    prior = {"v0": torch.full_like(state.sigma2, 0.1), "v1": 10.0, "a": 1.0, "b": 5.0, "nu": 1.0, "lamda": 1.0}
    after = iteration(state, x, y, zero, one, zero, observations=observations, **prior)
    return state.beta - after.beta


@pytest.fixture
def problem():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(1, 6, 4, generator=generator, dtype=torch.float64)
    y = torch.randn(1, 1, 6, generator=generator, dtype=torch.float64)
    return chains(4, 6), x, y


def test_the_gradient_is_that_of_the_potential(problem):
    state, x, y = problem
    beta = state.beta.clone().requires_grad_()
    sigma = state.sigma2.sqrt()
    potential = (y - beta @ x.mT).square().sum(-1, keepdim=True) / (2 * state.sigma2)
    potential = potential + (state.kappa0 * beta.abs() / sigma + state.kappa1 * beta**2 / (2 * state.sigma2)).sum(
        -1, keepdim=True
    )
    potential.sum().backward()
    torch.testing.assert_close(gradient(state, x, y, 6), beta.grad)


@pytest.mark.parametrize("size", [1, 2, 5])
def test_the_minibatch_gradient_is_unbiased(problem, size):
    state, x, y = problem
    batches = [list(rows) for rows in itertools.combinations(range(6), size)]
    mean = torch.stack([gradient(state, x[:, rows], y[..., rows], 6) for rows in batches]).mean(0)
    torch.testing.assert_close(mean, gradient(state, x, y, 6))


def test_doubling_the_observations_moves_the_likelihood_only(problem):
    state, x, y = problem
    single, double = gradient(state, x, y, 6), gradient(state, x, y, 12)
    likelihood = -torch.bmm((y - state.beta @ x.mT) / state.sigma2, x)
    torch.testing.assert_close(double - single, likelihood)
    repeated = gradient(state, torch.cat([x, x], 1), torch.cat([y, y], 2), 12)
    torch.testing.assert_close(double, repeated)


def test_minibatches_are_rows_without_replacement(in_process):
    _, args = parse([*map(str, TINY), "-batch", "7", "-seeds", "2", "-c", "sa", "-v0", "0.1", "-sd", "1"])
    data = [lr_simulation.simulate(seed, 20, 30, 0.6) for seed in (1, 2)]
    simulation = lr_simulation.Simulation(args, [("sa", 0.1, 1.0)], data)
    counts = torch.zeros(2, 20)
    for _ in range(100):
        x, y = minibatches(simulation.x, simulation.y, simulation.batches, 5, 7)
        assert x.shape == (2, 5, 7, 30) and y.shape == (2, 5, 1, 7)
        for group in range(2):
            rows = (y[group, :, 0, :, None] == simulation.y[group, 0]).long().argmax(-1)  # (step, batch)
            assert torch.equal(x[group], simulation.x[group, rows])
            assert all(len(set(step)) == 7 for step in rows.tolist())
            counts[group] += torch.bincount(rows.flatten(), minlength=20)
    z = (counts - 500 * 7 / 20) / (500 * 7 / 20 * 13 / 20) ** 0.5
    assert z.abs().max() < 5


def snapshot(folder) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


@pytest.fixture
def finished(full, tmp_path):
    return shutil.copytree(full.folder, tmp_path / "finished")


def test_resuming_a_finished_run_prints_its_table_and_changes_nothing(full, finished, in_process):
    before = snapshot(finished)
    again = in_process(lr_simulation, *TINY, *ONE_SETTING, "-seeds", 2, "-resume", 1, out=finished)
    assert again.code == 0 and again.stderr == ""
    assert again.stdout.splitlines()[:7] == full.stdout.splitlines()[:7]
    after = snapshot(finished)
    assert after.keys() == before.keys()
    assert {name for name in before if before[name] != after[name]} <= {"command.sh", "environment.json"}


def test_resuming_a_finished_run_keeps_the_record_of_where_it_ran(finished, in_process):
    """The numbers were not computed by the later command, nor on the machine where it was given."""
    (finished / "environment.json").write_text('{"cpu": "another one"}')
    before = snapshot(finished)
    in_process(lr_simulation, *TINY, *ONE_SETTING, "-seeds", 2, "-resume", 1, out=finished)
    for name in ("environment.json", "command.sh"):
        assert snapshot(finished)[name] == before[name]


def test_a_run_stopped_before_its_last_file_is_completed(full, finished, in_process):
    """A kill just before summary.json, and just before table.csv."""
    for missing in (["summary.json"], ["summary.json", "table.csv"]):
        for name in missing:
            (finished / name).unlink()
        again = in_process(lr_simulation, *TINY, *ONE_SETTING, "-seeds", 2, "-resume", 1, out=finished)
        assert again.code == 0, again.stderr
        for name in ("table.csv", "metrics.csv", "posterior.safetensors"):
            assert (finished / name).read_bytes() == (full / name).read_bytes()
        assert again.summary["cells"] == full.summary["cells"]


def test_a_run_stopped_before_its_figure_is_completed(finished, in_process):
    (finished / "figures/lr_simulation.png").unlink()
    again = in_process(lr_simulation, *TINY, *ONE_SETTING, "-seeds", 2, "-resume", 1, out=finished)
    assert again.code == 0 and (finished / "figures/lr_simulation.png").exists()


def test_draws_survive_a_stop_before_the_last_file(two_chains, in_process, tmp_path):
    import arviz

    folder = shutil.copytree(two_chains.folder, tmp_path / "copy")
    flags = (*TINY, *ONE_SETTING, "-c", "sa", "-chains", 2, "-save_draws", 1, "-resume", 1)
    np.save(folder / "draws.npy", _draws(arviz, folder).transpose(2, 0, 3, 1, 4).reshape(2, 1, 30, 30))
    before = _draws(arviz, folder)
    (folder / "summary.json").unlink()
    assert in_process(lr_simulation, *flags, out=folder).code == 0
    assert np.array_equal(_draws(arviz, folder), before)


def _draws(arviz, folder) -> np.ndarray:
    posterior = arviz.from_netcdf(str(folder / "draws.nc")).posterior
    beta = posterior["beta"].values.copy()
    posterior.close()
    return beta


def test_a_damaged_checkpoint_is_a_one_line_error(finished, in_process):
    (finished / "summary.json").unlink()
    checkpoint = finished / "checkpoint.safetensors"
    checkpoint.write_bytes(checkpoint.read_bytes()[:-100])
    again = in_process(lr_simulation, *TINY, *ONE_SETTING, "-seeds", 2, "-resume", 1, out=finished)
    assert again.code == 2
    assert again.stderr.count("\n") == 1 and str(finished) in again.stderr and "damaged" in again.stderr


@pytest.mark.parametrize("resume", [0, 1])
def test_other_settings_in_the_same_folder_are_refused(finished, refused, resume):
    message = refused(lr_simulation, *TINY, *ONE_SETTING, "-seeds", 3, "-out", finished, "-resume", resume)
    assert "-seeds 2, not 3" in message and str(finished) in message


BAD = [
    (("-c", "adam"), ("-c", "adam", "sgld")),
    (("-v0", 0), ("-v0", "'0'", "> 0")),
    (("-v0", -1), ("-v0", "'-1'", "> 0")),
    (("-v0", 0.1, 0.1), ("-v0", "twice")),
    (("-sd", "nan"), ("-sd", "'nan'", "> 0")),
    (("-lr", 0), ("-lr", "'0'", "> 0")),
    (("-n", 0), ("-n", "'0'", ">= 1")),
    (("-p", 2), ("-p", "2", "3")),
    (("-corr", 1), ("-corr", "'1'", "(-1, 1)")),
    (("-a", 0.5), ("-a", "'0.5'", ">= 1")),
    (("-dalpha", 1.5), ("-dalpha", "1.5", "1")),
    (("-iterations", 405), ("-iterations", "405", "-thin 10")),
    (("-burn", 37), ("-burn", "37", "40")),
    (("-batch", 21), ("-batch", "21", "20")),
    (("-batch", 0), ("-batch", "'0'", ">= 1")),
    (("-seeds", 0), ("-seeds", "'0'", ">= 1")),
    (("-seed", -1), ("-seed", "'-1'", "[0, 2^32)")),
    (("-compile", "yes"), ("-compile", "yes", "auto")),
    (("-momentum", 0.9), ("-momentum",)),
]


@pytest.mark.parametrize("flags, words", BAD, ids=[" ".join(map(str, flags)) for flags, _ in BAD])
def test_bad_input_is_one_line_and_writes_nothing(refused, flags, words):
    message = refused(lr_simulation, *TINY, *flags)
    assert all(word in message for word in words)


@pytest.mark.parametrize("below", ["", "a/b"])
def test_an_unwritable_folder_is_refused(refused, tmp_path, below):
    (tmp_path / "file").write_text("x")
    message = refused(lr_simulation, *TINY, "-out", tmp_path / "file" / below)
    assert "-out" in message and str(tmp_path / "file" / below) in message


def test_bad_input_in_a_process_of_its_own(script, tmp_path):
    result = script.run(SCRIPT, *TINY, "-v0", 0, out=tmp_path / "run")
    assert result.code == 2 and result.stdout == ""
    assert result.stderr == "lr_simulation.py: error: argument -v0: must be a number > 0, not '0'\n"
    assert not (tmp_path / "run").exists()


def test_when_every_chain_diverges_the_run_stops(in_process, tmp_path):
    flags = ("-n", 20, "-p", 30, "-iterations", 400, "-thin", 1, "-burn", 10, "-lr", 1, "-c", "sgld", "-v0", 0.1)
    result = in_process(lr_simulation, *flags, "-sd", 0.1, "-save_every", 0, out=tmp_path / "run")
    assert result.code == 3 and result.stdout == ""
    last = result.stderr.splitlines()[-1]
    assert last.startswith("diverged: ") and "use a smaller step: -lr 0.1" in last
    with safe_open(result / "checkpoint.safetensors", framework="pt") as file:  # the last good one
        done = json.loads(file.metadata()["state"])["done"]
        assert all(file.get_tensor(name).isfinite().all() for name in file.keys())  # noqa: SIM118, not a dict
    assert f"iteration {done + 1} " in last and done < 100
    assert not (result / "summary.json").exists() and not (result / "table.csv").exists()


def test_when_some_chains_diverge_the_others_finish(partly_diverged, in_process, tmp_path, same_table):
    assert partly_diverged.code == 3 and "Traceback" not in partly_diverged.stderr
    last = partly_diverged.stderr.splitlines()[-1]
    assert last.startswith("diverged: 3 of 6") and "sd 0.05" in last and "iteration " in last and "-lr 0.0001" in last
    table = partly_diverged.table
    gone = table[table["sd"] == 0.05]
    assert gone[COLUMNS[4:]].isna().all(axis=None) and gone["seed"].tolist() == [1, 2, 3]
    kept = in_process(lr_simulation, *TINY, "-c", "sgld", "-v0", 0.1, "-sd", 50, "-seeds", 3, out=tmp_path / "run")
    assert kept.code == 0
    same_table(table[table["sd"] == 50], kept.table, rtol=1e-4)
    assert partly_diverged.summary["diverged"] == 3
    assert (partly_diverged / "figures/lr_simulation.png").exists()


def test_a_finished_run_with_diverged_chains_ends_as_before_when_it_is_resumed(partly_diverged, in_process, tmp_path):
    out = shutil.copytree(partly_diverged.folder, tmp_path / "again")
    before = snapshot(out)
    flags = (*TINY, "-c", "sgld", "-v0", 0.1, "-sd", 0.05, 50, "-seeds", 3, "-resume", 1)
    again = in_process(lr_simulation, *flags, out=out)
    assert again.code == 3 and snapshot(out) == before
    assert again.stdout.splitlines()[:-1] == partly_diverged.stdout.splitlines()[:-1]  # the last one names the folder
    assert again.stderr.startswith("diverged: 3 of 6 rows of table.csv") and again.stderr.count("\n") == 1


def test_the_iteration_of_a_divergence_is_that_of_its_own_chain(partly_diverged, in_process, tmp_path):
    """Of one seed: alone with all draws kept, the trace is finite before that iteration and not at it."""
    cells = [row for row in partly_diverged.summary["cells"] if row["sd"] == 0.05]
    for row in cells:
        data = [lr_simulation.simulate(row["seed"], 20, 30, 0.6)]
        _, args = parse([*map(str, TINY), "-thin", "1", "-burn", "0", "-seed", str(row["seed"])])
        simulation = lr_simulation.Simulation(args, [("sgld", 0.1, 0.05)], data)
        finite = []
        for _ in range(40):
            simulation.epoch()
            finite.append(bool(simulation.chains.residual.square().sum().isfinite()))
        assert row["diverged_at"] == finite.index(False) + 1
    assert len({row["diverged_at"] for row in cells}) > 1  # or the test says nothing about seeds


def test_when_every_cell_has_a_diverged_chain_and_not_every_chain_has(in_process, tmp_path, monkeypatch):
    original = lr_simulation.train

    def train(simulation, *settings, **others):
        completed = original(simulation, *settings, **others)
        simulation.chains.finite[1] = 7
        return completed

    monkeypatch.setattr(lr_simulation, "train", train)
    flags = (*TINY, *ONE_SETTING, "-c", "sa", "em", "-chains", 2)
    result = in_process(lr_simulation, *flags, out=tmp_path / "run")
    assert result.code == 3 and "iteration 8" in result.stderr.splitlines()[-1]
    assert result.table[COLUMNS[4:]].isna().all(axis=None)


@pytest.mark.slow
def test_a_killed_run_goes_on_bit_for_bit(script, tmp_path):
    """Killed three times, in the burn-in, in the middle and near the end, with all that a checkpoint holds in use."""
    flags = (
        "-n", 20, "-p", 30, "-iterations", 1500, "-thin", 10, "-burn", 50, *ONE_SETTING, "-batch", 8, "-chains", 2,
        "-save_draws", 1, "-save_every", 0, "-seeds", 2,
    )  # fmt: skip
    whole = script.run(SCRIPT, *flags, out=tmp_path / "whole")
    assert whole.code == 0, whole.stderr
    for after in (150, 700, 1300):
        killed = script.kill(SCRIPT, *flags, "-resume", 1, out=tmp_path / "pieces", after=after)
        assert killed.code == -signal.SIGKILL, killed.stderr
        assert not (killed / "table.csv").exists()
    pieces = script.run(SCRIPT, *flags, "-resume", 1, out=tmp_path / "pieces")
    assert pieces.code == 0, pieces.stderr
    for name in ("table.csv", "metrics.csv", "posterior.safetensors"):
        assert (pieces / name).read_bytes() == (whole / name).read_bytes(), name
    assert pieces.summary["cells"] == whole.summary["cells"]
    import arviz

    assert np.array_equal(_draws(arviz, tmp_path / "pieces"), _draws(arviz, tmp_path / "whole"))


@pytest.mark.slow
def test_an_interrupted_run_is_readable(script, tmp_path):
    flags = ("-n", 20, "-p", 30, "-iterations", 100_000, "-thin", 10, "-burn", 10, "-save_every", 0, "-compile", 0)
    result = script.stop(SCRIPT, *flags, out=tmp_path / "run", after=2000, with_signal=signal.SIGINT)
    assert result.code == 130 and result.stdout == ""
    assert "interrupted; the same command with -resume 1" in result.stderr
    assert "Traceback" not in result.stderr
    metrics = pd.read_csv(result / "metrics.csv")
    with safe_open(result / "checkpoint.safetensors", framework="pt") as file:
        state = json.loads(file.metadata()["state"])
        assert all(file.get_tensor(name).numel() for name in file.keys())  # noqa: SIM118, not a dict
    assert 2000 <= state["done"] < 100_000 and 0 < len(metrics) <= len(state["metrics"])
    assert [path.name for path in Path(result.folder).iterdir() if path.name.endswith(".tmp")] == []


@pytest.mark.slow
def test_the_compiled_program_is_the_eager_one(script, tmp_path, same_table):
    """Of two iterations in one call: compiling takes longer the more there are."""
    flags = (*TINY, *ONE_SETTING, "-thin", 2, "-burn", 50, "-seeds", 2)
    compiled = script.run(SCRIPT, *flags, "-compile", 1, out=tmp_path / "compiled")
    assert compiled.code == 0, compiled.stderr
    if not compiled.summary["compiled"]:
        pytest.skip(f"torch.compile does not work here: {compiled.stderr}")
    eager = script.run(SCRIPT, *flags, "-compile", 0, out=tmp_path / "eager")
    assert not eager.summary["compiled"]
    same_table(compiled.table, eager.table, rtol=1e-3)
