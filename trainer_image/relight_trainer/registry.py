"""What a configuration may name: models, data sets, hooks, ..., known without importing any of them.

A new one is a class of arguments and an `Entry` in its section's table (`relight_trainer.settings`), and a factory
where the entry's `target` says, called with the arguments by name (`type` apart).
"""

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from relight_trainer.strict import StrictModel


class Arguments(StrictModel):
    """`type` names the registered thing; the other fields are its arguments."""

    type: str

    def keywords(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in type(self).model_fields if name != "type"}


class Entry(NamedTuple):
    target: str  # module:function, imported only where it is built
    arguments: type[Arguments]


Table = Mapping[str, Entry]


def arguments(table: Table) -> dict[str, type[Arguments]]:
    """The class of arguments of each name in `table`."""
    return {name: entry.arguments for name, entry in table.items()}


def build(table: Table, chosen: Arguments) -> Any:
    """Import what `chosen.type` names and call it with the arguments."""
    module, _, function = table[chosen.type].target.partition(":")
    return getattr(importlib.import_module(module), function)(**chosen.keywords())
