"""Keeping a part of a data set for evaluation."""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from relight_trainer.sampler import permutation
from relight_trainer.seeds import stream

Indices = npt.NDArray[np.int64]


class Parts(NamedTuple):
    train: Indices
    test: Indices


def parts_by_class(labels: npt.NDArray[np.int64], test_fraction: float, split_seed: int) -> Parts:
    """Of each class, `test_fraction` of its samples chosen by `split_seed` is for tests; both parts in the old order.

    >>> parts_by_class(np.array([0, 0, 1, 1]), 0.5, 0)
    Parts(train=array([1, 3]), test=array([0, 2]))
    """
    test = np.zeros(len(labels), dtype=bool)
    order = np.argsort(labels, kind="stable")
    classes, starts = np.unique(labels[order], return_index=True)
    for label, of_class in zip(classes.tolist(), np.split(order, starts[1:]), strict=True):
        shuffled = of_class[permutation(len(of_class), stream(split_seed, "split", label))]
        test[shuffled[: round(test_fraction * len(of_class))]] = True
    return Parts(np.flatnonzero(~test), np.flatnonzero(test))


def chosen_parts(labels: npt.NDArray[Any], test_fraction: float, split_seed: int) -> Parts:
    """The same for labels of any kind: numbers that are no classes are of one class here."""
    classes = labels if np.issubdtype(labels.dtype, np.integer) else np.zeros(len(labels), dtype=np.int64)
    return parts_by_class(classes, test_fraction, split_seed)
