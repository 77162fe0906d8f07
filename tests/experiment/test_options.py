"""Command lines: which values pass, and how the others are refused."""

import argparse
import math

import pytest

from experiment import options
from experiment.run import Diverged

NUMBERS = ("-1", "-0.5", "0", "0.5", "1", "1.5", "7")
ACCEPTED = {
    "positive": ("0.5", "1", "1.5", "7"),
    "non_negative": ("0", "0.5", "1", "1.5", "7"),
    "at_least_one": ("1", "1.5", "7"),
    "unit": ("0", "0.5", "1"),
    "fraction": ("0", "0.5"),
    "open_unit": ("0.5",),
    "correlation": ("-0.5", "0", "0.5"),
    "count": ("1", "7"),
    "whole": ("0", "1", "7"),
    "switch": ("0", "1"),
}
WHOLE = ("count", "whole", "switch")


@pytest.mark.parametrize("name", ACCEPTED)
def test_values_of_a_type(name):
    parse = getattr(options, name)
    for text in NUMBERS:
        if text in ACCEPTED[name]:
            assert parse(text) == float(text) and isinstance(parse(text), int if name in WHOLE else float)
        else:
            with pytest.raises(argparse.ArgumentTypeError, match=f"must be .*not '{text}'"):
                parse(text)


@pytest.mark.parametrize("name", ACCEPTED)
@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "", "abc", "1e400", "1,5", "9" * 400])
def test_what_is_no_finite_number_is_refused(name, text):
    with pytest.raises(argparse.ArgumentTypeError):
        getattr(options, name)(text)


@pytest.fixture
def parser() -> options.Parser:
    parser = options.Parser(description="A test.")
    parser.prog = "script.py"
    parser.add_argument("-lr", type=options.positive, default=0.1, help="step size, 50%% of it")
    parser.add_argument("-c", choices=("sa", "em"), default="sa", help="method")
    options.add_prior_options(parser, v1=10.0, a=1.0, b=None, sd=[1.0, 2.0])
    options.add_adaptation_options(parser, dc=1.0, da=10.0, dalpha=0.7)
    options.add_run_options(parser)
    return parser


def refusal(parser, arguments, capsys) -> str:
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(arguments)
    out, err = capsys.readouterr()
    assert stop.value.code == 2 and out == ""
    assert err.startswith("script.py: error: ") and err.endswith("\n") and err.count("\n") == 1
    return err


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["-lr", "0"], ("-lr", "'0'", "> 0")),
        (["-lr", "nan"], ("-lr", "'nan'", "> 0")),
        (["-lr"], ("-lr", "expected one argument")),
        (["-c", "adam"], ("-c", "adam", "sa", "em")),
        (["-sd", "1", "x"], ("-sd", "'x'", "> 0")),
        (["-dalpha", "-1"], ("-dalpha", "'-1'", "(0, 1]")),
        (["-a", "0.5"], ("-a", "'0.5'", ">= 1")),
        (["-seeds", "0"], ("-seeds", "'0'", ">= 1")),
        (["-seed", "1.5"], ("-seed", "'1.5'", "whole")),
        (["-resume", "yes"], ("-resume", "'yes'", "0 or 1")),
        (["-unknown", "1"], ("-unknown",)),
        (["value"], ("value",)),
    ],
)
def test_errors_are_one_line_that_names_flag_value_and_what_is_allowed(parser, capsys, arguments, words):
    message = refusal(parser, arguments, capsys)
    assert all(word in message for word in words)


@pytest.mark.parametrize("arguments", [["-see", "3"], ["-resum", "1"], ["-lam", "1"], ["--lr", "1"], ["-ou", "x"]])
def test_abbreviations_are_refused(parser, capsys, arguments):
    assert arguments[0] in refusal(parser, arguments, capsys)


def test_defaults_and_values(parser):
    args = parser.parse_args([])
    assert (args.lr, args.sd, args.b, args.seed, args.seeds, args.resume) == (0.1, [1.0, 2.0], None, 1, 1, 0)
    args = parser.parse_args(["-sd", "3", "-lr", "1e-5", "-b", "2", "-save_every", "0"])
    assert (args.sd, args.lr, args.b, args.save_every) == ([3.0], 1e-5, 2.0, 0.0)


def test_help_shows_every_flag_and_its_default(parser, capsys):
    with pytest.raises(SystemExit) as stop:
        parser.parse_args(["-h"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert all(action.option_strings[0] in text for action in parser._actions)
    assert "(default: 0.7)" in text and "50% of it" in text


def test_the_folder_name_holds_what_differs_from_the_defaults(parser):
    args = parser.parse_args(["-lr", "0.1", "-sd", "1", "3", "-out", "x", "-dc", "2"])
    assert parser.changed(args, ignore=("out",)) == "sd-1.0-3.0_dc-2.0"
    assert parser.changed(parser.parse_args([]), ignore=()) == ""


def test_a_value_error_while_checking_is_a_one_line_error(parser, capsys):
    with pytest.raises(SystemExit) as stop, parser.checked():
        raise ValueError("the file is damaged")
    assert stop.value.code == 2
    assert capsys.readouterr().err == "script.py: error: the file is damaged\n"
    with pytest.raises(ZeroDivisionError), parser.checked():
        math.log(1 / 0)


@pytest.mark.parametrize(
    "error, code, words",
    [
        (Diverged("all chains at iteration 3"), 3, "diverged: all chains at iteration 3"),
        (KeyboardInterrupt(), 130, "interrupted; the same command with -resume 1"),
    ],
)
def test_exit_statuses(error, code, words, capsys):
    def main():
        raise error

    with pytest.raises(SystemExit) as stop:
        options.run_script(main)
    assert stop.value.code == code
    err = capsys.readouterr().err
    assert words in err and err.strip().count("\n") == 0


def test_a_finished_script_exits_with_its_status():
    with pytest.raises(SystemExit) as stop:
        options.run_script(lambda: 0)
    assert stop.value.code == 0
