"""When checkpoints are due, agreed by all ranks without a collective in each step."""

import time
from collections.abc import Callable

from relight_agent.files import JobFile
from relight_trainer.checkpoint import Exchange
from relight_trainer.peers import TIMEOUT


class CheckpointDue:
    """Steps and epochs are counted. Time is rank 0's: at agreed steps it tells the others to save, or when to ask next.

    The next question comes after half of the time that is left, at the pace since the last one: an interval costs a
    few questions (the logarithm of its steps), and the checkpoint comes in time though steps become twice as slow.
    """

    def __init__(
        self, job: JobFile, *, rank: int, exchange: Exchange, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._job = job
        self._rank = rank
        self._exchange = exchange
        self._clock = clock
        self.start(0)

    def start(self, step: int) -> None:
        """Training begins at `step`; intervals are counted from now."""
        self._saved_at = self._clock()
        self._asked = step, self._saved_at
        self._ask_at = step + 1

    def saved(self) -> None:
        """A checkpoint has been committed now."""
        self._saved_at = self._clock()

    def at(self, step: int, epochs_ended: int | None) -> bool:
        """Whether all ranks save at boundary `step`; `epochs_ended` where it is the end of an epoch. Called by all."""
        job = self._job
        by_steps = job.checkpoint_steps > 0 and step % job.checkpoint_steps == 0
        by_epochs = job.checkpoint_epochs > 0 and epochs_ended is not None and epochs_ended % job.checkpoint_epochs == 0
        by_time = job.checkpoint_seconds > 0 and step >= self._ask_at and self._ask(step)
        return by_steps or by_epochs or by_time

    def _ask(self, step: int) -> bool:
        key = f"due/{step}"
        if self._rank == 0:
            self._exchange.put(key, "{:d} {:d}".format(*self._answer(step)).encode())
        save, self._ask_at = map(int, self._exchange.get(key, TIMEOUT.total_seconds()).split())
        return bool(save)

    def _answer(self, step: int) -> tuple[bool, int]:
        now = self._clock()
        asked_step, asked_at = self._asked
        self._asked = step, now
        per_step = max((now - asked_at) / max(step - asked_step, 1), 1e-6)
        left = self._job.checkpoint_seconds - (now - self._saved_at)
        save = left <= per_step / 2
        if save:
            left = self._job.checkpoint_seconds
        return save, step + max(1, int(left / 2 / per_step))
