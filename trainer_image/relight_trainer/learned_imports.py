"""What a job's workers import beside what the launcher has imported: learned in one generation, at hand in the next.

A script's libraries may take as long to import as a machine takes to come back. A worker that has done its first step
notes which of them it has imported. The launcher tries them in a child, which shows whether workers can still be forked
afterwards, and then imports them itself, between two orders. Members that come later find the list beside the checkpoints.

Only installed libraries count: code of the user's own is imported by each worker anew, as it would be without all this.
"""

import atexit
import contextlib
import gc
import importlib
import os
import re
import select
import signal
import site
import sys
import sysconfig
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

from relight_agent.files import JobFile, PathLike, read_json, write_json
from relight_agent.processes import die_with_parent
from relight_trainer import hygiene

FILE = "imports.json"  # names of modules, in the order in which they were first wanted
_LEAST = 50  # modules: fewer are imported in no time
_LOOK_SECONDS = 1.0  # between two looks for what the workers have imported
_STORAGE_SECONDS = 2.0  # for a checkpoint folder to answer
# Between two looks for what other members have learned: most is learned soon after a job's start.
_ASK_SECONDS, _ASK_SECONDS_AT_MOST = 5.0, 300.0
_OURS = ("torch", "relight_trainer", "relight_agent")  # of these the launcher has what it is to have
_MOST = 10_000
# What is open once a device is in use: CUDA cannot be used in what is forked from then on. NVML, which only asks, opens others.
_DEVICES = ("/dev/nvidia-uvm", "/dev/kfd")
_NAME = re.compile(r"[A-Za-z_]\w{0,99}(\.\w{1,100}){0,15}", re.ASCII)

_before: frozenset[str] = frozenset()
_exit_handlers: list[Callable[..., Any]] = []  # that imports in the launcher have registered


def begin() -> None:
    """A worker begins: what the launcher has imported is not the worker's."""
    global _before  # noqa: PLW0603  # of a process there is one
    _before = frozenset(sys.modules)
    # What a library clears away at its process's end is the launcher's, and of use to the workers that come after this one.
    for handler in _exit_handlers:
        atexit.unregister(handler)


def note(folder: PathLike) -> None:
    """Write which installed libraries this worker has imported, where they are many."""
    installed = _installed()
    # A copy: threads beside the training may import something meanwhile.
    later = [(name, module) for name, module in [*sys.modules.items()] if name not in _before]
    names = [
        name
        for name, module in later
        if _NAME.fullmatch(name) and name.partition(".")[0] not in _OURS and _is_installed(module, installed)
    ][:_MOST]
    if len(names) >= _LEAST:
        with contextlib.suppress(OSError):  # a full tmpfs: the next generation imports them by itself
            write_json(Path(folder) / FILE, names)


def known(folder: PathLike) -> list[str]:
    """What has been noted in `folder`; nothing where that is none of ours."""
    try:
        names = read_json(Path(folder) / FILE)
    except (OSError, ValueError):
        return []
    if not isinstance(names, list) or len(names) > _MOST:
        return []
    return names if all(isinstance(n, str) and _NAME.fullmatch(n) for n in names) else []


class Inquiry:
    """What has been noted on storage that may hang, asked by a child, which the caller reaps. Wait for `fileno`."""

    def __init__(self, folder: PathLike, fork: Callable[[Callable[[], int]], int]) -> None:
        told, tell = os.pipe()

        def ask() -> int:
            os.close(told)
            with os.fdopen(tell, "wb") as pipe:
                pipe.write(b"\n".join(name.encode() for name in known(folder)))
            return 0

        self.child = fork(ask)
        os.close(tell)
        self._pipe = os.fdopen(told, "rb", buffering=0)
        self._received = b""

    def fileno(self) -> int:
        return self._pipe.fileno()

    def is_over(self) -> bool:
        """Take what has been told; whether that was the last of it. Waits where there is nothing to take."""
        data = self._pipe.read(1 << 16)
        self._received += data
        if not data:
            self._pipe.close()
        return not data

    def names(self) -> list[str]:
        return self._received.decode().split()

    def give_up(self) -> None:
        self._pipe.close()
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.child, signal.SIGKILL)


def known_within(folder: PathLike, seconds: float) -> list[str]:
    """What has been noted in `folder`, and nothing where that is not told in time."""
    inquiry, deadline = Inquiry(folder, _fork), time.monotonic() + seconds
    while select.select([inquiry], [], [], max(0.0, deadline - time.monotonic()))[0]:
        if inquiry.is_over():
            os.waitpid(inquiry.child, 0)
            return inquiry.names()
    inquiry.give_up()  # reaped with the others, if it ends
    return []


def _fork(run: Callable[[], int]) -> int:
    us, child = os.getpid(), os.fork()
    if child == 0:
        try:
            die_with_parent(us)
            run()
        finally:
            os._exit(0)
    return child


class Others:
    """What other members have come to need, asked for ever more rarely while workers are parked here."""

    def __init__(self, fork: Callable[[Callable[[], int]], int]) -> None:
        self._fork = fork
        self._folder = ""
        self._told: set[str] = set()
        self._inquiry: Inquiry | None = None
        self._pause = self._ask_at = 0.0

    def begin(self) -> None:
        """Workers have been parked, which know nothing yet."""
        self.end()
        self._folder = checkpoint_folder()
        self._told = set()
        self._pause, self._ask_at = _ASK_SECONDS, time.monotonic()

    def end(self) -> None:
        self._folder = ""
        if self._inquiry is not None:
            self._inquiry.give_up()
            self._inquiry = None

    @property
    def asked(self) -> list[int]:
        """Descriptors to wait for; then there is something to be had from `go_on`."""
        return [self._inquiry.fileno()] if self._inquiry is not None else []

    def wait(self) -> float | None:
        """Seconds until `go_on` is of use; None for as long as it takes."""
        if not self._folder or self._inquiry is not None:
            return None
        return max(0.0, self._ask_at - time.monotonic())

    def go_on(self, *, answered: bool) -> list[str]:
        """Ask where it is time to, or take what is answered; the names that are new."""
        if self._inquiry is not None and answered and self._inquiry.is_over():
            new = [name for name in self._inquiry.names() if name not in self._told]
            self._inquiry = None
            self._told.update(new)
            return new
        if self._folder and self._inquiry is None and time.monotonic() >= self._ask_at:
            self._inquiry = Inquiry(self._folder, self._fork)
            self._pause = min(2 * self._pause, _ASK_SECONDS_AT_MOST)
            self._ask_at = time.monotonic() + self._pause
        return []


