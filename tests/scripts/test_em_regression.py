"""em_regression.py as a user runs it, in small, and on an easy problem whose variables it must find."""

import dataclasses
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

import em_regression
from data.sparse_regression import EXAMPLES, simulate
from figures import em_selection
from figures.em_selection import draw

SCRIPT = "em_regression.py"
# 4 iterations an epoch; the threshold is the mean square of the weights at the start, 1 / (3 p)
TINY = ("-n", 300, "-test", 64, "-train", 64, "-epochs", 8, "-cycles", 2, "-warmup", 3, "-record", 3, "-hard", 1 / 3000)
P, TOTAL = 1000, 1000 * 5 + 5 + 5 * 3 + 3 + 3 + 1
COLUMNS = [
    "example", "seed", "restart", "mse", "mse_floor", "sparsity", "parameters_kept", "selected", "false_selection_rate",
    "negative_selection_rate", "exact", "bic", "variables", "chosen",
]  # fmt: skip
NUMBERS = COLUMNS[3:-2]
SMALL_VALUES = {
    "-example": (2,), "-n": (80,), "-test": (20,), "-hidden": (3, 2), "-epochs": (4,), "-train": (40,), "-record": (2,),
    "-restarts": (2,), "-lr": (0.02,), "-momentum": (0.2,), "-eta": (0.2,), "-temperature": (0.1,), "-cycles": (2,),
    "-dense": (1,), "-eps0": (0.02,), "-eps1": (1e-3,), "-soft": (0.02,), "-hard": (1e-4,), "-warmup": (1,),
    "-seed": (4,), "-seeds": (2,), "-resume": (1,), "-save_every": (0,),
}  # fmt: skip


@pytest.fixture(scope="module")
def full(shared_run):
    """Two chains of each of two data sets."""
    return shared_run("em_regression", SCRIPT, *TINY, "-seeds", 2, "-restarts", 2)


def test_a_run_is_a_folder(full):
    assert full.code == 0, full.stderr
    assert {str(path.relative_to(full.folder)) for path in Path(full.folder).rglob("*") if path.is_file()} == {
        "args.json", "command.sh", "environment.json", "metrics.csv", "checkpoint.safetensors", "table.csv",
        "summary.json", "figures/em_selection.png",
    }  # fmt: skip
    assert "Warning" not in full.stderr and "Traceback" not in full.stderr
    assert json.loads((full / "args.json").read_text())["hidden"] == [5, 3]
    assert (full / "command.sh").read_text().startswith("python em_regression.py -n 300 ")
    assert "the authors' run: mse 1.108, sparsity 0.9897, selected 5" in full.stdout
    with Image.open(full / "figures/em_selection.png") as image:
        assert image.format == "PNG" and len(image.getcolors(10**6)) > 10


def test_the_table_is_what_the_checkpoint_holds(full):
    """Error, size and selection of every chain, evaluated once more in float64."""
    assert (full / "table.csv").read_text().splitlines()[0].split(",") == COLUMNS
    table, state = full.table, load_file(full / "checkpoint.safetensors")
    assert list(zip(table["seed"], table["restart"], strict=True)) == [(1, 0), (1, 1), (2, 0), (2, 1)]
    for i, row in table.iterrows():
        data = simulate(1, row["seed"], 300, 64)
        columns = state["own.columns"][i].numpy()
        keep = [state[f"prior.keep.{j}"][i, 0].numpy() for j in range(3)]
        net = {name: state[f"net.{name}"][i, 0].double().numpy() for name in ("weight1", "bias1", "weight2", "bias2",
               "weight3", "bias3")}  # fmt: skip
        for j, mask in enumerate(keep, 1):
            assert (net[f"weight{j}"][~mask] == 0).all() and (net[f"weight{j}"][mask] != 0).all()

        def loss(x, y, net=net, columns=columns):
            x = np.maximum(x[:, columns].astype(np.float64) @ net["weight1"] + net["bias1"], 0)
            x = np.maximum(x @ net["weight2"] + net["bias2"], 0)
            return float(((x @ net["weight3"] + net["bias3"])[:, 0] - y).__pow__(2).mean())

        selected = set(columns[keep[0].any(1)])
        kept = sum(int(mask.sum()) for mask in keep) + 5 + 3 + 1
        right = len(selected & set(range(5)))
        assert 5 < len(selected) < P - 5  # some are pruned, not all
        expected = {
            "mse": loss(data.x_test, data.y_test), "mse_floor": data.floor, "sparsity": 1 - kept / TOTAL,
            "parameters_kept": kept, "selected": len(selected), "false_selection_rate": 1 - right / len(selected),
            "negative_selection_rate": 1 - right / 5, "exact": 0,
            "bic": 300 * math.log(loss(data.x, data.y)) + kept * math.log(300),
        }  # fmt: skip
        assert row[NUMBERS].to_dict() == pytest.approx(expected, rel=1e-4)
        assert row["variables"] == " ".join(str(j + 1) for j in sorted(selected)[:20]) + " ..."


