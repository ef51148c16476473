"""What a worker's seconds in its generation have gone to, in shared memory: true even after the worker has been killed."""

import mmap
import os
import struct
import time
from dataclasses import dataclass
from typing import Dict, Optional

from relight_agent.files import PathLike, read_row

KINDS = ("restore", "productive", "replayed", "data", "checkpoint", "evaluation", "drain")
RESTORE, PRODUCTIVE, REPLAYED, DATA, CHECKPOINT, EVALUATION, DRAIN = range(len(KINDS))
_ROW = struct.Struct(f"<qd{len(KINDS)}d")


@dataclass(frozen=True)
class Spent:
    """`seconds` by kind add up to the time from the ledger's beginning to `until` (CLOCK_MONOTONIC)."""

    until: float
    kind: int  # what is under way since `until`
    seconds: Dict[str, float]

    def at(self, now: float) -> "Spent":
        """With what is under way counted until `now`. A step counts once it has ended: one that hangs never does."""
        if self.kind in (PRODUCTIVE, REPLAYED) or now <= self.until:
            return self
        name = KINDS[self.kind]
        return Spent(now, self.kind, {**self.seconds, name: self.seconds[name] + now - self.until})


class Ledger:
    """Kept by a member's local rank 0; costs a microsecond a step. It begins with restoring, once the world is formed."""

    def __init__(self, path: Optional[PathLike]) -> None:
        """None: nobody reads it, and nothing is written."""
        self.kind = RESTORE
        self._at = time.monotonic()
        self._seconds = [0.0] * len(KINDS)
        self._waited = 0.0
        self._map: Optional[mmap.mmap] = None
        if path is not None:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                os.ftruncate(descriptor, _ROW.size)
                self._map = mmap.mmap(descriptor, _ROW.size)
            finally:
                os.close(descriptor)
        self._publish()

    def turn_to(self, kind: int) -> None:
        """What was under way ends, `kind` begins."""
        now = time.monotonic()
        self._seconds[self.kind] += now - self._at
        self.kind, self._at = kind, now
        self._publish()

    def step(self, kind: int, *, ended: float, saved: float, waited: float) -> None:
        """A step of `kind` has ended, and by `saved` its snapshot. `waited`: seconds for data, since the ledger began."""
        seconds, elapsed = self._seconds, ended - self._at
        if waited > self._waited:
            data = min(elapsed, waited - self._waited)
            seconds[DATA] += data
            elapsed -= data
        seconds[kind] += elapsed
        seconds[CHECKPOINT] += saved - ended
        self.kind, self._at, self._waited = kind, saved, waited
        self._publish()

    def _publish(self) -> None:
        if self._map is not None:
            _ROW.pack_into(self._map, 0, self.kind, self._at, *self._seconds)

    @staticmethod
    def read(path: PathLike) -> Optional[Spent]:
        """None where there is none yet."""
        data = read_row(path, _ROW.size)
        if data is None:
            return None
        kind, until, *seconds = _ROW.unpack(data)
        if until == 0.0 or not 0 <= kind < len(KINDS):
            return None
        return Spent(until, kind, dict(zip(KINDS, seconds)))
