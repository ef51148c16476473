"""Where the time of training goes, measured without making it slower: nothing here waits for the device."""

import contextlib
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, nn

from relight_trainer.hooks import Hook
from relight_trainer.run import Run

if TYPE_CHECKING:
    from torch.utils.hooks import RemovableHandle


class Phase(IntEnum):
    DATA = 0  # waiting for the next batch, its way to the device included
    FORWARD = 1
    BACKWARD = 2  # until this rank's last gradient is there
    OPTIMIZER = 3  # clipping and averages included
    COMMUNICATION = 4  # what of it nothing else hides: waiting for the peers' gradients and buffers
    CHECKPOINT = 5  # snapshots too
    EVALUATION = 6
    OTHER = 7  # hooks, logging, the loop itself


_BOUNDS: Mapping[str, tuple[Phase, ...]] = {
    "compute": (Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER),
    "data": (Phase.DATA,),
    "communication": (Phase.COMMUNICATION,),
    "checkpoint": (Phase.CHECKPOINT,),
    "overhead": (Phase.OTHER,),
}


# What a rank does by itself. With synchronized batch norm the last three hold waiting for peers as well.
_OWN = (Phase.DATA, Phase.FORWARD, Phase.BACKWARD, Phase.OPTIMIZER)


class Bound:
    """What most of the time outside evaluation goes to."""

    def __init__(self, seconds: Sequence[float]) -> None:
        total = sum(seconds) - seconds[Phase.EVALUATION]
        sums = {name: sum(seconds[phase] for phase in phases) for name, phases in _BOUNDS.items()}
        self.name = max(sums, key=lambda name: sums[name])
        self.share = sums[self.name] / total if total > 0 else 0.0

    def __str__(self) -> str:
        return f"{self.name}-bound {self.share:.0%}".replace("%", " %")


def words(seconds: Sequence[float]) -> str:
    """Each phase's share of the whole, the largest first; those below half a per cent are left out."""
    total = sum(seconds) or 1.0
    shares = sorted(((s / total, phase) for phase, s in zip(Phase, seconds, strict=True)), reverse=True)
    return ", ".join(
        f"{phase.name.lower()} {share:.0%}".replace("%", " %") for share, phase in shares if share >= 0.005
    )


class Clock(Protocol):
    seconds: list[float]  # spent in each phase, by its number

    def enter(self, phase: Phase) -> None:
        """What was under way ends, `phase` begins."""

    def settle(self) -> None:
        """Count what is over by now."""


class HostClock:
    """For devices whose work is done when the call returns."""

    def __init__(self, now: Callable[[], float] = time.perf_counter) -> None:
        self.seconds = [0.0] * len(Phase)
        self._now = now
        self._phase = Phase.OTHER
        self._since = now()

    def enter(self, phase: Phase) -> None:
        now = self._now()
        self.seconds[self._phase] += now - self._since
        self._phase, self._since = phase, now

    def settle(self) -> None:
        self.enter(self._phase)


class Mark(Protocol):
    """What DeviceClock needs of torch.cuda.Event(enable_timing=True)."""

    def record(self) -> None: ...

    def query(self) -> bool: ...

    def elapsed_time(self, end: Any, /) -> Any: ...


class DeviceClock:
    """For a device that works behind the host: marks in its queue, read when it has passed them.

    Time is the device's: what it waits for data counts as data only where it has nothing else to do meanwhile.
    """

    def __init__(self, mark: Callable[[], Mark]) -> None:
        self.seconds = [0.0] * len(Phase)
        self._mark = mark
        self._marks: deque[tuple[Phase, Mark]] = deque()
        self._free: list[Mark] = []

    def enter(self, phase: Phase) -> None:
        mark = self._free.pop() if self._free else self._mark()
        mark.record()
        self._marks.append((phase, mark))

    def settle(self) -> None:
        marks = self._marks
        while len(marks) > 1 and marks[1][1].query():
            phase, start = marks.popleft()
            self.seconds[phase] += start.elapsed_time(marks[0][1]) / 1000
            self._free.append(start)


def clock_for(device: torch.device) -> Clock:
    if device.type == "cuda":
        return DeviceClock(lambda: torch.cuda.Event(enable_timing=True))  # type: ignore[no-untyped-call]
    return HostClock()


class LastGradient:
    """Calls `reached` in each backward when this rank's last gradient is there: what follows is waiting for peers.

    Which parameter's it is shows in the first backward; from then on one parameter has a hook. Where another path
    through the model makes another parameter the last, some of the waiting counts as backward.
    """

    def __init__(self, module: nn.Module, reached: Callable[[], None]) -> None:
        self._reached = reached
        self._last: Tensor | None = None
        self._handles: list[RemovableHandle] = [_hooked(p, self._seen) for p in module.parameters() if p.requires_grad]

    def _seen(self, parameter: Tensor) -> None:
        self._last = parameter

    def backward_ended(self) -> None:
        if self._last is None:
            return
        self.remove()
        self._handles = [_hooked(self._last, lambda _: self._reached())]
        self._last = None

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


