"""TensorBoard's event files, written without tensorboard, protobuf or an image library.

A file is a row of records (TFRecord: length, masked CRC-32C of it, data, masked CRC-32C of it), each record one `Event`
message (tensorflow/core/util/event.proto, summary.proto). What is written here is the small part of both that curves,
histograms and pictures need, and every reader of event files since TensorFlow 1.0 understands it.
"""

import math
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]  # (height, width)


class Histogram(NamedTuple):
    """Counts of values in (limits[i-1], limits[i]]."""

    low: float
    high: float
    number: float
    sum: float
    sum_squares: float
    limits: Sequence[float]
    counts: Sequence[float]


class EventFile:
    """One generation's events: a new file, which readers take after those whose names sort before it.

    A reader drops what older files say of `from_step` and later steps: this file says it again.
    """

    def __init__(self, path: Path, *, from_step: int, wall_time: float) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb", buffering=0)  # a record is with the kernel when write returns: a kill loses none
        self._append(_double(1, wall_time) + _bytes(3, b"brain.Event:2"))
        self._append(_double(1, wall_time) + _int(2, from_step) + _bytes(7, _int(1, _SESSION_START)))

    def scalar(self, tag: str, value: float, step: int, wall_time: float) -> None:
        self._summary(tag, _float(2, value), step, wall_time)

    def histogram(self, tag: str, value: Histogram, step: int, wall_time: float) -> None:
        numbers = (value.low, value.high, value.number, value.sum, value.sum_squares)
        message = b"".join(_double(field, number) for field, number in enumerate(numbers, 1))
        message += _bytes(6, struct.pack(f"<{len(value.limits)}d", *value.limits))
        message += _bytes(7, struct.pack(f"<{len(value.counts)}d", *value.counts))
        self._summary(tag, _bytes(5, message), step, wall_time)

    def image(self, tag: str, pixels: Pixels, step: int, wall_time: float) -> None:
        height, width = pixels.shape
        message = _int(1, height) + _int(2, width) + _int(3, _GREY) + _bytes(4, png(pixels))
        self._summary(tag, _bytes(4, message), step, wall_time)

    def close(self) -> None:
        self._file.close()

    def _summary(self, tag: str, value: bytes, step: int, wall_time: float) -> None:
        summary = _bytes(1, _bytes(1, tag.encode()) + value)
        self._append(_double(1, wall_time) + _int(2, step) + _bytes(5, summary))

    def _append(self, event: bytes) -> None:
        length = struct.pack("<Q", len(event))
        self._file.write(length + _masked_crc(length) + event + _masked_crc(event))


def png(pixels: Pixels) -> bytes:
    """A grey 8-bit PNG."""
    height, width = pixels.shape
    rows = np.zeros((height, width + 1), np.uint8)  # each row after the number of its filter: 0, none
    rows[:, 1:] = pixels
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(rows.tobytes())), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


# The protocol buffers' wire format: a key (field number and kind), then the value.

_SESSION_START = 1
_GREY = 1


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _int(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _float(field: int, value: float) -> bytes:
    try:
        data = struct.pack("<f", value)
    except OverflowError:  # beyond float32
        data = struct.pack("<f", math.copysign(math.inf, value))
    return _varint(field << 3 | 5) + data


def _crc_table() -> list[int]:
    table = []
    for byte in range(256):
        crc = byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)  # Castagnoli's polynomial, bits reversed
        table.append(crc)
    return table


_TABLE = _crc_table()


def crc32c(data: bytes) -> int:
    """The checksum of RFC 3720. zlib has only the other polynomial's.

    >>> hex(crc32c(b"123456789"))
    '0xe3069283'
    """
    crc = 0xFFFFFFFF
    table = _TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 0xFF] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


def _masked_crc(data: bytes) -> bytes:
    crc = crc32c(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)
