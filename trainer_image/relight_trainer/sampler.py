"""Which samples each step trains on: a function of (seed, epoch, step), with no state but the sample cursor.

The sample cursor counts samples consumed by the whole job, so it means the same in a world of any size. The tail of
an epoch that is smaller than a global batch is dropped, or kept as a smaller one.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from relight_trainer.seeds import stream
from relight_trainer.settings.spans import EpochSize


class Place(NamedTuple):
    """Where a step stands in the data."""

    epoch: int
    batch: int  # in the epoch


def permutation(count: int, key: int) -> npt.NDArray[np.int64]:
    """A permutation of range(count) chosen by `key`: indices sorted by a hash (splitmix64) of key and index.

    No library's generator is in it, so it is the same in every version of all of them.
    """
    with np.errstate(over="ignore"):
        mixed = (np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)) + np.uint64(key)
        mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        mixed ^= mixed >> np.uint64(31)
    return np.argsort(mixed, kind="stable")


class Sampler:
    """The order of `count` samples in global batches of `batch`; `keep_tail`: an epoch's last may be smaller."""

    def __init__(self, count: int, batch: int, seed: int, *, keep_tail: bool = False) -> None:
        if batch > count and not keep_tail:
            raise ValueError(f"a global batch of {batch} samples does not fit a training set of {count}")
        steps = -(-count // batch) if keep_tail else count // batch
        self.epoch = EpochSize(steps, min(count, steps * batch), batch)
        self._count = count
        self._seed = seed
        self._order: tuple[int, npt.NDArray[np.int64]] | None = None

    def place(self, step: int) -> Place:
        return Place(*divmod(step, self.epoch.steps))

    def consumed(self, step: int) -> int:
        """Samples consumed once `step` steps are done."""
        epochs, batches = divmod(step, self.epoch.steps)
        return epochs * self.epoch.samples + batches * self.epoch.batch

    def size(self, step: int) -> int:
        """Samples of `step` (0 is the first)."""
        steps, samples, batch = self.epoch
        return min(batch, samples - step % steps * batch)

    def batch_of(self, step: int) -> npt.NDArray[np.int64]:
        """The samples of `step`, as indices into the training set."""
        steps, samples, size = self.epoch
        epoch, batch = divmod(step, steps)
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, permutation(self._count, stream(self._seed, "data", epoch))
        return self._order[1][batch * size : min(batch * size + size, samples)]
