"""Randomness as a function: every random choice comes from (root seed, name of a stream, counters).

Nothing about randomness is saved: any step's numbers can be had at once by naming it.
"""

import hashlib
import random
import sys
from collections.abc import Callable

import torch


def stream(seed: int, name: str, *counters: int) -> int:
    """The seed of one random choice: 63 bits, the same everywhere and in every version.

    >>> stream(0, "data", 3)
    7348748612269275883
    """
    text = "/".join((str(seed), name, *map(str, counters)))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1


def streams(seed: int, name: str) -> Callable[..., int]:
    """`stream(seed, name, ...)` of many counters, for each step's: what they have in common is hashed once.

    >>> streams(0, "data")(3)
    7348748612269275883
    """
    begun = hashlib.blake2b(f"{seed}/{name}".encode(), digest_size=8)

    def of(*counters: int) -> int:
        text = begun.copy()
        text.update(("/%d" * len(counters) % counters).encode())
        return int.from_bytes(text.digest(), "little") >> 1

    return of


def seed_torch(value: int) -> None:
    """Seed torch's default generators: a hundred times cheaper than `torch.manual_seed`, so that each step can."""
    torch.default_generator.manual_seed(value)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        for generator in torch.cuda.default_generators:
            generator.manual_seed(value)


def seed_everything(value: int) -> None:
    """Seed torch, numpy and `random`, for code that draws from any of them."""
    seed_torch(value)
    numpy = sys.modules.get("numpy")  # not imported, not drawn from
    if numpy is not None:
        numpy.random.seed(value % 2**32)
    random.seed(value)
