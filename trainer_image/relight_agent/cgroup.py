"""CPU, memory and IO of the container that this process runs in, from its cgroup (v1, v2 or both): never the machine's.

Standard library only.
"""

import contextlib
import re
import time
from pathlib import Path
from typing import Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple, Union

_NO_LIMIT = 1 << 60  # v1 says "none" with a number near 2**63


class Usage(NamedTuple):
    """What a container has used until `at` (monotonic seconds), and what it may; None where that is not known."""

    at: float
    cpu_seconds: Optional[float] = None  # of all its processes, over all cores
    cpu_limit: Optional[float] = None  # cores
    periods: Optional[int] = None  # scheduler periods in which it ran under the limit
    throttled_periods: Optional[int] = None  # those in which it was made to wait
    throttled_seconds: Optional[float] = None
    memory_bytes: Optional[int] = None  # without the page cache that can go at once: what the kubelet compares
    memory_limit: Optional[int] = None
    oom_kills: Optional[int] = None
    read_bytes: Optional[int] = None  # from block devices
    written_bytes: Optional[int] = None


class Place(NamedTuple):
    """A cgroup's folder and the folder its hierarchy is mounted at; limits hold in each folder between them."""

    folder: Path
    mount: Path
    version: int

    def upwards(self) -> Iterator[Path]:
        yield self.folder
        if self.folder != self.mount:
            for parent in self.folder.parents:
                yield parent
                if parent == self.mount:
                    return


def places(proc: Path = Path("/proc/self")) -> Dict[str, Place]:
    """Where this process' cgroup is for each of cpu, cpuacct, memory, blkio (v1) and "" (v2), as far as mounted."""
    mine = {}  # controller -> path
    for line in _lines(proc / "cgroup"):
        _, controllers, path = line.split(":", 2)
        for controller in controllers.split(","):
            mine[controller] = path
    found = {}
    for line in _lines(proc / "mountinfo"):
        before, _, after = line.partition(" - ")
        fields, kind = before.split(), after.split()
        if kind[0] == "cgroup2" and "" in mine:
            found[""] = _place(fields[3], fields[4], mine[""], 2)
        elif kind[0] == "cgroup":
            for controller in set(kind[2].split(",")) & set(mine) & {"cpu", "cpuacct", "memory", "blkio"}:
                found[controller] = _place(fields[3], fields[4], mine[controller], 1)
    return found


def _place(root: str, mount: str, path: str, version: int) -> Place:
    """The folder of cgroup `path` in a hierarchy of which `root` is what one sees at `mount`."""
    point = Path(re.sub(r"\\([0-7]{3})", lambda m: chr(int(m[1], 8)), mount))
    inside = path.removeprefix(root.rstrip("/")).lstrip("/") if f"{path}/".startswith(f"{root.rstrip('/')}/") else ""
    # In a container of its own cgroup namespace, v1's path may be the host's: what is mounted is then the own one.
    folder = point / inside if inside and ".." not in inside and (point / inside).is_dir() else point
    return Place(folder, point, version)


class Cgroup:
    """The container of the process that `proc` is about. Reading costs some 0.2 ms and never raises."""

    def __init__(self, proc: Path = Path("/proc/self"), clock: Callable[[], float] = time.monotonic) -> None:
        found = places(proc)
        unified = found.get("")
        self._clock = clock
        self._cpu = found.get("cpu", unified)
        self._cpuacct = found.get("cpuacct", unified)
        self._memory = found.get("memory", unified)
        self._io = found.get("blkio", unified)

    def read(self) -> Usage:
        fields: Dict[str, Optional[Union[float, int]]] = {}
        for place, of_v1, of_v2 in (
            (self._cpuacct, _cpu_seconds_v1, _cpu_seconds_v2),
            (self._cpu, _cpu_limit_v1, _cpu_limit_v2),
            (self._memory, _memory_v1, _memory_v2),
            (self._io, _io_v1, _io_v2),
        ):
            if place is not None:
                fields |= (of_v1 if place.version == 1 else of_v2)(place)
        return Usage(self._clock(), **fields)  # type: ignore[arg-type]  # each function names its fields


