"""Relight for a training script of one's own:

    from relight_trainer import client

    run = client.start(model=model, optimizer=optimizer, scheduler=scheduler)
    for batch in run.steps(loader, epochs=15):
        ...                                     forward, backward, optimizer.step(), scheduler.step()
        run.log(loss=loss)

In a job, `start` loads the newest state that any member holds, and the loop continues after the last batch that was
trained on. Each time the loop asks for its next batch, the step before it is complete: there, and only there,
state is saved and the job stops when it is told to. The end of the loop is the end of the training; a script that leaves
the loop earlier calls `run.finish()`. The script may go on, to evaluate or to export for instance. The job has succeeded
once the script of every rank has ended with 0. Where it is killed before that, the script is run again, the loop ends at
once, and the code after the loop runs again: at least once, not exactly once.

Torch's, numpy's and Python's global generators are seeded for each epoch and batch, in loader processes too, so that
a resumed script draws the same numbers as without the restart. `script_data` says how the loader reaches its position.

Outside a job everything here does nothing: the loop is a plain loop over epochs and batches.
"""

import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NoReturn, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from relight_agent.exits import ExitCode
from relight_agent.files import Outcome
from relight_trainer.checkpoint import weights_of
from relight_trainer.context import WorkerContext
from relight_trainer.equality.ranks import REDUCTIONS
from relight_trainer.followed import adopt, adopt_all, follow, reductions
from relight_trainer.given import check_given
from relight_trainer.kept_gradients import GradientsWatch
from relight_trainer.other_modules import OtherModules
from relight_trainer.peers import form
from relight_trainer.replicas import replicate
from relight_trainer.script_data import ScriptData, checked_counts, length_of
from relight_trainer.session import Cursor, Session, Stateful, Stopped

Batch = TypeVar("Batch")


class Misused(Exception):
    """The script calls the client in a way that cannot work."""

    exit_code = ExitCode.BAD_CONFIG


class Unfinished(Exception):
    """The script has exited with 0 before its training is over."""

    exit_code = ExitCode.BAD_CONFIG


def start(
    *, init: bool = False, seed: int = 0, per_rank: Mapping[str, Stateful] | None = None, **state: Stateful
) -> "Run":
    """Join the job that this process is a worker of, and load its newest state into the objects given.

    `state` is everything that the next step depends on, by name: models, optimizers, schedulers, scalers; whatever has
    `state_dict` and `load_state_dict`. Models in DDP are unwrapped, so names do not depend on it. With `init`, the
    default process group is formed (NCCL where there is a GPU, else gloo) unless there is one.
    All ranks must hold the same state of these objects: it is compared. Objects whose state differs between ranks by design
    (a shard of a table, a loader's position) are given in `per_rank`, by name: each rank gets its own state back. See
    `relight_trainer.per_rank` for another number of ranks.
    Where the job has been trained to its end already, that state is loaded, `run.finished` is true, and the loop ends at
    once. Raises Misused without a process group.
    """
    context = WorkerContext.from_env()
    own_group = False
    if init and context is not None and not dist.is_initialized():
        own_group = True
        device = torch.device("cuda", context.local_rank) if torch.cuda.is_available() else torch.device("cpu")
        form(device, context.folder.members())
    if context is not None and not dist.is_initialized():
        raise Misused("client.start needs the process group: call init_process_group before it, or start(init=True)")
    run = Run(seed)
    if context is not None:
        global _current  # noqa: PLW0603  # one worker is one run: the worker's entry asks for its outcome
        _current = run
        run._join(context, state, _unshared(per_rank or {}, state), own_group=own_group)  # noqa: SLF001
    return run


def outcome() -> Outcome | None:
    """How this process's training has ended; None where it has not, or where there is none."""
    return _current.outcome() if _current is not None else None


def at_the_end() -> Outcome | None:
    """How this process's run has ended, now that the script has ended with 0; None where it has used no client.

    For the worker's entry, which writes it: the agent ends the process soon after. Raises Unfinished.
    """
    return _current.at_the_end() if _current is not None else None


