"""How large an object may be. Whoever may create one decides what is in it, and every reader pays for its size.

A schema of the CustomResourceDefinition cannot say all of it: free-form fields have no depth there.
"""

import json
import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from relight_operator.api.problems import Problem, join

MAX_DEPTH = 64  # mappings and lists in each other, from the object itself on
MAX_VALUES = 10_000  # entries of all mappings and lists of a spec together
MAX_TEXT = 65_536  # characters of one text, or of one name in a mapping
MAX_BYTES = 262_144  # of a spec as JSON, where every letter beyond ASCII takes six

# An environment variable, an argument or a path holds no U+0000, and UTF-8 no half of a pair of surrogates.
_UNFIT = re.compile("[\0\ud800-\udfff]")
_NO_TEXT = ("a character that no program can be given", "text without U+0000 and without single surrogates")

_Link = tuple[Any, int | str] | None  # the keys on the way to a value, the last one first


class Excess(NamedTuple):
    """The first bound that a value exceeds, and where."""

    loc: tuple[int | str, ...]
    message: str
    allowed: str

    def __str__(self) -> str:
        return f"{self.message}; allowed: {self.allowed}"


def excess(
    value: Any, *, depth: int = MAX_DEPTH, values: int = MAX_VALUES, text: int = MAX_TEXT, fit: bool = False
) -> Excess | None:
    """The first bound that the JSON value exceeds, None where it keeps them all. No recursion, and no more work than `values`.

    `fit`: characters that no program can be given are refused too.
    """
    count = 0
    stack: list[tuple[Any, int, _Link]] = [(value, 1, None)]
    while stack:
        found, level, link = stack.pop()
        if isinstance(found, str):
            if len(found) > text:
                return Excess(_loc(link), "too long", f"at most {text} characters")
            if fit and _UNFIT.search(found):
                return Excess(_loc(link), *_NO_TEXT)
            continue
        if not isinstance(found, (Mapping, list)):
            continue
        count += len(found)
        if level > depth:
            return Excess(_loc(link)[:8], "nested too deep", f"at most {depth} levels")
        if count > values:
            return Excess(_loc(link), "too many entries", f"at most {values} in all mappings and lists together")
        if isinstance(found, Mapping):
            for key, child in found.items():
                if len(key) > text:
                    return Excess(_loc(link), "a name that is too long", f"at most {text} characters")
                if fit and _UNFIT.search(key):
                    return Excess(_loc(link), *_NO_TEXT)
                stack.append((child, level + 1, (link, key)))
        else:
            stack += [(child, level + 1, (link, i)) for i, child in enumerate(found)]
    return None


def problem_of(spec: Any) -> Problem | None:
    """What is wrong with the size of a TrainingJob's spec, None where nothing is."""
    wrong = excess(spec, depth=MAX_DEPTH - 1, fit=True)  # the object around it is the first level
    if wrong is not None:
        allowed = f"at most {MAX_DEPTH} levels" if wrong.message == "nested too deep" else wrong.allowed
        return Problem(join("spec", wrong.loc), wrong.message, allowed=allowed)
    size = len(json.dumps(spec))
    if size > MAX_BYTES:
        return Problem("spec", "too large", found=f"{size} bytes of JSON", allowed=f"at most {MAX_BYTES}")
    return None


def _loc(link: _Link) -> tuple[int | str, ...]:
    keys = list[int | str]()
    while link is not None:
        link, key = link
        keys.append(key)
    return tuple(reversed(keys))