Fields = Dict[str, Optional[Union[float, int]]]


def _cpu_seconds_v1(place: Place) -> Fields:
    return {"cpu_seconds": _scaled(_number(place.folder / "cpuacct.usage"), 1e-9)}


def _cpu_seconds_v2(place: Place) -> Fields:
    return {"cpu_seconds": _scaled(_table(place.folder / "cpu.stat").get("usage_usec"), 1e-6)}


def _throttling(limits: List[Tuple[float, Path]], place: Place, throttled: str, seconds: float) -> Fields:
    """The tightest of `limits` and what it has held up; `throttled` is counted in units of so many `seconds`."""
    limit, folder = min(limits, default=(None, place.folder))
    stat = _table(folder / "cpu.stat")
    return {
        "cpu_limit": limit,
        "periods": stat.get("nr_periods"),
        "throttled_periods": stat.get("nr_throttled"),
        "throttled_seconds": _scaled(stat.get(throttled), seconds),
    }


def _cpu_limit_v1(place: Place) -> Fields:
    limits = []
    for folder in place.upwards():
        quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
        if quota is not None and quota > 0 and period:
            limits.append((quota / period, folder))
    return _throttling(limits, place, "throttled_time", 1e-9)


def _cpu_limit_v2(place: Place) -> Fields:
    limits = []
    for folder in place.upwards():
        quota, _, period = next(iter(_lines(folder / "cpu.max")), "max").partition(" ")
        if quota != "max" and period:
            limits.append((int(quota) / int(period), folder))
    return _throttling(limits, place, "throttled_usec", 1e-6)


def _memory_v1(place: Place) -> Fields:
    limits = (_number(folder / "memory.limit_in_bytes") for folder in place.upwards())
    return {
        "memory_bytes": _working_set(place.folder / "memory.usage_in_bytes", place.folder, "total_inactive_file"),
        "memory_limit": min((n for n in limits if n is not None and n < _NO_LIMIT), default=None),
        "oom_kills": _table(place.folder / "memory.oom_control").get("oom_kill"),
    }


def _memory_v2(place: Place) -> Fields:
    limits = (_number(folder / "memory.max") for folder in place.upwards())
    return {
        "memory_bytes": _working_set(place.folder / "memory.current", place.folder, "inactive_file"),
        "memory_limit": min((n for n in limits if n is not None), default=None),
        "oom_kills": _table(place.folder / "memory.events").get("oom_kill"),
    }


def _working_set(usage: Path, folder: Path, cache: str) -> Optional[int]:
    used = _number(usage)
    return None if used is None else max(0, used - _table(folder / "memory.stat").get(cache, 0))


def _io_v1(place: Place) -> Fields:
    lines = [line.split() for line in _lines(place.folder / "blkio.throttle.io_service_bytes_recursive")]
    return {
        name: sum(int(n) for _, what, n in (line for line in lines if len(line) == 3) if what == word)
        if lines
        else None
        for name, word in (("read_bytes", "Read"), ("written_bytes", "Write"))
    }


def _io_v2(place: Place) -> Fields:
    path = place.folder / "io.stat"
    if not path.exists():
        return {}
    words = [word.partition("=") for line in _lines(path) for word in line.split()[1:]]
    return {
        name: sum(int(n) for k, _, n in words if k == key)
        for name, key in (("read_bytes", "rbytes"), ("written_bytes", "wbytes"))
    }


def _lines(path: Path) -> List[str]:
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    return []


def _number(path: Path) -> Optional[int]:
    """The whole number in a file; None for no file and for `max`."""
    text = next(iter(_lines(path)), "")
    return int(text) if re.fullmatch(r"-?\d+", text) else None


def _table(path: Path) -> Dict[str, int]:
    """`key number` lines."""
    rows = (line.split() for line in _lines(path))
    return {row[0]: int(row[1]) for row in rows if len(row) == 2 and row[1].isdecimal()}


def _scaled(value: Optional[int], unit: float) -> Optional[float]:
    return None if value is None else value * unit
