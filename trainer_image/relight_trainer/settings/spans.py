"""Lengths of training as a person writes them: epochs, optimizer steps, samples, time. Imports no torch."""

import re
from dataclasses import dataclass
from typing import Annotated, Any, Literal, NamedTuple

from pydantic import BeforeValidator, PlainSerializer, WithJsonSchema

from relight_trainer.strict import problem

SPAN_EXAMPLES = "whole epochs, optimizer steps or samples, such as 15ep, 500st or 1280000sa"
LENGTH_EXAMPLES = f"{SPAN_EXAMPLES}, or a time, such as 90s, 10m or 1h30m"
_PATTERN = "[1-9][0-9]{0,11}(ep|st|sa)"
_TIME = "([0-9]{1,9}(ms|s|m|h))+"
_MILLISECONDS = {"h": 3_600_000, "m": 60_000, "s": 1000, "ms": 1}
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


@dataclass(frozen=True)
class Time:
    """A length of training by the clock. `str()` is its form in the configuration: `90s` is `1m30s`."""

    milliseconds: int

    @property
    def seconds(self) -> float:
        return self.milliseconds / 1000

    def __str__(self) -> str:
        left, text = self.milliseconds, ""
        for unit, size in _MILLISECONDS.items():
            count, left = divmod(left, size)
            text += f"{count}{unit}" if count else ""
        return text

    @property
    def words(self) -> str:
        return str(self)


def is_time(value: Any) -> bool:
    """Whether a value of the configuration is a time as a person writes it."""
    return isinstance(value, str) and re.fullmatch(_TIME, value) is not None


def _span(value: Any) -> Any:
    if isinstance(value, Span):
        return value
    if is_time(value):
        raise problem("span", "a time, where steps are counted", allowed=SPAN_EXAMPLES)
    match = re.fullmatch(_PATTERN, value) if isinstance(value, str) else None
    if match is None:
        raise problem("span", "not a length of training", allowed=SPAN_EXAMPLES)
    unit: Literal["ep", "st", "sa"] = match[1]  # type: ignore[assignment]  # the pattern has these three
    return Span(int(match[0][:-2]), unit)


def _length(value: Any) -> Any:
    if isinstance(value, Time):
        return value
    if is_time(value):
        parts = re.findall(r"([0-9]+)(ms|s|m|h)", value)
        total = sum(int(count) * _MILLISECONDS[unit] for count, unit in parts)
        if total:
            return Time(total)
    elif isinstance(value, Span) or (isinstance(value, str) and re.fullmatch(_PATTERN, value)):
        return _span(value)
    raise problem("span", "not a length of training", allowed=LENGTH_EXAMPLES)


TrainingSpan = Annotated[
    Span,
    BeforeValidator(_span),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": f"^{_PATTERN}$"}),
]

TrainingLength = Annotated[
    Span | Time,
    BeforeValidator(_length),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": f"^({_PATTERN}|{_TIME})$"}),
]
