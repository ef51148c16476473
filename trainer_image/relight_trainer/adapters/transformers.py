"""Hugging Face's Trainer under Relight: it goes on from the newest state, every optimizer step is a place to stop.

    relight = RelightCallback()
    trainer = Trainer(model=model, args=TrainingArguments(save_strategy="no", ...), callbacks=[relight], ...)
    trainer.train(resume_from_checkpoint=relight.resume(trainer))

The Trainer positions its data itself: by index, or reading a data set again that has none. What a data set draws at
random while it is read is not part of that. Data without a length is trained on in one pass; a second one is refused.
"""

# ruff: noqa: ARG002  # the signatures are the trainer's

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import TrainOutput

from relight_trainer import client
from relight_trainer.equality.reading import compared_state
from relight_trainer.followed import adopt
from relight_trainer.script_data import DataDiffers, length_of
from relight_trainer.seeds import seed_everything, stream

_STATE, _WEIGHTS, _OPTIMIZER, _SCHEDULER = "trainer_state.json", "pytorch_model.bin", "optimizer.pt", "scheduler.pt"


class RelightCallback(TrainerCallback):  # type: ignore[misc,unused-ignore]
    """Joins the job in `resume`. `seed` is the root of what epochs and steps draw."""

    def __init__(self, seed: int = 0) -> None:
        self._seed = seed
        self._trainer: Trainer | None = None
        self._parts: dict[str, Any] = {"optimizer": _Late(), "scheduler": _Late(), "trainer": _Notes()}
        self._run: client.Run | None = None
        self._folder: tempfile.TemporaryDirectory[str] | None = None
        self._steps = 0  # of the Trainer's count, as the run was told it last
        self._is_in_a_pass = False  # over the data, or has been

    def resume(self, trainer: Trainer) -> str | None:
        """Load the newest state: what `Trainer.train` wants as `resume_from_checkpoint`, None for a new training.

        Where the training is over, `Trainer.train` returns at once: what stands behind it is left to do.
        """
        self._trainer = trainer
        self._run = client.start(init=True, seed=self._seed, model=trainer.model, **self._parts)
        self._steps = self._run.step
        if self._run.finished:
            self._run.finish()
            step = self._run.step
            # `train` has been looked up by now. It would take one step more where an epoch is not whole.
            trainer._inner_training_loop = lambda *_, **__: TrainOutput(step, 0.0, {})  # noqa: SLF001
            return None
        if not self._run.step:
            return None
        self._folder = tempfile.TemporaryDirectory(prefix="relight-")
        folder = Path(self._folder.name)
        torch.save(trainer.model.state_dict(), folder / _WEIGHTS)
        torch.save(self._parts["optimizer"].held, folder / _OPTIMIZER)
        torch.save(self._parts["scheduler"].held, folder / _SCHEDULER)
        (folder / _STATE).write_text(self._parts["trainer"].held["json"])
        return str(folder)

    @property
    def run(self) -> client.Run:
        if self._run is None:
            raise client.Misused(
                "call trainer.train(resume_from_checkpoint=relight.resume(trainer)): the callback has joined no job"
            )
        return self._run

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self._parts["optimizer"].object = kwargs["optimizer"]
        self._parts["scheduler"].object = kwargs["lr_scheduler"]
        self._parts["trainer"].object = _Json(state)
        wrapped = self._trainer.model_wrapped if self._trainer is not None else None
        if isinstance(wrapped, DistributedDataParallel):
            adopt(wrapped)
        self.run.expect(steps=state.max_steps, batches=0)

    def on_epoch_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        if self._is_in_a_pass and not _has_length(kwargs.get("train_dataloader")):
            raise DataDiffers(
                f"the Trainer's training data has no length, and ended after step {state.global_step} of {state.max_steps}: "
                "the Trainer does not know its place in a second pass, so that a resumed training would be given other "
                "batches. Give the data set a __len__, let it begin anew by itself (datasets: .repeat(None)), or set "
                "max_steps to the number of steps in one pass"
            )
        self._is_in_a_pass = True
        # Samplers without a generator of their own draw the epoch's order now: the same on all ranks and in each run.
        seed_everything(stream(self._seed, "epoch", int(state.epoch or 0)))

    def on_step_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self._step_is_over(state)
        self.run.enter(int(state.epoch or 0), state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        logs = kwargs.get("logs") or {}
        self.run.log(**{name: value for name, value in logs.items() if isinstance(value, (int, float))})

    def on_train_end(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        **kwargs: Any,
    ) -> None:
        self._step_is_over(state)
        self.run.finish()

    def _step_is_over(self, state: TrainerState) -> None:
        if state.global_step != self._steps:
            self._steps = state.global_step
            self.run.done(epoch=int(state.epoch or 0), batch=0, step=state.global_step)


def _has_length(loader: Any) -> bool:
    return loader is None or length_of(loader) > 0


class _Late:
    """The state of an object that the Trainer makes only when it trains: held until then."""

    def __init__(self) -> None:
        self.object: Any = None
        self.held: dict[str, Any] = {}

    def state_dict(self) -> dict[str, Any]:
        return self.held if self.object is None else self.object.state_dict()

    def compared_state(self) -> Any:
        """What of it must be equal on all ranks."""
        return self.held if self.object is None else compared_state(self.object)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.held = state


class _Notes(_Late):
    """The Trainer's own state, which is for the most part what each rank has noted for itself."""

    def compared_state(self) -> Any:
        return {} if self.object is None else compared_state(self.object)


class _Json:
    def __init__(self, state: TrainerState) -> None:
        self._state = state

    def state_dict(self) -> dict[str, Any]:
        with tempfile.NamedTemporaryFile("r", suffix=".json") as file:
            self._state.save_to_json(file.name)
            return {"json": Path(file.name).read_text()}

    def compared_state(self) -> dict[str, Any]:
        """The Trainer's notes are each rank's own: which rank it is, what it has logged, and how long that took."""
        return {"global_step": self._state.global_step, "max_steps": self._state.max_steps}