def test_of_the_restarts_the_one_of_smallest_bic_counts(full):
    table = full.table
    for _, rows in table.groupby("seed"):
        assert rows["chosen"].tolist() == [int(bic == rows["bic"].min()) for bic in rows["bic"]]
    assert table["chosen"].sum() == 2 and table["mse"].nunique() == 4


def test_the_summary_is_of_the_chosen_chains(full):
    chosen, summary = full.table.query("chosen == 1"), full.summary
    ratio = chosen["mse"] / chosen["mse_floor"]
    expected = {
        "mse_median": chosen["mse"].median(), "mse_best": chosen["mse"].min(), "mse": chosen["mse"].mean(),
        "mse_sd": chosen["mse"].std(), "mse_over_floor_median": ratio.median(), "mse_over_floor_best": ratio.min(),
        "mse_over_floor": ratio.mean(), "mse_over_floor_sd": ratio.std(), "exact": 0, "seeds": 2, "diverged": 0,
    }  # fmt: skip
    for name in ("sparsity", "selected", "false_selection_rate", "negative_selection_rate"):
        expected[name] = chosen[name].mean()
    assert summary.pop("seconds") > 0 and summary == pytest.approx(expected)


def test_progress_is_recorded(full):
    """Every -record epochs and at the end; pruned variables have no weight left."""
    metrics = pd.read_csv(full / "metrics.csv")
    assert metrics["epoch"].tolist() == [3] * 4 + [6] * 4 + [8] * 4
    last = metrics[metrics["epoch"] == 8].reset_index(drop=True)
    for name in ("mse", "sparsity", "selected"):
        assert last[name].tolist() == pytest.approx(full.table[name].tolist(), rel=1e-6)
    assert (metrics[metrics["epoch"] == 3]["sparsity"] == 0).all() and (last["sparsity"] > 0).all()
    sizes = [name for name in metrics if name.startswith("mean_square_")]
    assert [name.removeprefix("mean_square_") for name in sizes] == ["x1", "x2", "x3", "x4", "x5", "others"]
    gone = last[sizes[:5]].to_numpy() == 0
    assert gone.sum(1).tolist() == [round(5 * rate) for rate in full.table["negative_selection_rate"]]
    assert gone.any() and not gone.all()


def test_classes_have_an_accuracy(in_process, tmp_path):
    classes = in_process(em_regression, "-example", 3, *TINY, "-seeds", 1, out=tmp_path / "run")
    assert classes.code == 0, classes.stderr
    assert "the authors' run: accuracy 96.1, loss 0.1, sparsity 0.9873, selected 4" in classes.stdout
    (row,) = classes.table.to_dict("records")
    state, data = load_file(classes / "checkpoint.safetensors"), simulate(3, 1, 300, 64)

    def loss(x, y):
        x = x[:, state["own.columns"][0].numpy()].astype(np.float64)
        for j in range(1, 5):
            x = x @ state[f"net.weight{j}"][0, 0].double().numpy() + state[f"net.bias{j}"][0, 0].double().numpy()
            x = x if j == 4 else np.maximum(x, 0)
        p = 1 / (1 + np.exp(-x[:, 0]))
        return -np.where(y > 0, np.log(p), np.log(1 - p)).mean(), 100 * ((p > 0.5) == (y > 0)).mean()

    error, accuracy = loss(data.x_test, data.y_test)
    assert (row["loss"], row["accuracy"]) == pytest.approx((error, accuracy), rel=1e-4)
    bic = 2 * 300 * loss(data.x, data.y)[0] + row["parameters_kept"] * math.log(300)
    assert row["bic"] == pytest.approx(bic, rel=1e-4)
    assert (classes.summary["accuracy_best"], classes.summary["loss_best"]) == (row["accuracy"], row["loss"])


