"""A folder of checksummed checkpoints for a script or notebook without a job."""

import itertools
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import torch.distributed as dist
from torch.distributed import PrefixStore  # type: ignore[attr-defined]  # torch does not list its exports

from relight_trainer.checkpoint import Checkpoint, CheckpointFolder, Exchange
from relight_trainer.checkpoint.manifest import read_manifest
from relight_trainer.checkpoint.place import place_of
from relight_trainer.equality.compare import Difference, ObjectDigest, differing, explain
from relight_trainer.equality.reading import Reading
from relight_trainer.peers import StoreExchange
from relight_trainer.restore import RanksDiffer

_OWNER = "library"  # in place of a job's uid and configuration
_TIMEOUT_SECONDS = 1800.0
_instances = itertools.count()


class Stateful(Protocol):
    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Any, /) -> Any: ...


class Checkpoints:
    """Checkpoints in `folder`, a path or a URL that fsspec knows: committed whole or not at all, verified when read.

    Where there is a default process group, all ranks make the same calls in the same order with equal state, the folder
    is shared by them, and each rank writes its share. The newest `keep` checkpoints are kept, at least two. One program
    writes at a time: once a newer program has begun, `save` of the older one raises Fenced. `say` receives messages, such
    as which damaged checkpoint was set aside.
    """

    def __init__(self, folder: str | Path, *, keep: int = 3, say: Callable[[str], None] = print) -> None:
        grouped = dist.is_available() and dist.is_initialized()
        self._rank = dist.get_rank() if grouped else 0
        self._world = dist.get_world_size() if grouped else 1
        self._place = place_of(folder)
        self._folder = CheckpointFolder(folder, job_uid=_OWNER, created=0.0, config_hash=_OWNER, keep=keep, say=say)
        self._exchange: Exchange = _of_group(next(_instances)) if grouped else _OneRank()
        self._generation: int | None = None
        self._begun = 0
        self._compared = 0

    def load(self, objects: Mapping[str, Stateful]) -> int | None:
        """Load the newest checkpoint that verifies into `objects`; its step, None where there is no checkpoint.

        Nothing is loaded where it raises: KeyError where the checkpoint lacks one of the names, NoUsableCheckpoint where
        every checkpoint is damaged, StorageFailed.
        """
        newest = self._begin()
        if newest is None:
            return None
        state = self._folder.load(newest)
        if missing := sorted(objects.keys() - state.keys()):
            raise KeyError(f"{newest.path} lacks {', '.join(missing)}; it holds {', '.join(sorted(state))}")
        for name, stateful in objects.items():
            stateful.load_state_dict(state[name])
        return newest.position.step

    def save(self, objects: Mapping[str, Stateful], step: int) -> Path | str:
        """Write a checkpoint of `objects` after `step` steps; its path, once it is committed.

        Raises RanksDiffer where the ranks' states are not equal: each rank would write a part of another state. Raises
        StorageFailed, UnsupportedState where a state cannot be saved, and Fenced.
        """
        if self._generation is None:
            self._begin()
        assert self._generation is not None
        self._refuse_different_states(objects, step)
        state = {name: stateful.state_dict() for name, stateful in objects.items()}
        saved = self._folder.save(
            state,
            generation=self._generation,
            step=step,
            cursor={"step": step},
            final=False,
            rank=self._rank,
            world=self._world,
            exchange=self._exchange,
        )
        return saved.path if isinstance(saved.path, Path) else str(saved.path)

    def _refuse_different_states(self, objects: Mapping[str, Stateful], step: int) -> None:
        if self._world == 1:
            return
        self._compared += 1
        key = f"equal-{self._compared}"
        mine = Reading(objects).result()
        if self._rank == 0:
            states = [
                mine,
                *(_digests(self._exchange.get(f"{key}/{r}", _TIMEOUT_SECONDS)) for r in range(1, self._world)),
            ]
            shorts = [{name: digest.short for name, digest in state.items()} for state in states]
            found = [explain(name, rank, mine.get(name), states[rank].get(name)) for name, rank in differing(shorts)]
            self._exchange.put(f"{key}/found", json.dumps([one.dump() for one in found]).encode())
        else:
            dumped = {name: digest.dump().decode() for name, digest in mine.items()}
            self._exchange.put(f"{key}/{self._rank}", json.dumps(dumped).encode())
            found = [Difference.load(one) for one in json.loads(self._exchange.get(f"{key}/found", _TIMEOUT_SECONDS))]
        if found:
            raise RanksDiffer(
                f"no checkpoint of step {step}: rank {found[0].rank} and rank 0 hold different values in {found[0]}; all "
                "ranks must hold the same state, as DistributedDataParallel keeps it"
            )

    def _begin(self) -> Checkpoint | None:
        """Shut out older programs. The newest checkpoint, the same on every rank."""
        self._begun += 1
        key = f"begin-{self._begun}"
        if self._rank == 0:
            try:
                newest = self._folder.newest()
                if self._generation is None:
                    self._generation = newest.position.generation + 1 if newest is not None else 1
                    self._folder.begin_generation(self._generation)
            except Exception as error:
                self._exchange.put(key, json.dumps({"error": f"rank 0: {error}"}).encode())
                raise
            name = newest.path.name if newest is not None else None
            self._exchange.put(key, json.dumps({"generation": self._generation, "newest": name}).encode())
            return newest
        said = json.loads(self._exchange.get(key, _TIMEOUT_SECONDS))
        if "error" in said:
            raise RuntimeError(said["error"])
        self._generation = said["generation"]
        return read_manifest(self._place, said["newest"]) if said["newest"] is not None else None


def _digests(data: bytes) -> dict[str, ObjectDigest]:
    return {name: ObjectDigest.load(digest.encode()) for name, digest in json.loads(data).items()}


class _OneRank:
    """The exchange of a program of one rank, which has nobody to exchange with."""

    def put(self, key: str, value: bytes) -> None: ...

    def get(self, key: str, timeout: float) -> bytes:  # noqa: ARG002
        raise AssertionError(f"one rank waits for {key}, which no other rank puts")


def _of_group(number: int) -> StoreExchange:
    store = dist.distributed_c10d._get_default_store()  # noqa: SLF001  # torch has no public name for it
    return StoreExchange(PrefixStore(f"relight/library/{number}", store))
