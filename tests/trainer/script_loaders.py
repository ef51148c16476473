"""Loaders that scripts bring, each as a function of (rank, world): for tests of what a resumed script is given."""

import importlib.util
import os
import random
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    Dataset,
    DistributedSampler,
    IterableDataset,
    RandomSampler,
    Sampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

PEERS = os.environ.get("RELIGHT_TEST_PEERS", "")
if PEERS and PEERS not in sys.path:
    sys.path.append(PEERS)
HAS_TORCHDATA = importlib.util.find_spec("torchdata") is not None
SAMPLES = 14


def legacy() -> float:
    """A number of numpy's global generator, from which many transforms draw."""
    return float(np.random.rand())  # noqa: NPY002


class Noisy(Dataset[torch.Tensor]):
    """Two numbers a sample, with noise from every generator that a transform may draw from. Counts what is read."""

    def __init__(self, samples: int = SAMPLES) -> None:
        self.samples = samples
        self.read: list[int] = []
        self.rng = np.random.default_rng(7)

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, index: int) -> torch.Tensor:
        self.read.append(int(index))
        noise = torch.rand(()) + random.random() + legacy() + float(self.rng.random())
        return torch.stack([torch.tensor(float(index)), noise])


# As most scripts have them: globals, that what reads samples names.
RNG = np.random.default_rng(7)
ORDER_RNG = random.Random(7)


def noise() -> float:
    return float(RNG.random())


class NoisyByGlobal(Noisy):
    """With noise from a generator that is a global of the module, drawn by a function that the data set calls."""

    torch_rng = torch.Generator()

    def __getitem__(self, index: int) -> torch.Tensor:
        return super().__getitem__(index) + noise() + torch.rand((), generator=self.torch_rng)


class Stream(IterableDataset[torch.Tensor]):
    """Each rank's share of the samples, with noise drawn as they are read; no length."""

    def __init__(self, rank: int, world: int) -> None:
        self.rank, self.world = rank, world

    def __iter__(self) -> Iterator[torch.Tensor]:
        for index in range(self.rank, SAMPLES * self.world, self.world):
            yield torch.stack([torch.tensor(float(index)), torch.rand(())])


class NumpyOrder(Sampler[int]):
    """Draws each index when it is asked for, from a generator of its own that nothing saves."""

    def __init__(self) -> None:
        super().__init__()
        self.rng = np.random.default_rng(3)

    def __len__(self) -> int:
        return SAMPLES

    def __iter__(self) -> Iterator[int]:
        for _ in range(SAMPLES):
            yield int(self.rng.integers(SAMPLES))


class GlobalOrder(NumpyOrder):
    """As a beginner writes it: from Python's and torch's global generators, an index at a time."""

    def __iter__(self) -> Iterator[int]:
        for _ in range(SAMPLES):
            yield (random.randrange(SAMPLES) + int(torch.randint(SAMPLES, ()))) % SAMPLES


class OrderByGlobal(NumpyOrder):
    """From a generator that is a global of the module, an index at a time."""

    def __iter__(self) -> Iterator[int]:
        return (ORDER_RNG.randrange(SAMPLES) for _ in range(SAMPLES))


class StreamByGlobal(Stream):
    def __iter__(self) -> Iterator[torch.Tensor]:
        return (sample + noise() for sample in super().__iter__())


class EagerOrder(NumpyOrder):
    """Draws its whole order in `__iter__` itself."""

    def __iter__(self) -> Iterator[int]:
        return iter(torch.randperm(SAMPLES).tolist())


class UnknownOrder(NumpyOrder):
    """Another order in each process, and nobody can know."""

    def __iter__(self) -> Iterator[int]:
        return iter(sorted(range(SAMPLES), key=lambda _: os.urandom(4)))


