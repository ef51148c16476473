"""Data sets that fit in memory: tensors whose rows are samples."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from relight_trainer.data.device import moved
from relight_trainer.data.draws import Draw
from relight_trainer.data.fingerprint import digest
from relight_trainer.data.labels import KnownLabels
from relight_trainer.data.parts import parts_by_class


class Samples(NamedTuple):
    inputs: Tensor  # (n, ...) float32
    labels: Tensor  # (n,) int64, or float32 where a number is to be predicted

    @property
    def size(self) -> int:
        return len(self.labels)

    @property
    def fingerprint(self) -> str:
        """Of every shape and of up to 4096 samples, evenly spaced: the same whatever device they are on."""
        rows = torch.arange(0, self.size, max(1, self.size // 4096))
        parts = [t[rows.to(t.device)].cpu().contiguous() for t in self]
        return digest(*(str((t.dtype, tuple(t.shape))) for t in self), *(p.view(-1).numpy().tobytes() for p in parts))

    def take(self, indices: npt.NDArray[Any]) -> "Samples":
        """The samples at `indices`, in that order."""
        chosen = moved(torch.from_numpy(indices), self.labels.device)
        return Samples(self.inputs[chosen], self.labels[chosen])

    def to(self, device: torch.device) -> "Samples":
        return Samples(self.inputs.to(device), self.labels.to(device))


class Repeated(NamedTuple):
    """`samples` over and over, `size` in all."""

    samples: Samples
    size: int

    @property
    def fingerprint(self) -> str:
        return digest(self.samples.fingerprint, str(self.size))

    def take(self, indices: npt.NDArray[Any]) -> Samples:
        return self.samples.take(indices % self.samples.size)

    def to(self, device: torch.device) -> "Repeated":
        return Repeated(self.samples.to(device), self.size)


class TensorSplit:
    """`Split` of samples that lie on the device already."""

    def __init__(self, samples: Samples | Repeated, device: torch.device, name: str = "data") -> None:
        distinct = samples.samples if isinstance(samples, Repeated) else samples
        self.labels = KnownLabels(distinct.labels, lambda index: f"{name}[{index}]")
        self.size = samples.size
        self.fingerprint = samples.fingerprint
        self._samples = samples.to(device)

    def batches(self, draws: Iterable[Draw]) -> Iterator[Samples]:
        return (self._samples.take(draw.indices) for draw in draws)


class TrainTest(NamedTuple):
    train: Samples
    test: Samples


def divided_by_class(
    inputs: npt.NDArray[np.float32], labels: npt.NDArray[np.int64], test_fraction: float, split_seed: int
) -> TrainTest:
    """Arrays as tensors, of each class `test_fraction` for tests."""
    everything = Samples(torch.from_numpy(inputs), torch.from_numpy(labels))
    return TrainTest(*(everything.take(part) for part in parts_by_class(labels, test_fraction, split_seed)))
