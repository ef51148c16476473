"""Gradient accumulation whose gradient is exactly that of the whole batch's mean loss."""

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from relight_trainer.shares import share


class MicroBatch(NamedTuple):
    """A part of a batch, and the factor of its mean loss: its samples divided by the batch's."""

    batch: Any
    weight: float


def micro_batches(batch: Any, parts: int, model: nn.Module | None = None) -> Iterator[MicroBatch]:
    """`batch` in `parts` micro-batches of nearly equal size, in order; fewer where it has fewer samples.

    `batch` is a tensor, or tuples, lists and mappings of tensors whose first dimension counts the samples. The sum of
    the micro-batches' mean losses times their weights is the batch's mean loss. Where `model` is a
    DistributedDataParallel, gradients are exchanged with the last micro-batch only: run forward and backward in the
    loop's body, and the loop to its end.

    Raises ValueError where `parts` is less than 1, where `batch` holds no tensor or no sample, and where its tensors
    have different numbers of samples.
    """
    if parts < 1:
        raise ValueError(f"parts: found {parts}; allowed: 1 or more")
    sizes = set(_sizes(batch))
    if len(sizes) != 1:
        found = ", ".join(map(str, sorted(sizes))) or "no tensor"
        raise ValueError(f"batch: found tensors of different numbers of samples or none ({found}); allowed: one number")
    [samples] = sizes
    if samples == 0:
        raise ValueError("batch: found no sample; allowed: at least one")
    parts = min(parts, samples)
    for number in range(parts):
        cut = share(samples, number, parts)
        waits = isinstance(model, DistributedDataParallel) and number < parts - 1
        with model.no_sync() if waits and isinstance(model, DistributedDataParallel) else nullcontext():
            yield MicroBatch(_cut(batch, cut), (cut.stop - cut.start) / samples)


def _sizes(batch: Any) -> Iterator[int]:
    if isinstance(batch, Tensor):
        yield batch.shape[0] if batch.dim() else 1
    elif isinstance(batch, Mapping):
        for value in batch.values():
            yield from _sizes(value)
    elif isinstance(batch, (tuple, list)):
        for value in batch:
            yield from _sizes(value)


def _cut(batch: Any, part: slice) -> Any:
    if isinstance(batch, Tensor):
        return batch[part]
    if isinstance(batch, Mapping):
        return {key: _cut(value, part) for key, value in batch.items()}
    if isinstance(batch, tuple) and hasattr(batch, "_fields"):
        return type(batch)(*(_cut(value, part) for value in batch))
    if isinstance(batch, (tuple, list)):
        return type(batch)(_cut(value, part) for value in batch)
    return batch
