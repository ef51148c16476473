"""Patterns of dotted names. Standard library only."""

from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from fnmatch import fnmatchcase


def fits(name: str, pattern: str) -> bool:
    """Whether a dotted name, or what holds it, is meant by `pattern`.

    `*` stands for any text, dots too; `*.` in front also for nothing, so that it reaches the top level.

    >>> [fits(name, "*.bn1") for name in ("layer1.0.bn1.weight", "bn1.weight", "conv1.weight")]
    [True, True, False]
    """
    shapes = [pattern, pattern.removeprefix("*.")]
    return any(fnmatchcase(head, shape) for head in _heads(name) for shape in shapes)


def chosen(names: Iterable[str], patterns: Sequence[str]) -> list[str]:
    """Those of `names` that fit one of `patterns`."""
    return [name for name in names if any(fits(name, pattern) for pattern in patterns)]


def near(names: Iterable[str], pattern: str, count: int = 5) -> list[str]:
    """The names, and what holds them, that `pattern` was most probably meant for; where none is near, the first."""
    heads = list(dict.fromkeys(head for name in names for head in _heads(name)))
    plain = pattern.replace("*", "").strip(".")
    return get_close_matches(plain, heads, n=count, cutoff=0.5) or heads[:count]


def _heads(name: str) -> list[str]:
    parts = name.split(".")
    return [".".join(parts[: n + 1]) for n in range(len(parts))]
