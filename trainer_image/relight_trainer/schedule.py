"""Learning rate and momentum as pure functions of the step: nothing to save, nothing to restore.

Only `plateau` has state, for it looks at metrics; it is in the checkpoints.

A step's rate is the one it is taken with: step 0 is at progress 0, and the last one falls a step short of progress 1, as
in torch, timm and fvcore. Imports no torch.
"""

import math
from bisect import bisect_right
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import accumulate
from typing import Any, NamedTuple, assert_never

from relight_trainer.config import BadConfig
from relight_trainer.problems import Problem, join, shown
from relight_trainer.registry import check_call, resolve
from relight_trainer.settings import schedule as settings
from relight_trainer.settings.optimizer import OptimizerArguments
from relight_trainer.settings.position import UNKNOWN, Length
from relight_trainer.settings.rate import rate_at
from relight_trainer.settings.schedule import AnySchedule
from relight_trainer.settings.schedule_sense import Finding, Ruler, findings
from relight_trainer.strict import nearest

Factor = Callable[[int], float]  # from steps done to the share of the peak rate


class Rates(NamedTuple):
    lr: float
    momentum: float | None  # beta1 of adam and its kin; None where it is the optimizer's own


class Schedule:
    """Called with the number of optimizer steps done, the rates of the next one."""

    def __init__(self, rates: Callable[[int], Rates], plateau: "_Plateau | None" = None) -> None:
        self._rates = rates
        self._plateau = plateau

    def __call__(self, step: int) -> Rates:
        rates = self._rates(step)
        return rates if self._plateau is None else rates._replace(lr=rates.lr * self._plateau.state.factor)

    def observe(self, metrics: Mapping[str, str], step: int) -> None:
        """What the evaluation after `step` steps found, the same on every rank; once told, it is not heard again.

        Raises BadConfig where plateau's metric is not in it.
        """
        if self._plateau is not None:
            self._plateau.observe(metrics, step)

    def state_dict(self) -> dict[str, Any]:
        return {} if self._plateau is None else asdict(self._plateau.state)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        if self._plateau is not None and state:
            self._plateau.state = _PlateauState(**state)


def build_schedule(schedule: AnySchedule, optimizer: OptimizerArguments, length: Length, batch: int) -> Schedule:
    """The schedule of a training of `length` with global batches of `batch` samples.

    Raises BadConfig where the schedule makes no sense in a training of that length.
    """
    ruler = Ruler(length.total if length.total != UNKNOWN else None, f"the training of {length.total} steps", length)
    require_sense(findings(schedule, ruler, ()))
    peak = rate_at(optimizer.lr, batch)
    if isinstance(schedule, settings.OneCycle):
        return Schedule(_onecycle(schedule, peak, length.total, momentum=settings.cycles(schedule, optimizer)))
    factor = _factor(schedule, length)
    plateau = _Plateau(schedule) if isinstance(schedule, settings.Plateau) else None
    return Schedule(lambda step: Rates(peak * factor(step), None), plateau)


def require_sense(found: Iterable[Finding]) -> None:
    """Raises BadConfig where something of `found` is wrong."""
    problems = [
        Problem(join("config.schedule", finding.place), finding.message, shown(finding.found), finding.allowed)
        for finding in found
        if finding.known
    ]
    if problems:
        raise BadConfig(problems)


def _onecycle(cycle: settings.OneCycle, lr: float, total_steps: int, *, momentum: bool) -> Callable[[int], Rates]:
    anneal = _cosine if cycle.anneal == "cos" else _linear
    first_lr = lr / cycle.div_factor
    low, high = cycle.base_momentum, cycle.max_momentum
    first = first_lr, high
    peak = lr, low
    last = first_lr / cycle.final_div_factor, high
    peak_step = cycle.pct_start * total_steps - 1  # not an integer, and negative in a very short training
    last_step = total_steps - 1

    def rates(step: int) -> Rates:
        if step < peak_step:
            start, end, part = first, peak, step / peak_step
        else:
            start, end, part = peak, last, (step - peak_step) / (last_step - peak_step)
        return Rates(anneal(start[0], end[0], part), anneal(start[1], end[1], part) if momentum else None)

    return rates


def _factor(schedule: settings.AnyWarmed | settings.Sequence, length: Length) -> Factor:
    if isinstance(schedule, settings.Sequence):
        return _sequence(schedule, length)
    warmup = length.steps(schedule.warmup) if schedule.warmup is not None else 0
    shape = _shape(schedule, length, warmup)
    if warmup == 0:
        return shape
    rise, goal = _ANNEAL[schedule.warmup_shape], shape(warmup)
    return lambda step: goal * rise(schedule.warmup_from, 1.0, step / warmup) if step < warmup else shape(step)


def _sequence(sequence: settings.Sequence, length: Length) -> Factor:
    lengths = [length.steps(part.length) if part.length else length.total for part in sequence.parts]
    starts = [0, *accumulate(lengths[:-1])]
    lengths[-1] = max(length.total - starts[-1], 1) if sequence.parts[-1].length is None else lengths[-1]
    factors = [
        _factor(part.schedule, Length(total, length.epoch)) for part, total in zip(sequence.parts, lengths, strict=True)
    ]

    def factor(step: int) -> float:
        part = bisect_right(starts, step) - 1
        return sequence.parts[part].peak * factors[part](step - starts[part])

    return factor


