"""What was found out about a data set, kept for the next generation of workers and for other members."""

import contextlib
import os
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Arrays = Mapping[str, npt.NDArray[Any]]


def folder(index: str | None) -> Path:
    """Where it is kept: `index`, or the user's cache."""
    return Path(index) if index else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "relight"


def kept(file: Path, valid: Callable[[Arrays], bool], find: Callable[[], Arrays]) -> Arrays:
    """The arrays in `file` (.npz) where they are `valid`; else what `find` finds, which is written there if it can be."""
    try:
        with np.load(file, allow_pickle=False) as archive:
            arrays: Arrays = dict(archive)
        if valid(arrays):
            return arrays
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):  # not there, or of a machine that broke down
        pass
    arrays = find()
    half = file.with_name(f".{file.name}-{os.uname().nodename}-{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with open(half, "wb") as written:
            np.savez(written, **arrays)  # type: ignore[arg-type]  # the stub thinks of allow_pickle
        half.rename(file)
    except OSError:  # a cache that cannot be written costs the search again
        with contextlib.suppress(OSError):
            half.unlink()
    return arrays


def packed(lines: Iterable[str]) -> npt.NDArray[np.uint8]:
    """Text as an array, for lines without a NUL in them."""
    return np.frombuffer("\0".join(lines).encode("utf-8", "surrogateescape"), dtype=np.uint8)


def unpacked(text: npt.NDArray[np.uint8]) -> list[str]:
    return text.tobytes().decode("utf-8", "surrogateescape").split("\0")
