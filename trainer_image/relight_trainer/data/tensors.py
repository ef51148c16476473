"""Data sets that fit in memory: tensors whose rows are samples."""

from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy.typing as npt
import torch
from torch import Tensor

from relight_trainer.data.device import moved
from relight_trainer.data.draws import Draw
from relight_trainer.data.fingerprint import digest


class Samples(NamedTuple):
    inputs: Tensor  # (n, ...) float32
    labels: Tensor  # (n,) int64, or float32 where a number is to be predicted

    @property
    def size(self) -> int:
        return len(self.labels)

    def take(self, indices: npt.NDArray[Any]) -> "Samples":
        """The samples at `indices`, in that order."""
        chosen = moved(torch.from_numpy(indices), self.labels.device)
        return Samples(self.inputs[chosen], self.labels[chosen])

    def to(self, device: torch.device) -> "Samples":
        return Samples(self.inputs.to(device), self.labels.to(device))


class TensorSplit:
    """`Split` of samples that lie on the device already."""

    def __init__(self, samples: Samples, device: torch.device) -> None:
        self.fingerprint = fingerprint(samples)
        self._samples = samples.to(device)

    @property
    def size(self) -> int:
        return self._samples.size

    def batches(self, draws: Iterable[Draw]) -> Iterator[Samples]:
        return (self._samples.take(draw.indices) for draw in draws)


def fingerprint(samples: Samples) -> str:
    """Of every shape and of up to 4096 samples, evenly spaced: the same whatever device they are on."""
    rows = torch.arange(0, samples.size, max(1, samples.size // 4096))
    parts = [t[rows.to(t.device)].cpu().contiguous() for t in samples]
    return digest(*(str((t.dtype, tuple(t.shape))) for t in samples), *(p.view(-1).numpy().tobytes() for p in parts))


class Splits(NamedTuple):
    train: Samples
    test: Samples

    def to(self, device: torch.device) -> "Splits":
        return Splits(self.train.to(device), self.test.to(device))
