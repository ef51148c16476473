"""How the samples of one optimizer step are dealt out: to virtual ranks, to micro-batches, to real ranks.

A global batch is cut into `virtual_ranks * accumulate` parts, virtual rank by virtual rank. In the world that the
configuration means, each rank is one virtual rank. In a smaller one each rank runs the parts of several, so that
every part, with its batch statistics and its dropout, is what it was in the full world.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from relight_trainer.sampler import Sampler
from relight_trainer.shares import share

Indices = npt.NDArray[np.int64]


class Part(NamedTuple):
    """One micro-batch of one rank."""

    number: int  # among all parts of a step; names the part's random choices
    virtual_rank: int
    indices: Indices  # into the training set
    samples: int  # that count: 0 where the indices are a stand-in, for a rank without samples that must take part


class Dealer:
    """Deals the parts of each step to `rank` of `world`: a pure function of the step.

    With `together`, statistics are those of all ranks' samples in one forward (sync BN): then what must not change
    with the world's size is each micro-batch over all ranks, and every rank takes part in each.
    """

    def __init__(
        self,
        sampler: Sampler,
        *,
        virtual_ranks: int,
        accumulate: int,
        rank: int,
        world: int,
        together: bool = False,
        stand_in: bool = False,
    ) -> None:
        """`stand_in`: a rank without samples runs one that does not count, to use what its peers use."""
        self.accumulate = accumulate
        self.virtual_ranks = virtual_ranks
        self._sampler = sampler
        self._rank = rank
        self._world = world
        self._together = together
        self._stand_in = stand_in
        self._shares: dict[int, list[tuple[int, int, slice, int]]] = {}
        self._fewest: dict[int, int] = {}
        self.parts_in_all = virtual_ranks * accumulate  # micro-batches of a step, over all ranks
        self.passed_on = not together and virtual_ranks > world  # some rank runs the parts of several virtual ranks

    def parts(self, step: int) -> list[Part]:
        """The micro-batches of this rank in `step`, in the order in which they are run.

        Parts without samples are left out, but where all ranks work together; a rank may have none at all,
        or a stand-in.
        """
        batch = self._sampler.batch_of(step)
        if self._together:
            return self._parts_together(batch)
        size = len(batch)
        if size not in self._shares:  # there are two sizes at most: that of an epoch's tail is another
            self._shares[size] = self._shares_of(size, self._rank)
        return [Part(number, rank, batch[mine], samples) for number, rank, mine, samples in self._shares[size]]

    def fewest(self, size: int) -> int:
        """The number of parts of the rank that has the fewest in a step of `size` samples."""
        if size not in self._fewest:
            if self._together:
                self._fewest[size] = min(self.accumulate, size)
            else:
                self._fewest[size] = min(len(self._shares_of(size, rank)) for rank in range(self._world))
        return self._fewest[size]

    def _shares_of(self, size: int, of_rank: int) -> list[tuple[int, int, slice, int]]:
        """(part's number, virtual rank, which of the `size` samples, how many count) of each of a rank's parts."""
        count = self.virtual_ranks * self.accumulate
        mine = share(self.virtual_ranks, of_rank, self._world)
        numbers = range(mine.start * self.accumulate, mine.stop * self.accumulate)
        parts = [(n, n // self.accumulate, share(size, n, count)) for n in numbers]
        shares = [(n, rank, cut, cut.stop - cut.start) for n, rank, cut in parts if cut.stop > cut.start]
        if not shares and self._stand_in:
            return [(numbers.start, mine.start, slice(1), 0)]
        return shares

    def _parts_together(self, batch: Indices) -> list[Part]:
        parts = []
        for micro in range(self.accumulate):
            of_micro = batch[share(len(batch), micro, self.accumulate)]
            if len(of_micro):
                mine = of_micro[share(len(of_micro), self._rank, self._world)]
                number = self._rank * self.accumulate + micro
                parts.append(Part(number, self._rank, mine if len(mine) else of_micro[:1], len(mine)))
        return parts
