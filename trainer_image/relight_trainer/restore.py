"""Finding the newest state that anybody holds, and giving it to everybody."""

import hashlib
import time
from typing import ClassVar, NamedTuple

from relight_agent.exits import ExitCode
from relight_trainer.checkpoint import (
    CheckpointFolder,
    Position,
    Snapshots,
    State,
    pack,
    unpack,
)
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
    state: State


def newest_state(
    peers: Peers,
    *,
    snapshots: Snapshots | None,
    checkpoints: CheckpointFolder | None,
    generation: int,
    committed_step: int | None,
    new_member: bool = False,
) -> Restored | None:
    """The newest state by (generation, step), the same on every rank; None where the job has never saved one.

    Called by all ranks. `snapshots` are this member's, on one rank of each member; rank 0 alone reads `checkpoints`, and
    a `new_member` looks whether it sees what rank 0 has written there.
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
    data: bytearray | memoryview | None

    if stored != _NONE:
        data = pack(checkpoints.load(checkpoint)) if checkpoints is not None and checkpoint is not None else None
        return Restored("checkpoint", stored, spread(peers, data, owner=0))
    if in_memory > _NONE:
        owner = offers.index(in_memory)
        data = snapshots.read() if snapshots is not None and peers.rank == owner else None
        return Restored("snapshot", in_memory, spread(peers, data, owner))
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


def spread(peers: Peers, data: bytearray | memoryview | None, owner: int) -> State:
    """The state in `owner`'s bytes, on every rank. Raises RanksDiffer where they arrive changed."""
    received = peers.broadcast(data, owner)
    if peers.world > 1:
        digests = peers.gather(hashlib.sha256(received).digest())
        wrong = [rank for rank, digest in enumerate(digests) if digest != digests[owner]]
        if wrong:
            raise RanksDiffer(f"the state that rank {owner} sent reached ranks {wrong} changed")
    return unpack(received)
