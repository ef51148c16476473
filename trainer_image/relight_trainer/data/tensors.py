"""Data sets that fit in memory: tensors whose rows are samples."""

from typing import Any, NamedTuple

import numpy.typing as npt
import torch
from torch import Tensor


class Samples(NamedTuple):
    inputs: Tensor  # (n, ...) float32
    labels: Tensor  # (n,) int64

    @property
    def size(self) -> int:
        return len(self.labels)

    def take(self, indices: npt.NDArray[Any]) -> "Samples":
        """The samples at `indices`, in that order."""
        chosen = torch.from_numpy(indices).to(self.labels.device)
        return Samples(self.inputs[chosen], self.labels[chosen])

    def to(self, device: torch.device) -> "Samples":
        return Samples(self.inputs.to(device), self.labels.to(device))


class Splits(NamedTuple):
    train: Samples
    test: Samples

    def to(self, device: torch.device) -> "Splits":
        return Splits(self.train.to(device), self.test.to(device))
