"""Runs of posterior_cnn.py that are stopped and go on, and finished runs that are evaluated."""

import itertools
import json
import pickle
import shutil
import signal
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import posterior_cnn
import uci_run

SCRIPT = "posterior_cnn.py"
TINY = ("-data", "digits", "-sn", 3, "-burn", 1, "-train", 128, "-thin", 5)  # 11 iterations an epoch, 4 samples
AFTER = ("-attack", 1, "-attack_images", 40, "-pgd_images", 10, "-pgd_steps", 2, "-ood", "digits")
RESULTS = ("attack.csv", "attack_example.safetensors", "ood.csv", "ood.safetensors")
ALL = ("-aug", 1, "-model", "convnet", "-prune", 1, "-sparse", 0.3, "-cut", 0.5, "-gap", 20, "-save_samples", 1)
SETTINGS = {
    "sa": ALL,
    "em": ("-c", "em", "-anneal", 1.1),
    "sghmc": ("-c", "sghmc", "-val", 0.1),
    "vanilla": ("-c", "vanilla", "-prune", 1, "-sparse", 0.3),
    "dropout": ("-c", "dropout"),
}


@pytest.fixture(scope="module")
def saved(shared_run):
    return shared_run("cnn_saved", SCRIPT, *TINY, "-save_samples", 1)


@pytest.fixture(scope="module")
def assessed(shared_run):
    return shared_run("cnn_assessed", SCRIPT, *TINY, "-seeds", 2, *AFTER)


@pytest.fixture
def finished(saved, tmp_path):
    """A copy of a finished run with its samples."""
    assert saved.code == 0, saved.stderr
    return shutil.copytree(saved.folder, tmp_path / "finished")


@pytest.fixture
def unfinished(finished):
    (finished / "summary.json").unlink()
    return finished


@pytest.mark.parametrize("setting", SETTINGS)
def test_an_interrupted_run_goes_on_bit_for_bit(start, interrupted, tmp_path, snapshot, same_numbers, setting):
    """Interrupted before its first checkpoint, in the burn-in, and between two samples of the average."""
    flags = (*TINY, *SETTINGS[setting])
    whole = start(*flags, out="whole")
    for at, done in ((5, None), (14, 1), (13, 2)):
        interrupted(*flags, at=at)
        path = tmp_path / "pieces/metrics.csv"
        assert (len(pd.read_csv(path)) if path.exists() else None) == done
    same_numbers(start(*flags, "-resume", 1, out="pieces").folder, whole.folder)
    samples = snapshot(tmp_path / "whole/samples")
    assert snapshot(tmp_path / "pieces/samples") == samples and len(samples) == 4 * ("-save_samples" in flags)


def test_a_network_with_running_statistics_goes_on_bit_for_bit(start, interrupted, pictures, same_numbers):
    flags = ("-data", "folder", "-data_dir", pictures(), "-sn", 4, "-burn", 1, "-train", 20, "-thin", 2, "-aug", 1)
    whole = start(*flags, out="whole")
    for at in (5, 2):
        interrupted(*flags, at=at)
    same_numbers(start(*flags, "-resume", 1, out="pieces").folder, whole.folder)
    assert any("running_mean" in name for name in load_file(whole / "model.safetensors"))


def test_several_seeds_go_on_bit_for_bit(start, interrupted, assessed, tmp_path, same_numbers):
    flags = (*TINY, "-seeds", 2, "-save_samples", 1)
    interrupted(*flags, at=33 + 14)
    times = {path: path.stat().st_mtime_ns for path in (tmp_path / "pieces/seed1").iterdir() if path.is_file()}
    assert (tmp_path / "pieces/seed1/summary.json") in times and not (tmp_path / "pieces/seed2/table.csv").exists()
    result = start(*flags, "-resume", 1, out="pieces")
    assert {path: path.stat().st_mtime_ns for path in times} == times  # a finished seed is left alone
    for seed in (1, 2):
        same_numbers(result / f"seed{seed}", assessed / f"seed{seed}")
    assert (result / "table.csv").read_bytes() == (assessed / "table.csv").read_bytes()


@pytest.mark.parametrize(
    "missing",
    [
        ["summary.json"],
        ["summary.json", "table.csv"],
        ["summary.json", "table.csv", "model.safetensors", "predictions.safetensors"],
    ],
    ids=lambda names: names[-1],
)
def test_a_run_stopped_before_its_last_files_is_completed(saved, finished, start, same_numbers, missing):
    for name in missing:
        (finished / name).unlink()
    again = start(*TINY, "-save_samples", 1, "-resume", 1, out=finished)
    same_numbers(finished, saved.folder)
    assert {**again.summary, "seconds": 0} == {**saved.summary, "seconds": 0}
    assert again.summary["seconds"] > 0.9 * saved.summary["seconds"]  # of all pieces


