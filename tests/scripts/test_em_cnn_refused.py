"""What em_cnn.py refuses, and what it says when a chain diverges."""

import itertools
import json

import pandas as pd
import pytest
import torch
from safetensors import safe_open

import em_cnn
from experiment.run import NOT_IDENTITY

SCRIPT = "em_cnn.py"
CYCLES = ("-sn", 4, "-cycles", 2, "-samples_per_cycle", 1)
TINY = ("-data", "digits", "-model", "resnet20", *CYCLES, "-train", 200, "-speed", 0)
FEW = ("-model", "resnet20", *CYCLES, "-train", 20, "-speed", 0)  # 3 iterations an epoch


def text(flags) -> str:
    return " ".join(map(str, flags))


NUMBERS = {  # what is allowed, the flags, and what is not
    "a number > 0": ("-lr -scale -eps0 -eps1", (0, -1, "nan", "inf", "x")),
    "a number >= 0": ("-eta -temperature -soft -hard -save_every", (-1, "nan", "inf", "x")),
    "a number in [0, 1)": ("-momentum -val", (1, -0.1, "nan", "x")),
    "a whole number >= 1": ("-size -sn -samples_per_cycle -cycles -train -test -seeds", (0, -1, 1.5, "nan", "x")),
    "a whole number >= 0": ("-workers -warmup", (-1, 1.5, "x")),
    "a whole number in [0, 2^32)": ("-seed", (-1, 2**32, "x")),
    "0 or 1": ("-aug -dense -amp -compile -resume -save -tensorboard -speed", (2, -1, "yes")),
}


def test_the_range_of_every_number_is_known():
    parser, _ = em_cnn.parse([])
    checked = {action.option_strings[0] for action in parser._actions if action.type}
    assert checked == {flag for flags, _ in NUMBERS.values() for flag in flags.split()}


@pytest.mark.parametrize("allowed", NUMBERS)
def test_numbers_out_of_range_are_refused(refused, allowed):
    flags, values = NUMBERS[allowed]
    for flag, value in itertools.product(flags.split(), values):
        message = refused(em_cnn, *TINY, flag, value)
        assert message.endswith(f"error: argument {flag}: must be {allowed}, not '{value}'")


BAD = [
    (("-data", "imagenet"), ("-data", "imagenet", "cifar10")),
    (("-data", "folder"), ("-data folder", "-data_dir")),
    (("-data", "cifar10", "-data_dir", "/dev/null"), ("cifar-10-python.tar.gz", "/dev/null")),
    (("-model", "vgg16"), ("-model", "vgg16", "densenet")),
    (("-c", "adam"), ("-c", "adam", "em", "sgd")),
    (("-group", "row"), ("-group", "row", "kernel", "filter", "channel")),
    (("-rule", "norm"), ("-rule", "norm", "range", "square")),
    (("-warmup", 4), ("-warmup", "4 of 4 epochs", "the run would never prune")),
    (("-warmup", 300), ("-warmup", "300 of 4 epochs", "the run would never prune")),
    (("-sn", 5), ("-sn", "5 epochs", "no multiple of 2 cycles")),
    (("-sn", 5, "-c", "sgd"), ("-sn", "5 epochs", "no multiple of 2 cycles")),
    (("-cycles", 5), ("-cycles", "5", "4 epochs")),
    (("-samples_per_cycle", 3), ("-samples_per_cycle", "3 of a cycle of 2 epochs")),
    (("-eps0", 1e-4), ("-eps0", "0.0001", "eps1 = 0.0005")),
    (("-eps0", 1e-4, "-dense", 1), ("-eps0", "0.0001", "eps1 = 0.0005")),
    (("-temperature", 1e25), ("-temperature", "1e+25", "overflows")),
    (("-temperature", 1e200, "-dense", 1), ("-temperature", "1e+200", "overflows")),
    (("-scale", 0.5), ("-scale", "resnet20 has one width", "densenet")),
    (("-scale", 0.5, "-model", "resnet18"), ("-scale", "resnet18 has one width", "densenet")),
    (("-export", "there", "-save", 0), ("-export", "-save 1")),
    (("-device", "tpu"), ("-device", "tpu", "cuda:N")),
    (("-device", "cuda:99"), ("-device", "cuda:99")),
    (("-train", 1438), ("-train", "1438", "1437")),
    (("-train", 144, "-val", 0.9), ("-train", "144", "143")),
    (("-val", 0.001), ("stratified", "1437")),
    (("-unknown", 1), ("-unknown",)),
    (("-warm", 1), ("-warm",)),
    (("-s", 1), ("-s",)),
    (("stray",), ("stray",)),
]


@pytest.mark.parametrize("flags, words", BAD, ids=[text(flags) for flags, _ in BAD])
def test_bad_input_is_one_line_and_writes_nothing(refused, flags, words):
    message = refused(em_cnn, *TINY, *flags)
    assert all(word in message for word in words), message


