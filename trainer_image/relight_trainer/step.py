"""One optimizer step of one rank."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from relight_trainer.backward import Backward
from relight_trainer.finite import FiniteWatch, NonFiniteLoss
from relight_trainer.modes import mode
from relight_trainer.objective import Objective
from relight_trainer.placement import explain
from relight_trainer.reduction import Reduction, told
from relight_trainer.replicas import VirtualBuffers, without_samples
from relight_trainer.run import Run
from relight_trainer.seeds import seed_torch, streams
from relight_trainer.sync_batchnorm import uncounted
from relight_trainer.targets import WrongLabel
from relight_trainer.update import Update
from relight_trainer.windows import Part

MAX_SKIPPED = 50  # in a row; a loss scale halved so often is gone


class Updates:
    """Optimizer steps really taken: what schedules and averages count. In checkpoints."""

    def __init__(self) -> None:
        self.taken = 0
        self.skipped_in_a_row = 0

    def state_dict(self) -> dict[str, Any]:
        return {"taken": self.taken, "skipped_in_a_row": self.skipped_in_a_row}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.taken, self.skipped_in_a_row = state["taken"], state["skipped_in_a_row"]


class Step:
    """Forward and backward over a step's micro-batches, and the update that follows from them.

    The gradient is that of the mean loss over the global batch, however its samples are dealt out: DDP divides the sum
    over ranks by their number, so that each rank's share of the loss is the sum over its samples, times the ranks,
    over the samples of the batch.
    """

    def __init__(
        self,
        run: Run,
        *,
        objective: Objective,
        autocast: Callable[[], AbstractContextManager[object]],
        clip: Callable[[], Tensor] | None,
        passed_on: bool,
    ) -> None:
        """`passed_on`: this rank may run the parts of several virtual ranks (`Dealer.passed_on`)."""
        self.updates = Updates()
        self.watch = FiniteWatch(run.device, cause=objective.targets.require_right)
        self.reduction: Reduction | None = None  # in a world of several ranks, of the present replica
        self._told = False
        self._run = run
        self._objective = objective
        self._autocast = autocast
        self._backward = Backward()
        self._move = Update(run.optimizer)
        self._clip = clip
        self._buffers = VirtualBuffers(run.model, run.device) if passed_on else None
        self._parameters = list(run.model.parameters())
        dtypes = {p.dtype for p in self._parameters}
        self._by_type = [(dtype, [p for p in self._parameters if p.dtype is dtype]) for dtype in dtypes]
        self._found = torch.zeros((), device=run.device)
        self._one = torch.ones((), device=run.device)
        self._weights: dict[tuple[float, int, torch.dtype], _Weight] = {}
        self._world = run.world
        self._nothing = torch.zeros((), dtype=torch.float64, device=run.device)
        self._random = streams(run.config.train.seed, "step")
        self._skips = run.config.train.non_finite == "skip"
        self._scaled = run.scaler.is_enabled()
        self._watches = not (self._scaled or self._skips)
        self._looks_at_once = self._watches and not self.watch.later

    def __call__(self, parts: list[Part], batches: Iterator[Any], samples: int, fewest: int) -> None:
        """The step over `parts`, of a global batch of `samples`; `batches` gives one for each part.

        `fewest`: parts that each rank has at least. Raises NonFiniteLoss, and Stopped between two parts.
        """
        run, session = self._run, self._run.session
        for parameter in self._parameters:  # what zero_grad does, without its bookkeeping
            parameter.grad = None
        share = self._world / samples
        losses: list[Tensor] = []
        passes = run.passes(run.step)
        count = len(parts) * len(passes)
        last, reduction = count - 1, self.reduction
        for run.micro, part in enumerate(parts):
            if run.micro:
                session.enter(run.micro, last=run.micro >= fewest - 1)
            run.hooks.micro_begin(run)
            session.data_wanted()
            run.batch = next(batches)
            session.data_ready()
            run.hooks.data_ready(run)
            if self._buffers is not None:
                self._buffers.begin(part.virtual_rank)
            for i, choose in enumerate(passes):
                choose()
                seed_torch(self._random(run.step, part.number))
                share_of_pass = share / len(passes) if part.samples else 0.0
                if run.micro * len(passes) + i == last:
                    if last and reduction is not None:
                        reduction.last_pass_begins()
                    self._pass(part, share_of_pass)
                else:
                    with self._alone():
                        self._pass(part, share_of_pass)
                if count > 1 and run.loss is not None:
                    losses.append(run.loss)
                run.hooks.backward_end(run)
        if self._buffers is not None:
            self._buffers.end()
        if reduction is not None:
            if not parts:
                self._without_samples()
            idle = reduction.finish(together=fewest == 0)
            if idle and not self._told:
                self._told = True
                session.say(told(idle, run.step + 1))
        if count != 1:
            run.loss = sum(losses, self._nothing)
        self._update()

    def _pass(self, part: Part, share: float) -> None:
        """Forward and backward of the present batch; its loss is the `share` of the sum over its samples."""
        run = self._run
        loss, weight = self._forward(part, share)
        if self._looks_at_once and weight.factor is not None:
            run.loss_is(self.watch.number("loss", loss, run.step) * weight.factor, loss.dtype)
        else:
            run.loss = weight.of(loss)
            if self._watches:
                self.watch.note("loss", run.loss, run.step)
        run.hooks.forward_end(run)
        self._backward(run.scaler.scale(loss) if self._scaled else loss, weight.seed)

    def _forward(self, part: Part, share: float) -> tuple[Tensor, "_Weight"]:
        """The loss of the present batch as the objective gives it, and what it weighs."""
        run, objective = self._run, self._objective
        run.output = None  # the last one's memory is free for this one
        try:
            if part.samples:
                with self._autocast():
                    run.output = objective.output(run.replica, run.batch, run)
            else:
                with self._uncounted(), self._autocast():
                    run.output = objective.output(run.replica, run.batch, run)
            loss, times = objective.term(run.output, run.batch, part.samples)
        except (RuntimeError, NotImplementedError) as error:
            explain(error, run.model, run.batch, run.device)
            raise
        except WrongLabel as error:
            error.name(f"data.train[{part.indices[error.row]}]")
            raise
        key = share, times, loss.dtype
        weight = self._weights.get(key)
        if weight is None:  # a few: batches of different size, empty ones
            weight = self._weights[key] = _Weight(share, times, loss)
        return loss, weight

    @contextmanager
    def _uncounted(self) -> Iterator[None]:
        """The statistics of batch norm do not see this forward pass. Sync BN takes part in its peers' collectives."""
        together = self._run.config.sync_bn is not None
        with uncounted(), nullcontext() if together else mode(self._run.model, training=False):
            yield

    def _without_samples(self) -> None:
        """For a rank that has no part of the step: its peers still wait for its gradients, which are zero."""
        assert isinstance(self._run.replica, DistributedDataParallel)
        without_samples(self._run.replica)

    def _alone(self) -> AbstractContextManager[object]:
        replica = self._run.replica
        return replica.no_sync() if isinstance(replica, DistributedDataParallel) else nullcontext()

    def _update(self) -> None:
        run = self._run
        if self._scaled:
            run.scaler.unscale_(run.optimizer)
        run.hooks.gradients_ready(run)
        finite = self._scaled or self._finite()
        if self._clip:
            self._clip()
        run.skipped = False
        if self._scaled:
            before = run.scaler.get_scale()
            run.scaler.step(run.optimizer)
            run.scaler.update()
            run.skipped = run.scaler.get_scale() < before
        elif finite:
            self._move()
        else:
            run.skipped = True
        self._count()
        run.hooks.update_end(run)

    def _finite(self) -> bool:
        """Whether the update may be taken, for gradients that are the same on every rank by now.

        Raises NonFiniteLoss, or leaves that to the watch, where a job ends with numbers that are not finite.
        """
        for dtype, parameters in self._by_type:
            # Of a sparse gradient its values, as GradScaler does: `values()` wants it coalesced.
            gradients = [
                g._values() if g.is_sparse else g  # noqa: SLF001
                for p in parameters
                if (g := p.grad) is not None
            ]
            if dtype.is_complex:
                gradients = [torch.view_as_real(g) for g in gradients]
            if gradients:
                # As GradScaler looks for them: one pass over all gradients, which are multiplied by one.
                torch._amp_foreach_non_finite_check_and_unscale_(gradients, self._found, self._one)
        if self._skips:
            found = bool(self._found.item())
            if found:
                self._found.zero_()
            return not found
        # What has been found stays: the first step with it is the one that is told, and the last.
        self.watch.note_found("gradient", self._found, self._run.step)
        return True

    def _count(self) -> None:
        updates = self.updates
        if not self._run.skipped:
            updates.taken += 1
            updates.skipped_in_a_row = 0
            return
        self._objective.targets.require_right()
        updates.skipped_in_a_row += 1
        if updates.skipped_in_a_row == MAX_SKIPPED:
            raise NonFiniteLoss(
                f"the gradients of {MAX_SKIPPED} steps in a row, the last one step {self._run.step + 1}, are not finite"
            )


class _Weight:
    """What a loss weighs that is `times` in the sum over its samples, of which `share` counts.

    The gradient's seed is what a weighted loss would give its own, to the bit, with no node for it in the graph.
    """

    def __init__(self, share: float, times: int, loss: Tensor) -> None:
        seed = torch.full_like(loss, share, requires_grad=False) * times
        self._share, self._times = share, times
        self.seed = seed
        # Products with powers of two are exact, so that one of them undoes the other.
        self._undone = bool(seed == 1) and times.bit_count() == 1
        # What makes a loss that is a number weigh the same, where rounding that once gives the tensor's own bits.
        self.factor = 1.0 if self._undone else float(seed) if times == 1 else None

    def of(self, loss: Tensor) -> Tensor:
        """The weighted loss, detached."""
        shown = loss.detach()
        if self._undone:
            return shown
        return shown * self.seed if self._times == 1 else shown * self._times * self._share
