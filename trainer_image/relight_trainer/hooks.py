"""Hooks: what is done beside the training, at fixed points of the loop.

A hook overrides the points it wants; a point that nobody overrides costs a call of an empty function. In one step:

    step_begin
      micro_begin  data_ready  forward_end  backward_end      once per micro-batch
    gradients_ready                                           reduced over ranks, unscaled; not yet clipped
    update_end                                                optimizer and averages have moved, or the step is skipped
    state_equal                                               on all ranks
    step_end  epoch_end                                       the step is done; the epoch, where it was its last
    saving                                                    what a hook's state is now, a resume from this step finds
    saved                                                     into a snapshot and a checkpoint, where they were due

Around that: run_begin, run_end, evaluation_begin, evaluation_end, checkpoint_begin, checkpoint_end, logged,
failed. Called by every rank, in the order of `order` and, where that is equal, of the configuration.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

if TYPE_CHECKING:
    from relight_trainer.run import Run

Policy = Literal["fail", "warn"]


class Hook:
    """The base of hooks. Points get the `Run`; what they change of it is the hook's own responsibility.

    A hook that changes what is trained is a function of the step (`run.step`, `run.random`), or keeps its state in
    `state_dict`: JSON values and tensors, the same on every rank. The ranks' states are compared; a hook with values of
    each rank's own in its state, measured seconds for example, leaves them out of `compared_state`.
    """

    order: int = 50  # lower is earlier; 0..19 before, 80..100 after everybody else's
    on_error: Policy = "fail"  # warn: an exception is told, and the hook is left out from then on
    timed: bool = True  # whether its time is counted; False for a hook that does less than the counting

    def state_dict(self) -> dict[str, Any]:
        return {}

    def compared_state(self) -> dict[str, Any]:
        """The part of the state that must be equal on all ranks."""
        return self.state_dict()

    def load_state_dict(self, state: dict[str, Any], /) -> None:
        """Take over what `state_dict` gave, after the model is restored and before `run_begin`."""

    def run_begin(self, run: "Run") -> None:
        """State is restored, the first step is next; `run.step` steps are done."""

    def run_end(self, run: "Run") -> None:
        """No more steps in this process: the training is complete or stopped. Not called after an error."""

    def step_begin(self, run: "Run") -> None: ...

    def micro_begin(self, run: "Run") -> None:
        """The micro-batch `run.micro` is fetched next."""

    def data_ready(self, run: "Run") -> None:
        """`run.batch` is on the device."""

    def forward_end(self, run: "Run") -> None:
        """`run.output` and `run.loss` are there; the loss is detached."""

    def backward_end(self, run: "Run") -> None: ...

    def gradients_ready(self, run: "Run") -> None: ...

    def update_end(self, run: "Run") -> None:
        """`run.skipped` says whether the update was left out for a gradient that is not finite."""

    def state_equal(self, run: "Run") -> None: ...

    def step_end(self, run: "Run") -> None:
        """`run.step` counts this step as done, and the state that a hook keeps of it is saved with it."""

    def epoch_end(self, run: "Run") -> None: ...

    def saving(self, run: "Run") -> None:
        """The state is copied next. What a hook does later for this step, a resume from it knows nothing of."""

    def saved(self, run: "Run") -> None: ...

    def evaluation_begin(self, run: "Run") -> None: ...

    def evaluation_end(self, run: "Run", metrics: Mapping[str, float]) -> None: ...

    def checkpoint_begin(self, run: "Run") -> None: ...

    def checkpoint_end(self, run: "Run") -> None: ...

    def logged(self, run: "Run", metrics: Mapping[str, float]) -> None:
        """These numbers are those of the job after `run.step` steps, the same on every rank."""

    def failed(self, run: "Run", error: Exception) -> None:
        """Training ends with `error`. Peers may be gone: no collectives here."""


class Hooks:
    """All hooks of a run: each point an attribute to be called, each hook's time counted, their states as one."""

    POINTS: ClassVar = (
        "run_begin", "run_end", "step_begin", "micro_begin", "data_ready", "forward_end", "backward_end",
        "gradients_ready", "update_end", "state_equal", "step_end", "epoch_end", "saving", "saved",
        "evaluation_begin", "evaluation_end", "checkpoint_begin", "checkpoint_end", "logged", "failed",
    )  # fmt: skip

    run_begin: Callable[["Run"], None]
    run_end: Callable[["Run"], None]
    step_begin: Callable[["Run"], None]
    micro_begin: Callable[["Run"], None]
    data_ready: Callable[["Run"], None]
    forward_end: Callable[["Run"], None]
    backward_end: Callable[["Run"], None]
    gradients_ready: Callable[["Run"], None]
    update_end: Callable[["Run"], None]
    state_equal: Callable[["Run"], None]
    step_end: Callable[["Run"], None]
    epoch_end: Callable[["Run"], None]
    saving: Callable[["Run"], None]
    saved: Callable[["Run"], None]
    evaluation_begin: Callable[["Run"], None]
    evaluation_end: Callable[["Run", Mapping[str, float]], None]
    checkpoint_begin: Callable[["Run"], None]
    checkpoint_end: Callable[["Run"], None]
    logged: Callable[["Run", Mapping[str, float]], None]
    failed: Callable[["Run", Exception], None]

    def __init__(self, hooks: Iterable[Hook], say: Callable[[str], None] = print) -> None:
        """`say` tells a person what a hook with the policy `warn` has raised."""
        self._say = say
        self._hooks: dict[str, Hook] = {}
        self.seconds: dict[str, float] = {}  # spent in each hook that is timed, by its name
        for hook in sorted(hooks, key=lambda h: h.order):
            name = _free(type(hook).__name__, self._hooks)
            self._hooks[name] = hook
            self.seconds[name] = 0.0
        self._bind_all()

    def state_dict(self) -> dict[str, Any]:
        """The states of the hooks that have one, by name."""
        states = {name: self._hooks[name].state_dict() for name in self._stateful}
        return {name: state for name, state in states.items() if state}

    def compared_state(self) -> dict[str, Any]:
        """The part of the hooks' states that must be equal on all ranks, by name."""
        return {name: self._hooks[name].compared_state() for name in self._stateful}

    def load_state_dict(self, states: dict[str, Any], /) -> None:
        """A hook that was not there when `states` were saved begins anew; a state whose hook is gone is dropped."""
        for name, state in states.items():
            if name in self._hooks:
                self._hooks[name].load_state_dict(state)

    def _bind_all(self) -> None:
        self._stateful = [name for name, hook in self._hooks.items() if type(hook).state_dict is not Hook.state_dict]
        for point in self.POINTS:
            self._bind(point)

    def _bind(self, point: str) -> None:
        calls = [
            self._guarded(name, getattr(hook, point))
            for name, hook in self._hooks.items()
            if getattr(type(hook), point) is not getattr(Hook, point)
        ]

        def each(*args: Any) -> None:
            for call in calls:
                call(*args)

        setattr(self, point, each if len(calls) > 1 else calls[0] if calls else _nothing)

    def _guarded(self, name: str, call: Callable[..., None]) -> Callable[..., None]:
        seconds, clock, hook = self.seconds, time.perf_counter, self._hooks[name]

        def warning(*args: Any) -> None:
            try:
                call(*args)
            except Exception as error:  # the training goes on
                self._leave_out(name, error)

        guarded = call if hook.on_error == "fail" else warning

        def timed(*args: Any) -> None:
            start = clock()
            guarded(*args)
            seconds[name] += clock() - start

        return timed if hook.timed else guarded

    def _leave_out(self, name: str, error: Exception) -> None:
        del self._hooks[name]
        self._say(f"the hook {name} is left out from now on: {type(error).__name__}: {error}")
        self._bind_all()


def _nothing(*_: Any) -> None: ...


def _free(name: str, taken: Mapping[str, Any]) -> str:
    return next(n for i in range(1, len(taken) + 2) if (n := name if i == 1 else f"{name}-{i}") not in taken)
