"""Training state: as bytes, in a machine's memory (snapshots), in durable storage (checkpoints), as a digest.

    pack(state) -> bytearray                       one container; unpack(buffer) -> state
    Snapshots(folder, job_uid=, config_hash=)
        .write(state, generation=, step=)          raises SnapshotsOff where two states do not fit; a `Live` state may
                                                   stand for what its state_dict() gives
        .newest() -> Position | None
        .read() -> memoryview                      what unpack() takes; writable, private, valid until the second
                                                   write() after it
    CheckpointFolder(folder, job_uid=, created=, config_hash=, keep=3, best=None, say=print)
                                                   `folder`: a path, or a URL that fsspec knows
        .begin_generation(generation)              rank 0, once, before newest()
        .newest(newer_than=None) -> Checkpoint | None      rank 0; `newer_than`: a Position somebody holds already,
                                                   so that nothing older is read for nothing
        .load(checkpoint) -> state
        .save(state, generation=, step=, cursor=, final=, rank=, world=, exchange=) -> Checkpoint     all ranks
    Saver(folder, exchange, agree=, rank=, world=, timeout=, say=)     when they are written: due(), now(), poll(), wait()
    Checkpoint: path, created, position, final, cursor, world
    Best(metric, mode="max", keep=1)               what retention keeps beside the newest
    Exchange: put(key, value), get(key, timeout)
    weights_digest([(name, tensor), ...]) -> str   64 hexadecimal digits
    weights_of(module) -> those pairs

`state` is a tree of dicts, lists, tuples and plain values with tensors in it. Tensors come back on the CPU.
All errors are `errors.CheckpointError`s with an `exit_code`.
"""

from relight_trainer.checkpoint.container import State, pack, unpack
from relight_trainer.checkpoint.digest import weights_digest, weights_of
from relight_trainer.checkpoint.errors import (
    CheckpointError,
    ConfigChanged,
    Fenced,
    NoUsableCheckpoint,
    SnapshotsOff,
    StorageFailed,
    UnsupportedState,
)
from relight_trainer.checkpoint.exchange import Exchange
from relight_trainer.checkpoint.folder import CheckpointFolder
from relight_trainer.checkpoint.live import Live, live
from relight_trainer.checkpoint.manifest import Checkpoint, Position
from relight_trainer.checkpoint.retention import Best
from relight_trainer.checkpoint.saver import Saver
from relight_trainer.checkpoint.snapshots import Snapshots

__all__ = [
    "Best",
    "Checkpoint",
    "CheckpointError",
    "CheckpointFolder",
    "ConfigChanged",
    "Exchange",
    "Fenced",
    "Live",
    "NoUsableCheckpoint",
    "Position",
    "Saver",
    "Snapshots",
    "SnapshotsOff",
    "State",
    "StorageFailed",
    "UnsupportedState",
    "live",
    "pack",
    "unpack",
    "weights_digest",
    "weights_of",
]
