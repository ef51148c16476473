"""Labels as numbers that a loss can use, exactly those of the file, or refused with the sample."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import Tensor

from relight_trainer.data.errors import BadData

_MOST = np.iinfo(np.int64).max
_EXACT = {np.dtype(np.float16): 2**11, np.dtype(np.float32): 2**24, np.dtype(np.float64): 2**53}


class KnownLabels(NamedTuple):
    """All labels of a part of the data, in the order of its samples."""

    values: Tensor  # (n, ...)
    name: Callable[[int], str]  # of a sample, such as `data.train[7]`


def is_real(dtype: np.dtype[Any]) -> bool:
    """Whether the values of `dtype` are real numbers or booleans: a difference of times is neither."""
    return dtype.kind in "biuf"


def is_whole(dtype: np.dtype[Any]) -> bool:
    """Whether the values of `dtype` are whole numbers or booleans."""
    return dtype.kind in "biu"


def as_classes(found: npt.NDArray[Any], field: str, *, or_else: str = "") -> npt.NDArray[np.int64]:
    """Labels (n,) as classes. Raises BadData for the first that is not whole, or not held exactly.

    Which classes there are is the model's to say: see `targets`. `or_else` is what else can be done, for the message.
    """
    if is_whole(found.dtype):
        large = found > _MOST if found.dtype.kind == "u" else np.zeros(len(found), dtype=bool)
        wrong = large.copy()
        limit = _MOST
    else:
        # From here on, a float may stand for a whole number that is not the one that was written.
        limit = _EXACT.get(found.dtype.newbyteorder("="), 2**53) - 1
        large = np.abs(found) > limit
        wrong = ~(found == np.floor(found)) | large
    places = np.flatnonzero(wrong)
    if len(places):
        allowed = f"whole numbers up to {limit}" if large[places[0]] else "whole numbers"
        remedy = f", or {or_else}" if or_else else ""
        raise BadData(f"{field}: the label of sample {places[0]} is {found[places[0]]}; allowed: {allowed}{remedy}")
    return found.astype(np.int64)


def as_numbers(found: npt.NDArray[Any], field: str) -> npt.NDArray[np.float32]:
    """Labels (n,) to be predicted as numbers. Raises BadData for what float32 does not hold.

    A fraction is rounded as every number of a training is. A whole number that would become another one is refused.
    """
    with np.errstate(over="ignore", invalid="ignore"):
        numbers = found.astype(np.float32)
        whole = found == np.floor(found)
        wrong = ~np.isfinite(numbers) | (whole & (numbers.astype(found.dtype) != found))
    places = np.flatnonzero(wrong)
    if len(places):
        raise BadData(
            f"{field}: the label of sample {places[0]} is {found[places[0]]}; allowed: finite numbers that float32 "
            f"holds exactly; whole numbers are exact up to {2**24}. Divide the labels by a constant"
        )
    return numbers
