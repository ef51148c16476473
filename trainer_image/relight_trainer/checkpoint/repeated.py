"""Flattening nearly the same state again and again: only what has changed is written as text anew."""

import json
from collections import OrderedDict
from typing import Any, NamedTuple

import torch

from relight_trainer.checkpoint import tagged
from relight_trainer.checkpoint.container import State, checked, flatten

_EXACT = 2**53  # beyond it, integers have a tag
_LEAVES = {int, float, bool, str, type(None), torch.Tensor, torch.nn.Parameter}


class _Section(NamedTuple):
    value: Any  # as it was: its containers are copies, its tensors are not
    base: int  # tensors before its own
    text: str
    paths: list[tagged.Path]
    tensors: list[torch.Tensor]


class Flattener:
    """`container.flatten` for a state whose top-level entries mostly stay as they are.

    An entry counts as unchanged where it equals what it was. Comparing goes by identity first, so tensors that are the
    same objects cost nothing, and others are different (their comparison is a tensor, not an answer).
    """

    def __init__(self) -> None:
        self._sections: dict[str, _Section] = {}
        self._names: dict[str, str] = {}  # of sections, as JSON

    def __call__(self, state: State) -> tuple[str, list[tagged.Path], list[torch.Tensor]]:
        if state.keys() != self._names.keys():
            if any(type(key) is not str or key[:1] == "$" for key in state):
                return flatten(state)
            self._names = {key: json.dumps(key) for key in state}
        texts: list[str] = []
        paths: list[tagged.Path] = []
        tensors: list[torch.Tensor] = []
        for key, value in state.items():
            section = self._sections.get(key)
            if section is None or section.base != len(tensors) or not _equal(section.value, value):
                section = self._flatten(key, value, len(tensors))
            texts.append(section.text)
            paths += section.paths
            tensors += section.tensors
        return "{" + ",".join(texts) + "}", paths, tensors

    def _flatten(self, key: str, value: Any, base: int) -> _Section:
        if (plain := _copied(value)) is not None:  # counters and metrics, which change in each step
            section = _Section(plain, base, f"{self._names[key]}:{tagged.plain(plain)}", [], [])
            self._sections[key] = section
            return section
        paths: list[tagged.Path] = []
        tensors: list[torch.Tensor] = []

        def reference(tensor: torch.Tensor, path: tagged.Path) -> int:
            paths.append(path)
            tensors.append(checked(tensor, path))
            return base + len(tensors) - 1

        text = f"{self._names[key]}:{tagged.dumps(value, reference, (None, key))}"
        self._sections.pop(key, None)
        section = _Section(None, base, text, paths, tensors)
        try:
            self._sections[key] = section._replace(value=_kept(value))
        except TypeError:  # something that may change in place
            pass
        return section


def _copied(value: Any) -> dict[str, Any] | None:
    """A copy of `value`, a dict of numbers, texts and such dicts that tagged JSON writes as they are; else None."""
    if type(value) is not dict:
        return None
    copy: dict[str, Any] = {}
    for key, item in value.items():
        if type(key) is not str or key[:1] == "$":
            return None
        kind = type(item)
        if kind is int or kind is float:
            if not -_EXACT < item < _EXACT:  # NaN compares as false
                return None
            copy[key] = item
        elif kind is str or kind is bool or item is None:
            copy[key] = item
        elif (inner := _copied(item)) is not None:
            copy[key] = inner
        else:
            return None
    return copy


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


def _equal(one: Any, other: Any) -> bool:
    try:
        return bool(one == other)
    except (RuntimeError, ValueError):  # tensors that are not the same objects
        return False
