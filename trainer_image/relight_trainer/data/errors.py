"""What can be wrong with data."""

import errno
from collections.abc import Iterable
from typing import ClassVar

from relight_agent.exits import ExitCode
from relight_trainer.strict import nearest, strange_letters

_SHOWN = 12  # names in one message


class BadData(Exception):
    """The data cannot be trained on; trying again finds it the same."""

    exit_code: ClassVar[ExitCode] = ExitCode.BAD_DATA


class DataChanged(BadData):
    """The data is not what the job began with, or not the same on every member."""


class StorageTrouble(Exception):
    """The data could not be read for a reason that may pass."""

    exit_code: ClassVar[ExitCode] = ExitCode.STORAGE_FAILED


class UnfitData(Exception):
    """The section `data` names what cannot serve as a data set here."""

    exit_code: ClassVar[ExitCode] = ExitCode.BAD_CONFIG


_LASTING = {
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.EINVAL,
}  # fmt: skip


def unreadable(name: str, error: Exception) -> BadData | StorageTrouble:
    """The error of a sample or file called `name` that could not be read.

    An I/O error of the system, such as ESTALE or EIO, speaks of the storage and not of the data.
    """
    if isinstance(error, OSError) and error.errno is not None:
        kind = BadData if error.errno in _LASTING else StorageTrouble
        return kind(f"{name}: {error.strerror or error}")
    text = next((line for line in str(error).splitlines() if line.strip()), "")
    return BadData(f"{name}: cannot be read: {text or type(error).__name__}")


def one_of(name: str, names: Iterable[str], place: str) -> BadData | None:
    """The error that `place` has no `name`, with the names that it has; None where it is one of them."""
    names = sorted(names)
    if name in names:
        return None
    return BadData(f"{place} has no {name}; found {few(names) or 'nothing'}{did_you_mean(name, names)}")


def did_you_mean(name: str, names: Iterable[str]) -> str:
    """`; did you mean "X"?`, with the letters of `name` that only look like those of X; nothing where none is near."""
    near = nearest(name, names)
    if near is None:
        return ""
    letters = strange_letters(name, near)
    return f'; did you mean "{near}"?' + (f" ({letters})" if letters else "")


def few(names: list[str], shown: int = _SHOWN) -> str:
    """The first of `names` as text.

    >>> few(["a", "b", "c"], 2)
    'a, b, ...'
    """
    return ", ".join(names[:shown]) + (", ..." if len(names) > shown else "")
