"""A packed state and the digests of its parts, to find where two such states differ.

Digests are of values: bytes that lie between tensors of one piece of memory, and belong to none, are no part of them.
Nor is what each rank notes for itself in the loop's cursor.
"""

import hashlib
import json
import os
from collections.abc import Callable, Container, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any, NamedTuple

import torch

from relight_trainer.checkpoint import tagged
from relight_trainer.checkpoint.container import Layout, State, entries_of, flatten, head_of, rebuild
from relight_trainer.checkpoint.errors import UnsupportedState
from relight_trainer.checkpoint.memory import Buffer, bytes_of

Digests = dict[str, str]  # by name: of entries, and of objects (their numbers and names)
_SHARED_SIZE = 1 << 16  # bytes of an entry from which it is worth while to look whether the receiver has it
_OF_EACH_RANK = frozenset({"metrics", "last_batch"})  # of the loop's cursor: what a rank logs, and what it was fed
_TEXT = " (all but its tensors)"


class Packed:
    """What `pack` gives, and `Snapshots.read`; or the same size of memory that is being filled with that.

    Digests are computed when they are asked for first.
    """

    def __init__(self, memory: Buffer, *, threads: int = 1) -> None:
        self.memory = memoryview(memory).cast("B")
        self.head = head_of(self.memory)
        self._metadata, self.entries = entries_of(self.memory)
        self._threads = threads
        self._known: Digests = {}
        self._elsewhere: set[str] = set()
        self._owners: list[object] = []
        self._digests: Digests | None = None

    @property
    def digests(self) -> Digests:
        """In the order of the objects, then of the entries in memory."""
        if self._digests is None:
            self._digests = self._computed()
        return self._digests

    @property
    def digest(self) -> bytes:
        """32 bytes of all of it."""
        return hashlib.sha256(json.dumps(list(self.digests.items())).encode()).digest()

    def is_dense(self, name: str) -> bool:
        """Whether an entry is one tensor's values from its first byte to its last."""
        forms = self._views.get(name, [])
        if not forms or any(form != forms[0] for form in forms):
            return False
        _, dtype, sizes, _, _ = forms[0]
        return torch.Size(sizes).numel() * tagged.dtype_of(dtype).itemsize == len(self.entries[name])

    def without_text(self, objects: Container[str]) -> Digests:
        """The digests, but for what is not a tensor of `objects`."""
        return {n: d for n, d in self.digests.items() if not (n.endswith(_TEXT) and n.removesuffix(_TEXT) in objects)}

    def lies_in(self, name: str, memory: memoryview, digest: str, owner: object) -> None:
        """Entry `name` is not in this state's own memory, but in another piece of the same size, which is `owner`'s."""
        self._owners.append(owner)
        self.entries[name] = memory
        self._elsewhere.add(name)
        self._known[name] = digest

    def runs(self, wanted: Sequence[bool]) -> list[memoryview]:
        """The memory of those entries that are `wanted`, in the order of `entries`; neighbours in memory as one."""
        found: list[memoryview] = []
        start = end = len(self.head)
        for (name, entry), is_wanted in zip(self.entries.items(), wanted, strict=True):
            if not is_wanted or name in self._elsewhere:
                found += [self.memory[start:end], *([entry] if is_wanted else [])]
                start = end + len(entry)
            end += len(entry)
        return [run for run in [*found, self.memory[start:end]] if run]

    def unpacked(self, lent: Container[str] = frozenset()) -> State:
        """The state, as `unpack` gives it."""
        return rebuild(self._document(), json.loads(self._metadata["relight.views"]), self.entries, lent)

    @cached_property
    def _views(self) -> dict[str, list[Any]]:
        by_name: dict[str, list[Any]] = {}
        for view in json.loads(self._metadata["relight.views"]):
            by_name.setdefault(view[0], []).append(view)
        return by_name

    def _computed(self) -> Digests:
        views = self._views
        found = {f"{key}{_TEXT}": _text_digest(key, value) for key, value in self._document().items()}

        def digest(name: str) -> str:
            if name in self._known:
                return self._known[name]
            if self.is_dense(name):
                return hashlib.sha256(self.entries[name]).hexdigest()
            return _of_values(self.entries[name], views.get(name, []))

        # The largest first, so that threads end together. hashlib computes without Python's lock.
        names = sorted(self.entries, key=lambda name: -len(self.entries[name]))
        with ThreadPoolExecutor(self._threads) as pool:
            by_name = dict(zip(names, pool.map(digest, names), strict=True))
        return {**found, **{name: by_name[name] for name in self.entries}}

    def _document(self) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self._metadata["relight.state"])
        return document


