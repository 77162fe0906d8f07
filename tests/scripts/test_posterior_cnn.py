"""posterior_cnn.py as a user runs it, in small, mostly on the data set that needs no file."""

import functools
import itertools
import json
import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import roc_auc_score
from torch.nn.functional import cross_entropy

import posterior_cnn
from data import images
from data.image_sets import ImageData, MemoryImages
from experiment import classification
from experiment.packing import unpack
from model.model_zoo_mnist import ConvNet
from sampler.noise import stream

SCRIPT = "posterior_cnn.py"
TINY = ("-data", "digits", "-sn", 3, "-burn", 1, "-train", 128, "-thin", 5)  # 11 iterations an epoch, 4 samples
SMALL = ("-sn", 3, "-burn", 1, "-train", 30, "-thin", 2)  # for data sets of a few images
FEW = ("-sn", 2, "-burn", 1, "-train", 100, "-thin", 1)
PRUNED = ("-prune", 1, "-sparse", 0.4, "-cut", 0.01, "-gap", 0.5)  # at its target after few iterations
METHODS = ("sa", "em", "sghmc", "vanilla", "dropout")
SCORES = ["accuracy", "nll", "ece", "brier"]
AVERAGED, BEST = ([f"{name}_{of}" for name in SCORES] for of in ("averaged", "best_sample"))
COLUMNS = ["data", "aug", "method", "seed", *SCORES, *AVERAGED, *BEST]
COLUMNS += ["samples", "sparsity", "density", "parameters_kept"]
METRICS = ["epoch", "iterations", "samples", "lr", *SCORES]
LATENT = [f"{name}_{q}" for name in ("rho", "kappa0", "kappa1") for q in ("q05", "q50", "q95")] + ["delta", "sigma"]
PARAMETERS, PRUNABLE = 105506, 51200  # of convnet at 8 x 8 pixels
FILES = {"args.json", "command.sh", "environment.json", "metrics.csv", "checkpoint.safetensors", "table.csv"}
FILES |= {"summary.json", "predictions.safetensors", "model.safetensors"}
SAMPLES = {f"samples/{i:05d}.safetensors" for i in range(1, 5)}
SMALL_VALUES = {
    "-data": "digits", "-data_dir": "nowhere", "-size": 9, "-workers": 0, "-model": "convnet", "-c": "em", "-aug": 1,
    "-invT": 50, "-anneal": 1.01, "-lr": 1e-5, "-momentum": 0.8, "-wdecay": 0.001, "-sn": 2, "-train": 200,
    "-test": 99, "-burn": 1, "-thin": 2, "-val": 0.2, "-v0": 0.2, "-v1": 5, "-a": 1.5, "-b": 4, "-nu": 2,
    "-lamda": 0.5, "-sd": 3, "-fix_scale": 1, "-dc": 0.5, "-da": 10, "-dalpha": 0.8, "-prune": 1, "-sparse": 0.4,
    "-cut": 0.5, "-gap": 3, "-attack": 1, "-attack_images": 20, "-pgd_images": 5, "-pgd_steps": 2, "-ood": "digits",
    "-device": "cpu", "-amp": 1, "-compile": 0, "-seed": 4, "-seeds": 2, "-resume": 1, "-save_every": 0, "-save": 0,
    "-save_samples": 1, "-tensorboard": 1,
}  # fmt: skip


def text(flags) -> str:
    return " ".join(map(str, flags))


@pytest.fixture(scope="module")
def full(shared_run):
    return shared_run("cnn_full", SCRIPT, *TINY)


@pytest.fixture(scope="module")
def all_flags(shared_run):
    return shared_run("cnn_flags", SCRIPT, *itertools.chain(*SMALL_VALUES.items()))


@pytest.fixture
def run(in_process, tmp_path):
    """run(*flags, name): a run of the script that must succeed."""

    def start(*flags, name: str = "run"):
        result = in_process(posterior_cnn, *flags, out=tmp_path / name)
        assert result.code == 0, result.stderr
        return result

    return start


