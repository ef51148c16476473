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
        self._ahead: dict[int, list[Part]] = {}
        self.batches: Iterator[Any] = split.batches(self._draws(start, end))

    def parts(self, step: int) -> list[Part]:
        found = self._ahead.pop(step, None)
        return self._dealer.parts(step) if found is None else found

    def close(self) -> None:
        close = getattr(self.batches, "close", None)
        if close is not None:
            close()

    def _draws(self, start: int, end: int) -> Iterator[Draw]:
        for step in range(start, end):
            epoch = self._sampler.place(step).epoch
            parts = self._dealer.parts(step)
            if parts:  # else nobody would take it from there
                self._ahead[step] = parts
            for part in parts:
                yield Draw(epoch, part.indices)
