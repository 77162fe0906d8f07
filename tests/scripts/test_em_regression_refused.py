"""What em_regression.py refuses."""

import itertools
import json

import pytest

import em_regression
from experiment.run import NOT_IDENTITY

TINY = ("-n", 100, "-test", 20, "-train", 50, "-epochs", 4, "-cycles", 2, "-warmup", 2, "-seeds", 1)

NUMBERS = {  # what is allowed, the flags, and what is not
    "a number > 0": ("-lr -eps0 -eps1", (0, -1, "nan", "inf", "x")),
    "a number >= 0": ("-eta -temperature -soft -hard -save_every", (-1, "nan", "inf", "x")),
    "a number in [0, 1)": ("-momentum", (1, -0.1, "nan", "x")),
    "a whole number >= 1": (
        "-n -test -hidden -epochs -train -restarts -record -cycles -seeds",
        (0, -1, 1.5, "nan", "x"),
    ),
    "a whole number >= 0": ("-warmup", (-1, 1.5, "x")),
    "a whole number in [0, 2^32)": ("-seed", (-1, 2**32, "x")),
    "0 or 1": ("-dense -resume", (2, -1, "yes")),
}


def test_the_range_of_every_number_is_known():
    parser, _ = em_regression.parse([])
    checked = {action.option_strings[0] for action in parser._actions if action.type}
    assert checked - {"-example"} == {flag for flags, _ in NUMBERS.values() for flag in flags.split()}


@pytest.mark.parametrize("allowed", NUMBERS)
def test_numbers_out_of_range_are_refused(refused, allowed):
    flags, values = NUMBERS[allowed]
    for flag, value in itertools.product(flags.split(), values):
        message = refused(em_regression, *TINY, flag, value)
        assert message.endswith(f"error: argument {flag}: must be {allowed}, not '{value}'")


BAD = [
    (("-example", 4), ("-example", "4", "1, 2, 3")),
    (("-example", "one"), ("-example", "one")),
    (("-warmup", 4), ("-warmup", "4 of 4 epochs")),
    (("-warmup", 99), ("-warmup", "99 of 4 epochs")),
    (("-cycles", 5), ("-cycles", "5", "4 epochs")),
    (("-dense", 1, "-cycles", 5), ("-cycles", "5", "4 epochs")),
    (("-train", 101), ("-train", "101", "100 rows of -n")),
    (("-n", 49), ("-train", "50", "49 rows of -n")),
    (("-eps0", 1e-4), ("-eps0", "eps0 = 0.0001", "eps1 = 0.0005")),
    (("-eps1", 0.02), ("-eps0", "eps0 = 0.01", "eps1 = 0.02")),
    (("-eps0", 1e40), ("-eps0", "1e+40", "overflows")),
    (("-temperature", 1e25), ("-temperature", "1e+25", "overflows")),
    (("-temperature", 1e200), ("-temperature", "1e+200", "overflows")),
    (("-lr", 1e40), ("-lr", "1e+40", "overflows")),
    (("-hidden", 5, 0), ("-hidden", "'0'", ">= 1")),
    (("-hidden",), ("-hidden", "at least one")),
    (("-unknown", 1), ("-unknown",)),
    (("-epoch", 3), ("-epoch",)),  # no abbreviations
    (("3",), ("3",)),
]


@pytest.mark.parametrize("flags, words", BAD, ids=[" ".join(map(str, flags)) for flags, _ in BAD])
def test_bad_input_is_one_line_and_writes_nothing(refused, flags, words):
    message = refused(em_regression, *TINY, *flags)
    assert all(word in message for word in words)


def test_equal_decays_and_a_warm_up_of_all_but_one_epoch_are_allowed(in_process, tmp_path):
    flags = (*TINY, "-eps0", 0.01, "-eps1", 0.01, "-warmup", 3, "-cycles", 4, "-train", 100)
    assert in_process(em_regression, *flags, out=tmp_path / "run").code == 0


def test_bad_input_in_a_process_of_its_own(script, tmp_path):
    result = script.run("em_regression.py", *TINY, "-eps0", 1e-4, out=tmp_path / "run")
    assert result.code == 2 and result.stdout == ""
    assert result.stderr.count("\n") == 1 and result.stderr.startswith("em_regression.py: error: argument -eps0: ")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("below", ["", "a/b"])
def test_an_unwritable_folder_is_refused(refused, tmp_path, below):
    (tmp_path / "file").write_text("x")
    message = refused(em_regression, *TINY, "-out", tmp_path / "file" / below)
    assert "-out" in message and str(tmp_path / "file" / below) in message


OTHER = {
    "example": 3, "n": 99, "test": 19, "hidden": [7], "epochs": 5, "train": 49, "restarts": 2, "record": 7, "lr": 0.5,
    "momentum": 0.5, "eta": 0.5, "temperature": 0.5, "cycles": 1, "dense": 1, "eps0": 0.5, "eps1": 1e-5, "soft": 0.5,
    "hard": 0.5, "warmup": 1, "seed": 9, "seeds": 9,
}  # fmt: skip


@pytest.mark.parametrize("resume", [0, 1])
def test_another_run_in_the_same_folder_is_refused(in_process, refused, tmp_path, resume):
    out = tmp_path / "run"
    assert in_process(em_regression, *TINY, out=out).code == 0
    args = json.loads((out / "args.json").read_text())
    assert set(args) == set(OTHER) == set(vars(em_regression.parse([])[1])) - NOT_IDENTITY
    for name, value in OTHER.items():
        flags = (f"-{name}", *(value if isinstance(value, list) else [value]))
        message = refused(em_regression, *TINY, *flags, "-out", out, "-resume", resume)
        if name != "example":  # with which other defaults change
            assert f"-{name} {args[name]}, not {value};" in message
        assert str(out) in message