def test_the_last_values_that_are_allowed(on_pictures):
    """Next to those refused above."""
    flags = ("-warmup", 3, "-samples_per_cycle", 2, "-eps0", 5e-4, "-train", 60)
    assert on_pictures(*flags).table["samples"].item() == 1


@pytest.mark.parametrize("flags", [(), ("-scale", 0.5)], ids=text)
def test_images_that_are_too_small_for_a_network(refused, pictures, flags):
    folder = pictures(side=3)
    message = refused(em_cnn, *TINY, "-data", "folder", "-data_dir", folder, "-train", 20, "-model", "densenet", *flags)
    assert "argument -model: densenet needs images of at least 4 x 4, not 3 x 3" in message


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_refused(refused):
    message = refused(em_cnn, *TINY, "-device", "cuda")
    assert "-device" in message and "0 GPUs" in message


@pytest.mark.parametrize("flag", ["-out", "-export"])
@pytest.mark.parametrize("below", ["", "a/b"])
def test_an_unwritable_folder_is_refused(refused, tmp_path, flag, below):
    (tmp_path / "file").write_text("x")
    message = refused(em_cnn, *TINY, flag, tmp_path / "file" / below)
    assert flag in message and str(tmp_path / "file" / below) in message


@pytest.mark.parametrize("resume", [0, 1])
@pytest.mark.parametrize(
    "flags, words",
    [
        (("-train", 100), "-train 200, not 100"),
        (("-c", "sgd"), "-c em, not sgd"),
        (("-lr", 0.5), "-lr 1.0, not 0.5"),
        (("-warmup", 2), "-warmup 1, not 2"),
        (("-dense", 1), "-dense 0, not 1"),
        (("-hard", 0.1), "-hard 0.01, not 0.1"),
        (("-group", "filter"), "-group kernel, not filter"),
        (("-temperature", 0), "-temperature None, not 0.0"),
        (("-model", "resnet18"), "-model resnet20, not resnet18"),
    ],
    ids=lambda flags: text(flags) if isinstance(flags, tuple) else "",
)
def test_other_settings_in_the_same_folder_are_refused(refused, tmp_path, flags, words, resume):
    """The folder of a run that was just begun."""
    folder = tmp_path / "begun"
    folder.mkdir()
    _, args = em_cnn.parse([*map(str, TINY)])
    (folder / "args.json").write_text(json.dumps({k: v for k, v in vars(args).items() if k not in NOT_IDENTITY}))
    message = refused(em_cnn, *TINY, *flags, "-out", folder, "-resume", resume)
    assert str(folder) in message and (words in message or "-c" in flags), message
    assert "holds a run with -" in message


def diverged(result) -> str:
    """The last line of a run that has diverged and has no results."""
    assert result.stdout == "" and "Traceback" not in result.stderr
    assert not (result / "summary.json").exists() and not (result / "table.csv").exists()
    *_, last = result.stderr.splitlines()
    assert last.startswith("diverged: folder resnet20 ")
    return last


@pytest.mark.parametrize("flags", [("-lr", 1e4), ("-c", "sgd", "-lr", 1e25), ("-temperature", 1e15)], ids=text)
def test_a_diverged_run_stops(on_pictures, flags):
    iteration, advice = diverged(on_pictures(*flags, code=3)).split("at iteration ")[1].split("; ")
    assert 1 <= int(iteration) <= 13 and float(advice.removeprefix("use a smaller step: -lr ")) > 0


@pytest.mark.parametrize("warmup", [0, 2])
def test_a_diverged_run_names_the_iteration_and_keeps_its_last_good_checkpoint(on_pictures, infinite_at, warmup):
    infinite_at(5)
    result = on_pictures("-save_every", 0, "-warmup", warmup, code=3)
    assert diverged(result) == "diverged: folder resnet20 em seed 1 at iteration 5; use a smaller step: -lr 0.1"
    assert pd.read_csv(result / "metrics.csv")["epoch"].tolist() == [1]
    with safe_open(result / "checkpoint.safetensors", framework="pt") as file:
        assert json.loads(file.metadata()["state"])["done"] == 1
        assert all(file.get_tensor(name).isfinite().all() for name in file.keys())  # noqa: SIM118, not a dict


def test_when_one_seed_diverges_the_others_finish(on_pictures, infinite_at):
    alone = on_pictures("-seed", 2, out="alone")
    infinite_at(3)
    result = on_pictures("-seeds", 2, code=3)
    *_, last = result.stderr.splitlines()
    assert last.startswith("diverged: folder resnet20 em seed 1 at iteration 3; ") and "seed 2" not in last
    assert not (result / "seed1/table.csv").exists()
    assert (result / "seed2/table.csv").read_bytes() == (alone / "table.csv").read_bytes()
    assert result.table["seed"].tolist() == [2] and result.summary["seeds"] == 1


def test_bad_input_in_a_process_of_its_own(script, tmp_path):
    result = script.run(SCRIPT, *TINY, "-warmup", 4, out=tmp_path / "run")
    assert (result.code, result.stdout) == (2, "")
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("em_cnn.py: error: argument -warmup: ")
    assert not (tmp_path / "run").exists()
