"""Paths compared: each with batch norm statistics of its own, on the same samples."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from relight_trainer.modes import mode
from relight_trainer.recalibrate import Statistics, StatisticsCache, load_statistics, preserved


class Candidates(NamedTuple):
    """What is compared: `choose` makes the model run a path; `names` are the paths' texts."""

    model: nn.Module
    choose: Callable[[Any], None]
    paths: Sequence[Any]
    names: Sequence[str]


def statistics_of(
    these: Candidates, batches: Iterable[Any], forward: Callable[[Any], object], cache: StatisticsCache
) -> list[Statistics]:
    """The statistics of each path's layers, from `cache` where they are known. Each batch is fetched once for all.

    Frozen layers keep theirs, a teacher's for instance: what it gives a path is the same in each evaluation.
    """
    todo = {
        name: (path, cache.population())
        for path, name in zip(these.paths, these.names, strict=True)
        if cache.known(name) is None
    }
    for batch in batches if todo else ():
        for path, population in todo.values():
            these.choose(path)
            with population.gathering():
                forward(batch)
    for name, (_, population) in todo.items():
        cache.put(name, population.statistics())
    return [cache.known(name) or {} for name in these.names]


def measure(
    these: Candidates,
    statistics: Sequence[Statistics],
    batches: Iterable[tuple[Any, int]],
    sums: Callable[[Any, int], Mapping[str, Tensor]],
) -> tuple[list[str], Tensor]:
    """The names of the metrics, and of each path (samples, sum of each metric), float64. Each batch is fetched once.

    `batches` are batches and their sizes. The running statistics and every module's mode are as before afterwards.
    """
    names: list[str] = []
    totals: list[Tensor | None] = [None] * len(these.paths)
    changed = {name for found in statistics for name in found}
    with mode(these.model, training=False), preserved(these.model, changed), torch.inference_mode():
        for batch, size in batches:
            for i, path in enumerate(these.paths):
                these.choose(path)
                load_statistics(these.model, statistics[i])
                found = sums(batch, size)
                names = list(found)
                values = torch.stack([v.double() for v in found.values()])
                values = torch.cat([values.new_tensor([size]), values])
                before = totals[i]
                totals[i] = values if before is None else before + values
    return names, torch.stack([t for t in totals if t is not None]).clone()


def kendall_tau(one: Sequence[float], other: Sequence[float]) -> float:
    """Kendall's rank correlation of two lists of values of the same things, with ties (tau-b); NaN where one is constant."""
    x, y = (
        torch.sign(values[:, None] - values[None, :])
        for values in (torch.tensor(v, dtype=torch.float64) for v in (one, other))
    )
    return ((x * y).sum() / (x.abs().sum() * y.abs().sum()).sqrt()).item()
