"""Numbers in columns, one sample a line, as RFC 4180 and Python's csv module write them.

The whole file is read once. A field that is not a number, a line with another number of fields and a header that does
not name each column once are refused with file, line and column: nothing is guessed.
"""

import array
import csv as rfc4180
import gzip
import io
import math
import re
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from relight_trainer.data.errors import BadData, few, one_of, unreadable
from relight_trainer.data.labels import as_classes, as_numbers
from relight_trainer.data.parts import chosen_parts
from relight_trainer.data.paths import existing
from relight_trainer.data.tensors import Samples, TrainTest
from relight_trainer.problems import shown

Numbers = npt.NDArray[np.float64]

_GZIP = b"\x1f\x8b"
_UTF16 = (b"\xff\xfe", b"\xfe\xff")
# What Python's float() takes besides, such as 1_000 and Arabic digits, would be another number in most programs.
_NUMBER = re.compile(r"[-+]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][-+]?[0-9]+)?", re.ASCII)
_DECIMAL_COMMA = re.compile(r"[-+]?[0-9]+,[0-9]+", re.ASCII)
_SPACED = re.compile(r"[-+]?[0-9]+([\s'_][0-9]+)+([.,][0-9]+)?", re.ASCII)
_WITHOUT_NAMES = "row.names = FALSE in R, index=False in pandas"


class Table(NamedTuple):
    """The columns' names, none where the file has no header, and the numbers, (lines, columns)."""

    names: list[str]
    numbers: Numbers


def read_table(path: Path, field: str, *, header: bool) -> Table:
    """The table in a file, which may be packed by gzip. Raises BadData, and StorageTrouble where it cannot be read."""
    text = _text(path, f"{field}: {path}")
    try:
        return _Reading(f"{field}: {path}", header=header).table(text)
    except rfc4180.Error as error:
        raise BadData(f"{field}: {path}: not a CSV file: {error}") from error


