"""A hook that slows each step for as long as a file is there, so that whoever watches can act in mid-training."""

import time
from pathlib import Path

from relight_trainer.hooks import Hook
from relight_trainer.run import Run

STEP_SECONDS = 0.1


class Paced(Hook):
    def __init__(self, file: str) -> None:
        self._file = Path(file)

    def step_begin(self, run: Run) -> None:
        del run
        if self._file.exists():
            time.sleep(STEP_SECONDS)
