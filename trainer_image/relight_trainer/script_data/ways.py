"""How a resumed script reaches its position in a loader's epoch."""

import enum
import sys
from collections.abc import Sequence
from typing import Any

from torch.utils.data import BatchSampler, DataLoader, IterableDataset

from relight_trainer.script_data.errors import BadLoader, name_of
from relight_trainer.script_data.parts import Parts, base_of


class Way(enum.Enum):
    INDEX = "index"  # the indices before it are drawn, and no data is read
    OWN_STATE = "own state"  # the loader was given as state, and has been put there
    READ_AGAIN = "read again"  # all batches before it are read once more


def way_of(loader: Any, parts: Parts, *, given: bool) -> Way:
    """How `loader` is brought to a batch; `given`: the script has given it to `client.start` as state.

    Raises BadLoader for a loader that is known not to repeat.
    """
    base = base_of(loader)
    if isinstance(base, DataLoader) and base.num_workers and not getattr(base, "in_order", True):
        raise BadLoader(
            f"{name_of(loader)} has in_order=False: batches come in the order in which worker processes finish, which "
            "differs in each run. Allowed: in_order=True, the default"
        )
    if given:
        return Way.OWN_STATE
    if not isinstance(base, DataLoader) or isinstance(base.dataset, IterableDataset):
        return Way.READ_AGAIN
    if not parts.are_apart or not _iterates_as_torch(loader, base):
        return Way.READ_AGAIN
    return Way.INDEX


def is_free_to_read(loader: Any) -> bool:
    """Whether reading a batch again costs nothing: a list has them at hand."""
    return isinstance(loader, (Sequence, BatchSampler))


def _iterates_as_torch(loader: Any, base: DataLoader[Any]) -> bool:
    """Whether one batch of `loader` is one drawn from the sampler, in the sampler's order."""
    accelerate: Any = sys.modules.get("accelerate.data_loader")
    if base is not loader and not (accelerate is not None and isinstance(loader, accelerate.DataLoaderShard)):
        return False
    kind: Any = type(base)
    return all(getattr(kind, name) is getattr(DataLoader, name) for name in ("__iter__", "_get_iterator"))
