"""Numbers in columns, one sample a line."""

import gzip
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch

from relight_trainer.data.errors import BadData, one_of, unreadable
from relight_trainer.data.parts import chosen_parts
from relight_trainer.data.paths import existing
from relight_trainer.data.tensors import Samples, TrainTest

Numbers = npt.NDArray[np.float64]


def read_table(path: Path, field: str, *, header: bool) -> tuple[list[str], Numbers]:
    """The columns' names (none without `header`) and the numbers, (lines, columns). Raises BadData."""
    try:
        with gzip.open(path, "rt") if path.suffix == ".gz" else open(path, encoding="utf-8") as file:
            names = [name.strip().strip('"') for name in file.readline().split(",")] if header else []
            table = np.loadtxt(file, delimiter=",", dtype=np.float64, ndmin=2)
    except (OSError, ValueError, EOFError) as error:  # numpy names line and column
        raise unreadable(f"{field}: {path}", error) from error
    if not table.size:
        raise BadData(f"{field}: {path} has no lines of numbers")
    if not np.isfinite(table).all():
        line, column = np.argwhere(~np.isfinite(table))[0]
        raise BadData(
            f"{field}: {path}: {table[line, column]} in column {column} of sample {line}; allowed: finite numbers"
        )
    return names, table


def column_of(label: int | str, names: list[str], columns: int, field: str) -> int:
    """The number of the labels' column. Raises BadData where there is none."""
    if isinstance(label, str):
        missing = one_of(label, names, f"data.label: {field}")
        if missing:
            raise missing
        return names.index(label)
    if not -columns <= label < columns:
        raise BadData(f"data.label: found {label}; allowed: -{columns} to {columns - 1}, the columns of {field}")
    return label % columns


def csv(
    *,
    train: str,
    test: str | None,
    test_fraction: float,
    split_seed: int,
    header: bool,
    label: int | str,
    target: Literal["class", "number"],
    shape: Sequence[int] | None,
    scale: float,
) -> TrainTest:
    def samples(path: str, field: str) -> Samples:
        names, table = read_table(existing(path, field), field, header=header)
        column = column_of(label, names, table.shape[1], field)
        inputs = (np.delete(table, column, axis=1) / scale).astype(np.float32)
        if shape is not None and math.prod(shape) != inputs.shape[1]:
            raise BadData(
                f"data.shape: found {list(shape)}; allowed: {inputs.shape[1]} numbers, as many as {field} has"
            )
        return Samples(
            torch.from_numpy(inputs.reshape(-1, *(shape or inputs.shape[1:]))),
            torch.from_numpy(_labels(table[:, column], target, field)),
        )

    everything = samples(train, "data.train")
    if test is not None:
        return TrainTest(everything, samples(test, "data.test"))
    chosen = chosen_parts(everything.labels.numpy(), test_fraction, split_seed)
    return TrainTest(*(everything.take(part) for part in chosen))


def _labels(column: Numbers, target: str, field: str) -> npt.NDArray[np.int64] | npt.NDArray[np.float32]:
    if target == "number":
        return column.astype(np.float32)
    wrong = np.flatnonzero((column != np.floor(column)) | (column < 0))
    if len(wrong):
        raise BadData(
            f"{field}: the label of sample {wrong[0]} is {column[wrong[0]]}; allowed: whole numbers from 0, "
            "or data.target: number"
        )
    return column.astype(np.int64)
