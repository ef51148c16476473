"""Comparing the ranks of one generation beside their training: digests go through the store, from a thread.

All ranks compare the same objects at the same steps, in the same order. The main thread reads the digests, which costs a
pass over the state, and goes on; the thread tells the others and hears from rank 0 what differs. `check` waits for it.
"""

import contextlib
import json
import queue
import threading
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

from torch.distributed import DistStoreError, Store  # type: ignore[attr-defined]

from relight_trainer.equality.compare import STEP, Difference, ObjectDigest, differing, explain
from relight_trainer.equality.reading import Reading

_LOOK = timedelta(seconds=5)  # how long the thread may wait for a rank before it looks whether it is to end
_HEARD = timedelta(
    seconds=2
)  # how long rank 0 lets the others hear that they differ, before it ends and all end with it


class Closed(Exception):
    """The comparison was given up, because this rank's part in the generation is over."""


class Comparison:
    """One comparison under way on this rank."""

    def __init__(self, number: int, step: int, reading: Reading, *, expected: bool) -> None:
        self.number = number
        self.expected = expected  # that something may differ
        self.step = step
        self.reading = reading
        self.differences: list[Difference] = []
        self.error: Exception | None = None
        self.done = threading.Event()


class Comparisons:
    """The part of one rank in the comparisons of one generation. `store` is this object's own client.

    `forget` is called on each rank, from the thread, as soon as it is known that the ranks differ: no state of theirs
    is to be used again.
    """

    def __init__(self, store: Store, *, rank: int, world: int, forget: Callable[[], None] = lambda: None) -> None:
        self._store = store
        self._forget = forget
        self._rank = rank
        self._world = world
        self._number = 0
        self._closed = threading.Event()
        self._work: queue.SimpleQueue[Comparison | None] = queue.SimpleQueue()
        self.differ = False  # the ranks, unexpectedly; a moment before it is `found`
        self.found: Comparison | None = None  # the first one that has found a difference which nobody expects
        self._thread = threading.Thread(target=self._run, name="relight-equality", daemon=True)
        self._thread.start()

    def begin(self, objects: Mapping[str, Any], step: int, *, expected: bool = False) -> Comparison:
        """Read the digests of `objects` as they are after `step` steps, and have them compared.

        What differs then is in `found`, unless a difference is `expected`.
        """
        comparison = Comparison(self._number, step, Reading(objects), expected=expected)
        self._number += 1
        self._work.put(comparison)
        return comparison

    def wait(self, comparison: Comparison, timeout: float) -> list[Difference]:
        """What differs, once it is known. Raises what the store raises, TimeoutError after `timeout` seconds."""
        if not comparison.done.wait(timeout):
            raise TimeoutError(f"not all ranks compared their states of step {comparison.step} within {timeout:.0f} s")
        if comparison.error is not None:
            raise comparison.error
        return comparison.differences

    def close(self) -> None:
        """End the thread: what it has not compared yet is given up."""
        self._closed.set()
        self._work.put(None)

    def _run(self) -> None:
        while (comparison := self._work.get()) is not None:
            try:
                comparison.differences = self._compare(comparison)
                if comparison.differences and self.found is None and not comparison.expected:
                    self.differ = True
                    self._forget()
                    self._let_all_hear(comparison.number)
                    self.found = comparison
            except Exception as error:  # told where it is waited for; else the world is ending, or has ended well
                comparison.error = error
            comparison.done.set()

    def _let_all_hear(self, number: int) -> None:
        """An end of rank 0 ends the others: before that they are to have forgotten their states too."""
        with contextlib.suppress(RuntimeError):  # a store that has gone, or a rank that has
            self._store.set(f"{number}/heard/{self._rank}", "1")
            if self._rank == 0:
                self._store.wait([f"{number}/heard/{rank}" for rank in range(self._world)], _HEARD)

    def _compare(self, comparison: Comparison) -> list[Difference]:
        mine = comparison.reading.result()
        summary = {STEP: str(comparison.step), **{name: digest.short for name, digest in mine.items()}}
        base = f"{comparison.number}"
        self._put(f"{base}/{self._rank}", summary)
        if self._rank == 0:
            summaries = [json.loads(self._get(f"{base}/{rank}")) for rank in range(self._world)]
            found = differing(summaries)
            self._put(f"{base}/differing", found)
        else:
            found = json.loads(self._get(f"{base}/differing"))
        if not found:
            return []
        for name, rank in found:
            if rank == self._rank and name in mine:
                self._store.set(f"{base}/detail/{name}", mine[name].dump())  # type: ignore[arg-type]  # torch takes bytes
        if self._rank == 0:
            explained = [self._explained(base, name, rank, mine, summaries) for name, rank in found]
            self._put(f"{base}/explained", [one.dump() for one in explained])
            return explained
        return [Difference.load(one) for one in json.loads(self._get(f"{base}/explained"))]

    def _explained(
        self, base: str, name: str, rank: int, mine: Mapping[str, ObjectDigest], summaries: list[dict[str, str]]
    ) -> Difference:
        if name == STEP:
            steps = f"rank 0 has done {summaries[0][STEP]} steps, rank {rank} {summaries[rank][STEP]}"
            return Difference(rank, name, what=steps)
        other = ObjectDigest.load(self._get(f"{base}/detail/{name}")) if name in summaries[rank] else None
        return explain(name, rank, mine.get(name), other)

    def _put(self, key: str, value: Any) -> None:
        self._store.set(key, json.dumps(value))

    def _get(self, key: str) -> bytes:
        while True:
            try:
                self._store.wait([key], _LOOK)
                value: bytes = self._store.get(key)
            except DistStoreError:
                if self._closed.is_set():
                    raise Closed from None
            else:
                return value
