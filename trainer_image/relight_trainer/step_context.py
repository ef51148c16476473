"""What `training_step(batch, run)` and `validation_step(batch, run)` of a user's model may read from `run`."""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from relight_trainer.config import TrainerConfig
from relight_trainer.seeds import stream


class StepContext(Protocol):
    """The part of `run` that is the same in a training and in commands that run a model outside of one."""

    @property
    def config(self) -> TrainerConfig: ...

    @property
    def device(self) -> torch.device: ...

    @property
    def model(self) -> nn.Module: ...

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        ...

    @property
    def epoch(self) -> float:
        """Passes over the training set done, with the fraction of the present one."""
        ...

    @property
    def rank(self) -> int: ...

    @property
    def world(self) -> int: ...

    def log(self, metrics: dict[str, str]) -> None:
        """Show `metrics` in the job's status, checkpoints and curves."""
        ...

    def random(self, name: str, *counters: int) -> int:
        """A seed that is the same on every rank and after every resume."""
        ...


@dataclass(frozen=True)
class OutsideTraining:
    """The `StepContext` of `relight memory`, `relight inspect --model` and `relight recalibrate`.

    It is that of one process before the first step. `log` does nothing.
    """

    config: TrainerConfig
    model: nn.Module
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    step: int = 0
    epoch: float = 0.0
    rank: int = 0
    world: int = 1

    def log(self, metrics: dict[str, str]) -> None: ...

    def random(self, name: str, *counters: int) -> int:
        return stream(self.config.train.seed, name, *counters)
