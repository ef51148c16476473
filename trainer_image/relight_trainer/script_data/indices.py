"""Draws a DataLoader's indices up to a position without reading data, with the same random numbers as when reading."""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    DistributedSampler,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

from relight_trainer.script_data.digests import of_indices
from relight_trainer.script_data.state import HeldState, State
from relight_trainer.script_data.worker_seeds import Seeded, WorkerStart

# They draw from torch's global generator before their first index, and never after it.
_DRAW_ONCE = {SequentialSampler, RandomSampler, SubsetRandomSampler, WeightedRandomSampler, DistributedSampler}


@dataclass(frozen=True)
class Start:
    """Where an epoch begins: behind its first `skip` batches."""

    skip: int
    first: int  # the number of the batch that the sampler gives first; above 0 where its own state has put it there
    begin: Callable[[], None]  # puts the generators into the state in which the epoch's order is drawn
    begin_drawing: Callable[
        [], None
    ]  # as a loader leaves it that has drawn the seed of its processes, and gets to draw
    seed: Callable[[int], None]  # puts the generators into the state in which batch `number` is drawn
    seed_of: Callable[[int], int] | None  # of what a worker process draws for batch `number`; None without processes
    ahead: int  # batches that are drawn before the first one is awaited
    check: Callable[[str], None]  # is given the digest of the last batch that is left out
    too_short: Callable[[int], None]  # is given the number of batches, where fewer than `skip` can be left out
    held: HeldState | None = None  # of a sampler that was given as state: it has been put to the place itself


class Indices:
    """Stands in the place of a loader's batch sampler (or sampler, where it does not batch)."""

    def __init__(self, inner: Any) -> None:
        self.inner = inner
        # Of each batch that has been drawn and not yet been given: its digest, and the sampler's own state behind it.
        self.drawn: deque[tuple[str, State | None]] = deque()
        self.at_end: State | None = None  # the sampler's own state behind the epoch
        self.start: Start | None = None

    def __len__(self) -> int:
        return len(self.inner)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.__dict__["inner"], name)

    def __iter__(self) -> Iterator[Any]:
        start = self.start
        if start is None:  # somebody else iterates over the loader: processes that are kept still draw from here
            return iter(self.inner)
        self.drawn.clear()
        fast = start.skip > start.first and _draws_once(self.inner)
        # A loader that keeps its processes asks for one iterator, a new one for two and draws a seed between.
        start.begin()
        return self._draw(start, None if fast else iter(self.inner))

    def _draw(self, start: Start, drawn: Iterator[Any] | None) -> Iterator[Any]:
        skip, ahead, seed_of, held = start.skip, start.ahead, start.seed_of, start.held
        start.begin_drawing()
        number = start.first
        if drawn is None:
            number = skip - 1
            drawn = _from(self.inner, number)
        while True:
            if ahead < number <= skip + ahead and skip:
                start.seed(number - ahead)
            try:
                indices = next(drawn)
            except StopIteration:
                break
            if number >= skip:
                self.drawn.append((of_indices(indices), held.taken() if held is not None else None))
                yield indices if seed_of is None else Seeded(indices, seed_of(number))
            elif number == skip - 1:
                start.check(of_indices(indices))
            number += 1
        if held is not None:
            self.at_end = held.taken()
        if number < skip:
            start.too_short(number)


def _draws_once(sampler: Any) -> bool:
    if type(sampler) is BatchSampler:
        sampler = sampler.sampler
    return type(sampler) in _DRAW_ONCE and getattr(sampler, "generator", None) is not torch.default_generator


def _from(sampler: Any, number: int) -> Iterator[Any]:
    """What `sampler` gives from batch `number` on, where its indices do not depend on when they are drawn."""
    batched = type(sampler) is BatchSampler
    indices = iter(sampler.sampler if batched else sampler)
    left_out = number * (sampler.batch_size if batched else 1)
    next(islice(indices, left_out, left_out), None)
    return iter(BatchSampler(_Begun(indices), sampler.batch_size, sampler.drop_last)) if batched else indices


@dataclass(frozen=True)
class _Begun:
    indices: Iterator[int]

    def __iter__(self) -> Iterator[int]:
        return self.indices


@contextmanager
def standing_in(loader: DataLoader[Any], indices: Indices) -> Iterator[None]:
    """While `loader` begins an epoch, it draws from `indices`, and its worker processes are seeded for each batch.

    A DataLoader forbids that its sampler is replaced, for it would have to be at the right moment: this is the moment.
    (A DataLoader with processes asks its sampler for two iterators, and draws from the second.)
    """
    name = "sampler" if loader.batch_sampler is None else "batch_sampler"
    attributes = vars(loader)
    before = {key: attributes[key] for key in (name, "worker_init_fn")}
    running = attributes.get("_iterator")
    if running is not None and running._index_sampler is not indices:  # noqa: SLF001
        attributes["_iterator"] = None  # processes that were started before know of no seeds
    attributes.update({name: indices, "worker_init_fn": WorkerStart(before["worker_init_fn"])})
    try:
        yield
    finally:
        attributes.update(before)
        indices.start = None