def test_every_flag_is_accepted(in_process, tmp_path):
    flags = itertools.chain(*((flag, *value) for flag, value in SMALL_VALUES.items()))
    result = in_process(em_regression, *flags, out=tmp_path / "run")
    parser, _ = em_regression.parse([])
    assert {action.option_strings[0] for action in parser._actions} - {"-h", "-out"} == set(SMALL_VALUES)
    assert result.code == 0, result.stderr
    args = json.loads((result / "args.json").read_text())
    for flag, value in SMALL_VALUES.items():
        assert args.get(flag[1:], value[0]) == (list(value) if flag == "-hidden" else value[0]), flag
    assert result.table["seed"].tolist() == [4, 4, 5, 5] and (result.table["example"] == 2).all()


@pytest.mark.parametrize("example", EXAMPLES)
def test_the_defaults_are_the_authors(example):
    _, args = em_regression.parse(["-example", str(example)])
    assert args.hidden == [[5, 3], [6, 4, 3], [6, 4, 3]][example - 1]
    assert args.lr == [0.01, 0.01, 0.1][example - 1] and args.epochs == [3000, 6000, 3000][example - 1]
    assert (args.soft, args.hard, args.eps0) == ([1e-2, 1e-2, 2e-2][example - 1], 1e-3, 1e-2)
    assert args.eps1 in (2e-4, 5e-4) and (args.warmup, args.cycles, args.train, args.eta) == (50, 6, 1024, 0.1)
    data = simulate(example, 0, 100, 10)
    args.train, args.seeds = 50, 1
    sampler = em_regression.Chains(args, [data]).sampler
    assert sampler.defaults["temperature"] == pytest.approx(0.1)  # 1 / sqrt N
    assert (sampler.defaults["observations"], sampler.defaults["momentum"]) == (100, 0.1)


EASY = ("-n", 512, "-test", 128, "-train", 64, "-hidden", 4, "-epochs", 15, "-cycles", 1, "-warmup", 8, "-lr", 0.05)
CLEAR = ("-soft", 0.2, "-hard", 0.2)  # between the relevant variables' mean squares, over 0.4, and the others', 0.05
# the same for classes, where it is between 0.5 and 0.15; ten times the step, as in the paper
CLEAR_CLASSES = ("-example", 3, "-n", 1024, "-epochs", 16, "-warmup", 12, "-lr", 0.5, "-soft", 0.3, "-hard", 0.3)
BLURRED = ("-soft", 0.02, "-hard", 0.02)  # among those of the others


@pytest.fixture
def easy(monkeypatch):
    """Examples of twenty variables in which the difference of the first two matters: 3 (x1 - x2)."""
    for number in (1, 3):
        example = dataclasses.replace(EXAMPLES[number], p=20, relevant=2, f=lambda x: 3 * (x[:, 0] - x[:, 1]))
        monkeypatch.setitem(EXAMPLES, number, example)


@pytest.fixture
def start(in_process, easy, tmp_path, monkeypatch):
    """start(*flags, out, code): the script on an easy example, without the figure, which takes most of the time."""
    monkeypatch.setattr(em_selection, "draw", lambda folders: None)

    def run(*flags, out: str = "run", code: int = 0):
        result = in_process(em_regression, *EASY, *flags, out=tmp_path / out)
        assert result.code == code, result.stderr
        return result

    return run


@pytest.mark.parametrize("flags", [CLEAR, CLEAR_CLASSES], ids=["regression", "classes"])
def test_the_true_variables_are_found(start, flags):
    result = start(*flags, "-seeds", 20)
    assert result.table["variables"].tolist() == ["1 2"] * 20 and (result.table["exact"] == 1).all()
    assert (result.table["selected"] == 2).all() and result.summary["exact"] == 20
    assert result.summary["false_selection_rate"] == result.summary["negative_selection_rate"] == 0
    assert (result.table["sparsity"] * 89).tolist() == pytest.approx(89 - result.table["parameters_kept"])
    if flags == CLEAR:
        assert result.table["mse"].median() < 4  # of a y with variance 10
    else:
        assert result.table["accuracy"].min() > 85


