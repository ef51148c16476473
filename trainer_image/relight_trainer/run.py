"""A training under way: what the loop works on and hooks look at."""

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from relight_trainer.config import TrainerConfig
from relight_trainer.hooks import Hooks
from relight_trainer.seeds import stream
from relight_trainer.settings.spans import EpochSize

if TYPE_CHECKING:
    from relight_trainer.session import Session


def _nothing() -> None: ...


def _one_pass(_: int) -> Sequence[Callable[[], None]]:
    return (_nothing,)


@dataclass
class Run:
    """One rank's part in one generation's training.

    `model` is the user's module, `replica` what is called (DDP around it in a world of several). `passes` says, from
    the step, how often each micro-batch goes through the model, and what to do before each time. Of the present step:
    `micro` counts this rank's micro-batches, `batch` is what was fetched, `output` and `loss` (detached; the rank's
    share: its mean over the ranks, summed over the micro-batches, is the loss over the global batch) came of it.
    """

    config: TrainerConfig
    session: "Session"
    device: torch.device
    model: nn.Module
    replica: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    epoch_size: EpochSize
    total_steps: int  # where a time decides, out of reach until it is over
    hooks: Hooks = field(default_factory=lambda: Hooks(()))
    passes: Callable[[int], Sequence[Callable[[], None]]] = _one_pass
    step: int = 0  # optimizer steps done, skipped ones among them
    skipped: bool = False  # whether the newest step's update was left out
    micro: int = 0
    batch: Any = None
    output: Any = None
    _loss: Tensor | tuple[float, torch.dtype] | None = None

    @property
    def loss(self) -> Tensor | None:
        if isinstance(self._loss, tuple):
            number, dtype = self._loss
            self._loss = torch.tensor(number, dtype=dtype)
        return self._loss

    @loss.setter
    def loss(self, loss: Tensor | None) -> None:
        self._loss = loss

    def loss_is(self, number: float, dtype: torch.dtype) -> None:
        """What is known as a number becomes a tensor for whoever asks, and hardly ever does anybody."""
        self._loss = number, dtype

    @property
    def rank(self) -> int:
        return self.session.peers.rank

    @property
    def world(self) -> int:
        return self.session.peers.world

    @property
    def epoch(self) -> float:
        """Passes over the training set done, with the fraction of the present one."""
        return self.step / self.epoch_size.steps

    def log(self, metrics: dict[str, str]) -> None:
        """Show these in the job's status, its checkpoints and its curves; the same on every rank, values as text."""
        self.session.log(metrics)
        self.hooks.logged(self, numbers(metrics))

    def random(self, name: str, *counters: int) -> int:
        """A seed for a choice of one's own: the same on every rank, in every generation, after every resume."""
        return stream(self.config.train.seed, name, *counters)


def numbers(metrics: dict[str, str]) -> dict[str, float]:
    """Those of the metrics that are numbers."""
    found = {}
    for name, text in metrics.items():
        with suppress(ValueError):
            found[name] = float(text)
    return found
