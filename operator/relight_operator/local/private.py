"""Folders that no other user of this machine can have made, read or prepared.

What members keep in memory (outcomes, snapshots, process numbers) is believed, so it lies in a folder that was made for
this run: of this user, mode 0700, with a name that nobody can guess. The state folder records the name, because members
may outlive their runner.
"""

import os
import secrets
import shutil
import stat
import tempfile
from pathlib import Path

from relight_agent.files import read_json, write_json
from relight_operator.errors import StateError

RECORD = "run-folder.json"  # in the state folder
_PREFIX = "relight-"


def is_ours(path: Path) -> bool:
    """Whether `path` is a folder, no link, of this user, that nobody else can enter."""
    try:
        found = path.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def check_state_folder(path: Path) -> None:
    """Raises StateError where another user made the folder, or may write into it: what stands there would be believed."""
    found = path.stat()
    if found.st_uid != os.geteuid():
        raise StateError(
            f"{path} belongs to user {found.st_uid}, not to you ({os.geteuid()}): name a folder with --state-dir that does not "
            "exist yet, or one of your own"
        )
    if found.st_mode & stat.S_IWOTH:
        raise StateError(
            f"every user may write into {path}: run chmod o-w on it, or name another folder with --state-dir"
        )


def run_root(state: Path) -> Path:
    """The recorded folder of the members' memory; a path where nothing is, if none was recorded. Read `is_ours` first."""
    recorded = read_json(state / RECORD)
    path = Path(recorded) if isinstance(recorded, str) else Path()
    return path if path.is_absolute() and path.name.startswith(_PREFIX) else state / f"{_PREFIX}none"


def choose(state: Path) -> Path:
    """The folder for the next run: an earlier runner's, whose members may still live in it, or one with a new name."""
    known = run_root(state)
    return known if is_ours(known) else _base(state) / f"{_PREFIX}{secrets.token_hex(16)}"


def make(state: Path, path: Path) -> None:
    """Record and make the folder that was chosen. Raises StateError where somebody else has made it since."""
    write_json(state / RECORD, str(path), durable=True, private=True)
    try:
        path.mkdir(mode=0o700)
    except FileExistsError:
        if not is_ours(path):
            raise StateError(f"{path} has been made by somebody else: start again") from None


def discard(state: Path) -> None:
    """Delete the recorded folder, if it is ours."""
    known = run_root(state)
    if is_ours(known):
        shutil.rmtree(known, ignore_errors=True)


def _base(state: Path) -> Path:
    """A tmpfs where there is one; nowhere that another user could put a folder of theirs in the place of ours."""
    for base in (Path("/dev/shm"), Path(tempfile.gettempdir())):  # noqa: S108  # the system's own
        try:
            mode = base.stat().st_mode
        except OSError:
            continue
        if os.access(base, os.W_OK | os.X_OK) and (mode & stat.S_ISVTX or not mode & 0o022):
            return base
    return state
