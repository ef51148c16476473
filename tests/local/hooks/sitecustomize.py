"""Goes before every Python program of a job whose PYTHONPATH begins with this folder.

`TESTS_CLOCK`: a file with the seconds by which the wall clock is wrong; who has been told a wrong time leaves its name
beside it. `TESTS_PORT`: a port that each agent takes for free when it first looks for one.
`TESTS_SLOW_DISK`: a file with the seconds that each fsync of a member in a volume takes longer, for as long as it is there. (Names that begin with
RELIGHT_ do not reach members.)
`TESTS_NO_FOLDER_FSYNC`: set where no file system can fsync a folder, as some network file systems cannot.
"""

import errno
import os
import stat
import time
from pathlib import Path

if clock := os.environ.get("TESTS_CLOCK"):
    _true = time.time
    _me = "member" if "RELIGHT_SLOT" in os.environ else "runner"

    def _wrong() -> float:
        try:
            off = float(Path(clock).read_text(encoding="utf-8") or 0)
        except OSError:
            return _true()
        Path(f"{clock}.{_me}").touch()
        return _true() + off

    time.time = _wrong
    time.time_ns = lambda: int(_wrong() * 1e9)

if (port := os.environ.get("TESTS_PORT")) and "RELIGHT_SLOT" in os.environ:
    from relight_agent import agent

    _free_port = agent.free_port
    _asked = False

    def _taken_at_first(address: str) -> int:
        global _asked  # noqa: PLW0603
        if _asked:
            return _free_port(address)
        _asked = True
        return int(port)

    agent.free_port = _taken_at_first

if slow := os.environ.get("TESTS_SLOW_DISK"):
    _fsync = os.fsync

    def _slow_fsync(descriptor: int) -> None:
        try:
            if "/volumes/" in str(Path(f"/proc/self/fd/{descriptor}").readlink()):
                time.sleep(float(Path(slow).read_text(encoding="utf-8")))
        except OSError:
            pass  # the disk is as it was
        _fsync(descriptor)

    if "RELIGHT_SLOT" in os.environ:
        os.fsync = _slow_fsync

if os.environ.get("TESTS_NO_FOLDER_FSYNC"):
    _fsync_of_files = os.fsync

    def _fsync_of_files_alone(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))
        _fsync_of_files(descriptor)

    os.fsync = _fsync_of_files_alone