def publish(folder: PathLike, names: list[str]) -> int:
    """In a child, for members that come later: `names` too can be imported before workers are forked."""
    before = known(folder)
    both = [*dict.fromkeys([*before, *names])][:_MOST]
    with contextlib.suppress(OSError):  # storage that is full or ill is told by who needs it
        if both != before:
            write_json(Path(folder) / FILE, both)
    return 0


def of_others() -> list[str]:
    """What members of this job have found to be of use, and to leave a process that can be forked."""
    folder = checkpoint_folder()
    return known_within(folder, _STORAGE_SECONDS) if folder else []


def rehearse(names: list[str]) -> int:
    """In a child, once: 0 where workers can still be forked when all of them are imported."""
    os.nice(19)  # beside a training
    for name in names:
        learn(name)
    return 0 if can_fork() else 1


def learn(name: str) -> None:
    """Import it as `preload` does. What cannot be imported is left to who wants it, and so is what it prints."""
    with _quiet(), _exit_handlers_noted(), hygiene.forkable(), contextlib.suppress(Exception, SystemExit):
        importlib.import_module(name)


class Learner:
    """What workers have imported, tried in a child and then imported here: bit by bit, when nothing else is to be done."""

    def __init__(self, fork: Callable[[Callable[[], int]], int]) -> None:
        self.folder: str | None = None  # where workers note it
        self.spoiled = False  # workers cannot be forked any more, against what the child has shown
        self._fork = fork
        self._names: list[str] = []
        self._left: list[str] = []
        self._child: int | None = None
        self._over = False

    def wait(self, *, training: bool) -> float | None:
        """Seconds until `go_on` is of use; None for as long as it takes."""
        if self._left:
            return 0.0
        return _LOOK_SECONDS if training and self._child is None and not self._over else None

    def go_on(self) -> bool:
        """Whether all that there was to be learned is now."""
        if self._left:
            learn(self._left.pop(0))
            if not self._left:
                gc.collect()
                gc.freeze()
                self.spoiled = not can_fork()
                if self.spoiled:
                    print(
                        "relight launcher: a library is in the way of forks: workers start cold",
                        file=sys.stderr,
                        flush=True,
                    )
                return True
        elif self.folder is not None and (names := known(self.folder)):
            self._over, self._names = True, [name for name in names if name not in sys.modules]
            if self._names:
                self._child = self._fork(lambda: rehearse(self._names))
        return False

    def ended(self, pid: int, status: int) -> bool:
        """Whether that was the child; `status` 0 says that what it has tried can be imported here."""
        if pid != self._child:
            return False
        self._child = None
        if status == 0:
            self._left = self._names.copy()
            if folder := checkpoint_folder():
                self._fork(lambda: publish(folder, self._names))
        return True


def checkpoint_folder() -> str:
    """Where members that come later look; "" where that is no folder."""
    path = os.environ.get("RELIGHT_JOB_FILE")
    try:
        location = JobFile.load(path).checkpoint_dir if path else ""
    except (OSError, ValueError):
        return ""
    return location if location.startswith("/") else ""


def can_fork() -> bool:
    """Whether this process has one thread and no device."""
    return hygiene.threads_of_this_process() == 1 and not any(map(_is_device, Path("/proc/self/fd").iterdir()))


def _is_device(descriptor: Path) -> bool:
    try:
        return str(descriptor.readlink()) in _DEVICES
    except OSError:  # the listing's own is gone by now
        return False


def _installed() -> tuple[str, ...]:
    paths = sysconfig.get_paths()
    folders = {paths["purelib"], paths["platlib"], site.getusersitepackages(), *site.getsitepackages()}
    return tuple(f"{path}/" for folder in folders for path in {folder, str(Path(folder).resolve())})


def _is_installed(module: ModuleType | None, folders: tuple[str, ...]) -> bool:
    origin = getattr(getattr(module, "__spec__", None), "origin", None)
    return isinstance(origin, str) and origin.startswith(folders)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Nobody asked for what a library says at its import, and nobody could tell why it stands there.

    Below Python's own streams, which libraries keep for what they will log.
    """
    streams = sys.stdout, sys.stderr
    kept = [os.dup(number) for number in (1, 2)]
    null = os.open(os.devnull, os.O_WRONLY)
    try:
        for stream, number in zip(streams, (1, 2), strict=True):
            stream.flush()
            os.dup2(null, number)
        yield
    finally:
        for stream, number, descriptor in zip(streams, (1, 2), kept, strict=True):
            stream.flush()
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(null)


@contextlib.contextmanager
def _exit_handlers_noted() -> Iterator[None]:
    register = atexit.register

    def noting(handler: Any, *args: Any, **kwargs: Any) -> Any:
        _exit_handlers.append(handler)
        return register(handler, *args, **kwargs)

    atexit.register = noting  # type: ignore[assignment]  # the type names the function itself
    try:
        yield
    finally:
        atexit.register = register