def files(folder) -> set[str]:
    return {str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file()}


def metrics(result) -> pd.DataFrame:
    return pd.read_csv(result / "metrics.csv")


def weights(result) -> dict[str, torch.Tensor]:
    return load_file(result / "model.safetensors")


def same_weights(a: dict, b: dict) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_a_run_is_a_folder(full):
    assert full.code == 0, full.stderr
    assert files(full.folder) == FILES
    assert "Warning" not in full.stderr and "Traceback" not in full.stderr
    assert json.loads((full / "args.json").read_text())["data"] == "digits"
    assert (full / "command.sh").read_text().startswith("python posterior_cnn.py -data digits ")
    assert full.folder in full.stdout


@pytest.mark.parametrize(
    "flags, more, less",
    [
        (("-save", 0), set(), {"model.safetensors"}),
        (("-save_samples", 1), SAMPLES, set()),
        (
            ("-attack", 1, "-attack_images", 10, "-pgd_images", 0),
            SAMPLES | {"attack.csv", "attack_example.safetensors"},
            set(),
        ),
        (("-ood", "digits"), SAMPLES | {"ood.csv", "ood.safetensors"}, set()),
        (("-c", "vanilla", "-ood", "digits"), {"ood.csv", "ood.safetensors"}, set()),
    ],
    ids=["no model", "samples", "attack", "outside", "vanilla outside"],
)
def test_flags_add_files(run, flags, more, less):
    assert files(run(*TINY, *flags).folder) == (FILES | more) - less


def test_a_run_of_several_seeds_is_a_folder_of_folders(all_flags):
    assert all_flags.code == 0, all_flags.stderr
    found = {name for name in files(all_flags.folder) if "tensorboard" not in name}
    samples = {f"samples/{i:05d}.safetensors" for i in (1, 2)}
    after = {"attack.csv", "attack_example.safetensors", "ood.csv", "ood.safetensors"}
    each = FILES - {"model.safetensors"} | samples | after
    own = {"args.json", "command.sh", "environment.json", "table.csv", "summary.json"}
    assert found == own | {f"seed{seed}/{name}" for seed in (4, 5) for name in each}
    events = {name for name in files(all_flags.folder) if "tensorboard" in name}
    assert {name.split("/tensorboard/events.out")[0] for name in events} == {"seed4", "seed5"}


def test_the_table(full):
    assert (full / "table.csv").read_text().splitlines()[0].split(",") == COLUMNS
    (row,) = full.table.to_dict("records")
    assert [row[name] for name in ("data", "aug", "method", "seed", "samples")] == ["digits", 0, "sa", 1, 4]
    for of in ("", "_averaged", "_best_sample"):
        assert 15 < row[f"accuracy{of}"] <= 100 and 0 < row[f"nll{of}"] < 3
        assert 0 < row[f"ece{of}"] < 1 and 0 < row[f"brier{of}"] < 1
    assert (row["sparsity"], row["density"], row["parameters_kept"]) == (0, 1, PARAMETERS)


def test_the_summary_has_plain_names(full):
    summary, row = full.summary, full.table.iloc[0]
    assert summary.keys() == {*COLUMNS[4:], "seeds", "evaluated_on", "device", "seconds"}
    for name in COLUMNS[4:]:
        assert summary[name] == pytest.approx(row[name])
    assert (summary["seeds"], summary["evaluated_on"]) == (1, "test") and 0 < summary["seconds"] < 300
    assert summary["device"] == ("cpu" if not torch.cuda.is_available() else torch.cuda.get_device_name())