def _hooked(parameter: Tensor, call: Callable[[Tensor], None]) -> "RemovableHandle":
    handle: RemovableHandle = parameter.register_post_accumulate_grad_hook(call)  # type: ignore[no-untyped-call]
    return handle


class TimeSplit(Hook):
    """Splits the time of training into phases and tells what holds it up. Earliest of all hooks."""

    order = 0
    on_error = "warn"
    timed = False

    def __init__(self, clock: Clock, *, node_rank: int, tell: bool, window: float = 10.0) -> None:
        """A verdict is over `window` seconds or more. `tell`: this rank says in the log when it changes."""
        self.clock = clock
        self._window = window
        self._node_rank = node_rank
        self._tell = tell
        self._last_gradient: LastGradient | None = None
        self._told = ""
        self._seen = list(clock.seconds)
        self._evaluating = False
        self._after_backward = Phase.OPTIMIZER
        self._after_update = Phase.OTHER

    def run_begin(self, run: Run) -> None:
        if run.world > 1:
            self._after_update = Phase.COMMUNICATION
            self._last_gradient = LastGradient(run.model, lambda: self.clock.enter(Phase.COMMUNICATION))
        if len(run.passes(run.step)) > 1:  # the next one may follow, with no point of the loop before it
            self._after_backward = Phase.FORWARD
        self._publish()
        self.clock.enter(Phase.OTHER)
        self.clock.seconds[:] = [0.0] * len(Phase)  # setting up is no part of it
        run.session.own_seconds = lambda: sum(self.clock.seconds[phase] for phase in _OWN)
        run.session.waited = lambda: self.clock.seconds[Phase.DATA]

    def micro_begin(self, run: Run) -> None:  # noqa: ARG002  # as in Hook, and below
        self.clock.enter(Phase.DATA)

    def data_ready(self, run: Run) -> None:  # noqa: ARG002
        self.clock.enter(Phase.FORWARD)

    def forward_end(self, run: Run) -> None:  # noqa: ARG002
        self.clock.enter(Phase.BACKWARD)

    def backward_end(self, run: Run) -> None:  # noqa: ARG002
        self.clock.enter(self._after_backward)
        if self._last_gradient is not None:
            self._last_gradient.backward_ended()

    def gradients_ready(self, run: Run) -> None:  # noqa: ARG002
        self.clock.enter(Phase.OPTIMIZER)

    def update_end(self, run: Run) -> None:  # noqa: ARG002
        self.clock.enter(self._after_update)

    def state_equal(self, run: Run) -> None:  # noqa: ARG002
        self.clock.enter(Phase.OTHER)

    def saving(self, run: Run) -> None:  # noqa: ARG002
        self.clock.enter(Phase.CHECKPOINT)

    def saved(self, run: Run) -> None:  # noqa: ARG002
        self.clock.enter(Phase.OTHER)
        self.clock.settle()

    def evaluation_begin(self, run: Run) -> None:  # noqa: ARG002
        self._evaluating = True
        self.clock.enter(Phase.EVALUATION)

    def evaluation_end(self, run: Run, metrics: Mapping[str, float]) -> None:  # noqa: ARG002
        self._evaluating = False
        self.clock.enter(Phase.OTHER)

    def checkpoint_begin(self, run: Run) -> None:  # noqa: ARG002
        self.clock.enter(Phase.CHECKPOINT)

    def checkpoint_end(self, run: Run) -> None:  # noqa: ARG002
        self.clock.enter(Phase.OTHER)

    def logged(self, run: Run, metrics: Mapping[str, float]) -> None:  # noqa: ARG002
        """The verdict on the time since the last one."""
        now = list(self.clock.seconds)
        window = [b - a for a, b in zip(self._seen, now, strict=True)]
        if self._evaluating or sum(window) < self._window:
            return
        self._seen = now
        bound = Bound(window)
        run.session.shown["bound"] = str(bound)
        if self._tell and bound.name != self._told:
            self._told = bound.name
            print(f"relight: step {run.step}: {bound} ({words(window)})", flush=True)

    def run_end(self, run: Run) -> None:
        self.clock.settle()
        if self._tell and sum(self.clock.seconds) > 0:
            seconds = self.clock.seconds
            print(f"relight: time until step {run.step}: {Bound(seconds)} ({words(seconds)})", flush=True)
        if self._last_gradient is not None:
            self._last_gradient.remove()

    def _publish(self) -> None:
        with contextlib.suppress(ModuleNotFoundError):  # in a user's own image only torch is sure to be there
            from relight_trainer.metrics import publish_phases

            names = [phase.name.lower() for phase in Phase]
            publish_phases(lambda: dict(zip(names, self.clock.seconds, strict=True)), node_rank=self._node_rank)
