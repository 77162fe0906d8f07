"""Step: compiled where that works, eager otherwise, the same results."""

import pytest
import torch
import torch._inductor.config as inductor

from experiment.compiled import Step


def scaled(x, y, *, factor):
    return factor * x + y


@pytest.fixture
def arguments():
    return torch.tensor([1.0, 2.0]), torch.tensor([10.0, 20.0])


def compiler(monkeypatch, call) -> list:
    """torch.compile that returns `call` of the eager function; the functions it was given."""
    given = []

    def compile(function, **_):
        given.append(function)
        return lambda *args: call(function, *args)

    monkeypatch.setattr(torch, "compile", compile)
    return given


def test_eager_never_calls_the_compiler(monkeypatch, arguments, capsys):
    given = compiler(monkeypatch, None)
    step = Step(scaled, False, factor=3.0)
    assert step(*arguments).tolist() == [13.0, 26.0]
    assert not step.compiled and given == [] and capsys.readouterr().err == ""


def test_the_compiled_function_runs(monkeypatch, arguments, capsys):
    compiler(monkeypatch, lambda function, *args: function(*args) + 1000)
    step = Step(scaled, True, factor=3.0)
    assert step(*arguments).tolist() == step(*arguments).tolist() == [1013.0, 1026.0]
    assert step.compiled and capsys.readouterr().err == ""


@pytest.mark.parametrize("text", ["no C++ compiler\nand a long trace\nof it", ""])
def test_a_compiler_that_fails_leaves_the_eager_function(monkeypatch, arguments, capsys, text):
    calls = []

    def fails(function, *args):
        calls.append(args)
        raise RuntimeError(text)

    compiler(monkeypatch, fails)
    step = Step(scaled, True, factor=3.0)
    assert step(*arguments).tolist() == [13.0, 26.0]
    err = capsys.readouterr().err.strip()
    assert err.startswith("note: torch.compile failed (") and "\n" not in err
    assert (text or "RuntimeError").splitlines()[0] in err
    assert not step.compiled
    assert step(*arguments).tolist() == [13.0, 26.0]
    assert len(calls) == 1 and capsys.readouterr().err == ""  # tried once, said once


def test_an_error_of_the_function_itself_is_not_hidden(arguments):
    with pytest.raises(RuntimeError, match="size"):
        Step(scaled, False, factor=3.0)(torch.ones(2), torch.ones(3))


def test_an_error_after_the_first_call_is_not_hidden(monkeypatch, arguments, capsys):
    calls = []

    def fails_later(function, *args):
        calls.append(args)
        if len(calls) > 1:
            raise RuntimeError("out of memory")
        return function(*args)

    compiler(monkeypatch, fails_later)
    step = Step(scaled, True, factor=3.0)
    step(*arguments)
    with pytest.raises(RuntimeError, match="out of memory"):
        step(*arguments)


@pytest.mark.slow
def test_a_missing_compiler_is_noticed(monkeypatch, arguments, capsys, tmp_path):
    """The real torch.compile, with a C++ compiler that does not exist."""
    torch._dynamo.reset()
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "cache"))
    step = Step(scaled, True, factor=3.0)
    with inductor.patch({"cpp.cxx": (str(tmp_path / "no-compiler"),)}):  # monkeypatch would not give it back
        assert step(*arguments).tolist() == [13.0, 26.0]
    assert not step.compiled
    assert capsys.readouterr().err.strip().startswith("note: torch.compile failed (")
