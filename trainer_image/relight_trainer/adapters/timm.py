"""A saver in the shape of timm's CheckpointSaver, for training scripts written around that one.

    saver = RelightSaver(model, optimizer, amp_scaler=loss_scaler, model_ema=model_ema, scheduler=lr_scheduler)
    for epoch in range(saver.start_epoch, epochs):
        for batch_idx, batch in saver.batches(loader, epoch):        or: enumerate(loader)
            ...
            saver.save_recovery(epoch, batch_idx)                    as often as a step may be a place to save and stop
        saver.save_checkpoint(epoch, metric)
    saver.finish()

timm is not imported: anything with `state_dict` will do. Unlike timm's, a recovery goes on in the middle of an epoch.
"""

from collections.abc import Iterator
from typing import Any

from torch import nn

from relight_trainer import client


class RelightSaver:
    """`decreasing`: a smaller metric is better. What more the next step depends on is given by name.

    Where timm's saver writes, and how many files it keeps, is the job's affair here: those arguments are taken, and mean
    nothing.
    """

    def __init__(  # noqa: PLR0917  # timm's order
        self,
        model: nn.Module,
        optimizer: Any,
        args: Any = None,
        model_ema: Any = None,
        amp_scaler: Any = None,
        checkpoint_prefix: str = "",  # noqa: ARG002
        recovery_prefix: str = "",  # noqa: ARG002
        checkpoint_dir: str = "",  # noqa: ARG002
        recovery_dir: str = "",  # noqa: ARG002
        decreasing: bool = False,
        max_history: int = 0,  # noqa: ARG002
        unwrap_fn: Any = None,  # noqa: ARG002
        task: Any = None,
        *,
        seed: int = 0,
        **more: Any,
    ) -> None:
        self.args = args
        self.best_metric: float | None = None
        self.best_epoch: int | None = None
        self._decreasing = decreasing
        parts = {"model_ema": model_ema, "amp_scaler": amp_scaler, "task": task, **more}
        state = {name: part for name, part in parts.items() if part is not None}
        self._run = client.start(init=True, seed=seed, model=model, optimizer=optimizer, **state, saver=self)
        self._run.enter(self.start_epoch, self.start_batch)

    @property
    def start_epoch(self) -> int:
        """Where training goes on."""
        return self._run.epoch

    @property
    def start_batch(self) -> int:
        return self._run.batch

    def batches(self, loader: Any, epoch: int) -> Iterator[tuple[int, Any]]:
        """(number, batch) of those in an epoch that have not been trained on yet."""
        begin = self.start_batch if epoch == self.start_epoch else 0
        return enumerate(self._run.batches(loader, epoch), begin)

    def save_recovery(self, epoch: int, batch_idx: int = 0) -> None:
        """The step with this batch is complete. Raises SystemExit(0) where the job stops here, saved."""
        self._boundary(epoch, batch_idx + 1)

    def save_checkpoint(self, epoch: int, metric: float | None = None) -> tuple[float | None, int | None]:
        """An epoch is complete. Returns (best metric, its epoch); raises as `save_recovery`."""
        if metric is not None:
            value = float(metric)
            if self.best_metric is None or (value < self.best_metric if self._decreasing else value > self.best_metric):
                self.best_metric, self.best_epoch = value, epoch
            self._run.log(metric=value)
        self._boundary(epoch + 1, 0)
        return self.best_metric, self.best_epoch

    def save_milestone(self, completed_epochs: int) -> None:
        """Nothing: `spec.checkpoint` says what is kept."""

    def find_recovery(self) -> str:
        """Nothing: timm's scripts load this file; here everything has been loaded when the saver was made."""
        return ""

    def finish(self) -> None:
        """Training is over: the final checkpoint is saved."""
        self._run.finish()

    def state_dict(self, epoch: int | None = None, metric: float | None = None) -> dict[str, Any]:  # noqa: ARG002
        return {"best_metric": self.best_metric, "best_epoch": self.best_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best_metric, self.best_epoch = state_dict["best_metric"], state_dict["best_epoch"]

    def load_state_dict_from_checkpoint(self, checkpoint_path: str) -> None:
        """Nothing: what there was has been loaded when the saver was made."""

    def _boundary(self, epoch: int, batch: int) -> None:
        self._run.done(epoch=epoch, batch=batch)
        self._run.enter(epoch, batch)