class Difference(NamedTuple):
    """Where the state of one rank differs from the first rank's first."""

    rank: int
    object: str
    tensor: str  # "" where its tensors are the same

    def __str__(self) -> str:
        where = f"tensor {self.tensor}" if self.tensor else "values outside its tensors"
        return f"rank {self.rank}, object {self.object}, {where}"


def difference(digests: Sequence[Mapping[str, str]]) -> Difference | None:
    """The first of it between the ranks' digests, which are in the order of the ranks; None for none.

    >>> str(difference([{"model.w": "1", "model.b": "2"}, {"model.w": "1", "model.b": "3"}]))
    'rank 1, object model, tensor b'
    """
    first = digests[0]
    for rank, other in enumerate(digests):
        for name in [*first, *other]:
            if first.get(name) != other.get(name):
                return Difference(rank, *_object_and_tensor(name))
    return None


class Own:
    """The large tensors that this rank has built for itself: what is the same in a state need not be sent to it."""

    def __init__(self, state: Callable[[], State], *, threads: int = 1) -> None:
        self._state = state
        self._threads = threads
        self._found: dict[str, tuple[str, memoryview]] | None = None
        self._kept: list[torch.Tensor] = []  # the memory of what has been found

    def prepare(self) -> dict[str, tuple[str, memoryview]]:
        """Compute the digests now."""
        if self._found is None:
            self._found = self._digests()
        return self._found

    def same(self, name: str, digest: str) -> memoryview | None:
        """The bytes of entry `name` where they have this digest."""
        found = self.prepare().get(name)
        return found[1] if found is not None and found[0] == digest else None

    def _digests(self) -> dict[str, tuple[str, memoryview]]:
        try:
            _, paths, tensors = flatten(self._state())
            layout = Layout.of(paths, tensors)
        except UnsupportedState:  # a lazy module: there is nothing yet that could be the same
            return {}
        large = [
            i
            for i, (entry, source) in enumerate(zip(layout.entries, layout.sources, strict=True))
            if source.span is None and entry.bytes >= _SHARED_SIZE
        ]
        self._kept = [layout.source(i, tensors).detach().cpu() for i in large]
        memory = [bytes_of(tensor) for tensor in self._kept]
        with ThreadPoolExecutor(self._threads) as pool:
            digests = pool.map(lambda data: hashlib.sha256(data).hexdigest(), memory)
            return {
                layout.entries[i].name: (digest, data) for i, digest, data in zip(large, digests, memory, strict=True)
            }


def threads_for(local_world: int) -> int:
    """How many a rank may compute digests with, among `local_world` of its machine."""
    return max(1, min(8, len(os.sched_getaffinity(0)) // local_world))


def _text_digest(key: str, value: Any) -> str:
    if key == "loop" and isinstance(value, dict):
        value = {name: item for name, item in value.items() if name not in _OF_EACH_RANK}
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def _of_values(entry: memoryview, views: list[Any]) -> str:
    digest = hashlib.sha256()
    for _, dtype, sizes, strides, offset in views:
        values = torch.empty(0, dtype=tagged.dtype_of(dtype))
        if len(entry):
            values = values.set_(torch.frombuffer(entry, dtype=torch.uint8).untyped_storage(), offset, sizes, strides)
        digest.update(f"{dtype} {sizes}\0".encode())
        values = values.contiguous()  # named, since it owns the memory
        digest.update(bytes_of(values))
    return digest.hexdigest()


def _object_and_tensor(name: str) -> tuple[str, str]:
    if name.endswith(_TEXT):
        return name.removesuffix(_TEXT), ""
    at = min((i for i in (name.find("."), name.find("[")) if i > 0), default=len(name))
    return name[:at], name[at:].removeprefix(".")
