"""A hook that gets stuck, once each, in two ways that no exception tells of."""

import os
import re
import signal
from pathlib import Path

from relight_trainer.hooks import Hook
from relight_trainer.run import Run

STOPS, LOOPS = 30, 60  # after this many steps


class Stuck(Hook):
    def data_ready(self, run: Run) -> None:
        rank = int(os.environ["RANK"])
        if rank == 1 and run.step == STOPS and _first("stopped"):
            os.kill(os.getpid(), signal.SIGSTOP)

    def forward_end(self, run: Run) -> None:
        rank = int(os.environ["RANK"])
        if rank == 0 and run.step == LOOPS and _first("looping"):
            never_ends()


def never_ends() -> None:
    """In C, with the GIL held."""
    re.match(r"(a+)+$", "a" * 80 + "b")


def _first(name: str) -> bool:
    path = Path(name)
    if path.exists():
        return False
    path.touch()
    return True
