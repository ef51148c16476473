"""Whatever a script raises is told: its type and line, in bounds, though its own methods raise."""

import io
import runpy
import sys
from pathlib import Path
from typing import Any

import pytest

from relight_agent.exits import ExitCode, Manner
from relight_agent.files import MAX_MESSAGE_BYTES
from relight_trainer.failures import classify, describe, exit_status, manner_of, recognise, tell


class BrokenStr(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


class EndsInStr(Exception):
    def __str__(self) -> str:
        raise SystemExit(0)


class NoText(Exception):
    def __str__(self) -> str:
        return 7  # type: ignore[return-value]  # noqa: PLE0307


class BrokenAttributes(Exception):
    def __getattr__(self, name: str) -> Any:
        raise RuntimeError(name)


class BrokenRepr(Exception):
    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:
        return caught


def ring() -> BaseException:
    one, other = ValueError("one"), KeyError("other")
    one.__cause__, other.__cause__ = other, one
    return raised(one)


def long_chain() -> BaseException:
    error: BaseException = ValueError("the first")
    for i in range(20_000):
        error, before = RuntimeError(f"again {i}"), error
        error.__cause__ = before
    return raised(error)


STRANGE = {
    "str raises": BrokenStr(),
    "str ends the process": EndsInStr(),
    "str gives no text": NoText(),
    "every attribute raises": BrokenAttributes("words"),
    "repr raises": BrokenRepr("words"),
    "an argument's repr raises": ValueError(BrokenRepr("x")),
    "a long text": ValueError("x" * 10_000_000),
    "binary text": ValueError("\0\x1b[31m\ud800" * 1000),
    "a group": BaseExceptionGroup("several", [ValueError("bad label 17"), KeyError("k")]),
    "a group of broken ones": ExceptionGroup("several", [BrokenStr()]),
    "exit with an object that has no text": SystemExit(BrokenStr()),  # type: ignore[arg-type]
    "exit with a list": SystemExit(["a"]),  # type: ignore[arg-type]
}


@pytest.mark.parametrize("error", [*map(raised, STRANGE.values()), ring()], ids=[*STRANGE, "a ring of causes"])
def test_it_is_told_by_type_and_line_in_bounds(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    told = io.StringIO()
    monkeypatch.setattr(sys, "stderr", told)
    tell(error)
    text = describe(error)
    assert type(error).__name__ in text
    assert "test_failures_told.py:" in text
    assert len(text.encode()) <= MAX_MESSAGE_BYTES
    assert "\n" not in text
    assert told.getvalue().strip()
    assert classify(error) is ExitCode.EXCEPTION
    assert manner_of(error) is Manner.RAISED
    assert exit_status(error) is None
    assert len(recognise(error)) == 16  # the same again ends the job


@pytest.mark.timeout(20)
def test_a_chain_that_never_ends_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    error = long_chain()
    monkeypatch.setattr(sys, "stderr", told := io.StringIO())
    tell(error)
    assert "RuntimeError: again 19999" in told.getvalue()
    assert "RuntimeError: again 19999" in describe(error)
    assert recognise(error)


def test_a_group_is_told_by_its_first_exception_and_means_what_one_of_them_means() -> None:
    group = raised(BaseExceptionGroup("several", [ValueError("bad label 17"), MemoryError()]))
    assert "several (2 sub-exceptions); the first is ValueError: bad label 17" in describe(group)
    assert classify(group) is ExitCode.OUT_OF_MEMORY


def test_a_line_that_announces_the_next_one_is_told_with_it() -> None:
    error = raised(RuntimeError("Error(s) in loading state_dict for Sequential:\n\tsize mismatch for 0.weight"))
    assert "Sequential: size mismatch for 0.weight" in describe(error)


def caused(error: BaseException, cause: BaseException) -> BaseException:
    error.__cause__ = cause
    return error


def beside(error: BaseException, context: BaseException) -> BaseException:
    error.__context__ = context
    return error


@pytest.mark.parametrize(
    ("error", "manner"),
    [
        (ModuleNotFoundError("no apex"), Manner.PERMANENT),
        (ImportError("no name"), Manner.PERMANENT),
        (SyntaxError("bad"), Manner.PERMANENT),
        (IndentationError("bad"), Manner.PERMANENT),
        (NameError("x"), Manner.PERMANENT),
        (caused(RuntimeError("failed to import"), ImportError("x")), Manner.PERMANENT),
        (beside(ConnectionError("download failed"), ImportError("x")), Manner.RAISED),
        (KeyError("x"), Manner.RAISED),
        (FileNotFoundError("x"), Manner.RAISED),
        (SystemExit("error: --data-dir is required"), Manner.RAISED),
        (SystemExit(3), Manner.EXITED),
        (SystemExit(True), Manner.EXITED),
    ],
)  # fmt: skip
def test_how_a_worker_ended(error: BaseException, manner: Manner) -> None:
    assert manner_of(error) is manner


def test_a_library_of_another_folder_than_the_interpreters_is_not_the_users_code(tmp_path: Path) -> None:
    folder = tmp_path / "base" / "site-packages" / "somebody"
    folder.mkdir(parents=True)
    (folder / "library.py").write_text("def fails(): raise ValueError('from the library')\n")
    script = tmp_path / "script.py"
    script.write_text("import runpy\nrunpy.run_path(LIBRARY)['fails']()\n")
    with pytest.raises(ValueError, match="from the library") as caught:
        runpy.run_path(str(script), init_globals={"LIBRARY": str(folder / "library.py")})
    assert describe(caught.value) == f"ValueError: from the library ({script}:2)"
