"""Lengths of training that are times: when all ranks end, and when they evaluate.

How long a job has trained is part of its state: from each generation's first step on, evaluations and checkpoints
included; what a recovery takes is no training.
"""

import time
from collections.abc import Callable
from typing import Any

from relight_trainer.due import TimeDue
from relight_trainer.hooks import Hook
from relight_trainer.run import Run
from relight_trainer.settings.spans import Time


class TrainedTime(Hook):
    """Counts the seconds trained, and sets `run.total_steps` once `duration` is over. Earliest of all hooks.

    Decided before the step counts as done: the state that is saved with it knows, and who resumes there ends there too.
    """

    order = 0
    timed = False

    def __init__(
        self, *, duration: Time | None, every: Time | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`every`: between two evaluations."""
        self._duration = duration
        self._every = every
        self._clock = clock
        self._began: float | None = None  # by the clock, of this generation's training
        self._before = 0.0  # seconds that earlier generations have trained
        self._evaluated = 0.0  # the seconds trained when an evaluation was due last
        self._evaluate_at = 0  # the step that was due at
        self._end: TimeDue | None = None
        self._evaluation: TimeDue | None = None

    @property
    def seconds(self) -> float:
        """Trained in all generations, until now."""
        return self._before + (self._clock() - self._began if self._began is not None else 0.0)

    @property
    def is_over(self) -> bool:
        """Whether a state that has been restored is the training's last. The same on every rank until training begins."""
        return self._duration is not None and self._before >= self._duration.seconds

    def evaluates(self, step: int) -> bool:
        """Whether an evaluation is due after `step` steps: a resume from there does it again."""
        return step == self._evaluate_at

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "evaluated": self._evaluated, "evaluate_at": self._evaluate_at}

    def compared_state(self) -> dict[str, Any]:
        """The seconds are each rank's own clock's."""
        return {"evaluate_at": self._evaluate_at}

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        self._before = state["seconds"]
        self._evaluated, self._evaluate_at = state["evaluated"], state["evaluate_at"]

    def run_begin(self, run: Run) -> None:
        rank, exchange = run.rank, run.session.exchange
        self._began = self._clock()
        if self._duration is not None:
            self._end = TimeDue("end", self._duration.seconds, rank=rank, exchange=exchange, clock=self._clock)
            self._end.start(run.step, self._before)
        if self._every is not None:
            self._evaluation = TimeDue(
                "evaluation", self._every.seconds, rank=rank, exchange=exchange, clock=self._clock
            )
            self._evaluation.start(run.step, self._before - self._evaluated)

    def update_end(self, run: Run) -> None:
        step = run.step + 1  # with this one
        if self._evaluation is not None and self._evaluation.at(step):
            self._evaluation.again()
            self._evaluated, self._evaluate_at = self.seconds, step
        if self._end is not None and self._end.at(step):
            assert self._duration is not None
            run.total_steps = step
            # Ranks differ by moments, and the end may be the nearest step before its time: whose state ever is
            # restored, it says that training is over.
            self._before, self._began = max(self.seconds, self._duration.seconds), self._clock()

    def logged(self, run: Run, metrics: Any) -> None:  # noqa: ARG002  # as in Hook
        if self._duration is not None:
            run.session.shown["trained"] = f"{Time(max(1000, round(self.seconds) * 1000))} of {self._duration}"