def test_a_finished_run_prints_its_table_and_stays(saved, finished, start, snapshot):
    before = snapshot(finished)
    again = start(*TINY, "-save_samples", 1, "-resume", 1, out=finished)
    assert again.stderr == "" and again.stdout.splitlines()[:-1] == saved.stdout.splitlines()[:-1]
    assert snapshot(finished) == before


@pytest.mark.parametrize("resume", [0, 1])
@pytest.mark.parametrize(
    "flags, words",
    [
        (("-train", 64), "-train 128, not 64"),
        (("-c", "em"), "-c sa, not em"),
        (("-seeds", 2), "-seeds 1, not 2"),
        (("-amp", 1), "-amp 0, not 1"),
        (("-sn", 4), "-sn 3, not 4"),
    ],
    ids=lambda flags: flags[0] if isinstance(flags, tuple) else "",
)
def test_other_settings_in_the_same_folder_are_refused(finished, refused, flags, words, resume):
    flags = (*TINY, "-save_samples", 1, *flags, "-out", finished, "-resume", resume)
    message = refused(posterior_cnn, *flags)
    assert words in message and str(finished) in message


class Trap:
    """A pickle that leaves a file behind when it is loaded."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


DAMAGE = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-100]),
    "truncated header": lambda path: path.write_bytes(path.read_bytes()[:100]),
    "empty": lambda path: path.write_bytes(b""),
    "of text": lambda path: path.write_text("not tensors" * 100),
    "without a header": lambda path: save_file(load_file(path), path),
    "a pickle": lambda path: path.write_bytes(pickle.dumps(Trap(path.with_name("trapped")))),
    "a pickle of torch": lambda path: torch.save(Trap(path.with_name("trapped")), path),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_checkpoint_is_a_one_line_error(unfinished, in_process, snapshot, one_line, damage):
    DAMAGE[damage](unfinished / "checkpoint.safetensors")
    before = snapshot(unfinished)
    result = in_process(posterior_cnn, *TINY, "-save_samples", 1, "-resume", 1, out=unfinished)
    one_line(result, str(unfinished), "damaged")
    assert result.stdout == "" and snapshot(unfinished).keys() == before.keys()
    assert snapshot(unfinished)["checkpoint.safetensors"] == before["checkpoint.safetensors"]


def test_a_pickle_that_is_loaded_would_be_seen(tmp_path):
    pickle.loads(pickle.dumps(Trap(tmp_path / "trapped")))
    assert (tmp_path / "trapped").exists()


TENSORS = [
    "net.fc2.weight", "optimizer.fc1.weight.velocity", "optimizer.conv1.bias.velocity", "prior.rho.0", "prior.kappa1.0",
    "prior.delta", "prior.sigma2", "pruner.keep.0", "average.sum_probabilities", "average.sum_entropy",
    "random.order", "random.noise", "own.sample_scores",
]  # fmt: skip


def change(folder: Path, name: str, altered) -> None:
    """Write the checkpoint with altered(tensor) in the place of a tensor, or without it where that is None."""
    path = folder / "checkpoint.safetensors"
    with safe_open(path, framework="pt") as file:
        header, tensors = file.metadata(), {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118, not a dict
        tensors[name] = altered(tensors[name])
        state = json.loads(header["state"]) | {"done": 2}  # an epoch is left
    save_file({key: x for key, x in tensors.items() if x is not None}, path, {"state": json.dumps(state)})


@pytest.mark.parametrize("name", TENSORS)
@pytest.mark.parametrize("altered", ["another shape", "missing"])
def test_a_checkpoint_that_does_not_fit_is_a_one_line_error(unfinished, in_process, one_line, name, altered):
    change(unfinished, name, lambda x: torch.cat([x.reshape(-1)] * 3)[1:] if altered == "another shape" else None)
    result = in_process(posterior_cnn, *TINY, "-save_samples", 1, "-resume", 1, out=unfinished)
    one_line(result, str(unfinished), "checkpoint")


def test_an_altered_checkpoint_that_fits_goes_on(unfinished, start):
    """The alteration is what the test above sees, not the file's being written anew."""
    change(unfinished, "net.fc2.weight", lambda x: x + 1)
    start(*TINY, "-save_samples", 1, "-resume", 1, out=unfinished)


def test_a_folder_with_other_classes_does_not_fit_the_checkpoint(interrupted, in_process, pictures, tmp_path, one_line):
    flags = ("-data", "folder", "-sn", 3, "-burn", 1, "-train", 20, "-thin", 2)
    pieces = interrupted(*flags, "-data_dir", pictures(), at=5)
    three = {"cat": 30, "dog": 30, "emu": 30}
    other = pictures(train=three, root="other")
    result = in_process(posterior_cnn, *flags, "-data_dir", other, "-resume", 1, out=tmp_path / "pieces")
    one_line(result, pieces.folder, "fc2")


