"""Learning rate and momentum as pure functions of the step: nothing to save, nothing to restore."""

import math
from collections.abc import Callable
from typing import NamedTuple

from relight_trainer.settings.optimizer import AdamW, Sgd
from relight_trainer.settings.schedule import Constant, OneCycle


class Rates(NamedTuple):
    lr: float
    momentum: float  # beta1 of adamw


Schedule = Callable[[int], Rates]  # from the number of steps done


def build_schedule(schedule: OneCycle | Constant, optimizer: Sgd | AdamW, total_steps: int) -> Schedule:
    momentum = optimizer.momentum if isinstance(optimizer, Sgd) else optimizer.beta1
    constant = Rates(optimizer.lr, momentum)
    if isinstance(schedule, Constant):
        return lambda _: constant
    cycle = schedule
    anneal = _cosine if cycle.anneal == "cos" else _linear
    low, high = cycle.base_momentum, cycle.max_momentum
    if not cycle.cycle_momentum:
        low = high = momentum
    first = Rates(constant.lr / cycle.div_factor, high)
    peak = Rates(constant.lr, low)
    last = Rates(first.lr / cycle.final_div_factor, high)
    peak_step = cycle.pct_start * total_steps - 1  # not an integer, and negative in a very short training
    last_step = total_steps - 1

    def rates(step: int) -> Rates:
        if step < peak_step:
            start, end, part = first, peak, step / peak_step
        else:
            start, end, part = peak, last, (step - peak_step) / (last_step - peak_step)
        return Rates(anneal(start.lr, end.lr, part), anneal(start.momentum, end.momentum, part))

    return rates


def _cosine(start: float, end: float, part: float) -> float:
    return end + (start - end) / 2 * (math.cos(math.pi * part) + 1)


def _linear(start: float, end: float, part: float) -> float:
    return start + (end - start) * part
