"""Checks that the training loops of all ranks end after the same step.

The first rank whose loop ends says in the store after which step. Ranks that reach the end of theirs compare; ranks that
begin a later step are seen by their side thread (`stop.StopAgreement`), for the main thread then waits in a collective
for a rank that will not come. It costs a step nothing.
"""

from datetime import timedelta
from typing import NamedTuple

import torch.distributed as dist
from torch.distributed import Store  # type: ignore[attr-defined]

from relight_agent.exits import ExitCode
from relight_agent.files import clip

_FIRST, _COUNT, _ALL = "end/first", "end/count", "end/all"
_SLICE = timedelta(seconds=1)
_MAX_WORDS = 200  # bytes


class UnevenRanks(Exception):
    """The loop of one rank has ended after another step than another rank's."""

    exit_code = ExitCode.BAD_CONFIG


class LastStep(NamedTuple):
    """Where a rank's loop ended: after `step` optimizer steps; `how`, in words."""

    rank: int
    step: int
    how: str

    def text(self) -> str:
        return f"{self.rank} {self.step} {clip(self.how, _MAX_WORDS)}"

    @classmethod
    def read(cls, data: bytes) -> "LastStep":
        rank, step, how = data.decode("utf-8", "replace").split(" ", maxsplit=2)
        return cls(int(rank), int(step), how)


def went_on(first: LastStep, rank: int, done: int, how: str, *, within: bool) -> str:
    """What is wrong where `rank` has done `done` steps, or is `within` the next one, after the last step of `first`.

    `how`: of the loop of `rank`.
    """
    return _words(first, f"rank {rank} has {f'begun step {done + 1}' if within else f'done step {done}'}", how)


def ended_elsewhere(first: LastStep, last: LastStep) -> str:
    """What is wrong where the loop of another rank ended after another step than `first`."""
    return _words(first, f"the loop of rank {last.rank} ended after step {last.step}", last.how)


def _words(first: LastStep, other: str, how: str) -> str:
    return (
        f"the loop of rank {first.rank} ended after step {first.step} ({first.how or 'not known how'}), but {other}"
        f"{f' ({how})' if how else ''}: all ranks must do the same number of steps. Give each rank the same number of "
        "batches, e.g. by a DistributedSampler or drop_last=True, or leave the loop of all ranks at one step and call "
        "run.finish()"
    )


class LoopEnd:
    """One rank's part. `store` must not be waited on by anybody else meanwhile."""

    def __init__(self, store: Store, rank: int, world: int) -> None:
        self._store = store
        self._rank = rank
        self._world = world

    def first(self) -> LastStep | None:
        """Whose loop has ended first, None for nobody's yet; returns at once."""
        return LastStep.read(self._store.get(_FIRST)) if self._store.check([_FIRST]) else None

    def announce(self, step: int, how: str) -> None:
        """Say that this rank's loop has ended after `step` steps. Raises UnevenRanks where another's ended after other ones."""
        mine = LastStep(self._rank, step, how)
        first = LastStep.read(self._store.compare_set(_FIRST, "", mine.text()))
        if first.step != step:
            raise UnevenRanks(ended_elsewhere(first, mine))
        if self._store.add(_COUNT, 1) == self._world:
            self._store.set(_ALL, "1")

    def wait(self) -> None:
        """Wait until the loops of all ranks have ended. The agents find a rank that never comes by its heartbeat."""
        while True:
            try:
                self._store.wait([_ALL], _SLICE)
            except dist.DistNetworkError:
                raise
            except dist.DistStoreError:  # it took longer than the slice
                continue
            return
