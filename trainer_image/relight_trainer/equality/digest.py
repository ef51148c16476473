"""A digest of tensors, computed where they are: exact bits, no wait for the device.

On the CPU it is SHA-256. On a device, a tensor's bytes, in row-major order, are read as 32-bit words x[i] and summed with 64-bit weights that look random:

    digest = sum over i of x[i] * w[i % ROW] * v[i // ROW]     modulo 2**64

This is multilinear hashing (Lemire and Kaser, "Strongly universal string hashing is fast", 2014): all weights are odd, so
one changed word always changes the digest, and several do but for a chance of about 2**-32. Two such sums with other
weights, the two lanes, make that 2**-64. NaN has bits like any number, and -0.0 others than 0.0. Shape and dtype are no
part of it: `Reading` compares them as text.
"""

import hashlib
from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from relight_trainer.checkpoint.memory import bytes_of

ROW = 4096  # words
LANES = 2
_ROWS_AT_ONCE = 1024  # bounds what a large tensor needs beside itself: 32 MiB
_GOLDEN, _MIX_1, _MIX_2 = -0x61C8864680B583EB, -0x40A7B892E31B1A47, -0x6B2FB644ECCEEE15  # splitmix64's constants


class Group(NamedTuple):
    """Digests of the tensors of one device."""

    indices: list[int]  # of these tensors, among those given
    digests: Tensor  # int64, (len(indices), LANES), on that device


def digests(tensors: Sequence[Tensor]) -> list[Group]:
    """The digests of `tensors`, which have memory and are strided; one group for each device."""
    by_device: dict[torch.device, list[int]] = {}
    for i, tensor in enumerate(tensors):
        by_device.setdefault(tensor.device, []).append(i)
    with torch.no_grad():
        return [
            Group(indices, (hashed if device.type == "cpu" else multilinear)([tensors[i] for i in indices]))
            for device, indices in by_device.items()
        ]


def hashed(tensors: Sequence[Tensor]) -> Tensor:
    """SHA-256, cut to 128 bits, of tensors on the CPU: ten times as fast there. (len(tensors), LANES)."""
    found = []
    for tensor in tensors:
        dense = tensor.detach().contiguous()  # has a name so that it outlives the view of its bytes
        found.append(hashlib.sha256(bytes_of(dense)).digest()[: 8 * LANES])
    return torch.frombuffer(bytearray(b"".join(found)), dtype=torch.int64).view(len(tensors), LANES)


def multilinear(tensors: Sequence[Tensor]) -> Tensor:
    """The sums of tensors of one device, on that device: (len(tensors), LANES)."""
    words = [_words(t) for t in tensors]
    found = torch.zeros(len(words), LANES, dtype=torch.int64, device=tensors[0].device)
    small = [i for i, w in enumerate(words) if w.numel() <= ROW]
    if small:
        # One call for all of them: each would cost its launches.
        found[_index(tuple(small), found.device)] = _of_small([words[i] for i in small])
    for i, flat in enumerate(words):
        if flat.numel() > ROW:
            found[i] = _of_large(flat)
    return found


def _words(tensor: Tensor) -> Tensor:
    """The tensor's bytes in row-major order as a flat int32, filled up with zeros."""
    flat = tensor.detach().contiguous().reshape(-1)
    if flat.numel() == 0:
        return torch.empty(0, dtype=torch.int32, device=flat.device)
    raw = flat.view(torch.uint8)
    over = raw.numel() % 4
    if over:
        raw = torch.cat([raw, raw.new_zeros(4 - over)])
    elif raw.storage_offset() % 4:
        raw = raw.clone()
    return raw.view(torch.int32)


def _of_small(words: Sequence[Tensor]) -> Tensor:
    """The digests of tensors of one row or less: (number of tensors, LANES)."""
    sizes = tuple(w.numel() for w in words)
    flat = torch.cat(list(words))
    ends = _index(tuple(_running(sizes)), flat.device)
    lanes = []
    for lane in range(LANES):
        weights = _row_weights(lane, flat.device) * _rows(0, 1, lane, flat.device)
        # A running sum, and what it has grown by in each tensor: it wraps around, which a difference undoes.
        sums = torch.cumsum(flat * torch.cat([weights[:n] for n in sizes]), 0, dtype=torch.int64)
        at_ends = torch.cat([sums.new_zeros(1), sums])[ends]
        lanes.append(torch.diff(at_ends, prepend=at_ends.new_zeros(1)))
    return torch.stack(lanes, 1)


def _of_large(flat: Tensor) -> Tensor:
    """The digest of one tensor: (LANES,)."""
    rows = flat.numel() // ROW
    total = torch.zeros(LANES, dtype=torch.int64, device=flat.device)
    for block, first in _blocks(flat, rows):
        for lane in range(LANES):
            sums = (block * _row_weights(lane, flat.device)[: block.shape[1]]).sum(1)
            total[lane] += (sums * _rows(first, len(block), lane, flat.device)).sum()
    return total


def _blocks(flat: Tensor, rows: int) -> Iterator[tuple[Tensor, int]]:
    """(rows of words, the number of the first of them); the last row may be shorter and comes alone."""
    whole = flat[: rows * ROW].view(rows, ROW)
    for first in range(0, rows, _ROWS_AT_ONCE):
        yield whole[first : first + _ROWS_AT_ONCE], first
    if flat.numel() > rows * ROW:
        yield flat[rows * ROW :].view(1, -1), rows


@lru_cache(16)
def _row_weights(lane: int, device: torch.device) -> Tensor:
    return _weights(torch.arange(ROW, dtype=torch.int64, device=device) + (2 * lane << 40))


def _rows(first: int, count: int, lane: int, device: torch.device) -> Tensor:
    return _weights(torch.arange(first, first + count, dtype=torch.int64, device=device) + ((2 * lane + 1) << 40))


def _weights(numbers: Tensor) -> Tensor:
    """An odd 64-bit integer for each number, as splitmix64 makes them."""
    z = (numbers + 1) * _GOLDEN
    z = (z ^ ((z >> 30) & (2**34 - 1))) * _MIX_1  # torch shifts the sign in, so what comes in is masked
    z = (z ^ ((z >> 27) & (2**37 - 1))) * _MIX_2
    return (z ^ ((z >> 31) & (2**33 - 1))) | 1


@lru_cache(64)
def _index(numbers: tuple[int, ...], device: torch.device) -> Tensor:
    return torch.tensor(numbers, dtype=torch.int64).to(device)


def _running(sizes: Sequence[int]) -> Iterator[int]:
    total = 0
    for size in sizes:
        total += size
        yield total
