"""Data sets whose samples are loaded one by one: torch's DataLoader, made exact.

A batch is a function of (seed, epoch, indices) alone: before each sample the global generators of torch, numpy and
`random` are seeded from (seed, epoch, index), so it is the same in any process, after any resume, on any rank.
"""

import atexit
import os
import random
import signal
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.connection import wait
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch.utils.data import DataLoader, default_collate

from relight_agent.exits import ExitCode
from relight_agent.processes import die_with_parent
from relight_trainer.data.device import each_tensor, on_device
from relight_trainer.data.draws import Draw
from relight_trainer.data.fingerprint import digest
from relight_trainer.data.labels import KnownLabels
from relight_trainer.failures import classify, describe
from relight_trainer.hygiene import cut_inherited_sockets
from relight_trainer.seeds import stream

_MOST = 16  # automatic loader processes
_SHOWN = 12  # indices in one message
_STOPS = (signal.SIGTERM, signal.SIGINT)


@runtime_checkable
class Dataset(Protocol):
    """A map-style data set, as torch's. Used where it has them:

    `fingerprint: str`                what it holds, in a few characters; names and sizes, not contents
    `load_batch(indices) -> batch`    all samples at once, where nothing in them is random
    `collate(samples) -> batch`       torch's `default_collate` otherwise
    `finish(batch) -> batch`          what is cheaper on the device, such as bytes to floats
    `known_labels`                    the targets of all samples, in an array: compared with the loss before the start
    `name(index) -> str`              what a person finds the sample by, with `known_labels`
    """

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Any: ...


class SampleFailed(Exception):
    """A data set raised an error for a sample. `exit_code` is what that error means."""

    def __init__(self, text: str, exit_code: ExitCode) -> None:
        super().__init__(text)
        self.exit_code = exit_code


class LoadedSplit:
    """`Split` of a data set. `stream_name` is the stream of random numbers that its samples draw from."""

    def __init__(
        self, dataset: Dataset, *, name: str, workers: int, prefetch: int, key: int, device: torch.device
    ) -> None:
        self.size = len(dataset)
        self.fingerprint: str = getattr(dataset, "fingerprint", "") or digest(type(dataset).__qualname__)
        self.labels = _known_labels(dataset, name)
        self._dataset = dataset
        self._name = name
        self._workers = workers
        self._prefetch = prefetch
        self._key = key
        self._device = device

    def batches(self, draws: Iterable[Draw]) -> Iterator[Any]:
        finish: Callable[[Any], Any] = getattr(self._dataset, "finish", _same)
        return on_device(self._loaded(draws), self._device, finish)

    def _loaded(self, draws: Iterable[Draw]) -> Iterator[Any]:
        loader = DataLoader(
            _Batches(self._dataset, self._name, self._key),
            sampler=draws,
            batch_size=None,  # a draw is a batch
            collate_fn=_same,
            num_workers=self._workers,
            prefetch_factor=self._prefetch if self._workers else None,
            multiprocessing_context="fork" if self._workers else None,
            worker_init_fn=_begin_loader_process,
            pin_memory=self._device.type == "cuda",
            generator=torch.Generator(),  # or it would draw a seed for its processes from the training's
        )
        with _held_back():
            batches = iter(loader)
        end = getattr(batches, "_shutdown_workers", _nothing)
        # Loader processes ignore SIGTERM, by which multiprocessing would end them at exit, and wait for them.
        atexit.register(end)
        try:
            while (batch := self._next(batches)) is not None:
                if isinstance(batch, _Failure):
                    raise SampleFailed(batch.text, batch.exit_code)
                yield batch
        finally:
            end()
            atexit.unregister(end)

    def _next(self, batches: Iterator[Any]) -> Any:
        """The next batch, None after the last. Raises LoaderDied."""
        try:
            return next(batches, None)
        except (RuntimeError, OSError, EOFError) as error:  # whatever the broken connection comes to first
            processes = {process.sentinel: process for process in getattr(batches, "_workers", ())}
            ending = [processes[s] for s in wait(list(processes), timeout=1.0) if isinstance(s, int)]
            if not ending:
                raise
            ending[0].join(1.0)  # its files are closed before it has ended
            raise LoaderDied(self._name, ending[0].exitcode or 0) from error


class LoaderDied(Exception):
    """A loader process has ended by itself, with `code`, or was killed by the signal -`code`."""

    def __init__(self, name: str, code: int) -> None:
        starved = code in {-signal.SIGKILL, -signal.SIGBUS}
        self.exit_code = ExitCode.OUT_OF_MEMORY if starved else ExitCode.EXCEPTION
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with {code}"
        hint = ": the pod's memory or /dev/shm is used up; fewer loader.workers and loader.prefetch need less"
        super().__init__(f"{name}: a loader process {how}{hint if starved else ''}")


