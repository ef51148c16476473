"""When something is due, agreed by all ranks without a collective in each step."""

import time
from collections.abc import Callable

from relight_agent.files import JobFile
from relight_trainer.checkpoint import Exchange
from relight_trainer.peers import TIMEOUT


class TimeDue:
    """After which step `seconds` have passed. The clock is rank 0's: at agreed steps it tells the others whether it is
    time, or when to ask next.

    The next question comes after half of the time that is left, at the pace since the last one: an interval costs a
    few questions (the logarithm of its steps), and what is due comes in time though steps become twice as slow.
    """

    def __init__(
        self, name: str, seconds: float, *, rank: int, exchange: Exchange, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`name` keeps the questions apart from others' in `exchange`."""
        self._name = name
        self._seconds = seconds
        self._rank = rank
        self._exchange = exchange
        self._clock = clock
        self.start(0)

    def start(self, step: int, passed: float = 0.0) -> None:
        """Training begins at `step`, and `passed` seconds are over already."""
        now = self._clock()
        self._since = now - passed
        self._asked = step, now
        self._ask_at = step + 1

    def again(self, seconds: float | None = None) -> None:
        """The next interval begins now; it has another length where `seconds` is given."""
        self._since = self._clock()
        if seconds is not None:
            self._seconds = seconds

    def at(self, step: int) -> bool:
        """Whether it is time at boundary `step`. Called by all ranks."""
        return step >= self._ask_at and self._ask(step)

    def _ask(self, step: int) -> bool:
        key = f"due/{self._name}/{step}"
        if self._rank == 0:
            self._exchange.put(key, "{:d} {:d}".format(*self._answer(step)).encode())
        due, self._ask_at = map(int, self._exchange.get(key, TIMEOUT.total_seconds()).split())
        return bool(due)

    def _answer(self, step: int) -> tuple[bool, int]:
        now = self._clock()
        asked_step, asked_at = self._asked
        self._asked = step, now
        per_step = max((now - asked_at) / max(step - asked_step, 1), 1e-6)
        left = self._seconds - (now - self._since)
        due = left <= per_step / 2
        if due:
            left = self._seconds
        return due, step + max(1, int(left / 2 / per_step))


class CheckpointDue:
    """When a checkpoint is due: by steps and epochs, which are counted, and by time."""

    def __init__(
        self, job: JobFile, *, rank: int, exchange: Exchange, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._job = job
        self._time = TimeDue("checkpoint", job.checkpoint_seconds, rank=rank, exchange=exchange, clock=clock)

    def start(self, step: int) -> None:
        """Training begins at `step`; intervals are counted from now."""
        self._time.start(step)

    def saved(self) -> None:
        """A checkpoint has been committed now."""
        self._time.again()

    def at(self, step: int, epochs_ended: int | None) -> bool:
        """Whether all ranks save at boundary `step`; `epochs_ended` where it is the end of an epoch. Called by all."""
        job = self._job
        by_steps = job.checkpoint_steps > 0 and step % job.checkpoint_steps == 0
        by_epochs = job.checkpoint_epochs > 0 and epochs_ended is not None and epochs_ended % job.checkpoint_epochs == 0
        by_time = job.checkpoint_seconds > 0 and self._time.at(step)
        return by_steps or by_epochs or by_time
