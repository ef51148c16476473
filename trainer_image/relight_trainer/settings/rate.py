"""The learning rate as a person writes it: a number, or a number with the batch it was found at. Imports no torch."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, WithJsonSchema

from relight_trainer.strict import StrictModel, problem


class ScaledRate(StrictModel):
    """A rate that was found at one global batch, for use at another."""

    value: float = Field(gt=0, description="The rate at the batch `at_batch`.")
    at_batch: int = Field(ge=1, description="The global batch that the value belongs to.")
    scale: Literal["linear", "sqrt", "none"] = Field(
        "linear", description="How the rate grows with the batch: linear (SGD), sqrt (Adam and its kin), none."
    )


def _rate(value: Any) -> Any:
    if isinstance(value, Mapping):
        return ScaledRate.model_validate(value)
    if isinstance(value, ScaledRate):
        return value
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise problem("rate", "wrong type", allowed="a number, or {value, at_batch, scale: linear|sqrt|none}")
    if not 0 < value < float("inf"):
        raise problem("rate", "out of range", allowed="more than 0, and finite")
    return float(value)


Rate = Annotated[float | ScaledRate, BeforeValidator(_rate), WithJsonSchema({"type": "number", "exclusiveMinimum": 0})]


def rate_at(rate: float | ScaledRate, batch: int) -> float:
    """The learning rate at a global batch of `batch` samples.

    Linear: Goyal et al. 2017 (arXiv:1706.02677); square root: Krizhevsky 2014 (arXiv:1404.5997).

    >>> rate_at(ScaledRate(value=0.1, at_batch=256), 1024)
    0.4
    """
    if not isinstance(rate, ScaledRate):
        return rate
    growth = batch / rate.at_batch
    return rate.value * {"linear": growth, "sqrt": math.sqrt(growth), "none": 1.0}[rate.scale]
