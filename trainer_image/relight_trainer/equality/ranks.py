"""Compares the ranks' states, and ends the job where they differ.

At the start, before one rank's state is given to all; after the first step; before each checkpoint, at a stop and at the
end; and in between, so often that comparing takes at most `SHARE` of the time. A difference at the start is a wrong
configuration; later it ends the job, because no rank's state is known to be the right one.
"""

import time
from collections import deque
from collections.abc import Callable, Collection, Mapping
from typing import Any, ClassVar

from torch import nn
from torch.distributed import DistStoreError

from relight_agent.exits import ExitCode
from relight_trainer.checkpoint import Exchange
from relight_trainer.due import TimeDue
from relight_trainer.equality.compare import Difference, ObjectDigest
from relight_trainer.equality.replicated import outside, replicated_modules
from relight_trainer.equality.watch import Comparison, Comparisons
from relight_trainer.restore import RanksDiffer

SHARE = 0.005  # of the training's time, at most
LEAST_SECONDS = 5.0  # between two comparisons: each asks the store
_LOOK_SECONDS = 0.5
_COSTS = 4  # comparisons that are looked back at; the quickest is what one costs where nothing disturbs it

REDUCTIONS = "gradient reductions"  # compared beside the objects of the state


class StartsDiffer(Exception):
    """The ranks begin with different values where all must begin with the same."""

    exit_code: ClassVar[ExitCode] = ExitCode.BAD_CONFIG


class EqualRanks:
    """One rank's comparison of its state with the other ranks of the generation. Does nothing in a world of one rank."""

    def __init__(
        self,
        comparisons: Callable[[], Comparisons],
        *,
        rank: int,
        world: int,
        exchange: Exchange,
        say: Callable[[str], None],
        timeout: float,
    ) -> None:
        """`comparisons` makes this rank's, where the world has peers. `timeout`: seconds that a rank may wait for the others in `check`."""
        self._comparisons = comparisons() if world > 1 else None
        self._rank = rank
        self._say = say
        self._timeout = timeout
        self._objects: Mapping[str, Any] = {}
        self._unequal: dict[str, Difference] = {}  # modules that began differently
        self._began: dict[str, ObjectDigest] = {}
        self._costs: deque[float] = deque(maxlen=_COSTS)
        self._last: Comparison | None = None
        self._due = TimeDue("equality", LEAST_SECONDS, rank=rank, exchange=_Patient(exchange, self._look))
        self._stepped = False

    def at_start(self, objects: Mapping[str, Any], follow: Collection[str] = ()) -> None:
        """Compare the states that the ranks begin a training with, before rank 0's is given to all.

        Modules may differ: they are to be inside a DistributedDataParallel by the end of the first step. So may the objects named in `follow`, which
        are made from modules once these are equal. Raises StartsDiffer on all ranks for any other difference.
        """
        if self._comparisons is None:
            return
        comparison = self._comparisons.begin(objects, 0, expected=True)
        differences = self._comparisons.wait(comparison, self._timeout)
        for one in differences:
            if isinstance(objects.get(one.name), nn.Module) and one.tensors:
                self._unequal[one.name] = one
            elif one.name not in follow:
                raise StartsDiffer(
                    f"rank {one.rank} and rank 0 begin with different values in {one}: make the values equal on all ranks "
                    f"before the training starts (for example by the same seed), or, if a script gives each rank its own by design, give the object as "
                    f"client.start(per_rank={{'{one.name}': ...}})"
                )
        if self._unequal:
            self._began = comparison.reading.result()
            for name, one in self._unequal.items():
                self._say(
                    f"rank {one.rank} and rank 0 begin with different values in {name}, first in {one.place}: "
                    "all ranks use those of rank 0"
                )

    def at_restore(self, objects: Mapping[str, Any], step: int) -> None:
        """Compare what has been loaded from each member's own memory. Raises RanksDiffer."""
        if self._comparisons is None or not objects:
            return
        differences = self._comparisons.wait(self._comparisons.begin(objects, step), self._timeout)
        if differences:
            raise _ranks_differ(step, differences[0])

    def follow(self, objects: Mapping[str, Any]) -> None:
        """All ranks hold the same state of `objects` now: it is compared from here on."""
        self._objects = objects

    def step_done(self, step: int) -> None:
        """`step` steps are done. Raises RanksDiffer where an earlier comparison has found a difference by now.

        Raises StartsDiffer after the first step where a module that began differently is in no DistributedDataParallel.
        """
        if self._comparisons is None:
            return
        self._look()
        if not self._stepped:
            self._stepped = True
            self._refuse_unreplicated()
            self._begin(step)
            self._due.start(step)
        elif self._due.at(step):
            self._begin(step)
            self._due.again(interval_seconds(self._costs))

    def compare(self, step: int) -> None:
        """Have the states compared as they are now; the answer is waited for in `check`, or heard after a later step."""
        if self._comparisons is not None:
            self._begin(step)

    def check(self, step: int) -> None:
        """Wait for the newest comparison, which is made now where there is none of this step. Raises RanksDiffer."""
        if self._comparisons is None:
            return
        if self._last is None or self._last.step != step:
            self._begin(step)
        assert self._last is not None
        differences = self._comparisons.wait(self._last, self._timeout)
        self._look()  # the first step that differed says more than a later one
        if differences:
            raise _ranks_differ(step, differences[0])

    @property
    def differ(self) -> bool:
        """Whether it is known by now that the ranks hold different states."""
        return self._comparisons is not None and self._comparisons.differ

    def close(self) -> None:
        if self._comparisons is not None:
            self._comparisons.close()

    def _look(self) -> None:
        if self._comparisons is not None and (found := self._comparisons.found) is not None:
            raise _ranks_differ(found.step, found.differences[0])

    def _begin(self, step: int) -> None:
        assert self._comparisons is not None
        if self._last is not None and self._last.done.is_set():
            self._costs.append(self._last.reading.seconds)
        self._last = self._comparisons.begin(self._objects, step)

    def _refuse_unreplicated(self) -> None:
        if not self._unequal:
            return
        replicated = replicated_modules()
        # An average that was copied from a model is kept equal with it.
        copied = {
            (tensor.kind, tensor.lane_0, tensor.lane_1)
            for name in self._began
            if isinstance(module := self._objects.get(name), nn.Module)
            for tensor in self._began[name].tensors
            if not outside(module, [tensor.name], replicated)
        }
        for name, one in self._unequal.items():
            own = {
                t.name: (t.kind, t.lane_0, t.lane_1) for t in self._began[name].tensors if t.name in set(one.tensors)
            }
            left = [t for t in outside(self._objects[name], one.tensors, replicated) if own.get(t) not in copied]
            if left:
                raise StartsDiffer(
                    f"{name}: {left[0]} began with different values on rank {one.rank} and rank 0, and no "
                    f"DistributedDataParallel contains it after the first step, so it may be a shard of that rank: "
                    f"set the same seed on all ranks before the model is created, or, in a script, give the object as "
                    f"client.start(per_rank={{'{name}': ...}})"
                )


