"""Files that grow here and are to be seen in an object store, where nothing can be appended to.

`python -m relight_trainer.observe.mirror FOLDER URL` copies once; it needs fsspec and what that needs for the store.
"""

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

EVERY_SECONDS = 30.0
_SHARE = 10  # an upload that took one second is followed by ten without one


class Mirror:
    """Copies `folder` to `url`, which fsspec knows: whole files, those that have changed. Raises what fsspec raises."""

    def __init__(self, folder: Path, url: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.folder = folder
        self._url = url.rstrip("/")
        self._clock = clock
        self._due = clock() + EVERY_SECONDS
        self._copied: dict[Path, tuple[int, int]] = {}  # modification time and size of what is there
        self._store: tuple[Any, str] | None = None

    def fetch(self, name: str) -> None:
        """Begin with the file that is there, if there is one."""
        files, root = self._connected()
        if files.exists(f"{root}/{name}"):
            self.folder.mkdir(parents=True, exist_ok=True)
            files.get_file(f"{root}/{name}", str(self.folder / name))

    def push(self) -> None:
        """Copy what has changed."""
        files, root = self._connected()
        began = self._clock()
        for path in sorted(p for p in self.folder.rglob("*") if p.is_file()):
            stat = path.stat()
            stamp = stat.st_mtime_ns, stat.st_size
            if self._copied.get(path) != stamp:
                target = f"{root}/{path.relative_to(self.folder).as_posix()}"
                files.makedirs(target.rpartition("/")[0], exist_ok=True)
                files.put_file(str(path), target)
                self._copied[path] = stamp
        now = self._clock()
        self._due = now + max(EVERY_SECONDS, _SHARE * (now - began))

    def push_if_due(self) -> None:
        if self._clock() >= self._due:
            self.push()

    def _connected(self) -> tuple[Any, str]:
        if self._store is None:
            import fsspec

            from relight_trainer.storage_options import Discreet, discreet, options

            with discreet():
                files, root = fsspec.core.url_to_fs(self._url, use_listings_cache=False, **options(self._url))
            self._store = Discreet(files), str(root)
        return self._store


if __name__ == "__main__":
    Mirror(Path(sys.argv[1]), sys.argv[2]).push()