def _text(path: Path, place: str) -> str:
    try:
        data = path.read_bytes()
        data = gzip.decompress(data) if data.startswith(_GZIP) else data
    except (OSError, EOFError, zlib.error) as error:
        raise unreadable(place, error) from error
    try:
        return data.decode("utf-16" if data.startswith(_UTF16) else "utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        found = " ".join(f"0x{byte:02X}" for byte in data[error.start : error.start + 1])
        raise BadData(
            f"{place}, line {line}: found the byte {found}; allowed: UTF-8 text. Save the file as UTF-8"
        ) from None


class _Reading:
    """One pass over a file's text. Lines are counted from 1 and columns from 0, as `data.label` counts them."""

    def __init__(self, place: str, *, header: bool) -> None:
        self._place = place
        self._header = header
        self._names: list[str] = []

    def table(self, text: str) -> Table:
        file = io.StringIO(text, newline="")
        # A space after a comma belongs to no field: without this, `1, "a, b"` would be three fields.
        reader = rfc4180.reader(file, skipinitialspace=True, strict=True)
        rows = ((reader.line_num, row) for row in reader if row not in ([], [""]))  # blank lines
        if self._header:
            line, first = next(rows, (1, []))
            self._names = self._named(line, first)
            text = text[file.tell() :]
        # float() is much faster than the pattern, and takes too much only where one of these stands.
        strict = "_" in text or not text.isascii()
        numbers = array.array("d")
        width, first_line = len(self._names), 1
        for line, row in rows:
            if not width:
                width, first_line = len(row), line
            if len(row) != width:
                raise self._of_another_width(line, row, width, first_line)
            if strict and not all(_NUMBER.fullmatch(value.strip()) for value in row):
                raise self._no_number(line, row)
            try:
                numbers.extend(map(float, row))
            except ValueError:
                raise self._no_number(line, row) from None
            if not math.isfinite(sum(numbers[-width:])):
                self._require_finite(line, row, numbers[-width:])
        if not numbers:
            raise BadData(f"{self._place} has no lines of numbers")
        return Table(self._names, np.frombuffer(numbers, dtype=np.float64).reshape(-1, width))

    def _named(self, line: int, row: list[str]) -> list[str]:
        names = [name.strip() for name in row]
        empty = next((i for i, name in enumerate(names) if not name), None)
        if empty is not None:
            raise BadData(
                f"{self._place}, line {line}: column {empty} has no name; allowed: a name for each column. If the "
                f"column holds row names or row numbers, write the file without them ({_WITHOUT_NAMES})"
            )
        if names and all(_NUMBER.fullmatch(name) for name in names):
            counted = [str(start + i) for start in (0, 1) for i in range(len(names))]
            if names not in (counted[: len(names)], counted[len(names) :]):
                raise BadData(
                    f"{self._place}, line {line}: data.header is true, and the line has numbers: {few(names)}; "
                    "allowed: names, or data.header: false"
                )
        return names

    def _of_another_width(self, line: int, row: list[str], width: int, first_line: int) -> BadData:
        here = f"{self._place}, line {line}: {_columns(len(row))}"
        if not self._names:
            return BadData(f"{here}; allowed: {width}, as line {first_line} has")
        hint = ""
        if len(row) == width + 1:
            hint = f". If the first column holds row names, write the file without them ({_WITHOUT_NAMES})"
        return BadData(f"{here}; allowed: {width}, as the header names: {few(self._names)}{hint}")

    def _no_number(self, line: int, row: list[str]) -> BadData:
        column = next(i for i, value in enumerate(row) if not _NUMBER.fullmatch(value.strip()))
        value = row[column].strip()
        hint = ""
        if line == 1 and not self._header:
            hint = ". If the first line names the columns, set data.header: true"
        elif _DECIMAL_COMMA.fullmatch(value):
            hint = ", with a decimal point"
        elif _SPACED.fullmatch(value):
            hint = ", without separators between digits"
        elif ";" in value or "\t" in value:
            hint = ". Fields are separated by commas, and this looks like another separator"
        elif value.lower().lstrip("+-") in {"nan", "inf", "infinity", "na", "null", "none"}:
            hint = ", and no missing or infinite values"
        return BadData(
            f"{self._at(line, column)}: found {shown(value) if value else 'nothing'}; allowed: a number{hint}"
        )

    def _require_finite(self, line: int, row: list[str], values: Sequence[float]) -> None:
        """Raises BadData where one of `values` is not finite: their sum may also be too large."""
        for column, value in enumerate(values):
            if not math.isfinite(value):
                found = shown(row[column].strip())
                raise BadData(f"{self._at(line, column)}: found {found}; allowed: finite numbers")

    def _at(self, line: int, column: int) -> str:
        name = f" ({shown(self._names[column])})" if self._names else ""
        return f"{self._place}, line {line}, column {column}{name}"


def _columns(count: int) -> str:
    return f"{count} column{'s' if count != 1 else ''}"


def column_of(label: int | str, table: Table, field: str) -> int:
    """The number of the labels' column. Raises BadData where there is none, or more than one."""
    columns: int = table.numbers.shape[1]
    if isinstance(label, str):
        missing = one_of(label, table.names, f"data.label: {field}")
        if missing:
            raise missing
        if table.names.count(label) > 1:
            places = [str(i) for i, name in enumerate(table.names) if name == label]
            raise BadData(f"data.label: {field} has {len(places)} columns named {label}; allowed: {', '.join(places)}")
        return table.names.index(label)
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
    def samples(table: Table, field: str) -> Samples:
        column = column_of(label, table, field)
        inputs = _inputs(np.delete(table.numbers, column, axis=1) / scale, field)
        if shape is not None and math.prod(shape) != inputs.shape[1]:
            raise BadData(
                f"data.shape: found {list(shape)}; allowed: {inputs.shape[1]} numbers, as many as {field} has"
            )
        found = table.numbers[:, column]
        labels = (
            as_classes(found, field, or_else="data.target: number") if target == "class" else as_numbers(found, field)
        )
        return Samples(torch.from_numpy(inputs.reshape(-1, *(shape or inputs.shape[1:]))), torch.from_numpy(labels))

    first = read_table(existing(train, "data.train"), "data.train", header=header)
    everything = samples(first, "data.train")
    if test is not None:
        second = read_table(existing(test, "data.test"), "data.test", header=header)
        return TrainTest(everything, samples(_in_the_order_of(first, second), "data.test"))
    chosen = chosen_parts(everything.labels.numpy(), test_fraction, split_seed)
    return TrainTest(*(everything.take(part) for part in chosen))


def _inputs(numbers: Numbers, field: str) -> npt.NDArray[np.float32]:
    """`numbers` as float32. Raises BadData where there are none, or one is too large."""
    if not numbers.shape[1]:
        raise BadData(f"{field}: the labels' column is the only one; allowed: one more, for the inputs")
    wrong = np.argwhere(np.abs(numbers) > np.finfo(np.float32).max)
    if len(wrong):
        sample, column = wrong[0]
        raise BadData(
            f"{field}: an input of sample {sample} is {numbers[sample, column]}; allowed: numbers that float32 holds, "
            "up to 3.4e38"
        )
    return numbers.astype(np.float32)


def _in_the_order_of(train: Table, test: Table) -> Table:
    """`test` with its columns in the order of the training's. Raises BadData where they are others."""
    if train.names == test.names and train.numbers.shape[1] == test.numbers.shape[1]:
        return test
    unique = len(set(train.names)) == len(train.names)
    if not (train.names and unique and sorted(train.names) == sorted(test.names)):
        differing = [name for name in test.names if name not in train.names] or test.names
        found = f"the columns {few(differing)}" if differing else _columns(test.numbers.shape[1])
        allowed = few(train.names) if train.names else _columns(train.numbers.shape[1])
        raise BadData(f"data.test: found {found}; allowed: those of data.train: {allowed}")
    return Table(train.names, test.numbers[:, [test.names.index(name) for name in train.names]])