def interval_seconds(costs: Collection[float]) -> float:
    """The time between two comparisons, for what the last ones have cost in seconds.

    >>> interval_seconds([0.5, 0.2]), interval_seconds([0.001]), interval_seconds([])
    (40.0, 5.0, 5.0)
    """
    return max(LEAST_SECONDS, min(costs, default=0.0) / SHARE)


def _ranks_differ(step: int, one: Difference) -> RanksDiffer:
    if one.name == REDUCTIONS:
        return RanksDiffer(
            f"by step {step} rank {one.rank} and rank 0 have run their backward passes in different steps, so gradients of "
            "different steps were averaged. Run the same number of backward passes of a DistributedDataParallel in each "
            "step on all ranks: decide by a value that is equal on all ranks (dist.all_reduce) whether a step is left out, "
            "or multiply the loss by zero"
        )
    if one.name == "step":
        return RanksDiffer(f"the ranks are not at the same step: {one.what}; give each rank the same number of batches")
    return RanksDiffer(
        f"after step {step} rank {one.rank} and rank 0 hold different values in {one}: all ranks must hold the same state. "
        f"Wrap a model that each rank trains on its own data in DistributedDataParallel (run.wrap(model)); "
        f"change other state only by values that are equal on all ranks"
    )


class _Patient:
    """An exchange that stops waiting, with RanksDiffer, once the ranks are known to differ: such a rank does not answer."""

    def __init__(self, exchange: Exchange, look: Callable[[], None]) -> None:
        self._exchange = exchange
        self._look = look

    def put(self, key: str, value: bytes) -> None:
        self._exchange.put(key, value)

    def get(self, key: str, timeout: float) -> bytes:
        deadline = time.monotonic() + timeout
        while True:
            try:
                return self._exchange.get(key, _LOOK_SECONDS)
            except DistStoreError:
                self._look()
                if time.monotonic() > deadline:
                    raise