@pytest.mark.parametrize("flags", [(), ("-restarts", 2)], ids=["", "restarts"])
def test_a_chain_does_not_depend_on_its_neighbours(start, same_table, flags):
    """Also where the neighbours prune other variables, and more or fewer of them."""
    together = start(*BLURRED, "-seeds", 4, *flags, out="together").table
    assert together["selected"].nunique() > 1 and together["selected"].between(2, 19).all()
    for seed in (2, 3):
        alone = start(*BLURRED, "-seed", seed, "-seeds", 1, *flags, out=f"alone{seed}").table
        exact = ["seed", "restart", "selected", "parameters_kept", "variables", "chosen"]
        assert together.loc[together["seed"] == seed, exact].to_numpy().tolist() == alone[exact].to_numpy().tolist()
        same_table(together[together["seed"] == seed], alone, rtol=1e-4)


@pytest.mark.parametrize("example", [1, 3])
def test_dropping_pruned_variables_changes_nothing(start, monkeypatch, same_table, example):
    """At temperature 0: no noise is drawn, which would be other noise while nothing is dropped."""
    flags = ("-example", example, *BLURRED, "-seeds", 3, "-temperature", 0, "-record", 4)
    compacted = start(*flags, out="compacted")
    dropped = load_file(compacted / "checkpoint.safetensors")["own.columns"].shape[1]
    monkeypatch.setattr(em_regression.Chains, "compact", lambda self: None)
    whole = start(*flags, out="whole")
    assert dropped < 20 == load_file(whole / "checkpoint.safetensors")["own.columns"].shape[1]
    assert whole.table["variables"].tolist() == compacted.table["variables"].tolist()
    same_table(whole.table, compacted.table, rtol=1e-4)
    same_table(*(pd.read_csv(run / "metrics.csv") for run in (whole, compacted)), rtol=1e-3)


@pytest.fixture
def chains(easy):
    """chains(*flags): three chains of the easy example, whose weights have all moved."""

    def make(*flags) -> em_regression.Chains:
        _, args = em_regression.parse([*map(str, (*EASY, *BLURRED, "-seeds", 3)), *map(str, flags)])
        chains = em_regression.Chains(args, [simulate(args.example, s, args.n, args.test) for s in (1, 2, 3)])
        chains.epoch()
        return chains

    return make


@pytest.mark.parametrize("kept", [(20, 13, 13), (7, 13, 1), (13, 13, 13), (0, 4, 20), (0, 0, 0)])
def test_the_networks_compute_the_same_without_pruned_variables(chains, kept):
    """Also where one chain keeps all its variables and the others do not."""
    one = chains()
    keep = torch.stack([torch.randperm(20, generator=torch.Generator().manual_seed(n)) < n for n in kept])
    one.prior.mask.keep[0] &= keep[:, None, :, None]
    one.prior.prune()
    rho, size = one.sampler.state[one.first]["rho"].clone(), one.first.detach().square().sum()
    outputs = lambda: (one.net(one.rows.x_test)[:, 0].detach(), one.bic(), one.selected().sum(1))  # noqa: E731
    before = outputs()
    one.compact()
    assert one.first.shape == (3, 1, max(1, *kept), 4) and one.rows.x_test.shape[-1] == max(1, *kept)
    for a, b in zip(before, outputs(), strict=True):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(one.first.detach().square().sum(), size)
    for chain, columns, mask in zip(range(3), one.rows.columns, keep, strict=True):
        left = one.rows.columns[chain][one.selected()[chain]].tolist()
        assert left == mask.nonzero().flatten().tolist() and columns.unique().numel() == len(columns)
        assert torch.equal(one.sampler.state[one.first]["rho"][chain, 0], rho[chain, 0][columns])
    one.epoch()  # and goes on


def test_a_copy_of_the_state_goes_on_bit_for_bit(chains):
    """Also without another EM step, which would count the variables again whose noise is drawn."""
    one, copy = chains("-warmup", 1), chains("-warmup", 1)
    one.epoch()
    left = one.selected().sum(1)
    assert left.max() < 20 and left.unique().numel() > 1
    copy.load_state_dict({name: x.clone() for name, x in one.state_dict().items()})
    one.args.warmup = copy.args.warmup = 99
    for each in (one, copy):
        each.epoch()
    a, b = one.state_dict(), copy.state_dict()
    assert a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_minibatches_are_passes_through_all_rows(chains, monkeypatch):
    """Every chain in an order of its own, also when only some variables are left."""
    one, seen = chains(), []
    loss = one.loss
    monkeypatch.setattr(one, "loss", lambda output, y: seen.append(y) or loss(output, y))
    for _ in range(2):
        one.epoch()
    first, second = (torch.cat(seen[i : i + 8], 1) for i in (0, 8))
    assert len(seen) == 16 and not torch.equal(first, second)
    for epoch in (first, second):
        assert torch.equal(epoch.sort(1).values, one.rows.y.sort(1).values)


