"""An API server's answers as Python values, whatever stands in them: one object that cannot be read costs no other.

The objects of a list are parsed one after the other, and `keep` says what stays of each, so that no more than one whole
object is in memory at a time. An object that is nested so deep that Python's parser gives up is cut at `CUT_DEPTH`:
what identifies an object stands far above that, and what judges the object (api/bounds.py) still sees that it is too
deep.
"""

import json
import re
from collections import Counter
from collections.abc import Callable
from json.decoder import scanstring  # type: ignore[attr-defined]  # part of the module, missing in its stub
from typing import Any

Keep = Callable[[dict[str, Any]], Any]

CUT_DEPTH = 128  # containers in each other; more than any object that is accepted
MAX_DIGITS = 400  # of a whole number: a float has fewer

lost: Counter[str] = Counter()  # by resource: what could not be read or be told, for the metrics

_DECODER = json.JSONDecoder()
_SPACE = re.compile(r"[ \t\n\r]*")
_TOKEN = re.compile(r'"(?:[^"\\]++|\\.)*+"|[{}\[\]]', re.DOTALL)


class Unreadable(ValueError):
    """The text is no JSON."""


def read(data: bytes, keep: Keep = lambda value: value) -> Any:
    """The JSON value in `data`. Raises Unreadable, and nothing else.

    `keep` is applied to each of the `items` of a list, and to the `object` of a watch event, as soon as it is parsed.
    """
    text = data.decode("utf-8", "replace")
    at = _space(text, 0)
    value, end = _outermost(text, at, keep) if text.startswith("{", at) else _value(text, at)
    if _space(text, end) != len(text):
        raise Unreadable("not JSON: something follows its end")
    return value


def _outermost(text: str, at: int, keep: Keep) -> tuple[dict[str, Any], int]:
    found: dict[str, Any] = {}
    at = _space(text, at + 1)
    if text.startswith("}", at):
        return found, at + 1
    while True:
        if not text.startswith('"', at):
            raise Unreadable("not JSON: a name is missing")
        name, at = _string(text, at)
        at = _expected(text, _space(text, at), ":")
        if name == "items" and text.startswith("[", at):
            found[name], at = _items(text, at, keep)
        else:
            value, at = _value(text, at)
            found[name] = keep(value) if name == "object" and isinstance(value, dict) else value
        at = _space(text, at)
        if text.startswith("}", at):
            return found, at + 1
        at = _expected(text, at, ",")


def _items(text: str, at: int, keep: Keep) -> tuple[list[Any], int]:
    found = list[Any]()
    at = _space(text, at + 1)
    if text.startswith("]", at):
        return found, at + 1
    while True:
        value, at = _value(text, at)
        found.append(keep(value) if isinstance(value, dict) else value)
        at = _space(text, at)
        if text.startswith("]", at):
            return found, at + 1
        at = _expected(text, at, ",")


def _value(text: str, at: int) -> tuple[Any, int]:
    try:
        return _DECODER.raw_decode(text, at)
    except RecursionError:
        pass
    except json.JSONDecodeError as error:
        raise Unreadable(f"not JSON: {error.msg} at {error.pos}") from None
    except ValueError:  # a whole number of thousands of digits
        pass
    cut, end = _cut(text, at)
    try:
        return json.loads(cut, parse_int=_whole), end
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"not JSON: {error}") from None


def _cut(text: str, at: int) -> tuple[str, int]:
    """The value that begins at `at`, null in place of each container below `CUT_DEPTH`; and where it ends."""
    parts, depth, start = list[str](), 0, at
    for token in _TOKEN.finditer(text, at):
        mark = token.group()
        if mark in "{[":
            depth += 1
            if depth == CUT_DEPTH + 1:
                parts.append(text[start : token.start()])
        elif mark in "}]":
            depth -= 1
            if depth == CUT_DEPTH:
                parts.append("null")
                start = token.end()
            elif depth <= 0:
                return "".join((*parts, text[start : token.end()])), token.end()
    raise Unreadable("not JSON: it does not end")


def _whole(digits: str) -> int | float:
    return int(digits) if len(digits) <= MAX_DIGITS else float("-inf" if digits[0] == "-" else "inf")


def _string(text: str, at: int) -> tuple[str, int]:
    try:
        name, end = scanstring(text, at + 1, True)
    except ValueError as error:
        raise Unreadable(f"not JSON: {error}") from None
    return str(name), int(end)


def _space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    return match.end() if match else at


def _expected(text: str, at: int, mark: str) -> int:
    if not text.startswith(mark, at):
        raise Unreadable(f"not JSON: {mark!r} is missing at {at}")
    return _space(text, at + 1)
