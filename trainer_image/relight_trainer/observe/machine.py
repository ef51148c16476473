"""What this member uses of its machine, as numbers to log: its container's CPU, memory and IO, and its GPUs."""

from collections.abc import Callable

from relight_agent.cgroup import Cgroup, Usage
from relight_trainer.observe.gpu import Gpus, own_uuids


def rates(before: Usage, now: Usage) -> dict[str, float]:
    """What happened between two readings, by name; without what is not known.

    `cpu_cores` is CPU time over time (2.0: two cores' worth), `throttled` the share of scheduler periods in which the
    container was made to wait for its CPU limit, `io_*` bytes a second.
    """
    seconds = now.at - before.at
    found: dict[str, float | None] = {
        "cpu_limit_cores": now.cpu_limit,
        "memory_bytes": now.memory_bytes,
        "memory_limit_bytes": now.memory_limit,
    }
    if seconds > 0:
        found["cpu_cores"] = _rate(before.cpu_seconds, now.cpu_seconds, seconds)
        found["io_read_bytes_per_second"] = _rate(before.read_bytes, now.read_bytes, seconds)
        found["io_written_bytes_per_second"] = _rate(before.written_bytes, now.written_bytes, seconds)
    if now.cpu_limit is not None and (periods := (now.periods or 0) - (before.periods or 0)) > 0:
        found["throttled"] = ((now.throttled_periods or 0) - (before.throttled_periods or 0)) / periods
    return {f"machine/{name}": value for name, value in found.items() if value is not None}


def _rate(before: float | None, now: float | None, seconds: float) -> float | None:
    return None if before is None or now is None else (now - before) / seconds


def reader() -> Callable[[], dict[str, float]]:
    """A function that gives the present numbers, rates since its last call (the first time: since now)."""
    import torch

    cgroup = Cgroup()
    last = cgroup.read()
    gpus: Gpus | None = None

    def read() -> dict[str, float]:
        nonlocal last, gpus
        now = cgroup.read()
        found = rates(last, now)
        last = now
        gpus = gpus or Gpus(own_uuids())
        for gpu in gpus.read():
            for name, value in gpu._asdict().items():
                if name != "place" and value is not None:
                    found[f"gpu{gpu.place}/{name}"] = float(value)
        if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            found["cuda/allocated_bytes"] = torch.cuda.memory_allocated()
            found["cuda/peak_allocated_bytes"] = torch.cuda.max_memory_allocated()
            found["cuda/reserved_bytes"] = torch.cuda.memory_reserved()
        return found

    return read
