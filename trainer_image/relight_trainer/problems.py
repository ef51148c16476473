"""What is wrong with something that a person wrote: where, what was found, what is allowed, what was probably meant."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from relight_trainer.strict import MAX_SHOWN, nearest, strange_letters

MAX_FOUND = 80  # characters of a user's value in a message
MAX_PATH = 4096  # of a file's name: what tells is at its end
_WORD = re.compile(r"[A-Za-z_][-A-Za-z0-9_]*")


@dataclass(frozen=True)
class Problem:
    """`path` in the notation of specs (`spec.trainer.env[0].name`), "" for the document; `found` is JSON text."""

    path: str
    message: str
    found: str | None = None
    allowed: str | None = None
    nearest: str | None = None
    line: int | None = None  # counted from 1

    def __str__(self) -> str:
        parts = [f"{self.path}: {self.message}" if self.path else self.message]
        parts += [f"found {self.found}"] if self.found is not None else []
        if self.nearest is not None:
            letters = strange_letters(self.found or self.path, self.nearest)
            meant = f'did you mean "{self.nearest}"?' + (f" ({letters})" if letters else "")
            parts += [meant + (f" allowed: {self.allowed}" if self.allowed else "")]
        elif self.allowed:
            parts += [f"allowed: {self.allowed}"]
        return "; ".join(parts)

    def dump(self) -> dict[str, Any]:
        """The JSON object, without what is not known."""
        return {name: value for name, value in vars(self).items() if value is not None}


def problems_of(error: ValidationError, path: str = "") -> list[Problem]:
    """Every problem of a validation, their paths below `path`."""
    return [_problem(e, path) for e in error.errors(include_url=False)]


def join(path: str, loc: Sequence[int | str]) -> str:
    """`path` and the keys and indices that follow it.

    >>> join("spec", ("trainer", "env", 0, "name"))
    'spec.trainer.env[0].name'
    """
    for key in loc:
        if isinstance(key, int):
            path += f"[{key}]"
        elif len(key) <= MAX_FOUND and _WORD.fullmatch(key):
            path += f".{key}" if path else key
        else:
            path += f"[{shown(key)}]"
    return path


def shown(value: Any, most: int = MAX_FOUND) -> str:
    """`value` as JSON text on one line of at most `most` characters, with nothing in it that a terminal would obey."""
    text = json.dumps(value, ensure_ascii=False, default=str)
    text = text if len(text) <= most else text[: most - 3] + "..."
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in text)


def _problem(error: ErrorDetails, path: str) -> Problem:
    kind, found, ctx = error["type"], error["input"], error.get("ctx", {})
    message, allowed = _WORDS.get(kind, _others)(error["msg"], ctx)
    near = ctx.get("nearest")
    if kind == "literal_error":
        near = nearest(found, allowed.split(", ")) if isinstance(found, str) else None
    if kind == "string_type" and isinstance(found, (bool, int, float)):
        allowed += ", in quotes"  # YAML reads y, n, on, off, 5 and 1e3 as something else
    return Problem(
        path=join(path, error["loc"]),
        message=message,
        found=None if kind == "missing" or ctx.get("secret") else shown(found),
        allowed=allowed or None,
        nearest=near,
    )


def _others(message: str, ctx: Mapping[str, Any]) -> tuple[str, str]:
    return message, str(ctx.get("allowed", ""))


def _wanted(what: str) -> Callable[[str, Mapping[str, Any]], tuple[str, str]]:
    return lambda _, __: ("wrong type", what)


def _bound(words: str, key: str) -> Callable[[str, Mapping[str, Any]], tuple[str, str]]:
    return lambda _, ctx: ("out of range", words.format(ctx[key]))


def _length(message: str, words: str, key: str) -> Callable[[str, Mapping[str, Any]], tuple[str, str]]:
    return lambda _, ctx: (message, words.format(ctx[key]))


def _literal(_: str, ctx: Mapping[str, Any]) -> tuple[str, str]:
    names = re.findall(r"'([^']*)'", ctx["expected"])
    return "not a known value", ", ".join(names[:MAX_SHOWN])


# pydantic's own errors in the words of this project: (message, what is allowed).
_WORDS: Mapping[str, Callable[[str, Mapping[str, Any]], tuple[str, str]]] = {
    "missing": lambda _, ctx: ("missing", str(ctx.get("allowed", ""))),
    "literal_error": _literal,
    "int_type": _wanted("a whole number"),
    "int_from_float": _wanted("a whole number"),
    "float_type": _wanted("a number"),
    "string_type": _wanted("a text"),
    "bool_type": _wanted("true or false"),
    "list_type": _wanted("a list"),
    "dict_type": _wanted("a mapping"),
    "model_type": _wanted("a mapping"),
    "model_attributes_type": _wanted("a mapping"),
    "finite_number": _wanted("a finite number"),
    "greater_than_equal": _bound("{} or more", "ge"),
    "greater_than": _bound("more than {}", "gt"),
    "less_than_equal": _bound("{} or less", "le"),
    "less_than": _bound("less than {}", "lt"),
    "too_short": _length("too few items", "{} or more", "min_length"),
    "too_long": _length("too many items", "at most {}", "max_length"),
    "string_too_short": _length("too short", "{} or more characters", "min_length"),
    "string_too_long": _length("too long", "at most {} characters", "max_length"),
}
