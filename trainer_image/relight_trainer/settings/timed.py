"""What cannot be where the length of a training is a time: how many steps it will have is known at its end alone."""

from collections.abc import Iterator, Mapping, Sequence

from pydantic import ValidationError
from pydantic_core import InitErrorDetails

from relight_trainer.settings import schedule as schedules
from relight_trainer.settings.evaluate import Evaluate
from relight_trainer.settings.freeze import Frozen
from relight_trainer.settings.position import Percent
from relight_trainer.settings.schedule import AnySchedule
from relight_trainer.settings.spans import Time
from relight_trainer.settings.train import Train
from relight_trainer.strict import located, problem

_FREE = ("constant", "inverse_sqrt", "multistep", "plateau", "step")  # their shape does not follow from the end
_COUNTED = "epochs, optimizer steps or samples, such as 5ep, 500st or 64000sa"


def check(train: Train, schedule: AnySchedule, freeze: Sequence[Frozen], evaluate: Evaluate) -> None:
    """Raises ValidationError where the sections of one configuration ask of a time what only steps can give."""
    errors: list[InitErrorDetails] = []
    if isinstance(train.duration, Time):
        errors += _of_schedule(schedule, train.duration, ("schedule",))
        for i, rule in enumerate(freeze):
            places = {"after": rule.after, "until": rule.until}
            errors += _shares(places, train.duration, ("freeze", i))
    if isinstance(evaluate.every, Time) and isinstance(schedule, schedules.Plateau):
        message = "the rate would follow from how fast the machines are; plateau goes with evaluations at steps"
        found = problem("conflict", message, allowed=f"with plateau, {_COUNTED}")
        errors.append(located(found, ("evaluate", "every"), str(evaluate.every)))
    if errors:
        raise ValidationError.from_exception_data("train", errors)


def _of_schedule(schedule: AnySchedule, duration: Time, place: tuple[int | str, ...]) -> Iterator[InitErrorDetails]:
    if isinstance(schedule, schedules.Sequence):
        for i, part in enumerate(schedule.parts):
            here = (*place, "parts", i)
            yield from _shares({"length": part.length}, duration, here)
            if part.length is None:  # the others know their own end
                yield from _of_schedule(part.schedule, duration, (*here, "schedule"))
    elif schedule.type not in _FREE:
        message = f"its shape follows from the number of steps, which a duration of {duration} leaves open"
        allowed = f"{', '.join(_FREE)}, a sequence that ends in one, or a train.duration in {_COUNTED}"
        yield located(problem("conflict", message, allowed=allowed), (*place, "type"), schedule.type)
    elif isinstance(schedule, schedules.Warmed):
        fields = {name: getattr(schedule, name) for name in ("warmup", "timescale", "every") if hasattr(schedule, name)}
        fields |= {f"at.{i}": value for i, value in enumerate(getattr(schedule, "at", ()))}
        yield from _shares(fields, duration, place)


def _shares(fields: Mapping[str, object], duration: Time, place: tuple[int | str, ...]) -> Iterator[InitErrorDetails]:
    for name, value in fields.items():
        if isinstance(value, Percent):
            message = f"a share of a training whose number of steps a duration of {duration} leaves open"
            keys = [int(key) if key.isdigit() else key for key in name.split(".")]
            yield located(problem("conflict", message, allowed=_COUNTED), (*place, *keys), str(value))
