"""Processes as an init sees them: descendants, sessions, reaping. Linux only."""

import ctypes
import os
import signal
import time
from typing import Callable, Dict, Iterable, Iterator, List, NamedTuple, Optional, Set, Tuple

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_libc = ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> None:
    """Orphans below this process become its children instead of init's."""
    if _libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_CHILD_SUBREAPER)")


def die_with_parent(parent: int) -> None:
    """SIGKILL for this process when its parent's thread ends; at once where that has happened already."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(137)


class Process(NamedTuple):
    pid: int
    parent: int
    session: int
    state: str


def processes() -> List[Process]:
    """Every process that can be seen, zombies included."""
    found = []
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                line = file.read()
        except OSError:
            continue  # it ended while we looked
        # The command may hold spaces and parentheses: fields start behind the last one.
        state, parent, _, session = line[line.rindex(")") + 2 :].split()[:4]
        found.append(Process(int(name), int(parent), int(session), state))
    return found


def descendants(root: int, seen: Optional[Iterable[Process]] = None) -> List[int]:
    """The pids below `root`, parents before children; `root` itself is not among them."""
    children: Dict[int, List[int]] = {}
    for process in seen if seen is not None else processes():
        children.setdefault(process.parent, []).append(process.pid)
    found: List[int] = []
    frontier = [root]
    while frontier:
        below = children.get(frontier.pop(), [])
        found += below
        frontier += below
    return found


def kill_all(select: Callable[[List[Process]], Set[int]], *, timeout: float = 5.0) -> None:
    """SIGKILL what `select` names until it names nobody alive: a process may fork while it is being killed."""
    deadline = time.monotonic() + timeout
    while True:
        seen = processes()
        alive = {p.pid for p in seen if p.state not in "ZX"}
        victims = select(seen) & alive
        if not victims or time.monotonic() > deadline:
            return
        for pid in victims:
            try:
                os.kill(pid, signal.SIGKILL)
            except (ProcessLookupError, PermissionError):
                pass  # it ended, or it has become another user's
        time.sleep(0.002)


def is_alive(pid: int) -> bool:
    """Whether a process runs; a zombie does not."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            line = file.read()
    except OSError:
        return False
    return line[line.rindex(")") + 2] not in "ZX"


def ended_children() -> Iterator[Tuple[int, int]]:
    """(pid, exit code, negative for a signal) of each child that has ended, own and adopted; waits for nobody."""
    while True:
        try:
            pid, status = os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return
        if pid == 0:
            return
        yield pid, os.waitstatus_to_exitcode(status)


class Reaper:
    """Collects all children that have ended, own and adopted, as an init must; remembers those that are watched."""

    def __init__(self) -> None:
        self._watched: Set[int] = set()
        self._ended: Dict[int, int] = {}

    def watch(self, pid: int) -> None:
        """Remember how this child ends. Of all others nothing is kept: their number has no bound, and pids return."""
        self._watched.add(pid)

    def reap(self) -> None:
        for pid, status in ended_children():
            if pid in self._watched:
                self._watched.remove(pid)
                self._ended[pid] = status

    def status(self, pid: int) -> Optional[int]:
        """The exit code (negative: the signal) of a watched child that has ended; each is told once."""
        self.reap()
        return self._ended.pop(pid, None)
