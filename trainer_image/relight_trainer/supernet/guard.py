"""Ranks that take different paths, found while they still talk, at no cost to the step.

Different paths run different layers, so ranks would wait in different collectives for ever, or add up gradients of
different parameters in silence. The main thread only notes a hash; a side thread with a store client of its own
publishes the newest ones and compares, so a main thread that hangs already is no obstacle.
"""

import hashlib
import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

from torch.distributed import Store  # type: ignore[attr-defined]

from relight_agent.exits import ExitCode
from relight_agent.files import Outcome
from relight_trainer.context import WorkerContext
from relight_trainer.failures import classify, describe, tell
from relight_trainer.supernet.choices import path_text

_KEPT = 32  # newest steps that a rank publishes: ranks in one world are a step or two apart
_VERDICT = "paths/verdict"


class PathsDiverged(Exception):
    """Ranks train different paths in one step."""

    exit_code: ClassVar[ExitCode] = ExitCode.BAD_CONFIG  # the code that draws would do it again


class PathGuard:
    """One rank's part. `store` must be this object's own client.

    Every `interval` seconds the newest hashes are published and rank 0 compares them. Where they differ every rank's
    next `note` raises PathsDiverged; a main thread that does not come by within `patience` seconds hangs in a
    collective, and `end` is called with the error, from the side thread: it is expected to end the process.
    """

    def __init__(
        self,
        store: Store,
        *,
        rank: int,
        world: int,
        end: Callable[[Exception], None],
        interval: float = 0.5,
        patience: float = 1.0,
    ) -> None:
        self._store = store
        self._rank = rank
        self._keys = [f"paths/{i}" for i in range(world)]
        self._end = end
        self._interval = interval
        self._patience = patience
        self._chain = self._before = b""
        self._newest: deque[tuple[int, str]] = deque(maxlen=_KEPT)
        self._error: PathsDiverged | None = None
        self._raised = threading.Event()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="relight-paths", daemon=True)
        self._thread.start()

    def note(self, step: int, paths: Sequence[Any]) -> None:
        """Step `step` trains `paths`. Called before its first forward pass; raises PathsDiverged."""
        if self._error is not None:
            self._raised.set()
            raise self._error
        if (
            self._newest and self._newest[-1][0] == step
        ):  # done again: ranks that were looked at in between differ in nothing
            self._chain = self._before
        self._before = self._chain
        # Chained, so that a difference stays one however many steps later it is looked for.
        text = "\n".join(map(path_text, paths)).encode()
        self._chain = hashlib.blake2b(text, digest_size=8, key=self._chain).digest()
        self._newest.append((step, self._chain.hex()))

    def close(self) -> None:
        """End the side thread."""
        self._closed.set()
        self._thread.join(timeout=2.0)

    def _watch(self) -> None:
        published = -1
        try:
            while not self._closed.wait(self._interval):
                hashes = list(self._newest)
                if hashes and hashes[-1][0] != published:
                    published = hashes[-1][0]
                    self._store.set(self._keys[self._rank], json.dumps(hashes))
                if self._rank == 0 and self._store.check(self._keys):
                    found = verdict([dict(json.loads(text)) for text in self._store.multi_get(self._keys)])
                    if found:
                        self._store.set(_VERDICT, found)
                if self._store.check([_VERDICT]):
                    self._error = PathsDiverged(self._store.get(_VERDICT).decode())
                    break
        except RuntimeError:  # the store has gone: the world is ending, and says so elsewhere
            return
        if self._error is not None and not self._raised.wait(self._patience) and not self._closed.is_set():
            self._end(self._error)


def verdict(hashes: Sequence[dict[int, str]]) -> str:
    """What differs, in words, "" for nothing. `hashes` are each rank's: step -> hash of the paths up to it."""
    for step in sorted(set.intersection(*map(set, hashes))):
        of_step = [one[step] for one in hashes]
        if len(set(of_step)) == 1:
            continue
        common = max(of_step, key=of_step.count)  # of equally common ones rank 0's, or the lowest rank's
        others = [rank for rank, hash_ in enumerate(of_step) if hash_ != common]
        word = "rank" if len(others) == 1 else "ranks"
        return (
            f"supernet: {word} {', '.join(map(str, others))} took other paths than rank {of_step.index(common)}, in step "
            f"{step + 1} at the latest; sample_path may draw only from its context, which is the same on every rank"
        )
    return ""


def end_worker(context: WorkerContext) -> Callable[[Exception], None]:
    """What ends a worker whose main thread hangs: it says why, as the worker's own end does, and is gone."""

    def end(error: Exception) -> None:
        tell(error)
        code = classify(error)
        outcome = Outcome("failed", context.rank, exit_code=int(code), message=describe(error), at=time.monotonic())
        context.folder.write_outcome(context.local_rank, outcome)
        os._exit(code)

    return end