@dataclass(frozen=True)
class _Failure:
    """An error as it gets from a loader process to its worker: torch would wrap its text in a traceback's."""

    text: str
    exit_code: ExitCode


class _Batches(torch.utils.data.Dataset[Any]):
    """The data set as the DataLoader sees it: what it gets by a draw is a batch, or a failure."""

    def __init__(self, dataset: Dataset, name: str, key: int) -> None:
        self._dataset = dataset
        self._name = name
        self._key = key
        self._collate: Callable[[list[Any]], Any] = getattr(dataset, "collate", default_collate)

    def __getitem__(self, draw: Draw) -> Any:
        load_batch = getattr(self._dataset, "load_batch", None)
        place = self._name
        try:
            if load_batch is not None:
                return load_batch(draw.indices)
            samples = []
            with _own_generators():
                for index in draw.indices.tolist() or [0]:
                    place = f"{self._name}[{index}]"
                    _seed(stream(self._key, "sample", draw.epoch, index))
                    samples.append(self._dataset[index])
            place = self._name
            try:
                batch = self._collate(samples)
            except Exception:
                place = f"{self._name}{_of_another_kind(samples, draw.indices.tolist())}"
                raise
            # A rank may have no share of an epoch's last batch.
            return batch if len(draw.indices) else each_tensor(batch, _no_rows)
        except Exception as error:  # whatever it is, it ends the training, and there its text is wanted
            return _Failure(f"{place}: {describe(error)}", classify(error))


def _known_labels(dataset: Dataset, name: str) -> KnownLabels | None:
    values = getattr(dataset, "known_labels", None)
    name_of = getattr(dataset, "name", None)
    if values is None:
        return None

    def named(index: int) -> str:
        return f"{name}[{index}]" + ("" if name_of is None else f": {name_of(index)}")

    return KnownLabels(torch.as_tensor(values), named)


def _of_another_kind(samples: Sequence[Any], indices: Sequence[int]) -> str:
    """`[7]: (3, 5) float32, and [2] is (3, 4) float32: ...` where a sample's tensors are of another kind than the first's.

    The samples that cannot be made a batch otherwise.
    """
    kinds = [_kind(sample) for sample in samples]
    for index, kind in zip(indices, kinds, strict=False):
        if kind != kinds[0]:
            return f"[{index}]: {kind}, and [{indices[0]}] is {kinds[0]}"
    return f"[{', '.join(map(str, indices[:_SHOWN]))}{', ...' if len(indices) > _SHOWN else ''}]"


def _kind(value: Any) -> str:
    """What has to be alike in the samples of a batch, as a person reads it."""
    if isinstance(value, (torch.Tensor, np.ndarray)):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_kind(part)}" for key, part in value.items()) + "}"
    if isinstance(value, (tuple, list)):
        return "[" + ", ".join(map(_kind, value)) + "]"
    return type(value).__name__


def automatic_workers(local_world: int, limit: float | None) -> int:
    """Loader processes for each of `local_world` workers that share a pod's CPUs, of which it may use `limit`.

    >>> automatic_workers(1, limit=0.5)
    1
    """
    there = float(len(os.sched_getaffinity(0)))  # the machine's, where nothing says otherwise
    return max(1, min(_MOST, int(min(there, limit or there) / local_world)))


@contextmanager
def _held_back() -> Iterator[None]:
    """A SIGTERM or SIGINT that comes now comes afterwards; to a process that is forked now, once it ignores them."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOPS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin_loader_process(_number: int) -> None:
    # A pod that is told to end gets SIGTERM in every process; the batches are still needed until the state is saved.
    for number in _STOPS:
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPS)
    die_with_parent(os.getppid())
    cut_inherited_sockets()  # or peers would not see the worker's end before this process ends too


@contextmanager
def _own_generators() -> Iterator[None]:
    """What is drawn within comes from generators that are as before afterwards: those of the training."""
    before = torch.default_generator.get_state(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        yield
    finally:
        torch.default_generator.set_state(before[0])
        np.random.set_state(before[1])  # noqa: NPY002
        random.setstate(before[2])


def _seed(value: int) -> None:
    """The generators of the CPU alone: samples are made there, and a GPU's belong to the training."""
    torch.default_generator.manual_seed(value)
    np.random.seed(value % 2**32)  # noqa: NPY002
    random.seed(value)


def _no_rows(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:0]


def _same(batch: Any) -> Any:
    return batch


def _nothing() -> None:
    pass