def test_progress_is_recorded(full):
    table = metrics(full)
    assert set(table) == {*METRICS, *AVERAGED, *LATENT, "temperature_kinetic", "temperature_claimed", "sparsity"}
    assert table["epoch"].tolist() == [1, 2, 3] and table["iterations"].tolist() == [11, 22, 33]
    assert table["samples"].tolist() == [0, 2, 4] and table["accuracy_averaged"].isna().tolist() == [True, False, False]
    assert table["lr"].to_numpy() == pytest.approx(0.03 / 1437)
    assert table["temperature_claimed"].to_numpy() == pytest.approx(1 / 1000)
    assert (table["temperature_kinetic"] > 0).all()
    for name in [*SCORES, *AVERAGED]:
        assert table[name].iloc[-1] == pytest.approx(full.table[name].iloc[0])


def test_the_result_is_printed(full):
    printed = dict(line.split(maxsplit=1) for line in full.stdout.splitlines() if len(line.split()) == 2)
    row = full.table.iloc[0]
    for name in [*SCORES, *AVERAGED]:
        assert printed[name] == f"{row[name]:.4f}"


def test_the_same_command_gives_the_same_bytes(full, run):
    again = run(*TINY)
    for name in ("table.csv", "metrics.csv", "model.safetensors", "predictions.safetensors"):
        assert (again / name).read_bytes() == (full / name).read_bytes(), name


@pytest.mark.parametrize("method", METHODS)
def test_every_method_learns(run, method):
    """Chance is 10%."""
    result = run("-data", "digits", "-c", method, "-sn", 6, "-burn", 3, "-train", 64, "-thin", 20)
    (row,), bayesian = result.table.to_dict("records"), method in ("sa", "em", "sghmc")
    assert row["accuracy"] > 70 and row["nll"] < 2.2
    if bayesian:
        assert row["accuracy_averaged"] > 70 and row["samples"] == 22 * 3 // 20
    else:
        assert np.isnan([row[name] for name in (*AVERAGED, *BEST)]).all() and row["samples"] == 0
        assert result.summary["accuracy_averaged"] is None
        assert set(metrics(result)) == {*METRICS, "sparsity"}
    assert row["method"] == method and row["sparsity"] == 0


def test_the_methods_differ_in_what_omega_does(full, run):
    tables = {"sa": metrics(full)} | {c: metrics(run(*TINY, "-c", c, name=c)) for c in ("em", "sghmc")}
    sa, em, sghmc = (tables[c] for c in ("sa", "em", "sghmc"))
    for name in ("rho_q50", "kappa0_q50", "kappa1_q50", "delta", "sigma"):
        assert not np.isclose(sa[name], em[name], rtol=1e-3).any(), name
    assert (sa["nll"] != em["nll"]).all() and (sa["nll"] != sghmc["nll"]).all()
    assert (em["rho_q50"] - 0.5).abs().iloc[0] > 5 * (sa["rho_q50"] - 0.5).abs().iloc[0]  # omega 1 against 1/178
    for q in ("q05", "q50", "q95"):
        assert (sghmc[f"rho_{q}"] == 0.5).all() and (sghmc[f"kappa0_{q}"] == 0).all()
        assert sghmc[f"kappa1_{q}"].to_numpy() == pytest.approx(5e-4 * 1437)
    assert (sghmc["sigma"] == 1).all() and (sghmc["delta"] == 0.5).all()


def digits(part: str) -> tuple[torch.Tensor, torch.Tensor]:
    data = getattr(images.load("digits"), part)
    return data.x.float() / 255, data.y


def start_weights(run, *flags, name="start") -> dict[str, torch.Tensor]:
    """The weights of a run whose steps are too small to move a float32 number."""
    return weights(run(*TINY, "-sn", 2, *flags, "-lr", 1e-30, name=name))


def test_the_methods_of_one_seed_start_from_the_same_weights(run):
    starts = [start_weights(run, "-c", c, name=c) for c in METHODS]
    assert all(same_weights(starts[0], other) for other in starts[1:])
    assert not same_weights(starts[0], start_weights(run, "-seed", 2, name="seed"))


