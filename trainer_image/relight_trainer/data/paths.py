"""Finding what a configuration points at."""

import os
from pathlib import Path
from typing import NamedTuple

from relight_trainer.data.errors import BadData, did_you_mean, few, one_of, unreadable

_SHOWN = 3


def existing(path: str | Path, field: str) -> Path:
    """`path`, made absolute. Raises BadData where there is nothing, which says how far the path leads."""
    absolute = Path(path).absolute()
    if absolute.exists():
        return absolute
    for link in (absolute, *absolute.parents):
        if link.is_symlink() and not link.exists():
            raise BadData(f"{field}: {link} is a link to {link.readlink()}, which is not there: is it mounted?")
    there = next(parent for parent in absolute.parents if parent.exists())
    if not there.is_dir():
        raise BadData(f"{field}: there is no {absolute}: {there} is a file")
    names = sorted(entry.name for entry in there.iterdir()) if os.access(there, os.R_OK) else []
    first, *rest = absolute.relative_to(there).parts
    if rest:  # what else the root of a machine has helps nobody
        near = did_you_mean(first, names)
        raise BadData(f"{field}: there is no {absolute}: {there} exists, and there is no {there / first}{near}")
    raise one_of(first, names, f"{field}: {there}") or BadData(f"{field}: there is no {absolute}")


class File(NamedTuple):
    path: str  # relative to the folder that was searched
    size: int


class Found(NamedTuple):
    files: list[File]  # in the order of their paths
    folders: list[tuple[str, int]]  # every folder that was searched, and when it was changed last, in nanoseconds


def files_below(folder: Path, endings: frozenset[str], field: str) -> Found:
    """The files in `folder` and in those below it whose names end so; links are followed.

    Raises BadData for links that lead nowhere or in a circle and for files of no bytes.
    """
    search = _Search(endings)
    try:
        search.walk(str(folder), "", ())
    except OSError as error:
        raise unreadable(f"{field}: {error.filename or folder}", error) from error
    for broken, what in ((search.dangling, "links in {} lead nowhere"), (search.empty, "files in {} are empty")):
        if broken:
            raise BadData(f"{field}: {len(broken)} {what.format(folder)}: {few(sorted(broken), _SHOWN)}")
    return Found(sorted(search.found), search.folders)


class _Search:
    def __init__(self, endings: frozenset[str]) -> None:
        self._endings = endings
        self.found: list[File] = []
        self.folders: list[tuple[str, int]] = []
        self.dangling: list[str] = []
        self.empty: list[str] = []

    def walk(self, folder: str, prefix: str, above: tuple[tuple[int, int], ...]) -> None:
        status = os.stat(folder)  # noqa: PTH116  # text all the way: a million Path objects take seconds
        here = status.st_dev, status.st_ino
        self.folders.append((folder, status.st_mtime_ns))
        if here in above:
            raise BadData(f"{folder} is a link to a folder that it lies in")
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    self.walk(entry.path, f"{prefix}{entry.name}/", (*above, here))
                elif os.path.splitext(entry.name)[1].lower() in self._endings:  # noqa: PTH122
                    self._add(f"{prefix}{entry.name}", entry)
                elif entry.is_symlink() and not os.path.exists(entry.path):  # noqa: PTH110
                    self.dangling.append(f"{prefix}{entry.name}")  # a folder's, perhaps: a class would be missing

    def _add(self, path: str, entry: os.DirEntry[str]) -> None:
        try:
            size = entry.stat().st_size
        except FileNotFoundError:
            self.dangling.append(path)
            return
        if size:
            self.found.append(File(path, size))
        else:
            self.empty.append(path)
