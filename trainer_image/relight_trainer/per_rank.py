"""Objects whose state differs between ranks by design: a shard of a table, a loader's position, a shard's optimizer.

Each rank's state is saved in a file of its own in every checkpoint, beside what all ranks share, and given back to that
rank. Where a checkpoint was saved by another number of ranks, an object may say by a method what each rank gets:

    def redistribute(self, states: list[dict]) -> dict      `states`: what `state_dict()` gave on each rank, by rank

It is called on each rank of the new world, and what it returns goes to `load_state_dict` there.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar, Protocol, runtime_checkable

from relight_agent.exits import ExitCode
from relight_trainer.checkpoint import State
from relight_trainer.object_states import load_state


class UnfitParts(Exception):
    """A checkpoint does not hold the `per_rank` state that a rank of this world needs."""

    exit_code: ClassVar[ExitCode] = ExitCode.BAD_CONFIG


class _Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


@runtime_checkable
class Redistributable(Protocol):
    def redistribute(self, states: list[dict[str, Any]], /) -> dict[str, Any]: ...


class PerRank:
    """The objects that this rank has for itself, by name."""

    def __init__(self, objects: Mapping[str, _Stateful], *, rank: int, world: int) -> None:
        self._objects = objects
        self._rank = rank
        self._world = world

    def __bool__(self) -> bool:
        return bool(self._objects)

    def state(self) -> State:
        return {name: o.state_dict() for name, o in self._objects.items()}

    def load(self, saved_by: int, part: Callable[[int], State], where: str) -> None:
        """Load this rank's state from checkpoint `where`, which `saved_by` ranks have saved; `part` reads that of one of them.

        Raises UnfitParts where it lacks an object, and where it was saved by another number of ranks and an object
        cannot redistribute its states.
        """
        if saved_by == self._world:
            self._load(self._of(part(self._rank), self._rank, where))
            return
        fixed = [name for name, o in self._objects.items() if not isinstance(o, Redistributable)]
        if fixed and saved_by:
            raise UnfitParts(
                f"per_rank: {where} was saved by {saved_by} ranks, this world has {self._world}, and {', '.join(fixed)} cannot be "
                f"redistributed: run the job with {saved_by} ranks, or give the object a method redistribute(states)"
            )
        parts = [self._of(part(rank), rank, where) for rank in range(saved_by)]
        if not parts:
            raise UnfitParts(
                f"per_rank: {where} was saved without per_rank objects, and this script gives {', '.join(self._objects)}: give the "
                f"objects that the checkpoint was saved with, or start a new job"
            )
        self._load({name: _redistributed(o, [p[name] for p in parts]) for name, o in self._objects.items()})

    def _load(self, part: State) -> None:
        for name, stateful in self._objects.items():
            load_state(name, stateful, part[name])

    def _of(self, part: State, rank: int, where: str) -> State:
        missing = sorted(self._objects.keys() - part.keys())
        if missing:
            raise UnfitParts(f"per_rank: {where} holds {sorted(part)} of rank {rank} and lacks {missing}")
        return part


def _redistributed(stateful: Any, states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    state: dict[str, Any] = stateful.redistribute(list(states))
    return state
