"""Where what was built is kept: outside the checkout, keyed by what it was built from."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

# From when a folder is asked for until it has been read: machines take theirs from it while they start.
IN_USE_SECONDS = 3600


def cache_root() -> Path:
    """`$RELIGHT_TESTBED_CACHE`, else `relight-testbed` in the user's cache folder."""
    named = os.environ.get("RELIGHT_TESTBED_CACHE")
    if named:
        return Path(named).absolute()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "relight-testbed"


def key_of(*parts: str | bytes) -> str:
    digest = hashlib.sha256()
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        digest.update(len(raw).to_bytes(8, "big") + raw)
    return digest.hexdigest()[:16]


@contextmanager
def locked(path: Path) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def cached(name: str, build: Callable[[Path], None], *, keep: int | None = None) -> Path:
    """The folder `name` of the cache, `<kind>-<key>`; `build` fills it when it is not there yet.

    It appears by rename once it is whole; two processes that want it at once build it once. With `keep`, only so many of its
    kind stay, and those that somebody asked for within `IN_USE_SECONDS`.
    """
    root = cache_root()
    final = root / name
    with _claimed(root, name):
        if final.exists():
            os.utime(final)
            return final
        for left in root.glob(f".{name}-*"):
            shutil.rmtree(left)  # by a builder that was killed
        temporary = Path(tempfile.mkdtemp(prefix=f".{name}-", dir=root))
        try:
            temporary.chmod(0o755)
            build(temporary)
            temporary.rename(final)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        os.utime(final)
    if keep is not None:
        _drop_all_but(keep, root, name.rpartition("-")[0])
    return final


def _claimed(root: Path, name: str) -> AbstractContextManager[None]:
    return locked(root / ".locks" / name)


def _drop_all_but(keep: int, root: Path, kind: str) -> None:
    same = [(path.stat().st_mtime, path) for path in root.glob(f"{kind}-*") if path.name.rpartition("-")[0] == kind]
    for _, old in sorted(same)[:-keep]:
        with _claimed(root, old.name):
            # Asked again: another process may have asked for it, or dropped it, since.
            if old.exists() and time.time() - old.stat().st_mtime > IN_USE_SECONDS:
                shutil.rmtree(old)
