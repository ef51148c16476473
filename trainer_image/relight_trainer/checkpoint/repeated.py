"""Flattening nearly the same state again and again: only what has changed is written as text anew."""

import json
from collections import OrderedDict
from functools import lru_cache
from json.encoder import encode_basestring_ascii as _text
from typing import Any, NamedTuple, Protocol

import torch

from relight_trainer.checkpoint import tagged
from relight_trainer.checkpoint.container import State, checked, flatten
from relight_trainer.checkpoint.live import Live, Place

_EXACT = 2**53  # beyond it, integers have a tag
_LEAVES = {int, float, bool, str, type(None), torch.Tensor, torch.nn.Parameter}
_GAP = "\0"  # stands for a number while text is made
_Paths = list[tagged.Path]
_Tensors = list[torch.Tensor]


class Flat(NamedTuple):
    """What `container.flatten` gives, with the text as a JSON string: each part of it is quoted once."""

    quoted: str
    paths: _Paths
    tensors: _Tensors


class _Section(Protocol):
    """A top-level entry of the state."""

    quoted: str  # without the quotes around it
    paths: _Paths
    tensors: _Tensors

    def still(self, value: Any, base: int) -> bool:
        """Bring `quoted` up to date for `value`, with `base` tensors before its own. False: make another section."""


class Flattener:
    """`container.flatten` for a state whose top-level entries mostly stay as they are.

    An entry may be a `Live` state in the place of what its `state_dict()` gives: it tells itself what has changed. Others
    count as unchanged where they equal what they were. Comparing goes by identity first, so tensors that are the same
    objects cost nothing, and others are different (their comparison is a tensor, not an answer).
    """

    def __init__(self) -> None:
        self._sections: dict[str, _Section] = {}
        self._names: dict[str, str] = {}  # of sections, as JSON
        self._paths: _Paths = []
        self._tensors: _Tensors = []
        self._made = False  # whether the two are of sections that are no more

    def __call__(self, state: State) -> Flat:
        if state.keys() != self._names.keys():
            if any(type(key) is not str or key[:1] == "$" for key in state):
                plain = {key: v.state_dict() if isinstance(v, Live) else v for key, v in state.items()}
                text, paths, tensors = flatten(plain)
                return Flat(_text(text), paths, tensors)
            self._names = {key: json.dumps(key) for key in state}
            self._sections = {}
        sections = self._sections
        texts: list[str] = []
        base = 0
        for key, value in state.items():
            section = sections.get(key)
            if section is None or not section.still(value, base):
                self._made = True  # until it is looked at below, also where a later entry cannot be saved
                section = sections[key] = _section(key, f"{self._names[key]}:", value, base)
            texts.append(section.quoted)
            base += len(section.tensors)
        if self._made:
            self._paths = [path for key in state for path in sections[key].paths]
            self._tensors = [tensor for key in state for tensor in sections[key].tensors]
            self._made = False
        return Flat(f'"{{{",".join(texts)}}}"', self._paths, self._tensors)


def _section(key: str, name: str, value: Any, base: int) -> _Section:
    if type(value) is not dict and isinstance(value, Live):
        return _OfLive(key, name, value, base)
    plain = _plain_items(value)
    return _OfValue(key, name, value, base) if plain is None else _OfNumbers(name, *plain)


class _OfNumbers:
    """Counters and metrics, which change in each step."""

    def __init__(self, name: str, value: dict[str, Any], texts: dict[str, str]) -> None:
        self.paths: _Paths = []
        self.tensors: _Tensors = []
        self._name = name
        self._value = value
        self._texts = texts
        self.quoted = self._quoted()

    def still(self, value: Any, base: int) -> bool:  # noqa: ARG002  # none of its numbers is a tensor's
        seen = self._value
        if value == seen:
            return True
        if type(value) is not dict or value.keys() != seen.keys():
            return False
        for key, item in value.items():
            if item != seen[key]:
                plain = _plain(item)
                if plain is None:
                    return False
                seen[key], text = plain
                self._texts[key] = f"{_quoted(key)}:{text}"
        self.quoted = self._quoted()
        return True

    def _quoted(self) -> str:
        return _inside(f"{self._name}{{{','.join(self._texts.values())}}}")


