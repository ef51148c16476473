"""Bounds on what the structure of a stranger's file may cost: its author decides what a reader allocates and visits."""

import contextlib
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MiB = 1 << 20


@dataclass(frozen=True)
class Limits:
    """`memory`: bytes beyond what the process has now; `seconds` of the processor's time."""

    memory: int = 1024 * MiB
    seconds: int = 60


@contextlib.contextmanager
def limited(limits: Limits) -> Iterator[None]:
    """Within the block, more memory is a MemoryError, and more time ends the process with SIGXCPU.

    A handler could not end it: what runs may be one call in C, such as the hash of a tuple that holds itself many times.
    Files that are mapped to be read do not count as memory (RLIMIT_DATA, Linux 4.7; other systems may not bound it).
    """
    spent = resource.getrusage(resource.RUSAGE_SELF)
    bounds = {
        resource.RLIMIT_DATA: _data_bytes() + limits.memory,
        resource.RLIMIT_CPU: int(spent.ru_utime + spent.ru_stime) + limits.seconds,
    }
    before = {which: resource.getrlimit(which) for which in bounds}
    for which, (soft, hard) in before.items():
        others = [bound for bound in (soft, hard) if bound != resource.RLIM_INFINITY]
        resource.setrlimit(which, (min([bounds[which], *others]), hard))
    try:
        yield
    finally:
        for which, both in before.items():
            resource.setrlimit(which, both)


def _data_bytes() -> int:
    """What counts for RLIMIT_DATA in this process; 0 where the system does not say."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("VmData:")), 0)
