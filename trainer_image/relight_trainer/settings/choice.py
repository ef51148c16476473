"""Sections of which there are several kinds, told apart by their `type`."""

from collections.abc import Mapping
from typing import Any

from pydantic import BeforeValidator

from relight_trainer.registry import ANYTHING
from relight_trainer.strict import StrictModel, one_of


def kinds(classes: Mapping[str, type[StrictModel]], own: type[StrictModel] | None = None) -> BeforeValidator:
    """The validator of a field whose `type` is one of the names in `classes`, or `package.module:callable` for `own`."""

    def validate(value: Any) -> Any:
        if own is None:
            return one_of(classes, value)
        name = value.get("type") if isinstance(value, Mapping) else None
        if isinstance(value, own) or (isinstance(name, str) and ":" in name):
            return own.model_validate(value)
        return one_of(classes, value, also=ANYTHING)

    return BeforeValidator(validate)
