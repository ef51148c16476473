"""The ranks agree on the parameters that no rank has used in a step; steps that use all parameters cost nothing.

A parameter that some rank has used gets the mean gradient, to which the other ranks add zero. A parameter that no rank
has used must have no gradient at all, as in one process: weight decay and momentum would move it otherwise. Only a
rank that has not used a parameter needs an answer, and only it asks. Until a rank asks for the first time, the ranks
exchange nothing. Then each rank publishes how many steps it has checked, and from the step after the furthest rank's
on, a small collective compares the used parameters in each step. For the few steps before that, ranks answer through the
store: on a GPU the processes may be several steps apart.
"""

import json
import threading
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store  # type: ignore[attr-defined]

from relight_trainer.peers import TIMEOUT

_ASKED = "asked"


class Alone:
    """In a world of one rank: what it has not used, no rank has."""

    def settle(self, unused: Sequence[int], _: int, *, together: bool = False) -> list[int]:  # noqa: ARG002
        return list(unused)


class Unused:
    """One rank's part. All ranks call `settle` once in each step, after its last backward pass.

    `connect` gives a client of its own to one store that all ranks share. `nowhere_used(unused, count)` is the
    collective: which of a rank's `unused` parameters no rank has used, of `count` in all. `poll`: seconds between two
    looks at the store, in a thread of its own.
    """

    def __init__(
        self,
        connect: Callable[[], Store],
        *,
        rank: int,
        world: int,
        nowhere_used: Callable[[Sequence[int], int], list[int]],
        poll: float = 0.1,
        timeout: timedelta = TIMEOUT,
    ) -> None:
        self._connect = connect
        self._rank = rank
        self._nowhere_used = nowhere_used
        self._poll = max(poll, 0.001 * world)  # bounds what the store is asked in a large world
        self._timeout = timeout
        self._store: Store | None = None
        self._position_keys = [f"position/{i}" for i in range(world)]
        # No lock, which each step would take: the main thread first writes its position and then looks whether it may
        # go on; the side thread first forbids that and then reads the position. Whichever comes first, both know.
        self._position = 0  # steps that this rank has checked
        self._frozen = False
        self._decided = threading.Event()
        self._positions: list[int] = []  # of all ranks, as each was frozen
        self._together_from = 0
        self._error: Exception | None = None
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, args=(connect(),), name="relight-unused", daemon=True)
        self._thread.start()

    def settle(self, unused: Sequence[int], count: int, *, together: bool = False) -> list[int]:
        """Which of the parameters that this rank has not used in this step no rank has used.

        `unused` are indices of `count` parameters, in the same order on all ranks. `together`: all ranks know that
        some rank may have used less than all, and compare at once; the same on all ranks.
        """
        step = self._position + 1
        if together or (unused and self._is_together(step)):
            self._position = step
            return self._nowhere_used(unused, count)
        if not unused:
            self._position = step
            return self._answer(step, count) if self._frozen else []
        return self._ask(step, unused, count)

    def close(self) -> None:
        """End the side thread."""
        self._closed.set()
        self._thread.join(timeout=2.0)

    def _is_together(self, step: int) -> bool:
        return self._decided.is_set() and self._error is None and step >= self._together_from

    def _answer(self, step: int, count: int) -> list[int]:
        """What a rank that has used all parameters does once others ask."""
        self._wait_until_decided()
        if step >= self._together_from:
            self._nowhere_used((), count)
        else:
            self._own_store().set(_key(step, self._rank), "[]")
        return []

    def _ask(self, step: int, unused: Sequence[int], count: int) -> list[int]:
        store = self._own_store()
        store.set(_key(step, self._rank), json.dumps(list(unused)))
        self._position = step  # not before: up to its position, a rank without such a key has used all parameters
        store.set(_ASKED, "1")
        self._wait_until_decided()
        if step >= self._together_from:
            return self._nowhere_used(unused, count)
        common = set(unused)
        for rank, position in enumerate(self._positions):
            key = _key(step, rank)
            if step > position:
                store.wait([key], self._timeout)
            elif not store.check([key]):
                return []
            common &= set(json.loads(store.get(key)))
            if not common:
                break
        return sorted(common)

    def _wait_until_decided(self) -> None:
        if not self._decided.wait(self._timeout.total_seconds()):
            raise dist.DistStoreError(
                "not all ranks reported their step after one rank asked which parameters are used"
            )
        if self._error is not None:
            raise self._error

    def _own_store(self) -> Store:
        if self._store is None:
            self._store = self._connect()
        return self._store

    def _watch(self, store: Store) -> None:
        try:
            while not store.check([_ASKED]):
                if self._closed.wait(self._poll):
                    return
            self._frozen = True
            store.set(self._position_keys[self._rank], str(self._position))
            store.wait(self._position_keys, self._timeout)
            self._positions = [int(text) for text in store.multi_get(self._position_keys)]
            self._together_from = max(self._positions) + 1
        except RuntimeError as error:  # the store has gone: the world is ending. Whoever waits raises it.
            self._error = error
        self._decided.set()


def of_group(name: str, device: torch.device, group: Any = None, **options: Any) -> Unused:
    """The agreement of the ranks of `group` on parameters on `device`. `name` is the same on all ranks, and used once."""
    whole_group = dist.distributed_c10d._get_default_store()  # noqa: SLF001  # no public name in torch 2.13

    def nowhere_used(unused: Sequence[int], count: int) -> list[int]:
        used = torch.ones(count, dtype=torch.uint8)
        used[list(unused)] = 0
        used = used.to(device)
        dist.all_reduce(used, op=dist.ReduceOp.MAX, group=group)
        if not unused:
            return []  # and no wait for the device
        found = used.tolist()
        return [i for i in unused if not found[i]]

    return Unused(
        lambda: PrefixStore(f"relight/unused/{name}", whole_group.clone()),  # type: ignore[attr-defined]  # torch's stub lacks it,
        rank=dist.get_rank(group),
        world=dist.get_world_size(group),
        nowhere_used=nowhere_used,
        **options,
    )


def _key(step: int, rank: int) -> str:
    return f"{step}/{rank}"