class Run:
    """A script's training. Made by `start`."""

    def __init__(self, seed: int) -> None:
        self.stepping = True  # whether the script calls optimizer.step() for the present batch (see `accumulate`)
        self._context: WorkerContext | None = None
        self._data = ScriptData(seed)
        self._modules: dict[str, nn.Module] = {}
        self._given: dict[str, Any] = {}  # until the first step
        self._gradients = GradientsWatch({})
        self._others = OtherModules({})
        self._cursor = Cursor()
        self._reached: Cursor | None = None  # what the batch that the script is at leads to, once it is done
        self._started = False
        self._epochs: int | None = None  # planned, where `steps` is the loop
        self._outcome: Outcome | None = None
        self._session: Session | None = None

    @property
    def step(self) -> int:
        """Optimizer steps done."""
        return self._cursor.step

    @property
    def epoch(self) -> int:
        """The epoch that training is in, counted from 0."""
        return self._cursor.epoch

    @property
    def batch(self) -> int:
        """Batches of this epoch that have been trained on."""
        return self._cursor.batch

    @property
    def finished(self) -> bool:
        """Whether the training is over, in this process or in one before it: no step is to come."""
        cursor = self._cursor
        planned = cursor.early or self._epochs is None or cursor.epoch >= self._epochs
        return self._outcome is not None or (cursor.weights_digest != "" and planned)

    def wrap(self, model: nn.Module, *, find_unused_parameters: bool = False) -> nn.Module:
        """`model` in DDP, whose sums are the same in a resumed process; as it is where there is no process group.

        Each step, micro-batch and rank may use other parameters: a parameter that a rank has not used contributes zero on
        that rank, and one that no rank has used gets no gradient. With `find_unused_parameters`, as in DDP, unused
        parameters are searched before the backward pass: that is faster if many are unused in most steps, else slower.
        """
        if not dist.is_initialized():
            return model
        replica = replicate(model, next(model.parameters()).device, find_unused=find_unused_parameters)
        follow(replica)
        return replica

    def steps(self, loader: Iterable[Batch], *, epochs: int, accumulate: int = 1) -> Iterator[Batch]:
        """The batches of `epochs` passes over `loader` that have not been trained on yet.

        `set_epoch` is called on samplers that have it, samplers within samplers too. With `accumulate`, that many batches
        make one optimizer step, fewer at the end of an epoch; `run.stepping` says for which batch the script calls `optimizer.step()`.
        Raises SystemExit(0) where the job stops; everything is saved by then, and of a step that was under way nothing.
        A script that leaves the loop before its end must call `finish`: otherwise the job fails, because Relight does not
        know whether the last batch was trained on. Raises BadLoader for counts below 1 and for a loader that cannot work, DataDiffers for an
        empty loader and for one that gives other batches than before.
        """
        if self._started:
            raise Misused("run.steps can be used once: the place in the data is one place")
        checked_counts(epochs=epochs, accumulate=accumulate)
        self._started = True
        self._epochs = epochs
        if self._session is not None:
            batches = length_of(loader)
            self._session.batches_per_epoch = batches
            self._session.total_steps = epochs * -(-batches // accumulate)
            self._session.loop = _words(loader, batches, epochs)
            adopt_all(self._modules.values())
            if not self.finished:
                self._others = OtherModules(self._given)
                self._data.look_around(loader, sys._getframe().f_back, self._given.values())  # noqa: SLF001
        while self._cursor.epoch < epochs and not self.finished:
            yield from self._epoch(loader, accumulate)
        self.finish()

    def _epoch(self, loader: Iterable[Batch], accumulate: int) -> Iterator[Batch]:
        epoch = self._cursor.epoch
        size = getattr(loader, "batch_size", None) or 0
        place = self._cursor
        for number, last, batch in self._data.batches(loader, epoch, trained=place.batch, last=place.last_batch):
            self.stepping = last or (number + 1) % accumulate == 0
            self._enter(number % accumulate, last=self.stepping)
            self._data.seed_for("step", epoch, number)
            if self.stepping:
                samples = self._cursor.samples + (number + 1 - self._cursor.batch) * size * self._world
                reached = (epoch + 1, 0) if last else (epoch, number + 1)
                self._reached = Cursor(self._cursor.step + 1, *reached, samples)
            yield batch
            self._arrive()

    # What a loop that is not `steps` says and asks, in this order; `relight_trainer.adapters` do it for trainers.

    def expect(self, *, steps: int, batches: int) -> None:
        """The whole training has `steps` optimizer steps, an epoch has `batches`; 0 where unknown."""
        if self._session is not None:
            self._session.total_steps, self._session.batches_per_epoch = steps, batches

    def batches(self, loader: Iterable[Batch], epoch: int) -> Iterator[Batch]:
        """The batches of one epoch that have not been trained on yet."""
        trained = self._cursor.batch if epoch == self._cursor.epoch else 0
        drawn = self._data.batches(loader, epoch, trained=trained, last=self._cursor.last_batch)
        return (batch for _, _, batch in drawn)

    def enter(self, epoch: int, batch: int, *, first: bool = True) -> None:
        """A batch is going to be trained on; `first`: of an optimizer step.

        Raises SystemExit(0) where the job stops here; everything is saved by then.
        """
        if first:
            self._enter(0, last=True)
        self._data.seed_for("step", epoch, batch)

    def done(self, *, epoch: int, batch: int, samples: int = 0, step: int | None = None) -> None:
        """An optimizer step is complete: `step`, or one more. The next one begins at `epoch`, `batch`.

        `samples` are those that all ranks have trained on since the last call.
        """
        step = self._cursor.step + 1 if step is None else step
        self._reached = Cursor(step, epoch, batch, self._cursor.samples + samples)
        self._arrive()

    @contextmanager
    def evaluation(self) -> Iterator[None]:
        """Around an evaluation, on any or all ranks: what takes its time there is not a stall.

        Without it that is learned from the first epoch's end, where most scripts evaluate.
        """
        if self._session is None:
            yield
        else:
            with self._session.section("evaluation"):
                yield

    def log(self, **metrics: float | Tensor | str) -> None:
        """Show these numbers in the job's status and progress. A tensor on a device is waited for."""
        if self._session is not None:
            self._session.log({name: _text(value) for name, value in metrics.items()})

    def alive(self) -> None:
        """Report that this rank is at work: in a long task outside of a step, such as an export.

        The rank counts as stalled when it makes no such call for `health.noProgress`.
        """
        if self._session is not None:
            self._session.alive()

    def finish(self) -> None:
        """End the training here; the end of the loop does it, a script that breaks out of it calls it.

        All ranks must do so after the same step. The weights are compared over ranks, and the final checkpoint saved.
        Raises UnevenRanks and RanksDiffer where they are not the same, SystemExit(0) where the job stops here.
        """
        if self._session is None or self._outcome is not None:
            return
        self._arrive()
        if self._cursor.weights_digest:
            self._outcome = self._session.completed()
            return
        prefix = len(self._modules) > 1
        tensors = [
            (f"{name}.{tensor_name}" if prefix else tensor_name, tensor)
            for name, module in self._modules.items()
            for tensor_name, tensor in weights_of(module)
        ]
        early = self._is_early()
        self._guard(lambda session: setattr(self, "_outcome", session.complete(tensors, early=early)))

    def outcome(self) -> Outcome | None:
        """How the training has ended, with the metrics logged until now; None before its end."""
        if self._outcome is None or self._session is None or self._outcome.result is None:
            return self._outcome
        return replace(self._outcome, result={**self._outcome.result, "metrics": self._session.cursor.metrics})

    def at_the_end(self) -> Outcome | None:
        """See the function of this name."""
        if self._session is None:
            return None
        if self._outcome is None and self.finished:  # by an earlier process, and this one's script has no loop then
            self.finish()
        ended = self.outcome()
        if ended is None:
            raise Unfinished(self._left())
        return replace(ended, at=time.monotonic())

    def _left(self) -> str:
        """The error of a script that exits with 0 before its training is over."""
        session, cursor = self._session, self._cursor
        assert session is not None
        if not session.pace.steps and self._reached is None:
            return (
                f"the script called client.start and exited with 0 without a training step (the job is at step "
                f"{cursor.step}): train in `for batch in run.steps(loader, epochs=...)`, call run.finish() if the "
                "training is over, or do not call client.start"
            )
        total = f" of {session.total_steps}" if session.total_steps else ""
        where = f"in step {cursor.step + 1}" if self._reached is not None else f"after step {cursor.step}"
        return (
            f"the script left its training loop {where}{total} and exited with 0 without run.finish(): Relight does not know "
            "whether the script has trained on the last batch, and has not saved the weights. To end the training "
            "there, call run.finish() after the loop (for example after `break`) and run the job again: it continues from "
            "its newest saved step"
        )

    def _is_early(self) -> bool:
        """Whether steps of the plan are left, as far as there is one."""
        if self._epochs is not None:
            return self._cursor.epoch < self._epochs
        return self._session is not None and self._cursor.step < self._session.total_steps

    def _join(
        self, context: WorkerContext, state: dict[str, Stateful], per_rank: Mapping[str, Stateful], *, own_group: bool
    ) -> None:
        for stateful in state.values():
            if isinstance(stateful, DistributedDataParallel):
                adopt(stateful)
        objects = self._data.hold({name: _unwrapped(stateful) for name, stateful in state.items()})
        self._modules = {name: o for name, o in objects.items() if isinstance(o, nn.Module)}
        self._context = context
        self._session = Session(context, own_group=own_group)
        self._data.join(self._session, rank=context.rank, world=context.world_size)
        self._session.compared = {REDUCTIONS: reductions}
        self._session.own_seconds = lambda: self._data.seconds
        self._session.waited = lambda: self._data.seconds
        per_rank = self._data.hold(per_rank)
        self._given = {**objects, **per_rank}
        check_given(self._given)
        self._gradients = GradientsWatch(self._given)
        self._session.restore(objects, self._modules.values(), per_rank=per_rank)
        self._cursor = self._session.cursor

    @property
    def _world(self) -> int:
        return self._session.peers.world if self._session is not None else 1

    def _arrive(self) -> None:
        """The step that the script was given the last batch of is done."""
        reached, self._reached = self._reached, None
        if reached is None:
            return
        if self._session is not None:
            last_batch = self._data.trained(reached.epoch, reached.batch)
            reached = reached._replace(metrics=self._session.cursor.metrics, last_batch=last_batch)
            reductions.step_done()
            self._session.step_done(reached)
            self._gradients.step_done()
            self._others.step_done()
            if self._given:  # once: a scheduler may have been made since the start
                check_given(self._given)
                self._given = {}
        self._cursor = reached

    def _enter(self, part: int, *, last: bool) -> None:
        self._guard(lambda session: session.enter(part, last=last))

    def _guard(self, action: Callable[[Session], None]) -> None:
        if self._session is None:
            return
        try:
            action(self._session)
        except Stopped as stopped:
            self._end(stopped.outcome)

    def _end(self, ended: Outcome) -> NoReturn:
        assert self._context is not None
        self._outcome = ended
        # At once: what the script does on its way out is not worth the grace period.
        self._context.folder.write_outcome(self._context.local_rank, ended)
        raise SystemExit(0)


_current: Run | None = None


def _unshared(per_rank: Mapping[str, Stateful], state: Mapping[str, Stateful]) -> Mapping[str, Stateful]:
    """`per_rank` as it is. Raises Misused where it cannot be."""
    if both := sorted(per_rank.keys() & state.keys()):
        raise Misused(f"client.start: {both[0]} is given twice, as an argument and in per_rank; choose one")
    for name, stateful in per_rank.items():
        if isinstance(stateful, DistributedDataParallel):
            raise Misused(
                f"client.start: per_rank['{name}'] is in DistributedDataParallel, which keeps it equal on all ranks; "
                f"give it as {name}=..."
            )
        if not (hasattr(stateful, "state_dict") and hasattr(stateful, "load_state_dict")):
            raise Misused(
                f"client.start: per_rank['{name}'] is a {type(stateful).__name__}; allowed: objects with the "
                "methods state_dict and load_state_dict"
            )
    return per_rank


def _unwrapped(stateful: Stateful) -> Stateful:
    return stateful.module if isinstance(stateful, DistributedDataParallel) else stateful


def _words(loader: Any, batches: int, epochs: int) -> str:
    """The loop's length and what it follows from."""
    data = getattr(loader, "dataset", None)
    name = f"a {type(loader).__name__}" + (f" of {type(data).__name__}" if data is not None else "")
    return (
        f"{epochs} epochs of {batches} batches of {name}" if batches else f"{epochs} epochs of {name} without a length"
    )


def _text(value: float | Tensor | str) -> str:
    if isinstance(value, str):
        return value
    return f"{float(value.detach() if isinstance(value, Tensor) else value):.6g}"
