"""A real cgroup with limits, of either version."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from relight_agent.cgroup import places


class Group:
    def __init__(self, folders: list[Path]) -> None:
        self._folders = folders

    def add(self, pid: int) -> None:
        for folder in self._folders:
            (folder / "cgroup.procs").write_text(str(pid))


@contextmanager
def group(*, cores: float | None = None, memory: int | None = None) -> Iterator[Group]:
    """Without a process in it yet; `memory` in bytes. Skips where none may be made. All in it must have ended."""
    limits: dict[str, dict[str, str]] = {"": {}}  # by controller, "" for version 2: file -> what is written to it
    if cores is not None:
        quota = str(int(cores * 100_000))
        limits |= {"cpu": {"cpu.cfs_quota_us": quota}, "cpuacct": {}}
        limits[""]["cpu.max"] = f"{quota} 100000"
    if memory is not None:
        limits["memory"] = {"memory.limit_in_bytes": str(memory)}
        limits[""]["memory.max"] = str(memory)
    found, made = places(), []
    try:
        try:
            for controller in (limits.keys() - {""}) & found.keys() or {""}:
                folder = found[controller].folder / f"relight-test-{os.getpid()}"
                folder.mkdir()
                made.append(folder)
                for file, value in limits[controller].items():
                    (folder / file).write_text(value)
        except (OSError, KeyError) as error:
            pytest.skip(f"no cgroup can be made here: {error}")
        yield Group(made)
    finally:
        for folder in made:
            with suppress(OSError):
                folder.rmdir()