def test_sghmc_is_gradient_descent_with_weight_decay_and_noise(run):
    """At zero temperature nothing but torch.optim.SGD with the prior's precision as its weight decay is left."""
    flags = (*TINY, "-c", "sghmc", "-wdecay", 0.02)  # a decay that is felt in so few steps
    result = run(*flags, "-invT", 1e30)
    x, y = digits("train")
    sizes, start, found = len(y), start_weights(run, "-c", "sghmc"), {}
    for decay in (0.02 * sizes, 0.0):
        net = ConvNet((1, 8, 8), 10)
        net.load_state_dict(start)
        optimizer = torch.optim.SGD(net.parameters(), lr=0.03 / sizes, momentum=0.9, weight_decay=decay)
        order = stream(1, "order")
        for _ in range(3):
            for rows in torch.randperm(sizes, generator=order)[: 11 * 128].split(128):
                optimizer.zero_grad()
                (sizes * cross_entropy(net(x[rows]), y[rows])).backward()
                optimizer.step()
        found[decay > 0] = net.state_dict()
    for name, w in weights(result).items():
        torch.testing.assert_close(w, found[True][name], rtol=1e-3, atol=1e-5)
        assert not torch.allclose(w, found[False][name], rtol=1e-3, atol=1e-5)
    noisy = weights(run(*flags, name="noisy"))
    assert (noisy["fc1.weight"] - found[True]["fc1.weight"]).std() > 1e-4


def test_every_flag_is_accepted(all_flags):
    parser, _ = posterior_cnn.parse([])
    flags = {action.option_strings[0] for action in parser._actions} - {"-h", "-out", "-evaluate"}
    assert flags == set(SMALL_VALUES)
    assert all_flags.code == 0, all_flags.stderr
    for flag, value in SMALL_VALUES.items():
        assert parser.get_default(flag[1:]) != value or flag in ("-model", "-compile"), f"{flag} has its default"
    args = json.loads((all_flags / "args.json").read_text())
    afterwards = {"attack", "attack_images", "pgd_images", "pgd_steps", "ood", "evaluate"}
    assert args.keys() == {flag[1:] for flag in SMALL_VALUES} - afterwards - {
        "data_dir", "device", "workers", "resume", "save_every", "tensorboard",
    }  # fmt: skip
    for flag, value in SMALL_VALUES.items():
        assert args.get(flag[1:], value) == value, flag
    assert all_flags.table["seed"].tolist() == [4, 5] and (all_flags.table["aug"] == 1).all()
    assert (all_flags.summary["evaluated_on"], all_flags.summary["seeds"]) == ("validation", 2)
    attacked = pd.read_csv(all_flags / "seed4/attack.csv")
    assert set(attacked["n"]) == {20, 5} and not Path("nowhere").exists()


@pytest.mark.parametrize("flags", [(), ("-c", "dropout"), ("-val", 0.2)], ids=text)
def test_several_seeds_are_the_single_runs(run, tmp_path, flags):
    flags = (*TINY, *flags)
    both = run(*flags, "-seed", 2, "-seeds", 2, name="both")
    tables = []
    for seed in (2, 3):
        alone = run(*flags, "-seed", seed, name=str(seed))
        together = tmp_path / "both" / f"seed{seed}"
        assert same_weights(weights(together), weights(alone)), seed
        for name in ("table.csv", "metrics.csv", "predictions.safetensors"):
            assert (together / name).read_bytes() == (alone / name).read_bytes(), name
        tables.append(alone.table)
    pd.testing.assert_frame_equal(both.table, pd.concat(tables, ignore_index=True))
    assert both.summary["seeds"] == 2
    for name in SCORES:
        assert both.summary[name] == pytest.approx(both.table[name].mean())
    assert f"+- {both.table['accuracy'].std():.4f}" in both.stdout