def test_an_attack_of_the_run(assessed):
    assert assessed.code == 0, assessed.stderr
    for seed in (1, 2):
        table = pd.read_csv(assessed / f"seed{seed}/attack.csv")
        assert list(table) == ["data", "aug", "method", "seed", "attack", "zeta", "n", "accuracy"]
        assert (table["seed"] == seed).all() and (table["data"] == "digits").all()
        for attack, n in (("fgsm_predicted", 40), ("fgsm_true", 40), ("pgd", 10)):
            rows = table[table["attack"] == attack]
            assert rows["zeta"].tolist() == [i / 20 for i in range(11)] and (rows["n"] == n).all()
            assert rows["accuracy"].iloc[-1] < rows["accuracy"].iloc[0]
        saved = load_file(assessed / f"seed{seed}/predictions.safetensors")
        right = saved["probabilities"].argmax(-1) == saved["labels"]
        clean = table[table["zeta"] == 0].set_index("attack")["accuracy"]
        assert clean["fgsm_true"] == clean["fgsm_predicted"] == pytest.approx(100 * right[:40].double().mean().item())
        assert clean["pgd"] == pytest.approx(100 * right[:10].double().mean().item())
        outside = pd.read_csv(assessed / f"seed{seed}/ood.csv")
        assert outside["auroc"].tolist() == pytest.approx([0.5, 0.5])  # digits are not told from digits


def test_the_evaluation_of_a_finished_run_is_that_of_the_run(assessed, in_process, tmp_path, snapshot):
    folder = shutil.copytree(assessed.folder, tmp_path / "copy")
    for seed, name in itertools.product((1, 2), RESULTS):
        (folder / f"seed{seed}" / name).unlink()
    before = snapshot(folder)
    result = in_process(posterior_cnn, "-evaluate", folder, *AFTER)
    assert result.code == 0 and result.stderr == "", result.stderr
    after = snapshot(folder)
    assert {name: after[name] for name in before} == before
    assert after.keys() - before.keys() == {f"seed{seed}/{name}" for seed in (1, 2) for name in RESULTS}
    assert after == snapshot(assessed.folder)


def test_one_seed_of_several_is_evaluated_alone_or_refused(assessed, in_process, tmp_path, snapshot, one_line):
    folder = shutil.copytree(assessed.folder, tmp_path / "copy")
    before = snapshot(folder)
    result = in_process(posterior_cnn, "-evaluate", folder / "seed2", *AFTER)
    assert snapshot(folder) == before  # nothing is trained
    if result.code != 0:
        one_line(result, "-evaluate")


def test_an_evaluation_does_not_train_a_seed_that_is_not_finished(assessed, in_process, tmp_path, snapshot):
    folder = shutil.copytree(assessed.folder, tmp_path / "copy")
    for name in ("summary.json", "table.csv"):
        (folder / "seed2" / name).unlink()
    before = snapshot(folder)
    in_process(posterior_cnn, "-evaluate", folder, *AFTER)
    assert snapshot(folder) == before


@pytest.mark.parametrize("method", ["sa", "vanilla"])
def test_an_evaluation_asks_only_for_what_it_is_told(start, in_process, tmp_path, snapshot, method):
    """The flags of the training are those of the run, whatever the command line says."""
    flags = (*TINY, "-c", method, "-val", 0.2, "-seed", 5, "-save_samples", 1)
    start(*flags)
    before = snapshot(tmp_path / "run")
    result = in_process(posterior_cnn, "-evaluate", tmp_path / "run", "-c", "em", "-seed", 6)
    assert result.code == 0 and snapshot(tmp_path / "run") == before and "n " in result.stdout
    result = in_process(posterior_cnn, "-evaluate", tmp_path / "run", "-attack", 1, "-pgd_images", 0)
    assert result.code == 0
    assert snapshot(tmp_path / "run").keys() - before.keys() == set(RESULTS[:2])
    table = pd.read_csv(tmp_path / "run/attack.csv")
    assert table["attack"].nunique() == 2 and (table["n"] == 288).all()  # the validation images
    of = "accuracy_averaged" if method == "sa" else "accuracy"
    assert table["accuracy"].iloc[0] == pytest.approx(pd.read_csv(tmp_path / "run/table.csv")[of].item())


