"""Finding the newest state that anybody holds, and giving it to everybody."""

import time
from collections.abc import Callable, Container
from typing import ClassVar, NamedTuple

from relight_agent.exits import ExitCode
from relight_trainer.checkpoint import (
    CheckpointFolder,
    Position,
    Snapshots,
    State,
    pack,
)
from relight_trainer.checkpoint.packed import Own, threads_for
from relight_trainer.handover import Handed, compare, hand_over
from relight_trainer.peers import Peers

_NONE = Position(-1, -1)
SEEN_SECONDS = 70.0  # an NFS client may keep what it knows of a folder for a minute


class StateLost(Exception):
    """The job has trained before, and nothing of it is left that a worker could go on from."""

    exit_code: ClassVar[ExitCode] = ExitCode.BAD_DATA


class NotShared(Exception):
    """A member has another checkpoint folder than the first one: what that has written is not there."""

    def __init__(self, checkpoints: CheckpointFolder, generation: int) -> None:
        # Where others have shared it before, it is this machine that lacks it.
        self.exit_code = ExitCode.BAD_CONFIG if generation == 1 else ExitCode.MACHINE_UNHEALTHY
        super().__init__(
            f"the checkpoint folder {checkpoints} is not shared: what rank 0 has written there is not seen by this member "
            f"after {SEEN_SECONDS:.0f} s; give the job storage that all machines have in common"
        )


class RanksDiffer(Exception):
    """Ranks hold different bytes where all must hold the same."""

    exit_code: ClassVar[ExitCode] = ExitCode.RANKS_DIFFER


class Restored(NamedTuple):
    kind: str  # snapshot | checkpoint, as Progress.resumed_kind
    position: Position
    state: State  # tensors of `lent` objects lie in memory that lasts until `confirm`
    handed: Handed

    def confirm(self, peers: Peers, notes: Container[str] = frozenset()) -> None:
        """Once all of it is loaded: every rank has loaded the same. Raises RanksDiffer. Called by all ranks.

        Of the objects named in `notes` the tensors alone are compared.
        """
        _require_equal(peers, self.handed, f"the {self.kind} of step {self.position.step}", notes)


def newest_state(
    peers: Peers,
    *,
    snapshots: Snapshots | None,
    checkpoints: CheckpointFolder | None,
    generation: int,
    committed_step: int | None,
    own: Callable[[], State],
    local_world: int = 1,
    lent: Container[str] = frozenset(),
    new_member: bool = False,
) -> Restored | None:
    """The newest state by (generation, step); None where the job has never saved one.

    Called by all ranks. `snapshots` are this member's, read by each rank of it; whose member holds the newest one is sent
    nothing, and nobody what is the same in the `own` state that it has built. Rank 0 alone reads `checkpoints`, and a
    `new_member` looks whether it sees what rank 0 has written there. Tensors of `lent` objects are not copied once more.
    Raises NotShared where it does not, StateLost where status knows of a checkpoint and nothing is found, and what reading checkpoints raises.
    """
    mine = (snapshots.newest() if snapshots is not None else None) or _NONE
    offers = [Position(*numbers) for numbers in peers.gather_numbers(*mine)]
    in_memory = max(offers)
    checkpoint = None
    if peers.rank == 0 and checkpoints is not None:
        checkpoints.begin_generation(generation)
        checkpoint = checkpoints.newest(newer_than=None if in_memory == _NONE else in_memory)
    stored = Position(*peers.gather_numbers(*(checkpoint.position if checkpoint else _NONE))[0])
    if new_member and snapshots is not None and checkpoints is not None and peers.rank != 0:
        _see(checkpoints, generation)
    threads = threads_for(local_world)
    built = Own(own, threads=threads)
    holds: Callable[[], bytearray | memoryview] | None

    if stored != _NONE:
        holds = None
        if checkpoints is not None and checkpoint is not None:
            packed = pack(checkpoints.load(checkpoint))
            holds = lambda: packed  # noqa: E731
        handed = hand_over(peers, holds, built, local_world=local_world, threads=threads)
        return Restored("checkpoint", stored, handed.packed.unpacked(lent), handed)
    if in_memory > _NONE:
        holds = snapshots.read if snapshots is not None and mine == in_memory else None
        handed = hand_over(peers, holds, built, local_world=local_world, threads=threads)
        return Restored("snapshot", in_memory, handed.packed.unpacked(lent), handed)
    if committed_step is not None:
        raise StateLost(
            f"a checkpoint of step {committed_step} had been committed and is no longer there: "
            "give the job its checkpoint folder back, or delete the job and create it anew to start from scratch"
        )
    return None


def _see(checkpoints: CheckpointFolder, generation: int) -> None:
    """What rank 0 has written into the checkpoint folder is seen here. Raises NotShared."""
    deadline = time.monotonic() + SEEN_SECONDS
    while not checkpoints.has_begun(generation):
        if time.monotonic() > deadline:
            raise NotShared(checkpoints, generation)
        time.sleep(0.2)


def spread(
    peers: Peers,
    data: bytearray | None,
    own: Callable[[], State],
    *,
    local_world: int,
    lent: Container[str] = frozenset(),
) -> State:
    """The state in the bytes that one rank gives, on every rank: what has the same bytes in its `own` state is not sent.

    Raises RanksDiffer where they arrive changed.
    """
    threads = threads_for(local_world)
    holds = None if data is None else lambda: data
    handed = hand_over(peers, holds, Own(own, threads=threads), local_world=local_world, threads=threads)
    _require_equal(peers, handed, "the state to begin with")
    return handed.packed.unpacked(lent)


def _require_equal(peers: Peers, handed: Handed, what: str, notes: Container[str] = frozenset()) -> None:
    found = compare(peers, handed.packed, notes)
    if found is not None:
        raise RanksDiffer(f"{what} is not the same on all ranks: {found} differs from rank 0's")
