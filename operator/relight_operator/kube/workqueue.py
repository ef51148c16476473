"""A queue of keys for reconcilers, with the semantics of client-go's work queue.

A key that is added many times is handed out once; while it is being worked on it is not handed out again, but comes
back afterwards if it was added in between.
"""

import asyncio
from collections import deque

BACKOFF_FIRST_SECONDS = 0.05
BACKOFF_MAX_SECONDS = 60.0


class WorkQueue:
    """Belongs to one event loop. Keys are handed out in the order in which they were added."""

    def __init__(self) -> None:
        self._ready: deque[str] = deque()
        self._queued: set[str] = set()
        self._active: set[str] = set()
        self._again: set[str] = set()
        self._timers: dict[str, asyncio.TimerHandle] = {}
        self._failures: dict[str, int] = {}
        self._wakeup = asyncio.Event()
        self._closed = False

    def __len__(self) -> int:
        return len(self._ready)

    def add(self, key: str) -> None:
        """Hand `key` out as soon as possible."""
        self._cancel(key)
        if self._closed or key in self._queued:
            return
        if key in self._active:
            self._again.add(key)
            return
        self._queued.add(key)
        self._ready.append(key)
        self._wakeup.set()

    def add_after(self, key: str, seconds: float) -> None:
        """Hand `key` out after `seconds`, unless it is handed out before; of two such calls the sooner counts."""
        loop = asyncio.get_running_loop()
        old = self._timers.get(key)
        if self._closed or (old is not None and old.when() <= loop.time() + seconds):
            return
        self._cancel(key)
        self._timers[key] = loop.call_later(seconds, self.add, key)

    def add_backed_off(self, key: str) -> float:
        """Hand `key` out after a wait that doubles with each call since the last `forget`; the seconds."""
        failures = self._failures.get(key, 0)
        self._failures[key] = failures + 1
        wait: float = min(BACKOFF_FIRST_SECONDS * 2.0 ** min(failures, 30), BACKOFF_MAX_SECONDS)
        self.add_after(key, wait)
        return wait

    def forget(self, key: str) -> None:
        """`key` went well: its next failure starts from the shortest wait."""
        self._failures.pop(key, None)

    async def take(self) -> str | None:
        """The next key, to be given back with `done`; None once the queue is closed."""
        while not self._ready:
            if self._closed:
                return None
            self._wakeup.clear()
            await self._wakeup.wait()
        key = self._ready.popleft()
        self._queued.discard(key)
        self._active.add(key)
        # Whatever was to come later is covered by this round, which says anew when it wants to be called.
        self._cancel(key)
        return key

    def done(self, key: str) -> None:
        self._active.discard(key)
        if key in self._again:
            self._again.discard(key)
            self.add(key)

    def close(self) -> None:
        """Hand nothing out any more. What is being worked on may finish."""
        self._closed = True
        self._ready.clear()
        self._queued.clear()
        for key in list(self._timers):
            self._cancel(key)
        self._wakeup.set()

    def _cancel(self, key: str) -> None:
        timer = self._timers.pop(key, None)
        if timer is not None:
            timer.cancel()
