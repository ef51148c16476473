"""Patterns of names as a person writes them: one text, or a list of them. Imports no torch."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema


def _listed(value: Any) -> Any:
    return [value] if isinstance(value, str) else value


Patterns = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=1000)]],
    BeforeValidator(_listed),
    WithJsonSchema({"type": "array", "items": {"type": "string"}}),
]
