"""What posterior_cnn.py refuses, and what it says when a chain diverges."""

import functools
import shutil

import pandas as pd
import pytest

import posterior_cnn
from data import images

SCRIPT = "posterior_cnn.py"
TINY = ("-data", "digits", "-sn", 3, "-burn", 1, "-train", 128, "-thin", 5)  # 11 iterations an epoch, 4 samples
SMALL = ("-sn", 3, "-burn", 1, "-train", 30, "-thin", 2)  # for data sets of a few images


def text(flags) -> str:
    return " ".join(map(str, flags))


FOLDERS = {
    "nothing": (lambda folder: shutil.rmtree(folder), ("train/<class>/",)),
    "no test part": (lambda folder: shutil.rmtree(folder / "test"), ("train/<class>/", "test/<class>/")),
    "no classes": (lambda folder: shutil.rmtree(folder / "train/cat") or shutil.rmtree(folder / "train/dog"),
                   ("train/<class>/",)),
    "an empty class": (lambda folder: [path.unlink() for path in (folder / "train/dog").iterdir()], ("dog",)),
    "a corrupt image": (lambda folder: (folder / "train/dog/007.png").write_bytes(b"x"), ("corrupt", "dog/007.png")),
    "a corrupt first image": (lambda folder: (folder / "train/cat/000.png").write_bytes(b""), ("corrupt", "cat/000")),
    "a corrupt test image": (lambda folder: (folder / "test/dog/003.png").write_bytes(b"x"), ("corrupt", "dog/003")),
    "a class in test only": (lambda folder: (folder / "test/dog").rename(folder / "test/emu"), ("emu", "test only")),
}  # fmt: skip


@pytest.mark.parametrize("damage", FOLDERS)
def test_a_damaged_folder_is_refused(refused, pictures, damage):
    folder, (change, words) = pictures(), FOLDERS[damage]
    change(folder)
    message = refused(posterior_cnn, "-data", "folder", "-data_dir", folder, *SMALL)
    assert str(folder) in message and all(word in message for word in words)


def test_a_corrupt_image_that_stays_on_disk_is_a_one_line_error(in_process, pictures, monkeypatch, tmp_path):
    folder = pictures()
    (folder / "train/dog/007.png").write_bytes(b"\x89PNG")
    monkeypatch.setattr(images, "load", functools.partial(images.load, memory=0))
    flags = ("-data", "folder", "-data_dir", folder, *SMALL, "-workers", 0)
    result = in_process(posterior_cnn, *flags, out=tmp_path / "run")
    last = result.stderr.splitlines()[-1]
    assert result.code == 2 and "corrupt image" in last and "007.png" in last and not (result / "table.csv").exists()


def test_images_of_several_sizes_need_a_size(refused, pictures, tmp_path):
    folder = pictures()
    pictures(test={"cat": 1, "dog": 1}, side=14, root="other")
    shutil.copy(tmp_path / "other/test/dog/000.png", folder / "test/dog/000.png")
    assert "-size" in refused(posterior_cnn, "-data", "folder", "-data_dir", folder, *SMALL)


@pytest.mark.parametrize("flags", [("-data", "fmnist"), ("-data", "mnist", "-ood", "fmnist")], ids=text)
def test_a_damaged_idx_file_is_refused(refused, idx_files, flags):
    path = idx_files / "FashionMNIST/raw/t10k-images-idx3-ubyte"
    path.write_bytes(path.read_bytes()[:-50])
    assert str(path) in refused(posterior_cnn, *flags, "-data_dir", idx_files, *SMALL)


def test_data_from_outside_with_other_images_is_refused(refused, idx_files):
    message = refused(posterior_cnn, *TINY, "-ood", "mnist", "-data_dir", idx_files)
    assert "-ood" in message and "28" in message and "8" in message


@pytest.mark.parametrize(
    "flags",
    [
        ("-lr", 0.1),
        ("-lr", 0.1, "-burn", 0, "-thin", 1, "-save_samples", 1),
        ("-lr", 1e30, "-c", "vanilla"),
        ("-fix_scale", 1, "-sd", 1e-8),
    ],
    ids=text,
)
def test_a_diverged_run_stops(in_process, tmp_path, flags):
    result = in_process(posterior_cnn, *TINY, *flags, out=tmp_path / "run")
    assert (result.code, result.stdout) == (3, "") and "Traceback" not in result.stderr
    *_, last = result.stderr.splitlines()
    assert last.startswith("diverged: digits ") and "at iteration " in last
    iteration, advice = last.split("at iteration ")[1].split("; ")
    assert 1 <= int(iteration) <= 34 and float(advice.removeprefix("use a smaller step: -lr ")) > 0
    assert not (result / "summary.json").exists() and not (result / "table.csv").exists()


def test_the_iteration_at_which_the_potential_is_lost_is_named(in_process, tmp_path, infinite_at):
    infinite_at(14)
    result = in_process(posterior_cnn, *TINY, "-lr", 1e-5, "-save_every", 0, out=tmp_path / "run")
    assert result.code == 3
    assert result.stderr.splitlines()[-1] == (
        "diverged: digits sa seed 1 at iteration 14; use a smaller step: -lr 1e-06"
    )
    assert pd.read_csv(result / "metrics.csv")["epoch"].tolist() == [1]  # the last good epoch is kept


def test_when_all_seeds_diverge_there_is_no_table(in_process, tmp_path):
    result = in_process(posterior_cnn, *TINY, "-lr", 0.1, "-seeds", 2, out=tmp_path / "run")
    assert (result.code, result.stdout) == (3, "")
    *_, last = result.stderr.splitlines()
    assert last.count("at iteration ") == last.count("-lr ") == 2 and "seed 1 " in last and "seed 2 " in last
    assert not (result / "summary.json").exists() and not list(tmp_path.glob("run/**/table.csv"))


def test_when_one_seed_diverges_the_others_finish(shared_run, in_process, tmp_path, infinite_at):
    full = shared_run("cnn_full", SCRIPT, *TINY)
    infinite_at(3)
    result = in_process(posterior_cnn, *TINY, "-seed", 0, "-seeds", 2, out=tmp_path / "run")
    *_, last = result.stderr.splitlines()
    assert result.code == 3 and last.startswith("diverged: digits sa seed 0 at iteration 3; ") and "seed 1" not in last
    assert not (result / "seed0/table.csv").exists()
    assert (result / "seed1/table.csv").read_bytes() == (full / "table.csv").read_bytes()
    assert result.table["seed"].tolist() == [1] and result.summary["seeds"] == 1
