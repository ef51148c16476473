"""How many batches a loader says an epoch has, and the other counts of a loop."""

from collections.abc import Sequence
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from relight_trainer.script_data.errors import BadLoader, DataDiffers, name_of
from relight_trainer.script_data.parts import base_of

_UNKNOWN = (TypeError, NotImplementedError)  # a DataLoader has `__len__` even where its data set has none


def length_of(loader: Any) -> int:
    """Batches in an epoch; 0 where the loader cannot tell. Raises BadLoader where `len` fails, DataDiffers for none."""
    try:
        length = len(loader)
    except _UNKNOWN:
        return 0
    except Exception as error:
        raise BadLoader(
            f"len() of {name_of(loader)} raises {type(error).__name__}: {error}. Allowed: the number of batches in an "
            "epoch, or TypeError if the number is not known. Fix __len__ of the loader, its sampler or its data set"
        ) from error
    if length == 0:
        raise DataDiffers(
            f"{name_of(loader)} is empty: its length is 0. It must give at least one batch: check the data set's path "
            "and filters, drop_last with a batch size above the number of samples, and the sampler"
        )
    return length


def is_exact(loader: Any) -> bool:
    """Whether `len` is the number of batches: that of an iterable data set, or of another kind of loader, is nominal."""
    base = base_of(loader)
    if isinstance(base, DataLoader):
        return not isinstance(base.dataset, IterableDataset)
    return isinstance(loader, Sequence)


def checked_counts(*, epochs: Any, accumulate: Any) -> None:
    """Raises BadLoader where either is no whole number from 1.

    >>> checked_counts(epochs=1, accumulate=0)
    Traceback (most recent call last):
    ...
    relight_trainer.script_data.errors.BadLoader: run.steps(accumulate=0): allowed: whole numbers from 1
    """
    for name, value in (("epochs", epochs), ("accumulate", accumulate)):
        if isinstance(value, bool) or not hasattr(value, "__index__") or value < 1:
            raise BadLoader(f"run.steps({name}={value!r}): allowed: whole numbers from 1")
