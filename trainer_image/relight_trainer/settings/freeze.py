"""The section `freeze`: parts of the model that do not move, always or for a while."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, WithJsonSchema

from relight_trainer.settings.names import Patterns
from relight_trainer.settings.position import Position
from relight_trainer.strict import StrictModel


class Frozen(StrictModel):
    """Parameters do not move; a module all of whose own parameters and buffers fit is also kept in eval mode."""

    match: Patterns = Field(min_length=1, description="Names of parameters, buffers or modules: backbone.*, *.bn1")
    but: Patterns = Field([], description="Those that move all the same, such as head.*")
    after: Position | None = Field(None, description="Frozen from here on; unset: from the start.")
    until: Position | None = Field(None, description="Thawed here; unset: frozen to the end.")


def _rules(value: Any) -> Any:
    rules = [value] if isinstance(value, (str, Mapping)) else value
    if not isinstance(rules, (list, tuple)):
        return value
    return [{"match": rule} if isinstance(rule, str) else rule for rule in rules]


FreezeSettings = Annotated[
    list[Frozen], BeforeValidator(_rules), WithJsonSchema({"type": "array", "items": {"type": "object"}})
]
