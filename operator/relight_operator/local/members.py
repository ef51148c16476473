"""Members as processes: what kubelets and the API server's pods are in a cluster.

A member's folder is its object. Its agent holds an flock on `lock` from before it is executed until it ends, inherited
through fork and exec: so whoever comes later, also after a SIGKILL of the runner at any instant, knows for certain
whether the member lives, and never starts one twice.
"""

import asyncio
import contextlib
import hashlib
import hmac
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relight_agent.agent import read_termination_message
from relight_agent.exits import CAUSE_CLASS, Cause, Class, ExitCode, exit_of
from relight_agent.files import clip, read_json, write_json
from relight_agent.processes import Process, descendants, kill_all
from relight_agent.reserved import is_reserved
from relight_operator.core.observed import MemberEnd
from relight_operator.errors import StateError
from relight_operator.local.environment import Values
from relight_operator.local.locks import lock

ADDRESS = "127.0.0.1"
LOG_TAIL_BYTES = 400


@dataclass
class Member:
    """One process member; `end` is set once it has ended."""

    name: str
    slot: int
    incarnation: int
    uid: str
    pid: int | None = None
    pidfd: int | None = None
    end: MemberEnd | None = None
    deleting: bool = False

    @property
    def machine(self) -> str:
        """Here each slot is a machine of its own, which a new member of it cannot leave."""
        return f"slot-{self.slot}"


def token_of(secret: bytes, uid: str) -> str:
    """The bearer token of one member: nobody else's, and nothing to store."""
    return hmac.new(secret, uid.encode(), hashlib.sha256).hexdigest()


def kill_leftovers(folder: Path) -> int:
    """SIGKILL the members of an earlier runner that still live, with all their processes; how many there were."""
    living = sum(_lock_holder(path) is not None for path in folder.glob("*/lock"))
    values = [read_json(path) for path in folder.glob("*/member.json")]
    # Also of those whose agent has ended: what it had started may have outlived it.
    kill_container(*(str(v["uid"]) for v in values if isinstance(v, dict) and "uid" in v))
    return living


def kill_container(*uids: str) -> None:
    """SIGKILL whatever was started in these members, as a container runtime does when its first process has ended.

    What a member starts inherits its environment, and that names the member.
    """
    marks = {f"RELIGHT_UID={uid}".encode() for uid in uids}

    def select(seen: list[Process]) -> set[int]:
        return {p.pid for p in seen if not marks.isdisjoint(_environment(p.pid))} if marks else set()

    kill_all(select)


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return []