def test_the_em_step_comes_at_the_first_batch_after_the_warm_up(chains, monkeypatch):
    one, events = chains("-warmup", 2), []
    update, step = one.prior.update, one.sampler.step
    monkeypatch.setattr(one.prior, "update", lambda: events.append("em") or update())
    monkeypatch.setattr(one.sampler, "step", lambda: events.append("step") or step())
    for _ in range(3):
        one.epoch()
    assert events == ["step"] * 8 + (["em"] + ["step"] * 8) * 2  # one epoch was done before


def test_the_step_size_goes_round_in_cycles(chains):
    one, lr = chains("-epochs", 6, "-cycles", 3, "-dense", 1), []
    step = one.sampler.step
    one.sampler.step = lambda: lr.append(one.sampler.param_groups[0]["lr"]) or step()
    for _ in range(4):
        one.epoch()
    expected = [0.05 * (1 + math.cos(math.pi * (t % 16) / 16)) / 2 for t in range(8, 40)]  # 8 iterations an epoch
    assert lr == pytest.approx(expected)


def test_a_dense_run_never_prunes(start, same_table):
    dense = start("-dense", 1, "-soft", 9, "-hard", 9, "-seeds", 2, out="dense")
    other = start("-dense", 1, "-warmup", 99, "-eps0", 5, "-seeds", 2, out="other")
    assert (dense.table["sparsity"] == 0).all() and (dense.table["selected"] == 20).all()
    assert (dense.table["parameters_kept"] == 89).all()
    same_table(dense.table, other.table)
    sparse = start("-soft", 9, "-hard", 9, "-seeds", 2, out="sparse").table
    assert (sparse["selected"] == 0).all() and sparse["variables"].isna().all() and (sparse["exact"] == 0).all()
    assert (sparse["false_selection_rate"] == 0).all() and (sparse["negative_selection_rate"] == 1).all()


@pytest.fixture
def huge(monkeypatch):
    """huge(seed): the targets of this seed are too large for float32 errors."""

    def spoil(*seeds: int) -> None:
        def scaled(number, seed, *sizes):
            data = simulate(number, seed, *sizes)
            return dataclasses.replace(data, y=data.y * np.float32(1e25)) if seed in seeds else data

        monkeypatch.setattr(em_regression, "simulate", scaled)

    return spoil


@pytest.mark.parametrize("flags", [CLEAR, ("-dense", 1)], ids=["pruned", "dense"])
def test_a_diverged_chain_is_reported_and_never_averaged_in(start, huge, same_table, flags):
    others = [start(*flags, "-seed", seed, "-seeds", 1, out=f"seed{seed}").table for seed in (1, 3)]
    huge(2)
    result = start(*flags, "-seeds", 3, code=3)
    last = result.stderr.splitlines()[-1]
    assert last == "diverged: 1 of 3 chains of example 1, the first at iteration 1; use a smaller step: -lr 0.005"
    table = result.table
    gone = table["seed"] == 2
    assert table.loc[gone, [*NUMBERS, "variables"]].isna().all(axis=None) and (table.loc[gone, "chosen"] == 0).all()
    same_table(table[~gone], pd.concat(others), rtol=1e-4)
    assert (result.summary["seeds"], result.summary["diverged"]) == (2, 1)
    assert result.summary["mse"] == pytest.approx(table.loc[~gone, "mse"].mean())
    assert set(pd.read_csv(result / "metrics.csv")["seed"]) == {1, 3}
    assert "Traceback" not in result.stderr


def test_when_every_chain_diverges_the_run_stops(start, huge, tmp_path):
    huge(1, 2)
    result = start("-seeds", 2, code=3)
    assert result.stderr.splitlines()[-1].startswith("diverged: 2 of 2 chains of example 1, the first at iteration 1;")
    assert result.stdout == ""
    assert not any((result / name).exists() for name in ("table.csv", "summary.json", "checkpoint.safetensors"))


def test_a_step_that_is_too_large_diverges_and_the_recommended_one_does_not(start):
    result = start("-lr", 1000, code=3)
    lr = result.stderr.splitlines()[-1].split()[-1]
    while float(lr) > 1:
        lr = start("-lr", lr, out=f"lr{lr}", code=3).stderr.splitlines()[-1].split()[-1]
    start("-lr", float(lr) / 10, out="smaller")


