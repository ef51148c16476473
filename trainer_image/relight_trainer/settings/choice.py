"""Sections of which there are several kinds, told apart by their `type`."""

from collections.abc import Mapping

from pydantic import BeforeValidator

from relight_trainer.strict import StrictModel, one_of


def kinds(classes: Mapping[str, type[StrictModel]]) -> BeforeValidator:
    """The validator of a field whose `type` is one of the names in `classes`."""
    return BeforeValidator(lambda value: one_of(classes, value))
