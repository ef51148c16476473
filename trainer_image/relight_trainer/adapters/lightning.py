"""Lightning under Relight: the newest state is loaded, every optimizer step is a place to save and to stop.

    relight = RelightCallback()
    trainer = Trainer(callbacks=[relight], enable_checkpointing=False, ...)
    trainer.fit(model, relight.loader(train_loader))

The loader is wrapped so that a resumed training goes on behind the last batch that was trained on. With several
processes give it a DistributedSampler yourself (`use_distributed_sampler=False`): Lightning cannot replace it inside.
"""

# ruff: noqa: ARG002  # the signatures are the trainer's

import math
from collections.abc import Iterator
from typing import Any

import lightning.pytorch as pl

from relight_trainer import client


class RelightCallback(pl.Callback):  # type: ignore[misc,unused-ignore]
    """Joins the job when the training starts. `seed` is the root of what batches and steps draw."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._run: client.Run | None = None
        self._trainer: pl.Trainer | None = None
        self._steps = 0  # of Lightning's count, as the run was told it last

    @property
    def run(self) -> client.Run:
        if self._run is None:
            raise client.Misused("the callback has no training yet: it begins with trainer.fit")
        return self._run

    @property
    def epoch(self) -> int:
        return self._trainer.current_epoch if self._trainer is not None else 0

    def loader(self, loader: Any) -> "Loader":
        """A training loader whose place in the data is the job's."""
        return Loader(self, loader)

    def on_fit_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        optimizers = {f"optimizer{i or ''}": optimizer for i, optimizer in enumerate(trainer.optimizers)}
        schedulers = {f"scheduler{i or ''}": c.scheduler for i, c in enumerate(trainer.lr_scheduler_configs)}
        state = {"model": trainer.strategy.model, **optimizers, **schedulers, "trainer": _Loops(trainer)}
        self._trainer = trainer
        self._run = client.start(init=True, seed=self._seed, **state)
        self._steps = trainer.global_step
        trainer.should_stop = self._run.finished  # only what stands behind the training is left to do

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        steps, batches = trainer.estimated_stepping_batches, trainer.num_training_batches  # either may be infinite
        self.run.expect(
            steps=int(steps) if math.isfinite(steps) else 0, batches=int(batches) if math.isfinite(batches) else 0
        )

    def on_train_batch_start(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        batch: Any,
        batch_idx: int,
    ) -> None:
        # Here, and not behind the step, all that belongs to it has happened: schedulers, validation, an epoch's end.
        first = self._step_is_over(trainer, trainer.current_epoch, batch_idx)
        self.run.enter(trainer.current_epoch, batch_idx, first=first or self.run.step == 0)

    def on_fit_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._step_is_over(trainer, trainer.current_epoch, 0)
        self.run.finish()

    def _step_is_over(self, trainer: pl.Trainer, epoch: int, batch: int) -> bool:
        """Whether an optimizer step has been taken since the last call; the run is told, and where the next begins."""
        if trainer.global_step == self._steps:
            return False
        self._steps = trainer.global_step
        self.run.log(**{name: value for name, value in trainer.callback_metrics.items() if value.numel() == 1})
        self.run.done(epoch=epoch, batch=batch)
        return True


class _Loops:
    """Where Lightning's loops are: its counters of steps, batches and epochs."""

    def __init__(self, trainer: pl.Trainer) -> None:
        self._trainer = trainer

    def state_dict(self) -> dict[str, Any]:
        return {
            "fit_loop": self._trainer.fit_loop.state_dict(),
            "precision": self._trainer.precision_plugin.state_dict(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._trainer.fit_loop.load_state_dict(state["fit_loop"])
        self._trainer.precision_plugin.load_state_dict(state["precision"])


class Loader:
    """A loader that leaves out what has been trained on. Lightning takes it for one that can be resumed."""

    def __init__(self, relight: RelightCallback, loader: Any) -> None:
        self._relight = relight
        self._loader = loader

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        return self._relight.run.batches(self._loader, self._relight.epoch)

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...
