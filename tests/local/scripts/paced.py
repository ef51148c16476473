"""A hook that slows each step down, so that whoever watches can act in mid-training, however fast the machine is."""

import os
import time
from pathlib import Path

from relight_trainer.hooks import Hook
from relight_trainer.run import Run

PACED_SECONDS = 0.1  # a step
SLOW_SECONDS = 0.5


class Paced(Hook):
    """For as long as `file` is there; without one, after step `after` of the first generation, and by `later` in others."""

    def __init__(self, file: str = "", after: int = 0, later: float = 0.0) -> None:
        self._file = Path(file) if file else None
        self._after = after
        self._later = later
        self._first = os.environ["RELIGHT_GENERATION"] == "1"

    def step_begin(self, run: Run) -> None:
        if self._file is not None and self._file.exists():
            time.sleep(PACED_SECONDS)
        elif self._file is None and self._first and run.step >= self._after:
            time.sleep(SLOW_SECONDS)
        elif self._file is None and not self._first:
            time.sleep(self._later)
