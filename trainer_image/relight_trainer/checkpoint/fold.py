"""A 128-bit hash of bytes on a device, computed there, to find out whether they have changed.

Multilinear hashing (Lemire and Kaser, "Strongly universal string hashing is fast", 2014): the upper half of the sum of
32-bit words times random 64-bit weights, modulo 2^64, is the same for two different rows of words with probability
2^-32. Two independent lanes, folded twice: about 2^-62. The weights are the same in every process.
"""

from functools import lru_cache

import torch
from torch import Tensor

_ROW = 1 << 16  # words that have weights of their own
_ROWS = 64  # folded at once: 32 MiB of products
_LANES = 2


@torch.no_grad()
def fold(data: Tensor) -> Tensor:
    """The hash of flat uint8 `data`: int64 of shape (2,) on its device, without waiting for it."""
    words, tail = _words(data)
    sums = [_folded(rows, 0) for rows in torch.split(words, _ROWS)]
    if tail.numel():
        sums.append(_folded(tail.unsqueeze(0), 0))
    folded = torch.cat(sums).T  # (lanes, rows)
    weights = _weights(folded.shape[1], 1, data.device)[:, : folded.shape[1]]
    # The length apart: two runs of zeros of unequal length are not the same.
    return (folded * weights).sum(1) + data.numel()


def _folded(rows: Tensor, level: int) -> Tensor:
    """Of each row of int32 or uint8 words, 32 bits for each lane: int64 of shape (rows, lanes)."""
    weights = _weights(rows.shape[1], level, rows.device)[:, : rows.shape[1]]
    return torch.stack([(rows * lane).sum(1) for lane in weights], 1).bitwise_right_shift(32).bitwise_and(0xFFFFFFFF)


def _words(data: Tensor) -> tuple[Tensor, Tensor]:
    """Whole rows of int32 words, and the bytes behind them, each a word."""
    row = 4 * _ROW
    whole = data.numel() // row * row
    if data.storage_offset() % 4:
        data = data.clone()
    return data[:whole].view(torch.int32).view(-1, _ROW), data[whole:]


def _weights(least: int, level: int, device: torch.device) -> Tensor:
    """At least so many for each lane."""
    return _made(max(_ROW, 1 << (least - 1).bit_length()), level, device)


@lru_cache(8)
def _made(count: int, level: int, device: torch.device) -> Tensor:
    generator = torch.Generator().manual_seed(0x5E1F + level)
    return torch.randint(-(2**63), 2**63 - 1, (_LANES, count), generator=generator).to(device)
