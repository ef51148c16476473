"""What becomes of the state when all ranks have agreed to stop: a committed checkpoint, or the snapshots that are there.

Where members stay that hold a snapshot of this step, nothing is written: the next generation takes it from their memory,
and nobody waits for the storage. Where all leave, a checkpoint is committed, unless the time that is left is too short
for it by what earlier ones took: then each agent flushes its snapshot, as far as it comes.
"""

import contextlib
import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from relight_agent.files import Command, read_json, write_json
from relight_trainer.checkpoint import Exchange

# How much longer than the last one a save may take before it is called too long for the time that is left.
SPARE = 1.25
_SECONDS = "save-seconds.json"  # in the run folder: it outlives the generation


@dataclass(frozen=True)
class MemberState:
    """One member at the agreed step."""

    snapshot: bool  # it holds one of this step
    leaves: bool = False
    all_leave: bool = False  # it was told that everybody is to
    left: float | None = None  # seconds until it must be gone; None for no hurry

    @classmethod
    def of(cls, command: Command | None, *, snapshot: bool, now: float) -> "MemberState":
        """`command`: what its agent has asked for. `now`: CLOCK_MONOTONIC seconds."""
        if command is None:
            return cls(snapshot)
        left = command.deadline - now if command.deadline else None
        stop = command.op == "stop"
        return cls(snapshot, leaves=stop or command.leaves, all_leave=stop, left=left)


@dataclass(frozen=True)
class Decision:
    checkpoint: bool  # all ranks are to commit one
    kept: bool  # members that stay hold the state
    short: bool = False  # there is no time for the checkpoint that is wanted


def decide(members: Sequence[MemberState], save_seconds: float | None) -> Decision:
    """`save_seconds`: what a checkpoint takes, as far as is known."""
    all_leave = any(m.all_leave for m in members)
    kept = not all_leave and any(m.snapshot and not m.leaves for m in members)
    if kept:
        return Decision(checkpoint=False, kept=True)
    left = min((m.left for m in members if m.left is not None), default=float("inf"))
    short = save_seconds is not None and save_seconds * SPARE > left and any(m.snapshot for m in members)
    return Decision(checkpoint=not short, kept=False, short=short)


def agree(
    exchange: Exchange,
    mine: MemberState | None,
    *,
    node_rank: int,
    members: int,
    rank: int,
    save_seconds: float | None,
    timeout: float,
) -> tuple[MemberState, Decision]:
    """The state of this rank's member and what all ranks do, which rank 0 decides by its `save_seconds`.

    `mine` comes from each member's local rank 0 alone.
    """
    if mine is not None:
        exchange.put(f"left/{node_rank}", json.dumps(asdict(mine)).encode())
    if rank == 0:
        states = [MemberState(**json.loads(exchange.get(f"left/{i}", timeout))) for i in range(members)]
        exchange.put("left/decision", json.dumps(asdict(decide(states, save_seconds))).encode())
    decision = Decision(**json.loads(exchange.get("left/decision", timeout)))
    return MemberState(**json.loads(exchange.get(f"left/{node_rank}", timeout))), decision


class SaveTime:
    """How long a checkpoint takes in this run, as the last one did: known to the later generations of a member too."""

    def __init__(self, run_dir: Path) -> None:
        self._file = run_dir / _SECONDS
        self._began = 0.0
        known = read_json(self._file)
        self.seconds: float | None = known if isinstance(known, float) else None

    def begin(self) -> None:
        self._began = time.monotonic()

    def end(self) -> None:
        """The save that began last has been committed."""
        self.seconds = time.monotonic() - self._began
        with contextlib.suppress(OSError):  # a full tmpfs: an estimate less
            write_json(self._file, self.seconds)