@pytest.mark.parametrize("example", [1, 3])
def test_a_chain_that_diverges_in_its_last_step_is_reported(start, monkeypatch, example):
    epoch = em_regression.Chains.epoch

    def spoiled(self):
        epoch(self)
        if self.iterations == 15 * 8:  # the last one
            self.net.bias1.data[1] = math.nan

    monkeypatch.setattr(em_regression.Chains, "epoch", spoiled)
    result = start("-example", example, *CLEAR, "-seeds", 3, code=3)
    assert f"diverged: 1 of 3 chains of example {example}, the first at iteration 120;" in result.stderr
    assert result.table.loc[1, ["selected", "bic", "variables"]].isna().all()
    assert result.summary["diverged"] == 1 and result.summary["seeds"] == 2


def test_a_finished_run_with_a_diverged_chain_ends_as_before_when_it_is_resumed(start, huge):
    huge(2)
    first = start("-seeds", 3, code=3)
    again = start("-seeds", 3, "-resume", 1, code=3)
    assert again.stdout == first.stdout
    assert again.stderr.startswith("diverged: 1 of 3 rows of table.csv") and again.stderr.count("\n") == 1


def test_nothing_is_masked_in_a_dense_run(start, monkeypatch):
    calls = []
    monkeypatch.setattr(em_regression.GroupSpikeSlab, "prune", lambda prior: calls.append(1))
    start("-dense", 1, "-seeds", 1)
    assert not calls


def test_the_first_bad_iteration_is_named_even_if_later_ones_are_finite(start, monkeypatch):
    loss, calls = em_regression.Chains.loss, itertools.count(1)

    def spoiled(self, output, y):
        return loss(self, output, y) + (math.inf if next(calls) == 11 else 0.0)

    monkeypatch.setattr(em_regression.Chains, "loss", spoiled)
    result = start("-seeds", 1, "-record", 99, code=3)
    assert "the first at iteration 11;" in result.stderr


def test_the_figure_of_several_runs(start, tmp_path):
    runs = [start("-example", number, *BLURRED, "-seeds", 2, out=f"run{number}") / "" for number in (1, 3)]
    one, two = draw(runs[:1]), draw(runs, tmp_path / "two.png")
    assert one == runs[0] / "figures/em_selection.png" and two == tmp_path / "two.png"
    with Image.open(one) as narrow, Image.open(two) as wide:
        assert wide.format == "PNG" and wide.size == (2 * narrow.width, narrow.height)


@pytest.mark.parametrize(
    "flags",
    [("-soft", 9, "-hard", 9), ("-soft", 9, "-hard", 1), ("-dense", 1, "-hard", 0)],
    ids=["everything", "two thresholds", "nothing"],
)
def test_a_run_that_has_pruned_everything_or_nothing_can_be_drawn(start, flags):
    result = start(*flags, "-seeds", 1)
    with Image.open(draw([result / ""])) as image:
        assert image.format == "PNG"


def test_the_figure_shows_the_chosen_chains(start, monkeypatch):
    """A line per relevant variable and chain, up to where it is pruned, and one of the others."""
    result, figures = start(*CLEAR, "-seeds", 2, "-restarts", 2, "-record", 1), []
    monkeypatch.setattr(em_selection, "save", lambda figure, *where: figures.append(figure))
    draw([result / ""])
    axis = figures[0].axes[0]
    lines = [line for line in axis.get_lines() if len(line.get_xdata()) == 15]
    metrics = pd.read_csv(result / "metrics.csv")
    assert (metrics["mean_square_others"] == 0).any()
    metrics = metrics.merge(result.table.query("chosen == 1")[["seed", "restart"]])
    expected = [
        rows[f"mean_square_{name}"].to_numpy() for name in ("x1", "x2", "others") for _, rows in metrics.groupby("seed")
    ]
    for line, values in zip(lines, expected, strict=True):
        np.testing.assert_array_equal(line.get_ydata(), np.where(values > 0, values, np.nan))
    labels = [text.get_text() for text in axis.get_legend().get_texts()]
    assert labels == ["x1", "x2", "others", "soft threshold", "hard threshold"]
    assert axis.get_title() == "Example 1, n = 2"
    em_selection.plt.close(figures[0])
