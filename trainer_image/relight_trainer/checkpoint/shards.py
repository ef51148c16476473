"""A checkpoint's content as files: a replicated state split over the ranks, and what each rank has for itself."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from relight_trainer.checkpoint.container import Head, Layout, State, entries_of, flatten, pack, rebuild
from relight_trainer.checkpoint.memory import bytes_of

Memory = dict[int, torch.Tensor]  # by entry

STATE = "state.json"
_OWN = "own-"
_SCHEMA = 1


class Content:
    """The files of a state. Every rank of a replicated state computes the same split."""

    def __init__(self, state: State, own: State | None = None) -> None:
        """`own`: this rank's state beside what all ranks share; copied here. Raises `UnsupportedState`."""
        self.own = pack(own) if own is not None else None
        self._text, paths, self._tensors = flatten(state)
        self._layout = Layout.of(paths, self._tensors)
        self._held: dict[int, torch.Tensor] = {}

    @property
    def size(self) -> int:
        """Bytes of all tensors, over all ranks together."""
        return sum(entry.bytes for entry in self._layout.entries)

    def hold(self, rank: int, world: int, memory: Memory) -> "Content":
        """Copy what `shard(rank, world)` will write into `memory`, so that the state may change from now on."""
        for i in self._mine(rank, world):
            self._held[i] = self._room(i, memory).copy_(self._layout.source(i, self._tensors).detach())
        self._tensors = []
        return self

    def make_room(self, rank: int, world: int, memory: Memory) -> None:
        """What `hold` will copy into: pages that a process has not used before cost more than the copy."""
        for i in self._mine(rank, world):
            self._room(i, memory).zero_()

    def _room(self, i: int, memory: Memory) -> torch.Tensor:
        source, room = self._layout.source(i, self._tensors).detach(), memory.get(i)
        if room is None or _shape(room) != _shape(source):
            room = memory[i] = torch.empty_like(source, device="cpu", memory_format=torch.preserve_format)
        return room

    @property
    def layout_digest(self) -> str:
        """Equal on all ranks, or their states are not one state."""
        text = json.dumps([self._layout.entries, self._layout.views_json()])
        return hashlib.sha256(text.encode()).hexdigest()

    def shard(self, rank: int, world: int) -> Iterator[bytes | memoryview]:
        """The parts of one rank's safetensors file."""
        entries = self._layout.entries
        mine = self._mine(rank, world)
        yield Head((entries[i] for i in mine), {}).bytes("")
        for i in mine:
            source = self._held[i] if i in self._held else self._layout.source(i, self._tensors).cpu()
            yield bytes_of(source)

    def document(self) -> bytes:
        """All that is not a tensor, and how the entries make tensors."""
        views = json.dumps(self._layout.views_json(), separators=(",", ":"))
        return f'{{"schema":{_SCHEMA},"views":{views},"state":{self._text}}}'.encode()

    def _mine(self, rank: int, world: int) -> list[int]:
        return split([entry.bytes for entry in self._layout.entries], world)[rank]


def _shape(tensor: torch.Tensor) -> tuple[object, ...]:
    return tensor.dtype, tensor.shape, tensor.stride()


def shard_name(rank: int, world: int) -> str:
    """The file of one rank.

    >>> shard_name(0, 4)
    'shard-0-of-4.safetensors'
    """
    return f"shard-{rank}-of-{world}.safetensors"


def own_name(rank: int, world: int) -> str:
    """The file of what one rank has for itself.

    >>> own_name(0, 4)
    'own-0-of-4.safetensors'
    """
    return f"{_OWN}{rank}-of-{world}.safetensors"


def is_own(file: str) -> bool:
    """Whether a checkpoint's file holds what one rank has for itself."""
    return file.startswith(_OWN)


def load(files: Mapping[str, memoryview]) -> State:
    """The state of a checkpoint's files, which have been verified. Raises `ValueError`."""
    document: Any = json.loads(bytes(files[STATE]))
    entries: dict[str, memoryview] = {}
    for name, data in files.items():
        if name != STATE and not is_own(name):
            entries |= entries_of(data)[1]
    return rebuild(document["state"], document["views"], entries)


def split(sizes: Sequence[int], parts: int) -> list[list[int]]:
    """Indices of `sizes` in `parts` of nearly equal sum: the largest first, each to whoever has least.

    >>> split([5, 3, 3, 2], 2)
    [[0, 3], [1, 2]]
    """
    result: list[list[int]] = [[] for _ in range(parts)]
    loads = [0] * parts
    for i in sorted(range(len(sizes)), key=lambda i: (-sizes[i], i)):
        least = loads.index(min(loads))
        result[least].append(i)
        loads[least] += sizes[i]
    # In the order of the entries, whose alignment falls, so that each stays aligned.
    return [sorted(part) for part in result]
