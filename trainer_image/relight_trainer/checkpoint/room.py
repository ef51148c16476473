"""Whether the container's memory limit leaves room for what is to be kept in memory: a tmpfs counts towards it.

Past the limit nobody is told "no": the kernel kills the container.
"""

from relight_agent.cgroup import Cgroup, Usage
from relight_trainer.checkpoint.errors import SnapshotsOff


def fits(size: int, usage: Usage | None = None) -> bool:
    """Whether there is room for `size` more bytes. Where no limit is known, everything fits."""
    usage = Cgroup().read() if usage is None else usage
    limit, used = usage.memory_limit, usage.memory_bytes
    return limit is None or used is None or used + size <= limit


def require(size: int, usage: Usage | None = None) -> None:
    """Raises SnapshotsOff where `size` more bytes would not fit."""
    usage = Cgroup().read() if usage is None else usage
    if fits(size, usage):
        return
    limit, used = usage.memory_limit or 0, usage.memory_bytes or 0
    raise SnapshotsOff(
        f"snapshots are off: {size / 1e6:.1f} MB for one of two states do not fit the memory limit "
        f"({limit / 1e6:.1f} MB, of which {used / 1e6:.1f} MB are in use); raise the limit to turn them on"
    )
