"""Which samples make a batch: what the loop asks of a data set."""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt


class Draw(NamedTuple):
    """The samples of one batch. `epoch` tells a sample's visits apart: each is augmented in another way."""

    epoch: int
    indices: npt.NDArray[np.int64]


def shard(size: int, rank: int, world: int, batch: int) -> Iterator[Draw]:
    """Every sample of a test set exactly once over all ranks: `rank`'s part, in batches of at most `batch`.

    >>> [draw.indices.tolist() for draw in shard(5, 0, 2, 2)]
    [[0, 2], [4]]
    """
    mine = np.arange(rank, size, world)
    return (Draw(0, mine[start : start + batch]) for start in range(0, len(mine), batch))
