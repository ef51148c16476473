"""Data sets of numbers that are had many rows at a time."""

from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch

from relight_trainer.data.errors import BadData
from relight_trainer.data.fingerprint import digest
from relight_trainer.data.parts import Indices, chosen_parts
from relight_trainer.data.tensors import Samples


class Source(Protocol):
    labels: npt.NDArray[Any]  # (n,) int64 or float32
    fingerprint: str

    def name(self, index: int) -> str:
        """What a person finds the row by."""
        ...

    def rows(self, chosen: Indices) -> npt.NDArray[Any]:
        """A copy of the inputs at `chosen`, (len(chosen), ...)."""
        ...


class RowSet:
    """Map-style data set of the rows `chosen` of `source`, divided by `scale`; whole batches at once."""

    def __init__(self, source: Source, chosen: Indices | None, scale: float) -> None:
        self._source = source
        self._chosen = np.arange(len(source.labels)) if chosen is None else chosen
        self._scale = scale
        self.fingerprint = source.fingerprint if chosen is None else digest(source.fingerprint, chosen.tobytes())

    def __len__(self) -> int:
        return len(self._chosen)

    @property
    def known_labels(self) -> npt.NDArray[Any]:
        """The labels of all samples."""
        labels: npt.NDArray[Any] = self._source.labels[self._chosen]
        return labels

    def name(self, index: int) -> str:
        return self._source.name(int(self._chosen[index]))

    def __getitem__(self, index: int) -> Samples:
        return self.load_batch(np.array([index]))

    def load_batch(self, indices: Indices) -> Samples:
        rows = self._chosen[indices]
        return Samples(torch.from_numpy(self._source.rows(rows)), torch.from_numpy(self._source.labels[rows]))

    def finish(self, batch: Samples) -> Samples:
        return Samples(batch.inputs.float().div_(self._scale), batch.labels)


def finite_rows(found: npt.NDArray[Any], chosen: Indices, name: str) -> npt.NDArray[np.float32]:
    """`found`, the rows at `chosen`, as float32. Raises BadData for the first value that is not finite there."""
    with np.errstate(over="ignore"):
        rows = found.astype(np.float32, copy=False)
    # One pass over the memory, and no array of booleans: a value that is not finite makes the sum so.
    if not np.isfinite(rows.sum(dtype=np.float64)):
        wrong = np.argwhere(~np.isfinite(rows))
        if len(wrong):
            place = tuple(wrong[0])
            inside = "".join(f"[{i}]" for i in place[1:])
            raise BadData(
                f"{name}[{chosen[place[0]]}]{inside}: found {found[place]}; allowed: finite numbers that float32 holds, "
                "up to 3.4e38"
            )
    return rows


def row_sets(
    source: Source, other: Source | None, scale: float, test_fraction: float, split_seed: int
) -> tuple[RowSet, RowSet]:
    """The training set of `source`, and the test set of `other` or, where that is None, of a part of `source`."""
    chosen = chosen_parts(source.labels, test_fraction, split_seed) if other is None else (None, None)
    return RowSet(source, chosen[0], scale), RowSet(other or source, chosen[1], scale)
