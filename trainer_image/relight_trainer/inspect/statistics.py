"""The numbers in tensors that lie in files: what they are, and how two of them differ. In chunks, in float64."""

import math
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from relight_trainer.inspect.contents import Piece, TensorRef, Unreadable
from relight_trainer.inspect.dtypes import ITEM_SIZES, numbers, raw_dtype

if TYPE_CHECKING:
    from pathlib import Path

_CHUNK = 1 << 19  # elements: 4 MB as float64
_DROP_BYTES = 32 << 20  # mapped pages are given back after this many bytes


@dataclass(frozen=True)
class Statistics:
    """`norm` is the 2-norm over the finite elements; minimum, maximum and mean too (None where there are none).

    Of complex numbers, the magnitudes are meant.
    """

    norm: float
    minimum: float | None
    maximum: float | None
    mean: float | None
    nan: int
    inf: int


@dataclass(frozen=True)
class Difference:
    """`equal` elements hold the same number (NaN equals NaN); `max_abs` is over those finite in both tensors.

    Of `not_finite` elements that differ, one is NaN or infinite.
    """

    elements: int
    equal: int
    max_abs: float
    not_finite: int = 0


class Bytes:
    """The files of tensors, mapped while they are read. A context manager."""

    def __init__(self) -> None:
        self._maps: dict[Path, mmap.mmap] = {}
        self._touched = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._maps.clear()  # an array that is still referred to keeps its map

    def array(self, piece: Piece, dtype: str) -> Any:
        """The block as a read-only array of `raw_dtype(dtype)`. Raises Unreadable where the file is too short."""
        if 0 in piece.shape:
            return np.empty(piece.shape, raw_dtype(dtype))
        item = ITEM_SIZES[dtype]
        try:
            if piece.file not in self._maps:
                with piece.file.open("rb") as file:
                    self._maps[piece.file] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            strides = tuple(s * item for s in piece.strides)
            return np.ndarray(piece.shape, raw_dtype(dtype), self._maps[piece.file], piece.offset, strides)
        except (OSError, ValueError, TypeError) as error:
            raise Unreadable(f"{piece.file} is shorter than its tensors: {error}") from None

    def whole(self, ref: TensorRef) -> Any:
        """The tensor as one array of `raw_dtype`: in place where it lies in one piece, else copied together."""
        if len(ref.pieces) == 1:
            return self.array(ref.pieces[0], ref.dtype)
        result = np.empty(ref.shape, raw_dtype(ref.dtype))
        for piece in ref.pieces:
            result[tuple(slice(a, a + n) for a, n in zip(piece.at, piece.shape, strict=True))] = self.array(
                piece, ref.dtype
            )
        return result

    def read(self, size: int) -> None:
        """`size` bytes have been read: what is mapped may go now and then, the page cache keeps it."""
        self._touched += size
        if self._touched >= _DROP_BYTES:
            self._touched = 0
            for mapped in self._maps.values():
                mapped.madvise(mmap.MADV_DONTNEED)


def statistics(ref: TensorRef, data: Bytes) -> Statistics:
    squares, total, finite, nan, inf = 0.0, 0.0, 0, 0, 0
    low, high = math.inf, -math.inf
    for piece in ref.pieces:
        for raw in _chunks(data.array(piece, ref.dtype)):
            values = numbers(raw, ref.dtype)
            is_complex = values.dtype.kind == "c"
            with np.errstate(invalid="ignore"):  # a signalling NaN
                size = (np.abs(values) if is_complex else values).astype(np.float64)
                least, most = size.min(), size.max()  # NaN where there is one
            if not (np.isfinite(least) and np.isfinite(most)):
                nan += int(np.isnan(size).sum())
                inf += int(np.isinf(size).sum())
                size = size[np.isfinite(size)]
                least, most = size.min(initial=math.inf), size.max(initial=-math.inf)
            squares += float(np.dot(size, size))
            total += float(size.sum())
            low, high = min(low, float(least)), max(high, float(most))
            finite += size.size
            data.read(raw.nbytes)
    known = finite > 0
    return Statistics(
        math.sqrt(squares), low if known else None, high if known else None, total / finite if known else None, nan, inf
    )


@np.errstate(invalid="ignore")
def difference(a: TensorRef, b: TensorRef, data: Bytes) -> Difference:
    """How two tensors of one shape differ; their dtypes may. Raises ValueError for different shapes."""
    if a.shape != b.shape:
        raise ValueError(f"shapes {a.shape} and {b.shape}")
    equal, not_finite, worst = 0, 0, 0.0
    if a.elements == 0:
        return Difference(0, 0, 0.0)
    pairs: Any = np.nditer([data.whole(a), data.whole(b)], ["external_loop", "buffered"], buffersize=_CHUNK)
    for x, y in pairs:
        data.read(x.nbytes + y.nbytes)
        if a.dtype == b.dtype and np.array_equal(_bits(x), _bits(y)):
            equal += x.size
            continue
        left, right = numbers(x, a.dtype), numbers(y, b.dtype)
        same = (left == right) | ((left != left) & (right != right))  # noqa: PLR0124  # NaN is what differs from itself
        equal += int(same.sum())
        if left.dtype.kind in "iub" and right.dtype.kind in "iub":
            wide: Any = object if 8 in (left.itemsize, right.itemsize) else np.int64  # exact for uint64 too
        else:
            wide = np.complex128 if "c" in (left.dtype.kind, right.dtype.kind) else np.float64
        left, right = left[~same].astype(wide), right[~same].astype(wide)
        if wide not in (object, np.int64):
            finite = np.isfinite(left) & np.isfinite(right)
            not_finite += int((~finite).sum())
            left, right = left[finite], right[finite]
        worst = max(worst, float(np.abs(left - right).max(initial=0)))
    return Difference(a.elements, equal, worst, not_finite)


def _bits(array: Any) -> Any:
    return array.view(f"u{array.itemsize}") if array.itemsize <= 8 else array.view("u8")


def _chunks(array: Any) -> Iterator[Any]:
    """The elements of an array in flat parts, in the order in which they lie in memory."""
    if array.size:
        parts: Any = np.nditer(array, ["external_loop", "buffered"], order="K", buffersize=_CHUNK)
        yield from parts