def test_a_folder_that_is_no_run_cannot_be_evaluated(refused, tmp_path):
    (tmp_path / "empty folder").mkdir()
    for folder in ("nowhere", "empty folder"):
        message = refused(posterior_cnn, "-evaluate", tmp_path / folder, "-attack", 1)
        assert "-evaluate" in message and str(tmp_path / folder) in message and "is not the folder of a run" in message


@pytest.mark.parametrize("content", ["", "[]", "1", '{"c": "sa", "hidden": 50}', '{"c": "sgld"}', "{}", b"\xff\xfe"])
def test_flags_that_are_not_of_this_script_cannot_be_evaluated(refused, finished, content):
    (finished / "args.json").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert "is not the folder of a run" in refused(posterior_cnn, "-evaluate", finished, "-attack", 1)


def test_a_run_of_another_script_cannot_be_evaluated(in_process, refused, tmp_path):
    other = in_process(uci_run, "-data", "diabetes", "-sn", 2, "-burn", 1, out=tmp_path / "other")
    assert other.code == 0
    assert "is not the folder of a run of posterior_cnn.py" in refused(posterior_cnn, "-evaluate", other.folder)


def test_an_unfinished_run_cannot_be_evaluated(refused, unfinished):
    message = refused(posterior_cnn, "-evaluate", unfinished, "-attack", 1)
    assert str(unfinished) in message and "not finished" in message


SPOILED = {
    "without samples": (lambda samples: shutil.rmtree(samples), ("-save_samples",)),
    "with one sample less": (lambda samples: (samples / "00002.safetensors").unlink(), ("sample",)),
    "with a truncated sample": (lambda samples: DAMAGE["truncated"](samples / "00003.safetensors"), ("damaged",)),
    "with a pickle": (lambda samples: DAMAGE["a pickle"](samples / "00003.safetensors"), ("damaged",)),
    "with the sample of another network": (
        lambda samples: save_file({"fc9.weight": torch.zeros(3)}, samples / "00003.safetensors"),
        ("00003.safetensors", "another network"),
    ),
}


@pytest.mark.parametrize("damage", SPOILED)
def test_an_average_needs_all_its_samples(finished, in_process, snapshot, one_line, damage):
    spoil, words = SPOILED[damage]
    spoil(finished / "samples")
    before = snapshot(finished)
    one_line(in_process(posterior_cnn, "-evaluate", finished, *AFTER), *words)
    assert snapshot(finished) == before


def test_data_from_outside_must_have_images_of_the_same_size(refused, finished, pictures):
    pictures(root="data/cifar10", side=8)  # grey and small where the run's images are
    pictures(root="other/cifar10", side=9)
    flags = ("-evaluate", finished, "-ood", "cifar10", "-data_dir")
    message = refused(posterior_cnn, *flags, finished.parent / "other")
    assert "-ood" in message and "9, 9" in message and "8, 8" in message


def test_data_from_outside_may_have_other_classes(finished, in_process, pictures):
    pictures(root="data/cifar10", side=8)
    result = in_process(posterior_cnn, "-evaluate", finished, "-ood", "cifar10", "-data_dir", finished.parent / "data")
    assert result.code == 0, result.stderr
    assert pd.read_csv(finished / "ood.csv")["auroc"].between(0, 1).all()


LONG = ("-data", "digits", "-sn", 18, "-burn", 4, "-train", 128, "-thin", 7)


@pytest.mark.slow
@pytest.mark.parametrize("setting", ["sa"])
def test_a_killed_run_goes_on_bit_for_bit(script, start, tmp_path, snapshot, same_numbers, setting):
    """Stopped in the burn-in, in the middle and near the end, with all that a checkpoint holds in use."""
    flags, pieces = (*LONG, *SETTINGS[setting]), tmp_path / "pieces"
    whole = start(*flags, out="whole")
    for after, with_signal, code in ((2, signal.SIGKILL, -9), (7, signal.SIGINT, 130), (12, signal.SIGKILL, -9)):
        again = (*flags, "-save_every", 0, "-resume", 1)
        stopped = script.stop(SCRIPT, *again, out=pieces, after=after, with_signal=with_signal)
        assert stopped.code == code and not (pieces / "table.csv").exists()
        assert ("interrupted; the same command with -resume 1" in stopped.stderr) == (code == 130)
        assert "Traceback" not in stopped.stderr and stopped.stdout == ""
        with safe_open(pieces / "checkpoint.safetensors", framework="pt") as file:
            state = json.loads(file.metadata()["state"])
        assert after <= state["done"] < 18
        assert len(pd.read_csv(pieces / "metrics.csv")) in (state["done"] - 1, state["done"])
    same_numbers(start(*flags, "-resume", 1, out="pieces").folder, whole.folder)
    assert snapshot(pieces / "samples") == snapshot(tmp_path / "whole/samples")