def member_probabilities(folder: Path, mean: float, sd: float) -> torch.Tensor:
    """(samples, images, classes) of the weights in samples/, float64."""
    x, _ = digits("test")
    found = []
    for path in sorted((folder / "samples").iterdir()):
        net = ConvNet((1, 8, 8), 10)
        net.load_state_dict(unpack(load_file(path)))
        with torch.no_grad():
            found.append(net((x - mean) / sd).double().softmax(-1))
    return torch.stack(found)


@pytest.mark.parametrize(
    "flags, mean, sd", [((), 0, 1), (PRUNED, 0, 1), (("-aug", 1, "-model", "convnet"), 0.3, 0.38)], ids=range(3)
)
def test_the_average_is_that_of_the_saved_samples(run, tmp_path, flags, mean, sd):
    result = run(*TINY, *flags, "-save_samples", 1)
    members, (_, y) = member_probabilities(tmp_path / "run", mean, sd), digits("test")
    saved = load_file(result / "predictions.safetensors")
    assert saved.keys() == {"probabilities", "mean_entropy", "probabilities_last", "labels"}
    assert len(members) == 4 and (members[0] - members[3]).abs().max() > 1e-3
    assert torch.equal(saved["labels"], y)
    torch.testing.assert_close(saved["probabilities"], members.mean(0), rtol=1e-4, atol=1e-6)
    entropies = -(members * members.log()).sum(-1)
    torch.testing.assert_close(saved["mean_entropy"], entropies.mean(0), rtol=1e-4, atol=1e-6)
    row = result.table.iloc[0]
    for probabilities, of in ((members.mean(0), "_averaged"), (saved["probabilities_last"], "")):
        assert row[f"accuracy{of}"] == pytest.approx(100 * (probabilities.argmax(-1) == y).double().mean().item())
        assert row[f"nll{of}"] == pytest.approx(-probabilities[range(len(y)), y].log().mean().item(), rel=1e-4)
    for name in SCORES:  # of the best single sample
        each = [getattr(classification, name)(p, y) for p in members]
        best = max if name == "accuracy" else min
        assert row[f"{name}_best_sample"] == pytest.approx(best(each), rel=1e-3)
        assert best(each) != pytest.approx((min if best is max else max)(each), rel=1e-3)


@pytest.mark.parametrize("thin, last", [(22, True), (15, False)])
def test_the_average_of_one_sample_is_that_sample(run, thin, last):
    """The sample is the last iterate, or one before it."""
    (row,) = run(*TINY, "-thin", thin).table.to_dict("records")
    assert row["samples"] == 1
    for name in SCORES:
        assert row[f"{name}_averaged"] == pytest.approx(row[f"{name}_best_sample"])
    assert (row["nll_averaged"] == pytest.approx(row["nll"])) == last


