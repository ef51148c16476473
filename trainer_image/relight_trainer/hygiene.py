"""What a process must put right when it has been forked from one that has imported everything."""

import contextlib
import faulthandler
import logging
import os
import signal
import stat
import sys
import threading
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType
from typing import Any

from relight_agent.stacks import SIGNAL

# Read once, when the libraries load. Their pools are threads, and a process with threads must not be forked.
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")


@contextlib.contextmanager
def environment(overrides: Mapping[str, str]) -> Iterator[None]:
    """`overrides` in os.environ for a while; afterwards what was there before."""
    before = {name: os.environ.get(name) for name in overrides}
    os.environ.update(overrides)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def forkable() -> contextlib.AbstractContextManager[None]:
    """For imports in a process that is to be forked: no pools of threads, and CUDA is asked about without being begun."""
    one_thread = dict.fromkeys(THREAD_VARIABLES, "1")
    return environment({**one_thread, "PYTORCH_NVML_BASED_CUDA_CHECK": "1"})


def leave_working_folder_out_of_path() -> None:
    """Undo what `python -m` does: a user's `queue.py` in the working folder must not become the library's."""
    if sys.path and sys.path[0] in {"", str(Path.cwd())}:
        del sys.path[0]


def threads_of_this_process() -> int:
    return len(list(Path("/proc/self/task").iterdir()))


_NOT_FOR_WORKERS: dict[signal.Signals, Any] = {
    signal.SIGTERM: signal.SIG_DFL,
    signal.SIGINT: signal.default_int_handler,
}


def _ignore(_signum: int, _frame: FrameType | None) -> None:
    pass


_held_back = threading.local()


def _hold_back() -> None:
    """Until a child has the default again: a signal that comes before that would be lost."""
    _held_back.before = signal.pthread_sigmask(signal.SIG_BLOCK, _NOT_FOR_WORKERS)


def _let_through() -> None:
    signal.pthread_sigmask(signal.SIG_SETMASK, _held_back.before)


def _obey_again() -> None:
    for number, default in _NOT_FOR_WORKERS.items():
        if signal.getsignal(number) is _ignore:
            signal.signal(number, default)
    _let_through()


def reset_signals() -> None:
    """A worker's signals, in place of those inherited from torch's elastic agent.

    SIGTERM is the agent's business, SIGINT the terminal's: neither ends a worker. Both get a handler that does nothing
    instead of SIG_IGN, which the programs that a script starts would inherit. Processes that a script forks have the
    default again: `Process.terminate` sends SIGTERM. SIGUSR1 writes all stacks to stderr.
    """
    signal.set_wakeup_fd(-1)
    for number in (signal.SIGCHLD, signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    for number in _NOT_FOR_WORKERS:
        signal.signal(number, _ignore)
    os.register_at_fork(before=_hold_back, after_in_parent=_let_through, after_in_child=_obey_again)
    faulthandler.enable(sys.__stderr__ or 2)
    faulthandler.register(signal.SIGUSR1, file=sys.__stderr__ or 2, all_threads=True)


def lead_own_group() -> None:
    """A signal that a script sends to its process group is not to reach other workers. The session stays the generation's."""
    with contextlib.suppress(PermissionError):  # it leads a session, and its group by that
        os.setpgid(0, 0)


_hushed: dict[str, int] = {}  # levels by the names of loggers


def hush_loggers(*prefixes: str) -> None:
    """Have loggers whose names begin so say nothing in this process. What is forked from it calls `unhush_loggers`."""
    for name in list(logging.root.manager.loggerDict):
        if name.startswith(prefixes):
            _hushed[name] = logging.getLogger(name).level
            logging.getLogger(name).setLevel(logging.CRITICAL)


def unhush_loggers() -> None:
    """Give those loggers back the levels that they had."""
    for name, level in _hushed.items():
        logging.getLogger(name).setLevel(level)
    _hushed.clear()


def write_stacks_to(path: Path) -> None:
    """On stacks.SIGNAL, append the stacks of all threads to `path`: by a handler that needs no GIL."""
    file = path.open("ab", buffering=0)
    faulthandler.register(SIGNAL, file=file, all_threads=True)  # which keeps the file


def keep_descriptors_from_programs() -> None:
    """Have programs that this process starts inherit only the three standard descriptors. Spawn leaves others open to them."""
    for entry in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(OSError):  # the listing's own descriptor is gone by now
            if int(entry.name) > 2:
                os.set_inheritable(int(entry.name), False)


def cut_inherited_sockets() -> None:
    """Point every socket of this process at /dev/null.

    A forked worker that keeps an ancestor's connection open keeps its peer from seeing the ancestor's end. The numbers
    stay taken: an inherited object that closes "its" descriptor later must not close a stranger's.
    """
    null = os.open(os.devnull, os.O_RDWR)
    try:
        for entry in list(Path("/proc/self/fd").iterdir()):
            descriptor = int(entry.name)
            with contextlib.suppress(OSError):  # the listing's own descriptor is gone by now
                if descriptor > 2 and stat.S_ISSOCK(os.fstat(descriptor).st_mode):
                    os.dup2(null, descriptor, inheritable=False)
    finally:
        os.close(null)


def set_threads(threads: int) -> None:
    """Use `threads` threads in torch and in numpy's BLAS, which were loaded with one."""
    import torch

    torch.set_num_threads(threads)
    if threads > 1 and "numpy" in sys.modules:
        with contextlib.suppress(ModuleNotFoundError):
            import threadpoolctl  # type: ignore[import-untyped]

            threadpoolctl.threadpool_limits(limits=threads, user_api="blas")


def disown_finalizers() -> None:
    """Leave to the launcher what its imports want done at exit: 35 ms of torch, and the launcher's temporary folders."""
    for finalizer in list(weakref.finalize._registry):  # type: ignore[attr-defined]  # noqa: SLF001
        finalizer.atexit = False
