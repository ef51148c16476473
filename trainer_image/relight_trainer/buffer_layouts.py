"""Compares the names, shapes and dtypes of buffers between ranks, after those of a rank have changed.

A collective cannot ask: a rank whose buffers have not changed would not take part, and a broadcast of different sizes
fails, or never ends. So the ranks whose buffers have changed meet in the store; whoever does not come has not changed.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from datetime import timedelta
from itertools import count, zip_longest
from typing import ClassVar

import torch.distributed as dist
from torch.distributed import Store  # type: ignore[attr-defined]

from relight_agent.exits import ExitCode
from relight_trainer.peers import TIMEOUT, connect


class BuffersDiffer(Exception):
    """The ranks' buffers differ in names, shapes or dtypes."""

    exit_code: ClassVar[ExitCode] = ExitCode.RANKS_DIFFER


Agreement = Callable[[list[str], int], None]  # from the buffers' layout, and how often they have been made equal


def layout_agreement(prefix: str, patience: Callable[[], float] = TIMEOUT.total_seconds) -> Agreement:
    """A function that each rank calls with its layout: lines such as `center (16,) float32`, see `Places.layout`.

    `prefix` names this use of the generation's store. The function raises BuffersDiffer, on all ranks that call it, where
    the layouts or the steps differ, or where a rank does not call it within `patience()` seconds.
    """
    store: Store | None = None
    numbers = count()

    def agree(layout: list[str], step: int) -> None:
        nonlocal store
        store = store or connect(prefix)
        _agree(store, f"{next(numbers)}", [f"in step {step} of this run", *layout], timedelta(seconds=patience()))

    return agree


def first_difference(mine: Sequence[str], theirs: Sequence[str], rank: int) -> str:
    """In words, what `rank` has where rank 0 has another line; empty where `mine`, rank 0's, and `theirs` are the same."""
    for ours, other in zip_longest(mine, theirs, fillvalue="no further buffer"):
        if ours != other:
            return f"rank 0 has {ours}, rank {rank} has {other}"
    return ""


def _agree(store: Store, key: str, layout: list[str], timeout: timedelta) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    store.set(f"{key}/layout/{rank}", json.dumps(layout))
    store.set(f"{key}/digest/{rank}", hashlib.sha256("\n".join(layout).encode()).hexdigest())
    if rank == 0:
        store.set(f"{key}/verdict", _verdict(store, key, layout, world, timeout))
    try:
        store.wait([f"{key}/verdict"], timeout)
    except dist.DistStoreError:
        raise BuffersDiffer(
            f"the buffers of rank {rank} have changed their names, shapes or dtypes, and those of rank 0 have not for "
            f"{timeout.total_seconds():.0f} s; rank {rank} has {_shown(layout)}; buffers must change in the same way on all ranks"
        ) from None
    verdict = store.get(f"{key}/verdict").decode()
    if verdict:
        raise BuffersDiffer(verdict)


def _verdict(store: Store, key: str, layout: list[str], world: int, timeout: timedelta) -> str:
    ranks = range(world)
    try:
        store.wait([f"{key}/digest/{other}" for other in ranks], timeout)
    except dist.DistStoreError:
        missing = [other for other in ranks if not store.check([f"{key}/digest/{other}"])]
        if missing:
            return (
                f"the buffers of rank 0 have changed their names, shapes or dtypes, and those of ranks {missing} have not "
                f"for {timeout.total_seconds():.0f} s; rank 0 has {_shown(layout)}; "
                "buffers must change in the same way on all ranks"
            )
    own = store.get(f"{key}/digest/0")
    for other in ranks:
        if store.get(f"{key}/digest/{other}") != own:
            theirs = json.loads(store.get(f"{key}/layout/{other}"))
            return (
                f"the ranks' buffers differ in names, shapes or dtypes: {first_difference(layout, theirs, other)}; "
                "buffers must change in the same way on all ranks, or be plain attributes of the module"
            )
    return ""


def _shown(layout: list[str]) -> str:
    more = f" and {len(layout) - _SHOWN} more" if len(layout) > _SHOWN else ""
    return f"{', '.join(layout[:_SHOWN])}{more}"


_SHOWN = 6