class CountingOrder(NumpyOrder):
    """Restores its own place, as samplers that are made for it do; a new epoch begins at its beginning."""

    def __init__(self) -> None:
        super().__init__()
        self.epoch, self.at = 0, 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch, self.at = epoch, 0

    def state_dict(self) -> dict[str, int]:
        return {"epoch": self.epoch, "at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.epoch, self.at = state["epoch"], state["at"]

    def __iter__(self) -> Iterator[int]:
        order = np.random.default_rng(self.epoch).permutation(SAMPLES).tolist()
        while self.at < SAMPLES:
            self.at += 1
            yield order[self.at - 1]
        self.at = 0


class StatefulLoader:
    """torchdata's StatefulDataLoader in small: goes on from its own place."""

    def __init__(self, length: int | None = 7) -> None:
        self.at = 0
        if length is not None:
            self.__class__ = type("Sized", (StatefulLoader,), {"__len__": lambda _: length})

    def state_dict(self) -> dict[str, int]:
        return {"at": self.at}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.at = state["at"]

    def __iter__(self) -> Iterator[torch.Tensor]:
        while self.at < 7:
            self.at += 1
            yield torch.rand(2, 2) + self.at
        self.at = 0


def _torch(data: Dataset[Any] | None = None, **options: Any) -> DataLoader[Any]:
    return DataLoader(Noisy() if data is None else data, **{"batch_size": 2, **options})


def _distributed(rank: int, world: int) -> DistributedSampler[Any]:
    return DistributedSampler(range(SAMPLES * world), world, rank)  # type: ignore[arg-type]


def _with_processes(rank: int, world: int) -> DataLoader[Any]:
    # By fork, as in a worker: a fork server's loader processes would not see their rank die.
    return _torch(shuffle=True, num_workers=2, persistent_workers=True, multiprocessing_context="fork")


def _torchdata(rank: int, world: int, **options: Any) -> Any:
    from torchdata.stateful_dataloader import StatefulDataLoader

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it calls of torch is deprecated
        return StatefulDataLoader(Noisy(), batch_size=2, shuffle=True, **options)


Make = Callable[[int, int], Any]
BY_INDEX: dict[str, Make] = {
    "sequential": lambda rank, world: _torch(),
    "random": lambda rank, world: _torch(shuffle=True),
    "distributed": lambda rank, world: _torch(Noisy(SAMPLES * world), sampler=_distributed(rank, world)),
    "weighted": lambda rank, world: _torch(sampler=WeightedRandomSampler([1 + i / 9 for i in range(SAMPLES)], SAMPLES)),
    "subset": lambda rank, world: _torch(sampler=SubsetRandomSampler(range(SAMPLES))),
    "batch sampler": lambda rank, world: _torch(
        Noisy(SAMPLES * world),
        batch_sampler=BatchSampler(_distributed(rank, world), 2, drop_last=True),
        batch_size=1,
    ),
    "own generator": lambda rank, world: _torch(
        sampler=RandomSampler(
            range(SAMPLES), replacement=True, num_samples=SAMPLES, generator=torch.Generator().manual_seed(5)
        )
    ),
    "loader's generator": lambda rank, world: _torch(shuffle=True, generator=torch.Generator().manual_seed(5)),
    "numpy generator": lambda rank, world: _torch(sampler=NumpyOrder()),
    "global generators": lambda rank, world: _torch(sampler=GlobalOrder()),
    "global of the data": lambda rank, world: _torch(NoisyByGlobal(), shuffle=True),
    "global of the sampler": lambda rank, world: _torch(sampler=OrderByGlobal()),
    "eager": lambda rank, world: _torch(sampler=EagerOrder(), drop_last=True),
    "no batches": lambda rank, world: _torch(shuffle=True, batch_size=None),
}
WITH_PROCESSES: dict[str, Make] = {
    "processes": _with_processes,
    "processes, global generators": lambda rank, world: _torch(
        sampler=GlobalOrder(), num_workers=2, multiprocessing_context="fork"
    ),
    "processes, global of the data": lambda rank, world: _torch(
        NoisyByGlobal(), sampler=OrderByGlobal(), num_workers=2, multiprocessing_context="fork"
    ),
}
BY_READING: dict[str, Make] = {
    "iterable": lambda rank, world: _torch(Stream(rank, world)),
    "iterable, global": lambda rank, world: _torch(StreamByGlobal(rank, world)),
    "list": lambda rank, world: [torch.full((2, 2), float(i)) for i in range(7)],
}
BY_OWN_STATE: dict[str, Make] = {
    "stateful": lambda rank, world: StatefulLoader(),
    "stateful, no length": lambda rank, world: StatefulLoader(None),
    "stateful sampler": lambda rank, world: _torch(sampler=CountingOrder()),
    **({"torchdata": _torchdata} if HAS_TORCHDATA else {}),
}


def state_of(name: str, loader: Any) -> dict[str, Any]:
    """What a script gives to client.start of such a loader."""
    if name not in BY_OWN_STATE:
        return {}
    return {"data": loader.sampler if name == "stateful sampler" else loader}
