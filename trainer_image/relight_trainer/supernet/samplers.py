"""Which paths a step trains: functions of (seed, step), with no state and no global random numbers.

Every rank computes the same, a resumed job goes on as if it had not stopped, and any step's paths can be had at once.
"""

from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import assert_never

from relight_trainer.seeds import stream
from relight_trainer.settings.supernet import Budget, Supernet
from relight_trainer.supernet.choices import BadSupernet
from relight_trainer.supernet.costs import Costs

Options = tuple[int, ...]
Sampler = Callable[[int], list[Options]]  # the paths of an optimizer step

_ATTEMPTS = 10_000  # to find a path within the budget


def uniform(sizes: Sequence[int], seed: int, step: int, index: int, attempt: int = 0) -> Options:
    """Each path as likely as any other (SPOS, arXiv 1904.00420)."""
    counters = (step, index) if attempt == 0 else (step, index, attempt)
    key = stream(seed, "path", *counters)
    return tuple(stream(key, "choice", i) % size for i, size in enumerate(sizes))


def fair(sizes: Sequence[int], seed: int, draw: int) -> Options:
    """The `draw`-th path of an endless row in which every n paths take each of a choice's n options once.

    With equal choices, n draws in a row are a step of FairNAS (arXiv 1907.01845); a choice with fewer options than the
    largest one is as fair over its own, shorter rounds.
    """
    return tuple(_round(seed, i, draw // size, size)[draw % size] for i, size in enumerate(sizes))


@lru_cache(maxsize=4096)
def _round(seed: int, choice: int, number: int, size: int) -> Options:
    key = stream(seed, "fair path", choice, number)
    return tuple(sorted(range(size), key=lambda option: stream(key, "option", option)))


def within_budget(costs: Costs, budget: Budget, seed: int, step: int, index: int) -> Options:
    """Uniform among the paths within `budget`: others are drawn again. Raises BadSupernet after long."""
    for attempt in range(_ATTEMPTS):
        path = uniform(costs.sizes, seed, step, index, attempt)
        if budget.least <= costs.of(path) <= budget.most:
            return path
    raise BadSupernet(
        f"supernet.budget: among {_ATTEMPTS} paths drawn, none costs from {budget.least} to {budget.most} {costs.unit}; "
        f"found are paths from {costs.of(costs.smallest)} to {costs.of(costs.largest)}"
    )


def build_sampler(settings: Supernet, sizes: Sequence[int], seed: int, costs: Callable[[], Costs]) -> Sampler:
    """The configured sampler. `costs` is called where the sampler needs them. Raises BadSupernet for an unfit budget."""
    count = settings.paths or {"fair": max(sizes), "sandwich": 4}.get(settings.sampler, 1)
    match settings.sampler:
        case "uniform":
            return lambda step: [uniform(sizes, seed, step, i) for i in range(count)]
        case "fair":
            return lambda step: [fair(sizes, seed, step * count + i) for i in range(count)]
        case "sandwich":
            ends = [costs().largest, costs().smallest]
            return lambda step: ends + [uniform(sizes, seed, step, i) for i in range(2, count)]
        case "budgeted":
            assert settings.budget is not None, "the settings demand it"
            found, budget = costs(), settings.budget
            within_budget(found, budget, seed, 0, 0)  # whether there is one at all is known before the start
            return lambda step: [within_budget(found, budget, seed, step, i) for i in range(count)]
        case unknown:
            assert_never(unknown)
