"""A hook that makes the ranks' weights differ."""

import torch

from relight_trainer.hooks import Hook
from relight_trainer.run import Run


class Nudge(Hook):
    """Moves a weight by what is another number on each rank."""

    def update_end(self, run: Run) -> None:
        with torch.no_grad():
            next(run.model.parameters()).add_(1e-3 * run.rank)