@pytest.mark.parametrize("sn, burn, thin", [(2, 0, 1), (3, 2, 11), (4, 1, 7), (3, 0, 12)])
def test_samples_are_counted_from_the_burn_in(run, sn, burn, thin):
    result = run(*TINY, "-sn", sn, "-burn", burn, "-thin", thin)
    expected = [max(0, 11 * (epoch - burn)) // thin for epoch in range(1, sn + 1)]
    assert metrics(result)["samples"].tolist() == expected and result.table["samples"].item() == expected[-1] > 0


@pytest.mark.parametrize("method", ["sa", "vanilla"])
def test_pruning_reaches_its_target(run, method):
    """Of all parameters; the layer's own target is floored to 0.001."""
    result = run(*TINY, *PRUNED, "-c", method)
    (row,) = result.table.to_dict("records")
    target = np.floor(1000 * 0.4 * PARAMETERS / PRUNABLE) / 1000
    zeros = int((weights(result)["fc1.weight"] == 0).sum())
    assert zeros == np.floor(target * PRUNABLE) and zeros / PARAMETERS == pytest.approx(0.4, abs=0.001)
    assert row["sparsity"] == pytest.approx(zeros / PARAMETERS) and row["density"] == pytest.approx(1 - row["sparsity"])
    assert row["parameters_kept"] == PARAMETERS - zeros == sum(int((w != 0).sum()) for w in weights(result).values())
    assert row["accuracy"] > 15


def test_pruning_follows_its_schedule(run):
    result = run(*TINY, "-prune", 1, "-sparse", 0.4, "-cut", 0.9, "-gap", 3)
    target = np.floor(1000 * 0.4 * PARAMETERS / PRUNABLE) / 1000
    zeros = np.floor(target * (1 - 0.9 ** (np.array([11, 22, 33]) / 3)) * PRUNABLE)
    assert metrics(result)["sparsity"].to_numpy() == pytest.approx(zeros / PARAMETERS)


def test_half_of_the_published_network_is_pruned(run, idx_files):
    result = run("-data", "mnist", "-data_dir", idx_files, *FEW, *PRUNED, "-sparse", 0.5)
    assert result.table["sparsity"].item() == pytest.approx(0.5, abs=0.001)
    assert sum(w.numel() for w in weights(result).values()) == 681506


def test_pruned_samples_are_small_files(run, tmp_path):
    for name, flags in (("dense", ()), ("pruned", PRUNED)):
        run(*TINY, *flags, "-save_samples", 1, name=name)
    dense, pruned = (tmp_path / name / "samples/00004.safetensors" for name in ("dense", "pruned"))
    saved = 4 * 0.4 * PARAMETERS - PRUNABLE / 8  # bytes: zeros, less one bit for every weight of the layer
    assert dense.stat().st_size - pruned.stat().st_size == pytest.approx(saved, rel=0.02)
    layer = unpack(load_file(pruned))["fc1.weight"]
    assert layer.shape == (200, 256) and (layer == 0).float().mean() == pytest.approx(0.824, abs=0.001)


def test_augmentation_with_its_network_and_data_from_outside(run, idx_files):
    flags = ("-data", "mnist", "-data_dir", idx_files, *FEW, "-aug", 1, "-ood", "fmnist")
    result = run(*flags)
    assert (json.loads((result / "args.json").read_text())["model"], result.table["aug"].item()) == ("convnet-bn", 1)
    assert sum(w.numel() for name, w in weights(result).items() if "running" not in name) == pytest.approx(
        493772, abs=9
    )
    table, raw = pd.read_csv(result / "ood.csv"), load_file(result / "ood.safetensors")
    assert list(table) == ["data", "aug", "method", "seed", "ood", "score", "auroc", "fpr95"]
    assert table["score"].tolist() == ["entropy", "mutual_information"] and (table["ood"] == "fmnist").all()
    for row in table.itertuples():
        inside, outside = (raw[f"{row.score}_{side}"].numpy() for side in ("inside", "outside"))
        assert len(inside) == len(outside) == 100
        score = roc_auc_score(np.repeat([0, 1], 100), np.concatenate([inside, outside]))
        assert row.auroc == pytest.approx(score) and 0 <= row.fpr95 <= 1


def test_augmentation_changes_the_training_and_repeats(full, run):
    flags = (*TINY, "-model", "convnet", "-aug", 1)
    first, again = (weights(run(*flags, name=name)) for name in "ab")
    assert same_weights(first, again)
    assert not same_weights(first, weights(full))


def test_bfloat16_is_close_to_float32(full, run):
    result = run(*TINY, "-amp", 1)
    assert not same_weights(weights(result), weights(full))
    assert result.table["nll"].item() == pytest.approx(full.table["nll"].item(), abs=0.1)


def test_annealing_lowers_the_temperature_of_every_epoch(run):
    result = run(*TINY, "-anneal", 2, "-invT", 50)
    assert metrics(result)["temperature_claimed"].to_numpy() == pytest.approx([1 / 50, 1 / 100, 1 / 200])


def test_annealing_beyond_all_numbers_is_temperature_zero(run):
    assert metrics(run(*TINY, "-anneal", 1e200))["temperature_claimed"].iloc[-1] == 0


def test_a_colder_chain_has_less_kinetic_energy(run):
    hot, cold = (metrics(run(*TINY, "-lr", 1e-9, "-invT", invT, name=str(invT))) for invT in (1e-3, 10))
    for table, temperature in ((hot, 1e3), (cold, 0.1)):  # the steps are so small that the gradient is not felt
        assert table["temperature_claimed"].to_numpy() == pytest.approx(temperature)
    assert hot["temperature_kinetic"].iloc[-1] == pytest.approx(1e3, rel=0.1)


def test_a_fixed_scale_stays(full, run):
    table = metrics(run(*TINY, "-fix_scale", 1, "-sd", 2))
    assert (table["delta"] == 0.5).all() and (table["sigma"] == 2).all()
    assert metrics(full)["sigma"].nunique() == metrics(full)["delta"].nunique() == 3


def test_validation_does_not_look_at_the_test_images(full, run, monkeypatch):
    """The same numbers with black test images of one class, and other numbers without -val."""
    flags, load = (*TINY, "-val", 0.2), images.load
    clean = run(*flags, name="clean")

    def spoiled(*args, **kwargs) -> ImageData:
        data = load(*args, **kwargs)
        return ImageData(data.classes, data.train, MemoryImages(data.test.x * 0, data.test.y * 0))

    monkeypatch.setattr(images, "load", spoiled)
    again = run(*flags, name="again")
    for name in ("table.csv", "metrics.csv", "predictions.safetensors"):
        assert (again / name).read_bytes() == (clean / name).read_bytes(), name
    assert clean.summary["evaluated_on"] == "validation"
    assert len(load_file(clean / "predictions.safetensors")["labels"]) == math.ceil(0.2 * 1437)
    assert (run(*TINY, name="seen") / "table.csv").read_bytes() != (full / "table.csv").read_bytes()


def test_images_from_a_folder(run, pictures):
    """Learned from images that are scaled, in more classes than are tested."""
    folder = pictures(train={"cat": 30, "dog": 30, "emu": 30})
    result = run("-data", "folder", "-data_dir", folder, "-size", 10, *SMALL, "-sn", 12)
    assert load_file(result / "predictions.safetensors")["probabilities"].shape == (16, 3)
    assert result.table["accuracy"].item() > 60  # brightness tells them apart; chance is 33%


@pytest.mark.parametrize("workers", [0, 1])
def test_images_that_stay_on_disk_give_the_same_numbers(run, pictures, monkeypatch, workers):
    flags = ("-data", "folder", "-data_dir", pictures(), *SMALL, "-aug", 1, "-model", "convnet")
    memory = run(*flags, name="memory")
    monkeypatch.setattr(images, "load", functools.partial(images.load, memory=0))
    disk = run(*flags, "-workers", workers, name="disk")
    assert same_weights(weights(memory), weights(disk))
    assert (disk / "table.csv").read_bytes() == (memory / "table.csv").read_bytes()


@pytest.mark.parametrize("method", ["vanilla", "dropout"])
def test_the_baselines_need_no_sample(run, method):
    assert run(*TINY, "-c", method, "-burn", 3, "-thin", 1000).table["samples"].item() == 0


@pytest.mark.slow
def test_the_compiled_network_trains_as_the_eager_one(run, script, tmp_path):
    """Up to rounding, over 22 steps; in a process of its own, because the compiler leaves much behind."""
    flags = (*TINY, "-sn", 2)
    compiled = script.run(SCRIPT, *flags, "-compile", 1, out=tmp_path / "compiled")
    assert compiled.code == 0, compiled.stderr
    if "torch.compile failed" in compiled.stderr:
        pytest.skip(f"torch.compile does not work here: {compiled.stderr}")
    eager = run(*flags)
    ours, theirs = load_file(compiled / "model.safetensors"), load_file(eager / "model.safetensors")
    for name, x in theirs.items():
        torch.testing.assert_close(ours[name], x, rtol=0, atol=1e-3)