class _OfValue:
    """Any value, kept to be compared."""

    def __init__(self, key: str, name: str, value: Any, base: int) -> None:
        text, self.paths, self.tensors = _flat(key, value, base)
        self.quoted = _inside(name + text)
        self._base = base
        try:
            self._value = _kept(value)
            self._comparable = True
        except TypeError:  # something that may change in place
            self._comparable = False

    def still(self, value: Any, base: int) -> bool:
        if not self._comparable or base != self._base:
            return False
        try:
            return bool(self._value == value)
        except (RuntimeError, ValueError):  # tensors that are not the same objects
            return False


class _OfLive:
    """What a live state gave last, as text with gaps for its numbers."""

    def __init__(self, key: str, name: str, live: Live, base: int) -> None:
        state = live.gapped(live.state_dict(), _GAP)
        text, self.paths, self.tensors = _flat(key, state, base)
        between = (name + text).split(json.dumps(_GAP))
        self._pieces = [between[0]]
        self._places: dict[Place, int] = {}  # in the pieces
        for (place, number), after in zip(live.numbers(), between[1:], strict=True):
            self._places[place] = len(self._pieces)
            self._pieces += [tagged.dumps(number), after]
        self.quoted = _inside("".join(self._pieces))
        self._live = live
        self._base = base

    def still(self, value: Any, base: int) -> bool:
        if value is not self._live or base != self._base:
            return False
        if value.same():
            return True
        numbers = value.changed()
        if numbers is None:
            return False
        for place, number in numbers.items():
            self._pieces[self._places[place]] = tagged.dumps(number)
        self.quoted = _inside("".join(self._pieces))
        return True


def _flat(key: str, value: Any, base: int) -> tuple[str, _Paths, _Tensors]:
    paths: _Paths = []
    tensors: _Tensors = []

    def reference(tensor: torch.Tensor, path: tagged.Path) -> int:
        paths.append(path)
        tensors.append(checked(tensor, path))
        return base + len(tensors) - 1

    return tagged.dumps(value, reference, (None, key)), paths, tensors


_quoted = lru_cache(1024)(_text)


def _inside(text: str) -> str:
    """What stands between the quotes where `text` is a JSON string."""
    return _text(text)[1:-1]


def _plain(value: Any) -> tuple[Any, str] | None:
    """A copy of `value` and its text, where it is a number, a text or a dict of such that needs no tag; else None."""
    kind = type(value)
    if kind is int or kind is float:
        return (value, repr(value)) if -_EXACT < value < _EXACT else None  # NaN compares as false
    if kind is str:
        return value, _text(value)
    if kind is bool or value is None:
        return value, json.dumps(value)
    items = _plain_items(value)
    return items and (items[0], "{" + ",".join(items[1].values()) + "}")


def _plain_items(value: Any) -> tuple[dict[str, Any], dict[str, str]] | None:
    """A copy of `value`, a dict, and the text of each of its items, where these need no tag; else None."""
    if type(value) is not dict:
        return None
    copy: dict[str, Any] = {}
    texts: dict[str, str] = {}
    for key, item in value.items():
        plain = None if type(key) is not str or key[:1] == "$" else _plain(item)
        if plain is None:
            return None
        copy[key] = plain[0]
        texts[key] = f"{_quoted(key)}:{plain[1]}"
    return copy, texts


def _kept(value: Any) -> Any:
    """`value` with containers of its own. Raises TypeError for what is neither a container nor unchangeable."""
    kind = type(value)
    if kind in _LEAVES:
        return value
    if kind is dict or kind is OrderedDict:
        return kind((key, _kept(item)) for key, item in value.items())
    if kind is list or kind is tuple:
        return kind(map(_kept, value))
    raise TypeError(kind)
