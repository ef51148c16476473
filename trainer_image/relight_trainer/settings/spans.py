"""Lengths of training as a person writes them: epochs, optimizer steps, samples. Imports no torch."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from relight_trainer.strict import problem

SPAN_EXAMPLES = "whole epochs, optimizer steps or samples, such as 15ep, 500st or 1280000sa"
_PATTERN = "[1-9][0-9]{0,11}(ep|st|sa)"
_NOUNS = {"ep": "epoch", "st": "step", "sa": "sample"}


class EpochSize(NamedTuple):
    """What one pass over the training set is."""

    steps: int  # optimizer steps
    samples: int  # those trained on: without the tail that is dropped
    batch: int  # samples of a step; the last may have fewer


@dataclass(frozen=True)
class Span:
    """A length of training. `str()` is its form in the configuration: `15ep`, `500st`, `1280000sa`."""

    count: int
    unit: Literal["ep", "st", "sa"]

    def steps(self, epoch: EpochSize) -> int:
        """Optimizer steps; samples are rounded up to whole steps."""
        if self.unit == "ep":
            return self.count * epoch.steps
        if self.unit == "st":
            return self.count
        epochs, rest = divmod(self.count, epoch.samples)
        return epochs * epoch.steps + -(-rest // epoch.batch)

    def __str__(self) -> str:
        return f"{self.count}{self.unit}"

    @property
    def words(self) -> str:
        return f"{self.count} {_NOUNS[self.unit]}{'s' if self.count != 1 else ''}"


def _span(value: Any) -> Any:
    if isinstance(value, Span):
        return value
    match = re.fullmatch(_PATTERN, value) if isinstance(value, str) else None
    if match is None:
        raise problem("span", "not a length of training", allowed=SPAN_EXAMPLES)
    unit: Literal["ep", "st", "sa"] = match[1]  # type: ignore[assignment]  # the pattern has these three
    return Span(int(match[0][:-2]), unit)


TrainingSpan = Annotated[
    Span,
    BeforeValidator(_span),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": f"^{_PATTERN}$"}),
]
