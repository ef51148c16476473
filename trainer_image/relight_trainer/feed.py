"""From the sampler to the step: this rank's micro-batches, in order, read ahead."""

from collections.abc import Iterator
from typing import Any

from relight_trainer.data.splits import Draw, Split
from relight_trainer.sampler import Sampler
from relight_trainer.windows import Dealer, Part


class Feed:
    """The parts of this rank in the steps from `start` to `end`, and a batch for each.

    To be closed: loader processes end then.
    """

    def __init__(self, sampler: Sampler, dealer: Dealer, split: Split, start: int, end: int) -> None:
        self._sampler = sampler
        self._dealer = dealer
        self._asked: dict[int, list[Part]] = {}
        self.batches: Iterator[Any] = split.batches(self._draws(start, end))

    def parts(self, step: int) -> list[Part]:
        """Of `step`; each step once, in order."""
        return self._once(step)

    def close(self) -> None:
        close = getattr(self.batches, "close", None)
        if close is not None:
            close()

    def _draws(self, start: int, end: int) -> Iterator[Draw]:
        for step in range(start, end):
            epoch = self._sampler.place(step).epoch
            for part in self._once(step):
                yield Draw(epoch, part.indices)

    def _once(self, step: int) -> list[Part]:
        """Both the loop and the loader ask for each step; who comes first leaves it for the other."""
        found = self._asked.pop(step, None)
        if found is None:
            found = self._asked[step] = self._dealer.parts(step)
        return found
