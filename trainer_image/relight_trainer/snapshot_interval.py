"""How often a snapshot is taken: every so many steps, or as often as it costs next to nothing."""

import math
import time
from collections import deque
from collections.abc import Callable

SHARE = 0.01  # of the training's time, at most
# A snapshot that takes less than this is taken after each step: where steps are so short that it costs a larger share,
# they are no real training, and whoever tries a kill is to see that none is lost.
CHEAP_SECONDS = 0.001
# Nor is there one sooner after another: for steps that are as short as that nobody waits when they are done again.
PAUSE_SECONDS = 0.0025
_ENOUGH = 4  # snapshots, before which nothing is concluded: the first ones take their memory
_LOOKS = 16  # steps that are looked back at; the quickest is what it costs where nothing disturbs it


class SnapshotInterval:
    """`every` steps, 0 for Auto: at most `SHARE` of the time. Steps that were skipped are what a killed machine may cost.

    `clock` and `costs` give seconds; by the second is counted what a snapshot takes: the CPU time of this thread, for
    what others do on a busy machine is no part of it, or the time that passes, where a device is waited for.
    """

    def __init__(
        self, every: int, clock: Callable[[], float] = time.monotonic, costs: Callable[[], float] = time.monotonic
    ) -> None:
        self._every = every
        self._clock = clock
        self._cost_clock = costs
        self._costs: deque[float] = deque(maxlen=_LOOKS)
        self._steps: deque[float] = deque(maxlen=_LOOKS)
        self._ended_at: float | None = None  # when the last step had been looked at
        self._began_at = float("-inf")  # of the last snapshot
        self._cost_from = 0.0
        self._since = 0  # steps since it

    @property
    def every(self) -> int:
        """In steps, as it stands."""
        if self._every:
            return self._every
        if len(self._costs) < _ENOUGH or min(self._costs) < CHEAP_SECONDS:
            return 1
        share = min(self._costs) / max(min(self._steps), 1e-9)
        return max(1, math.ceil(share / SHARE - 1e-6))

    def is_due(self) -> bool:
        """Called once after each step: whether a snapshot is to be taken now, between `begin` and `end`."""
        now = self._clock()
        if self._ended_at is not None:
            self._steps.append(now - self._ended_at)
        self._ended_at = now
        self._since += 1
        if not self._every and now < self._began_at + PAUSE_SECONDS:
            return False
        return self._since >= self.every

    def begin(self) -> None:
        # Before the copy, which waits for the device: a host that runs ahead of long steps skips none.
        self._began_at = self._clock()
        self._cost_from = self._cost_clock()
        self._since = 0

    def end(self) -> None:
        self._ended_at = self._clock()
        self._costs.append(self._cost_clock() - self._cost_from)
