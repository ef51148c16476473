"""Places in a training as a person writes them: lengths from its start, or shares of the whole. Imports no torch."""

import re
import sys
from dataclasses import dataclass
from typing import Annotated, Any, NamedTuple

from pydantic import BeforeValidator, PlainSerializer, TypeAdapter, ValidationError, WithJsonSchema

from relight_trainer.settings.spans import EpochSize, Span, TrainingSpan, is_time
from relight_trainer.strict import problem

POSITION_EXAMPLES = "epochs, optimizer steps, samples or a share of the training, such as 5ep, 500st, 64000sa or 10%"
_PERCENT = r"(100|[1-9]?[0-9](\.[0-9]{1,6})?)%"
UNKNOWN = sys.maxsize  # optimizer steps of a training whose length is a time
_SPAN: TypeAdapter[Span] = TypeAdapter(TrainingSpan)
PATTERN = f"^({_SPAN.json_schema()['pattern'].strip('^$')}|{_PERCENT})$"


@dataclass(frozen=True)
class Percent:
    """A share of the whole training. `str()` is its form in the configuration: `10%`, `2.5%`."""

    value: float

    def __str__(self) -> str:
        return f"{self.value:.6f}".rstrip("0").rstrip(".") + "%"


def _position(value: Any) -> Any:
    if isinstance(value, Percent):
        return value
    if isinstance(value, str) and re.fullmatch(_PERCENT, value):
        return Percent(float(value[:-1]))
    if is_time(value):  # ranks reach it in different steps, and a resume in another one
        raise problem("position", "a time, where a place must follow from the step alone", allowed=POSITION_EXAMPLES)
    try:
        return _SPAN.validate_python(value)
    except ValidationError:
        raise problem("position", "not a place in the training", allowed=POSITION_EXAMPLES) from None


Position = Annotated[
    Span | Percent,
    BeforeValidator(_position),
    PlainSerializer(str, return_type=str),
    WithJsonSchema({"type": "string", "pattern": PATTERN}),
]


class Length(NamedTuple):
    """How long a training, or a part of it, is: what a position means in optimizer steps."""

    total: int  # steps
    epoch: EpochSize

    def steps(self, position: Span | Percent) -> int:
        """The number of optimizer steps up to `position`.

        >>> Length(1000, EpochSize(100, 6400, 64)).steps(Percent(2.5))
        25
        """
        if isinstance(position, Percent):
            return round(self.total * position.value / 100)
        return position.steps(self.epoch)
