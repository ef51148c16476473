"""Checks a schedule against the length of the training: parts that would never happen, or happen twice, are refused.

Asked twice: of the configuration alone, where places are compared that are in the duration's own unit or are shares of
it; and once the data is open, where everything is a number of optimizer steps. Imports no torch.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import assert_never

from pydantic import ValidationError

from relight_trainer.settings import schedule as schedules
from relight_trainer.settings.evaluate import Evaluate
from relight_trainer.settings.position import UNKNOWN, Length, Percent
from relight_trainer.settings.schedule import AnySchedule, AnyWarmed
from relight_trainer.settings.spans import Span, Time
from relight_trainer.settings.train import Train
from relight_trainer.strict import located, problem

Place = tuple[int | str, ...]
_PARTS_SHORT = 0.01  # of the training: less is the rounding of shares such as 33.3%
_LARGEST = 700.0  # of a logarithm whose number float64 holds


@dataclass(frozen=True)
class Finding:
    """What is wrong at `place` of the schedule; or, where `known` is false, what cannot be compared yet."""

    place: Place
    message: str
    found: str
    allowed: str = ""
    known: bool = True


@dataclass(frozen=True)
class Ruler:
    """How long a training, or a part of it, is, and what stands for a place in it: None where that is unknown."""

    total: float | None
    words: str  # such as "the training of 15ep"
    length: Length | None = None  # in optimizer steps, once the data is open
    unit: str | None = None  # of `total`, before that
    timed: bool = False  # the total is a time, so that its steps are known at its end alone

    @property
    def later_known(self) -> str:
        """Why something cannot be compared yet, for a message."""
        if self.timed:
            return f"cannot be compared with {self.words}, whose number of steps is known only at its end"
        return f"is compared with {self.words} when that starts, once the number of steps is known"

    def of(self, position: Span | Percent) -> float | None:
        """The length up to `position`, in steps or in the unit of the total."""
        if isinstance(position, Percent):
            return None if self.total is None else self.total * position.value / 100
        if self.length is not None:
            return position.steps(self.length.epoch)
        return position.count if position.unit == self.unit else None

    def part(self, total: float | None, words: str) -> "Ruler":
        """The ruler of a part of length `total`."""
        return Ruler(total, words, self.length, self.unit, self.timed)

    def later(self, first: Span | Percent, second: Span | Percent) -> bool | None:
        """Whether `second` lies behind `first`; None where that is unknown."""
        match first, second:
            case Percent(), Percent():
                return second.value > first.value
            case Span(), Span() if first.unit == second.unit:
                return second.count > first.count
        ours, theirs = self.of(first), self.of(second)
        return None if ours is None or theirs is None else theirs > ours


def ruler_of(duration: Span | Time, length: Length | None = None) -> Ruler:
    """The ruler of a training of `duration`, with `length` once the data is open."""
    if length is not None and length.total != UNKNOWN:
        return Ruler(length.total, f"the training of {length.total} steps", length)
    if isinstance(duration, Time):
        return Ruler(None, f"a training of {duration}", length, timed=True)
    return Ruler(duration.count, f"the training of {duration}", length, duration.unit)


def check(train: Train, schedule: AnySchedule, evaluate: Evaluate) -> None:
    """Raises ValidationError where the sections of one configuration make no sense together."""
    ruler = ruler_of(train.duration)
    found = [*findings(schedule, ruler, ()), *of_evaluations(schedule, evaluate, ruler)]
    errors = [
        located(
            problem("conflict", finding.message, allowed=finding.allowed), ("schedule", *finding.place), finding.found
        )
        for finding in found
        if finding.known
    ]
    if errors:
        raise ValidationError.from_exception_data("schedule", errors)


def unchecked(train: Train, schedule: AnySchedule, evaluate: Evaluate) -> list[Finding]:
    """Checks that need more than the configuration: they are done when the training starts, or not at all."""
    ruler = ruler_of(train.duration)
    found = [*findings(schedule, ruler, ()), *of_evaluations(schedule, evaluate, ruler)]
    return [finding for finding in found if not finding.known]


def findings(schedule: AnySchedule, ruler: Ruler, place: Place) -> Iterator[Finding]:
    """Errors in `schedule`, at `place`, over the training or the part that `ruler` measures."""
    if isinstance(schedule, schedules.Sequence):
        yield from _of_parts(schedule.parts, ruler, (*place, "parts"))
    elif not isinstance(schedule, schedules.OneCycle):
        yield from _of_warmup(schedule, ruler, (*place, "warmup"))
        yield from _of_shape(schedule, ruler, place)


def _of_warmup(schedule: AnyWarmed, ruler: Ruler, place: Place) -> Iterator[Finding]:
    if schedule.warmup is None:
        return
    decays = schedule.type in {"cosine", "linear", "poly", "exponential"}
    yield from _within(schedule.warmup, ruler, place, f"the warm-up is longer than {ruler.words}")
    if decays and ruler.total is not None and ruler.of(schedule.warmup) == ruler.total:
        message = f"the warm-up is as long as {ruler.words}, so that nothing is left for the decay"
        yield Finding(place, message, str(schedule.warmup), "a shorter one")


def _of_shape(schedule: AnyWarmed, ruler: Ruler, place: Place) -> Iterator[Finding]:
    match schedule:
        case schedules.Cosine():
            yield from _of_cycles(schedule, ruler, place)
        case schedules.InverseSqrt():
            yield from _within(
                schedule.timescale, ruler, (*place, "timescale"), f"the decay begins after {ruler.words}"
            )
        case schedules.Step():
            yield from _within(schedule.every, ruler, (*place, "every"), f"one stretch is longer than {ruler.words}")
        case schedules.MultiStep():
            yield from _of_places(schedule.at, ruler, (*place, "at"))
        case schedules.Wsd():
            yield from _of_decay(schedule, ruler, (*place, "decay"))
        case (
            schedules.Constant()
            | schedules.Linear()
            | schedules.Poly()
            | schedules.Exponential()
            | schedules.Plateau()
            | schedules.OwnSchedule()
        ):
            pass
        case _:
            assert_never(schedule)


def _within(position: Span | Percent, ruler: Ruler, place: Place, message: str) -> Iterator[Finding]:
    length = ruler.of(position)
    if length is None or ruler.total is None:
        yield Finding(place, ruler.later_known, str(position), known=False)
    elif length > ruler.total:
        yield Finding(place, message, str(position), "at most its length")


def _of_places(at: Sequence[Span | Percent], ruler: Ruler, place: Place) -> Iterator[Finding]:
    for i, position in enumerate(at):
        yield from _within(position, ruler, (*place, i), f"the place is after the end of {ruler.words}")
    for i, (first, second) in enumerate(pairwise(at), 1):
        if ruler.later(first, second) is False:
            equal = ruler.later(second, first) is False
            message = f"{'the same place as' if equal else 'earlier than'} {first}, the entry before it"
            yield Finding((*place, i), message, str(second), "places in the order of the training, each once")


def _of_decay(schedule: schedules.Wsd, ruler: Ruler, place: Place) -> Iterator[Finding]:
    yield from _within(schedule.decay, ruler, place, f"the decay is longer than {ruler.words}")
    warmup = 0.0 if schedule.warmup is None else ruler.of(schedule.warmup)
    decay = ruler.of(schedule.decay)
    if not warmup or not decay or ruler.total is None or max(warmup, decay) > ruler.total:
        return
    rounding = 1 if ruler.length else 0
    if warmup + decay > ruler.total + rounding:
        message = f"the decay and the warm-up of {schedule.warmup} together are longer than {ruler.words}"
        yield Finding(place, message, str(schedule.decay), "a decay that begins after the warm-up")


def _of_cycles(schedule: schedules.Cosine, ruler: Ruler, place: Place) -> Iterator[Finding]:
    if schedule.cycles == 1:
        return
    growth = math.log(schedule.cycle_growth) * (schedule.cycles - 1)
    if abs(growth) > _LARGEST:
        message = f"the longest of {schedule.cycles} cycles is too many times as long as the shortest"
        yield Finding((*place, "cycle_growth"), message, str(schedule.cycle_growth), "a number nearer to 1")
    elif ruler.length is not None and ruler.total is not None:
        warmup = 0.0 if schedule.warmup is None else ruler.of(schedule.warmup) or 0.0
        weights = [schedule.cycle_growth**i for i in range(schedule.cycles)]
        if (ruler.total - warmup) * min(weights) / sum(weights) < 1:
            message = f"the shortest of {schedule.cycles} cycles in {ruler.words} is shorter than one step"
            yield Finding((*place, "cycles"), message, str(schedule.cycles), "fewer cycles")


def _of_parts(parts: Sequence[schedules.Part], ruler: Ruler, place: Place) -> Iterator[Finding]:
    lengths = [None if part.length is None else ruler.of(part.length) for part in parts]
    given = [length for length in lengths if length is not None]
    sum_is_known = len(given) == len(parts) - (parts[-1].length is None) and ruler.total is not None
    total = ruler.total or 0.0
    slack = len(parts) if ruler.length else 1e-6 * total
    done = sum(given)
    if not sum_is_known:
        for i, part in enumerate(parts):
            if part.length is not None and (lengths[i] is None or ruler.total is None):
                message = ruler.later_known
                yield Finding((*place, i, "length"), message, str(part.length), known=False)
    elif done > total + slack:
        last = len(given) - 1
        message = f"the parts up to this one are longer than {ruler.words}: {_percent(done, total)} of it"
        yield Finding((*place, last, "length"), message, str(parts[last].length), "parts that fill it, 100% in all")
    elif parts[-1].length is None and done >= total - (0 if ruler.length else slack):
        message = f"nothing of {ruler.words} is left for the last part"
        yield Finding((*place, len(parts) - 2, "length"), message, str(parts[-2].length), "a shorter one")
    elif parts[-1].length is not None and total - done > max(slack, _PARTS_SHORT * total):
        message = f"the parts end after {_percent(done, total)} of {ruler.words}"
        allowed = "parts that fill it, or no length for the last, which then takes the rest"
        yield Finding((*place, len(parts) - 1, "length"), message, str(parts[-1].length), allowed)
    for i, part in enumerate(parts):
        length = lengths[i]
        if part.length is None and sum_is_known:
            length = max(total - done, 0.0)
        words = f"its part of {part.length}" if part.length is not None else "the last part"
        yield from findings(part.schedule, ruler.part(length, words), (*place, i, "schedule"))


def of_evaluations(schedule: AnySchedule, evaluate: Evaluate, ruler: Ruler) -> Iterator[Finding]:
    """Whether `plateau` sees evaluations enough to reduce the rate: the first one, and then `patience` and one more."""
    if not isinstance(schedule, schedules.Plateau) or not isinstance(evaluate.every, Span):
        return
    every, wanted = ruler.of(evaluate.every), schedule.patience + 2
    if every is None or ruler.total is None:
        message = ruler.later_known
        yield Finding(("patience",), message, str(schedule.patience), known=False)
        return
    seen = math.ceil(ruler.total / every) - 1  # no step follows the one at the end
    if seen < wanted:
        message = f"{seen} evaluations come before the end of {ruler.words}, and the rate is reduced after {wanted} at the earliest"
        allowed = f"at most {seen - 2}, or a smaller evaluate.every" if seen >= 2 else "a smaller evaluate.every"
        yield Finding(("patience",), message, str(schedule.patience), allowed)


def _percent(part: float, whole: float) -> str:
    return f"{100 * part / whole:.3g}%"