def _shape(schedule: settings.AnyWarmed, length: Length, warmup: int) -> Factor:
    """The schedule's factor from the warm-up's end on."""
    rest = max(length.total - warmup, 1)

    def after_warmup(curve: Callable[[float], float]) -> Factor:
        return lambda step: curve(min((step - warmup) / rest, 1.0))

    match schedule:
        case settings.Cosine():
            return after_warmup(_cosine_cycles(schedule))
        case settings.Linear(end=end):
            return after_warmup(lambda x: _linear(1.0, end, x))
        case settings.Poly(power=power, end=end):
            return after_warmup(lambda x: end + (1.0 - end) * (1.0 - x) ** power)
        case settings.Exponential(end=end):
            return after_warmup(lambda x: end**x)
        case settings.InverseSqrt(timescale=timescale):
            scale = max(length.steps(timescale), 1)
            return lambda step: math.sqrt(scale / max(step, scale))
        case settings.Step(every=every, factor=factor):
            stretch = max(length.steps(every), 1)
            return lambda step: factor ** (step // stretch)
        case settings.MultiStep(at=at, factor=factor):
            places = sorted(length.steps(place) for place in at)
            return lambda step: factor ** bisect_right(places, step)
        case settings.Wsd(decay=decay, shape=shape, end=end):
            steps = max(length.steps(decay), 1)
            curve = _DECAYS[shape]
            return lambda step: end + (1.0 - end) * curve(min(max(step - length.total + steps, 0) / steps, 1.0))
        case settings.OwnSchedule():
            return _own(schedule, length.total)
        case settings.Constant() | settings.Plateau():  # plateau's own factor comes on top
            return lambda _: 1.0
        case _:
            assert_never(schedule)


def _cosine_cycles(cosine: settings.Cosine) -> Callable[[float], float]:
    growth, k = cosine.cycle_growth, cosine.k_decay
    weights = [growth**i for i in range(cosine.cycles)]
    ends = [end / sum(weights) for end in accumulate(weights)]

    def curve(x: float) -> float:
        cycle = min(bisect_right(ends, x), cosine.cycles - 1)
        start = ends[cycle - 1] if cycle else 0.0
        progress = (x - start) / (ends[cycle] - start)
        return _cosine(cosine.cycle_decay**cycle, cosine.end, min(progress, 1.0) ** k)

    return curve


def _own(schedule: settings.OwnSchedule, total: int) -> Factor:
    wrong = check_call(schedule.type, 0, total, **schedule.arguments)
    problems = [replace(found, path=f"config.schedule.{found.path}") for found in wrong]
    if problems:
        raise BadConfig(problems)
    function, arguments = resolve({}, schedule.type), schedule.arguments
    return lambda step: float(function(step, total, **arguments))


@dataclass(frozen=True)
class _PlateauState:
    factor: float = 1.0
    best: float | None = None
    worse: int = 0  # evaluations since the best
    cooldown: int = 0  # evaluations that do not count yet
    step: int = -1  # of the newest evaluation: who resumes right there evaluates again


class _Plateau:
    """Torch's ReduceLROnPlateau, with the threshold relative."""

    def __init__(self, config: settings.Plateau) -> None:
        self._config = config
        self.state = _PlateauState()

    def observe(self, metrics: Mapping[str, str], step: int) -> None:
        config = self._config
        if step <= self.state.step:
            return
        if config.metric not in metrics:
            known = sorted(metrics)
            message, near = "no such metric in the evaluation", nearest(config.metric, known)
            path = "config.schedule.metric"
            raise BadConfig([Problem(path, message, shown(config.metric), ", ".join(known), near)])
        self.state = self._after(float(metrics[config.metric]), step)

    def _after(self, value: float, step: int) -> _PlateauState:
        config, (factor, best, worse, cooldown, _) = self._config, vars(self.state).values()
        if self._better(value, best):
            best, worse = value, 0
        else:
            worse += 1
        if cooldown > 0:
            cooldown, worse = cooldown - 1, 0
        if worse > config.patience:
            factor, cooldown, worse = max(factor * config.factor, config.end), config.cooldown, 0
        return _PlateauState(factor, best, worse, cooldown, step)

    def _better(self, value: float, best: float | None) -> bool:
        if best is None:
            return not math.isnan(value)
        if self._config.better == "lower":
            return value < best * (1 - self._config.threshold)
        return value > best * (1 + self._config.threshold)


def _cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) / 2 * (math.cos(math.pi * part) + 1)


def _linear(start: float, end: float, part: float) -> float:
    return start + (end - start) * part


def _exponential(start: float, end: float, part: float) -> float:
    return math.pow(max(start, 1e-6), 1 - part) * math.pow(end, part)


_ANNEAL = {"cos": _cosine, "linear": _linear, "exponential": _exponential}
_DECAYS: Mapping[str, Callable[[float], float]] = {
    "linear": lambda x: 1.0 - x,
    "cos": lambda x: _cosine(1.0, 0.0, x),
    "sqrt": lambda x: 1.0 - math.sqrt(x),
}
