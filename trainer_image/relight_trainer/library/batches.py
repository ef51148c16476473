"""The order of samples as a function of seed, epoch and step, for a DataLoader of one's own."""

from collections.abc import Iterator

import torch.distributed as dist
from torch.utils.data import Sampler

from relight_trainer.sampler import Sampler as Order
from relight_trainer.shares import share


class GlobalBatches(Sampler[list[int]]):
    """A `batch_sampler` for a DataLoader: each rank's share of shuffled global batches.

    The global batches of an epoch follow from `seed` and the epoch alone, for any number of ranks. Call
    `set_epoch(epoch)` before each pass. An epoch's last batch is dropped where it is smaller, unless `keep_tail`.
    `rank` and `world` default to those of the default process group, else one rank. Every rank gets as many batches as
    any other; where a global batch has fewer samples than ranks, some of these are empty, which DataLoader refuses.

    Raises ValueError where the sizes make no batch.
    """

    def __init__(
        self,
        samples: int,
        global_batch: int,
        *,
        seed: int = 0,
        keep_tail: bool = False,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        grouped = dist.is_available() and dist.is_initialized()
        self._rank = rank if rank is not None else dist.get_rank() if grouped else 0
        self._world = world if world is not None else dist.get_world_size() if grouped else 1
        if samples < 1 or global_batch < 1:
            raise ValueError(f"found {samples} samples in batches of {global_batch}; allowed: 1 or more of each")
        if not 0 <= self._rank < self._world:
            raise ValueError(f"rank: found {self._rank} of {self._world} ranks; allowed: 0 to {self._world - 1}")
        self._order = Order(samples, global_batch, seed, keep_tail=keep_tail)
        smallest = self._order.size(self._order.epoch.steps - 1)
        if smallest < self._world:
            raise ValueError(
                f"global_batch: a batch of {smallest} samples leaves some of {self._world} ranks without any; "
                f"allowed: {self._world} or more samples in every batch (global_batch, keep_tail=False)"
            )
        self._epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self._epoch = epoch

    def __len__(self) -> int:
        return self._order.epoch.steps

    def __iter__(self) -> Iterator[list[int]]:
        first = self._epoch * len(self)
        for step in range(first, first + len(self)):
            batch = self._order.batch_of(step)
            yield batch[share(len(batch), self._rank, self._world)].tolist()
