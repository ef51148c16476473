"""The base of every model a person writes by hand: strict types, and every problem at once, with its remedy.

pydantic alone stops at a model's unknown fields or at its first cross-field rule and names no alternative. A
`StrictModel` reports unknown and not yet supported fields, missing alternatives and wrong values together; each error's
`ctx` may carry `allowed` (text) and `nearest` (a name), from which `problems.problems_of` builds what a user reads.
"""

import difflib
import unicodedata
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    GetJsonSchemaHandler,
    ModelWrapValidatorHandler,
    ValidationError,
    model_validator,
)
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema, ErrorDetails, InitErrorDetails, PydanticCustomError

MAX_SHOWN = 12  # alternatives in one message
MAX_NEAREST = 50  # unknown fields of one mapping for which the nearest name is looked for: each costs some 0.1 ms
_LETTERS = 3  # of them in one message


def nearest(name: str, names: Iterable[str], *, cutoff: float = 0.6) -> str | None:
    """The one of `names` that `name` was probably meant to be, whatever its case and separators; None if none is near.

    `cutoff`: from 0, where anything is near, to 1, where only the same name is.

    >>> nearest("nproc_per_node", ["procPerNode", "nodes"])
    'procPerNode'
    """
    plain = {_plain(n): n for n in names}
    found = difflib.get_close_matches(_plain(name), list(plain), n=1, cutoff=cutoff)
    return plain[found[0]] if found else None


def strange_letters(found: str, near: str) -> str:
    """The letters of `found` beyond ASCII that `near` does not have, by code point and name: they may look alike.

    >>> strange_letters("m\u043edel", "model")
    'found U+043E CYRILLIC SMALL LETTER O'
    """
    strange = dict.fromkeys(c for c in found[:200] if not c.isascii() and c not in near)
    names = [f"U+{ord(c):04X} {unicodedata.name(c, 'without a name')}" for c in strange]
    return f"found {', '.join(names[:_LETTERS])}{', ...' if len(names) > _LETTERS else ''}" if names else ""


def _plain(name: str) -> str:
    return "".join(c for c in name[:200].lower() if c not in "-_. ")


def problem(
    kind: str, message: str, *, allowed: str = "", near: str | None = None, secret: bool = False
) -> PydanticCustomError:
    """A validation error with a remedy, for validators to raise. `message` is text, not a template.

    What was found is not shown where it may be `secret`.
    """
    # Braces in a template are placeholders: a user's text must not be read as one.
    ctx = {"message": message, "allowed": allowed, "nearest": near, "secret": secret}
    return PydanticCustomError(kind, "{message}", ctx)


def one_of(classes: Mapping[str, type["StrictModel"]], value: Any, *, also: str = "") -> "StrictModel":
    """`value`, a mapping whose `type` is one of the names in `classes`, as that class. Raises ValidationError.

    `also` is what else is allowed, for the message.
    """
    for known in classes.values():
        if isinstance(value, known):
            return value
    extra = [also] if also else []
    names = ", ".join([*sorted(classes), *extra])
    if not isinstance(value, Mapping):
        raise problem("type", "wrong type", allowed=f"a mapping with a type: {names}")
    name = value.get("type")
    if isinstance(name, str) and name in classes:
        return classes[name].model_validate(value)
    if "type" in value:
        errors = [located(unknown(name, classes, "unknown name", *extra), ("type",), name)]
    else:
        fields = {field for known in classes.values() for field in known.json_names()}
        errors = [
            located(unknown(key, fields, "unknown field"), (key,), key)
            for key in value
            if isinstance(key, str) and nearest(key, ["type"])
        ]
        errors = errors or [located(problem("missing", "missing", allowed=names), ("type",), None)]
    raise ValidationError.from_exception_data("type", errors)


def unknown(found: Any, names: Iterable[str], message: str, *also: str) -> PydanticCustomError:
    """The error of a name that is none of `names`, nor what `also` says."""
    names = sorted(names)
    shown = ", ".join([*names[:MAX_SHOWN], *(["..."] if len(names) > MAX_SHOWN else []), *also])
    near = nearest(found, names) if isinstance(found, str) else None
    return problem("unknown", message, allowed=shown, near=near)


class StrictModel(BaseModel):
    """Frozen; types as JSON has them, no conversions; unknown fields are refused with the nearest right name."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    # Fields of the API, by their names in JSON, that this version does not know how to honour: refused, never ignored.
    not_yet: ClassVar[frozenset[str]] = frozenset()
    # Fields of which exactly one must be given.
    exactly_one: ClassVar[tuple[str, ...]] = ()

    @model_validator(mode="wrap")
    @classmethod
    def _every_problem(cls, value: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        errors = list(cls._alternatives(value)) if isinstance(value, Mapping) else []
        try:
            made = handler(value)
        except ValidationError as error:
            found = error.errors(include_url=False)
            errors += [cls._remedied(e, remedy=i < MAX_NEAREST) for i, e in enumerate(found)]
        if errors:
            raise ValidationError.from_exception_data(cls.__name__, errors)
        return made

    @classmethod
    def json_names(cls) -> set[str]:
        return {field.alias or name for name, field in cls.model_fields.items()}

    @classmethod
    def __get_pydantic_json_schema__(cls, core: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        schema = handler.resolve_ref_schema(handler(core))
        if cls.exactly_one:
            schema["oneOf"] = [{"required": [cls.model_fields[name].alias or name]} for name in cls.exactly_one]
        return schema

    @classmethod
    def _alternatives(cls, value: Mapping[str, Any]) -> Iterable[InitErrorDetails]:
        names = {name: cls.model_fields[name].alias or name for name in cls.exactly_one}
        given = [alias for name, alias in names.items() if value.get(alias, value.get(name)) is not None]
        if names and len(given) != 1:
            error = problem("exactly_one", "exactly one of these is wanted", allowed=", ".join(names.values()))
            yield located(error, (), given)

    @classmethod
    def _remedied(cls, error: ErrorDetails, *, remedy: bool = True) -> InitErrorDetails:
        match error:
            case {"type": "extra_forbidden", "loc": (name,)} if not remedy:
                return located(problem("unknown", "unknown field"), (name,), name)
            case {"type": "extra_forbidden", "loc": (name,)}:
                if name in cls.not_yet:
                    return located(problem("not_yet", "not supported yet"), (name,), name)
                return located(unknown(name, cls.json_names(), "unknown field"), (name,), name)
            case _:
                ctx = {**error.get("ctx", {}), "message": error["msg"]}
                kept = PydanticCustomError(error["type"], "{message}", ctx)
                return located(kept, error["loc"], error["input"])


def located(error: PydanticCustomError, loc: tuple[int | str, ...], found: Any) -> InitErrorDetails:
    """`error` at `loc`, relative to the model whose validator raises it."""
    return InitErrorDetails(type=error, loc=loc, input=found)