class ProcessMembers:
    """`on_change` is called in the event loop when a member has ended. `clock` gives unix seconds."""

    def __init__(
        self,
        folder: Path,
        run_root: Path,
        environment: dict[str, str],
        secret: bytes,
        on_change: Callable[[], None],
        *,
        clock: Callable[[], float] = time.time,
        alone: bool = False,
        values: Values | None = None,
    ) -> None:
        """`values`: what the job takes from Secrets and the like.

        `alone`: this process has no children but the members, and is a child subreaper: others are their orphans.
        """
        self._alone = alone
        self._values = values or Values()
        self._clock = clock
        self._folder = folder
        self._run_root = run_root
        self._environment = environment
        self._secret = secret
        self._on_change = on_change
        self._members: dict[str, Member] = {}

    def adopt(self, job: str) -> None:
        """Take over what an earlier runner left, living or not."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for path in sorted(self._folder.iterdir()):
            value = read_json(path / "member.json")
            # One that was written down and never started is none yet: creating it starts it, under the same uid.
            begun = (path / "started").exists() or _lock_holder(path / "lock") is not None
            if isinstance(value, dict) and path.name.startswith(f"{job}-") and begun:
                self._take(path, value)

    def all(self) -> list[Member]:
        return list(self._members.values())

    def create(self, job: str, slot: int, incarnation: int) -> Member:
        """Start the member, or return the one that exists already under this name."""
        name = f"{job}-{slot}-{incarnation}"
        known = self._members.get(name)
        if known is not None and (known.pid is not None or known.end is not None):
            return known
        path = self._folder / name
        path.mkdir(parents=True, exist_ok=True, mode=0o700)
        value = read_json(path / "member.json")
        if not isinstance(value, dict):
            value = {"uid": str(uuid.uuid4()), "slot": slot, "incarnation": incarnation}
            write_json(path / "member.json", value)
        member = self._take(path, value)
        if member.end is None and member.pid is None:
            self._start(path, member)
        return member

    def delete(self, name: str, uid: str, grace: float) -> None:
        """SIGTERM now, SIGKILL after `grace` seconds; gone already is success."""
        member = self._members.get(name)
        if member is None or member.uid != uid or member.end is not None or member.deleting:
            return
        member.deleting = True
        self._signal(member, signal.SIGTERM)
        asyncio.get_running_loop().call_later(grace, self._signal, member, signal.SIGKILL)

    def ask_for_traces(self, uids: Collection[str]) -> None:
        """Have the workers of these members trace their next steps. They have said something: their agents listen."""
        for member in self._members.values():
            if member.uid in uids:
                self._signal(member, signal.SIGUSR1)

    def kill_all(self) -> None:
        for member in self._members.values():
            self._signal(member, signal.SIGKILL)

    async def end_all(self, grace: float) -> None:
        """SIGTERM to all, and SIGKILL after `grace` seconds; returns when none lives."""
        living = [m for m in self._members.values() if m.end is None]
        for member in living:
            self.delete(member.name, member.uid, grace)
        while any(m.end is None and m.pidfd is not None for m in living):  # noqa: ASYNC110  # each has a pidfd of its own
            await asyncio.sleep(0.02)

    # -- one member

    def _take(self, path: Path, value: dict[str, Any]) -> Member:
        member = Member(path.name, int(value["slot"]), int(value["incarnation"]), str(value["uid"]))
        self._members[member.name] = member
        holder = _lock_holder(path / "lock")
        if holder is not None:
            self._watch(member, holder)
        elif (path / "started").exists():
            self._ended(member, None)
        return member

    def _start(self, path: Path, member: Member) -> None:
        run_dir = self._run_root / member.name
        run_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        token = path / "token"
        token.touch(mode=0o600)
        token.write_text(token_of(self._secret, member.uid), encoding="ascii")
        env = {
            **{k: v for k, v in os.environ.items() if not is_reserved(k)},
            **self._values.of(member.name, member.uid, member.machine, ADDRESS),
            **self._environment,
            "PYTHONUNBUFFERED": "1",
            "RELIGHT_SLOT": str(member.slot),
            "RELIGHT_INCARNATION": str(member.incarnation),
            "RELIGHT_UID": member.uid,
            "RELIGHT_RUN_DIR": str(run_dir),
            "RELIGHT_ADDRESS": ADDRESS,
            "RELIGHT_TOKEN_FILE": str(token),
            "RELIGHT_TERMINATION_LOG": str(path / "termination.json"),
        }
        with (path / "lock").open("a", encoding="ascii") as held, (path / "log").open("ab") as log:
            lock(held)
            # From here on the member has been started for whoever finds the folder: with the lock free, it has ended.
            process = subprocess.Popen(
                [sys.executable, "-m", "relight_agent"],
                env=env,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
                pass_fds=[held.fileno()],
            )
            (path / "started").touch()
        process.returncode = 0  # waited for by pidfd, not by Popen
        self._watch(member, process.pid)

    def _watch(self, member: Member, pid: int) -> None:
        try:
            member.pidfd = os.pidfd_open(pid)
        except ProcessLookupError:
            self._ended(member, pid)
            return
        member.pid = pid
        asyncio.get_running_loop().add_reader(member.pidfd, self._on_pidfd, member)

    def _on_pidfd(self, member: Member) -> None:
        if member.pidfd is not None:
            asyncio.get_running_loop().remove_reader(member.pidfd)
            os.close(member.pidfd)
            member.pidfd = None
        self._ended(member, member.pid)
        self._on_change()

    def _ended(self, member: Member, pid: int | None) -> None:
        status: int | None = None
        if pid is not None:
            with contextlib.suppress(ChildProcessError):
                ended, raw = os.waitpid(pid, os.WNOHANG)
                status = os.waitstatus_to_exitcode(raw) if ended == pid else None
        path = self._folder / member.name
        member.end = classify(
            read_termination_message(str(path / "termination.json")), status, _tail(path / "log"), at=self._clock()
        )
        # The member's processes and memory end with it, as a pod's containers and /dev/shm do.
        kill_container(member.uid)
        if self._alone:
            self._kill_orphans()
        shutil.rmtree(self._run_root / member.name, ignore_errors=True)

    def _kill_orphans(self) -> None:
        """Those that hide: a daemon with an environment and a session of its own, whose agent was killed."""
        me, agents = os.getpid(), {m.pid for m in self._members.values()}
        orphans: set[int] = set()

        def select(seen: list[Process]) -> set[int]:
            orphans.update(p.pid for p in seen if p.parent == me and p.pid not in agents)
            return orphans.union(*(descendants(pid, seen) for pid in orphans))

        kill_all(select)
        for pid in orphans:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)

    def _signal(self, member: Member, number: int) -> None:
        if member.pidfd is not None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(member.pidfd, number)

    def close(self) -> None:
        for member in self._members.values():
            if member.pidfd is not None:
                asyncio.get_running_loop().remove_reader(member.pidfd)
                os.close(member.pidfd)
                member.pidfd = None


def classify(message: dict[str, Any] | None, status: int | None, log_tail: str, *, at: float) -> MemberEnd:
    """How a process member ended. `status`: as `os.waitstatus_to_exitcode`, None where we are not its parent."""
    if message is None or not isinstance(message.get("exitCode"), int):
        if status is not None and status > 0:
            text = f"the agent ended with {status} and left no word: {log_tail}"
            return MemberEnd(Cause.VANISHED, CAUSE_CLASS[Cause.VANISHED], at, status, clip(text))
        return MemberEnd(
            Cause.MACHINE_LOST, CAUSE_CLASS[Cause.MACHINE_LOST], at, status, "killed with all its processes"
        )
    code, text = int(message["exitCode"]), clip(str(message.get("message", "")))
    meaning = exit_of(code)
    if code in (ExitCode.STOPPED_SAVED, ExitCode.STOPPED_UNSAVED):
        return MemberEnd(Cause.PREEMPTED, CAUSE_CLASS[Cause.PREEMPTED], at, code, text)
    rank = message.get("rank")
    return MemberEnd(meaning.cause, meaning.klass, at, code, text, rank if isinstance(rank, int) else None)


def _tail(path: Path) -> str:
    try:
        with path.open("rb") as log:
            log.seek(max(0, os.fstat(log.fileno()).st_size - LOG_TAIL_BYTES))
            data = log.read(LOG_TAIL_BYTES)
    except OSError:
        return ""
    return " | ".join(data.decode("utf-8", "replace").split("\n")[-4:]).strip(" |")


def _lock_holder(path: Path) -> int | None:
    """The pid of the process that holds the member's lock, or None where nobody does."""
    if not path.exists():
        return None
    with path.open("a", encoding="ascii") as file:
        try:
            lock(file)
        except BlockingIOError:
            pass
        else:
            return None
        inode = os.fstat(file.fileno())
        deadline = time.monotonic() + 5.0
        while time.monotonic() < deadline:
            for entry in Path("/proc").iterdir():
                if entry.name.isdigit() and int(entry.name) != os.getpid() and _holds(entry / "fd", inode):
                    return int(entry.name)
            if _free(path):
                return None
            time.sleep(0.01)
    raise StateError(
        f"{path} is locked, but no process that could be seen holds it: does the job run on another machine?"
    )


def _holds(descriptors: Path, inode: os.stat_result) -> bool:
    try:
        for link in descriptors.iterdir():
            with contextlib.suppress(OSError):
                stat = link.stat()
                if (stat.st_dev, stat.st_ino) == (inode.st_dev, inode.st_ino):
                    return True
    except OSError:
        pass
    return False


def _free(path: Path) -> bool:
    with path.open("a", encoding="ascii") as file:
        try:
            lock(file)
        except BlockingIOError:
            return False
        return True


__all__ = ["ADDRESS", "Class", "Member", "ProcessMembers", "classify", "token_of"]
