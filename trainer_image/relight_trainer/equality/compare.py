"""Finds the differences between the digests of all ranks. Pure."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

STEP = "step"  # the one thing compared that is no object
_SHOWN = 60  # characters of a value


class TensorDigest(NamedTuple):
    name: str  # in the object's state
    kind: str  # dtype and shape
    lane_0: int
    lane_1: int


@dataclass(frozen=True)
class ObjectDigest:
    """One object's state on one rank."""

    short: str  # of all that follows
    text: str  # tagged JSON of what is not a tensor
    tensors: Sequence[TensorDigest]

    def dump(self) -> bytes:
        return json.dumps([self.short, self.text, self.tensors]).encode()

    @classmethod
    def load(cls, data: bytes) -> "ObjectDigest":
        short, text, tensors = json.loads(data)
        return cls(short, text, [TensorDigest(*t) for t in tensors])


@dataclass(frozen=True)
class Difference:
    """An object that is another one on `rank` than on rank 0."""

    rank: int
    name: str  # of the object
    place: str = ""  # the first tensor or value in its state that differs, "" where none can be named
    what: str = ""  # how, "" where there is no more to say
    tensors: tuple[str, ...] = ()  # the names of all tensors that differ

    def __str__(self) -> str:
        place = f", first in {self.place}" if self.place else ""
        return f"{self.name}{place}{f' ({self.what})' if self.what else ''}"

    def dump(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def load(cls, value: Mapping[str, Any]) -> "Difference":
        return cls(**{**value, "tensors": tuple(value["tensors"])})


def differing(summaries: Sequence[Mapping[str, str]]) -> list[tuple[str, int]]:
    """The name of each object that differs between ranks, and the first rank on which it differs from rank 0.

    `summaries` are by rank, each by object.

    >>> differing([{"model": "a", "optimizer": "b"}, {"model": "a", "optimizer": "c"}])
    [('optimizer', 1)]
    """
    first = summaries[0]
    names = [*first, *(name for summary in summaries for name in summary if name not in first)]
    found = []
    for name in dict.fromkeys(names):
        ranks = [rank for rank, summary in enumerate(summaries) if summary.get(name) != first.get(name)]
        if ranks:
            found.append((name, ranks[0]))
    return found


def explain(name: str, rank: int, mine: ObjectDigest | None, other: ObjectDigest | None) -> Difference:
    """What differs in object `name` between rank 0 (`mine`) and `rank`; None where a rank has no such object."""
    if mine is None or other is None:
        without = 0 if mine is None else rank
        return Difference(rank, name, what=f"rank {without} was given no object of this name")
    ours, theirs = ({t.name: t for t in o.tensors} for o in (mine, other))
    names = [n for n in dict.fromkeys([*ours, *theirs]) if ours.get(n) != theirs.get(n)]
    if names:
        here, there = ours.get(names[0]), theirs.get(names[0])
        what = ""
        if here is None or there is None:
            what = f"rank {0 if here is None else rank} has no such tensor"
        elif here.kind != there.kind:
            what = f"{here.kind} on rank 0, {there.kind} on rank {rank}"
        return Difference(rank, name, names[0], what, tuple(names))
    place, here_text, there_text = _first(json.loads(mine.text), json.loads(other.text), "")
    return Difference(rank, name, place, f"{here_text} on rank 0, {there_text} on rank {rank}")


def _first(one: Any, other: Any, path: str) -> tuple[str, str, str]:
    """(place, one's value, the other's) of the first difference in two JSON documents that differ."""
    if isinstance(one, dict) and isinstance(other, dict):
        keys = [k for k in dict.fromkeys([*one, *other]) if one.get(k, _NONE) != other.get(k, _NONE)]
        if keys:
            key = keys[0]
            # A tag is how a value is written, not a part of where it stands.
            inner = path if key.startswith("$") or not key else f"{path}.{key}" if path else key
            return _first(one.get(key, _NONE), other.get(key, _NONE), inner)
        return path, "keys in one order", "in another"
    if isinstance(one, list) and isinstance(other, list) and len(one) == len(other):
        for i, (a, b) in enumerate(zip(one, other, strict=True)):
            if a != b:
                return _first(a, b, f"{path}[{i}]")
    return path, _shown(one), _shown(other)


_NONE: Any = object()


def _shown(value: Any) -> str:
    text = "nothing" if value is _NONE else json.dumps(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."
