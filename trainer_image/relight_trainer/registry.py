"""The models and data sets that a configuration may name, with their arguments: known without importing any of them.

A new one is a class of arguments here and a factory where `target` says; the factory is called with the arguments by
name (`type` apart).
"""

import importlib
from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import Field

from relight_trainer.strict import StrictModel


class Arguments(StrictModel):
    """`type` names the registered thing; the other fields are its arguments."""

    type: str

    def keywords(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in type(self).model_fields if name != "type"}


class DigitsCnn(Arguments):
    """Three 3x3 convolutions with batch norm, for 8x8 images of 10 classes."""

    width: int = Field(16, ge=1, le=1024, description="Channels of the first convolution; the others have 2x and 4x.")


class Digits(Arguments):
    """Scikit-learn's 1797 handwritten digits, 8x8 grey values in 0..1."""

    test_fraction: float = Field(0.2, gt=0, lt=1, description="The share of each class that is kept for evaluation.")
    split_seed: int = Field(0, ge=0, description="Chooses which samples those are, apart from the training's own seed.")


class Entry(NamedTuple):
    target: str  # module:function, imported only where it is built
    arguments: type[Arguments]


Table = Mapping[str, Entry]

MODELS: Table = {"digits_cnn": Entry("relight_trainer.models.digits_cnn:digits_cnn", DigitsCnn)}
DATA: Table = {"digits": Entry("relight_trainer.data.digits:digits", Digits)}


def arguments(table: Table) -> dict[str, type[Arguments]]:
    """The class of arguments of each name in `table`."""
    return {name: entry.arguments for name, entry in table.items()}


def build(table: Table, chosen: Arguments) -> Any:
    """Import what `chosen.type` names and call it with the arguments."""
    module, _, function = table[chosen.type].target.partition(":")
    return getattr(importlib.import_module(module), function)(**chosen.keywords())
