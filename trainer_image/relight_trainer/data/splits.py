"""A configured data set, opened: what the loop takes its batches from."""

import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import torch
from torch.utils.data import IterableDataset

from relight_agent.cgroup import Cgroup
from relight_trainer.data.draws import Draw, shard
from relight_trainer.data.errors import BadData, UnfitData
from relight_trainer.data.fingerprint import Identity, Known
from relight_trainer.data.labels import KnownLabels
from relight_trainer.data.loading import Dataset, LoadedSplit, automatic_workers
from relight_trainer.data.tensors import Repeated, Samples, TensorSplit
from relight_trainer.registry import Arguments, build
from relight_trainer.seeds import stream
from relight_trainer.settings.data import DATA
from relight_trainer.settings.loader import Loader

__all__ = ["Draw", "Split", "Splits", "open_splits", "shard", "splits_of"]


class Split(Protocol):
    """One part of a data set."""

    @property
    def size(self) -> int: ...

    @property
    def fingerprint(self) -> str: ...

    def batches(self, draws: Iterable[Draw]) -> Iterator[Any]:
        """One batch on the device for each draw, in their order; a draw of nothing gives a batch of no rows.

        Draws are taken ahead of their use. Closing the iterator ends its loader processes. No global random state of
        this process is read or changed. Raises what is wrong with a sample, named.
        """
        ...


class Splits(NamedTuple):
    train: Split
    test: Split  # of size 0 where there is none
    identity: Identity


def open_splits(chosen: Arguments, loader: Loader, seed: int, device: torch.device) -> Splits:
    """The data that a configuration names, with `seed` for its augmentation.

    Raises BadData where it is not there or cannot be used, UnfitData where it is no data set.
    """
    return splits_of(build(DATA, chosen), loader, seed, device)


def splits_of(parts: Any, loader: Loader, seed: int, device: torch.device) -> Splits:
    """The splits of (training set, test set or None), each `Samples` or a map-style data set."""
    if not isinstance(parts, tuple) or len(parts) != 2:
        raise UnfitData(
            f"data: found {_named(parts)}; allowed: a tuple of a training set and a test set, which may be None"
        )
    train = _split("train", parts[0], loader, stream(seed, "augmentation"), device)
    nothing = Samples(torch.empty(0), torch.empty(0, dtype=torch.int64))
    test = _split("test", nothing if parts[1] is None else parts[1], loader, stream(seed, "test"), device)
    if not train.size:
        raise BadData("data.train has no samples")
    known = {"train": Known(train.size, train.fingerprint), "test": Known(test.size, test.fingerprint)}
    return Splits(train, test, Identity(known, allow_change=loader.changed_data == "allow"))


def known_labels(splits: Splits) -> list[KnownLabels | None]:
    """The labels of each part that has samples, None where they are not in memory."""
    return [getattr(split, "labels", None) for split in (splits.train, splits.test) if split.size]


def _split(name: str, data: Any, loader: Loader, key: int, device: torch.device) -> Split:
    if isinstance(data, (Samples, Repeated)):
        return TensorSplit(data, device, f"data.{name}")
    if isinstance(data, IterableDataset) or not isinstance(data, Dataset):
        raise UnfitData(
            f"data.{name}: found {_named(data)}; allowed: a map-style data set, with __len__ and __getitem__: "
            "only that can be gone on with at any sample"
        )
    workers = loader.workers
    if workers == "auto":
        # What gives whole batches at once has them at hand.
        local_world = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
        workers = 0 if hasattr(data, "load_batch") else automatic_workers(local_world, Cgroup().read().cpu_limit)
    return LoadedSplit(data, name=f"data.{name}", workers=workers, prefetch=loader.prefetch, key=key, device=device)


def _named(value: Any) -> str:
    return f"an object of {type(value).__module__}.{type(value).__qualname__}"
