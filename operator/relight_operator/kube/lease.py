"""The lease, renewed from a thread, an event loop and a connection pool of its own: nothing else can hold it up.

Only a process whose main loop has not answered for `HUNG_SECONDS` lets the lease run out: it does not do what a leader
is for.
"""

import asyncio
import logging
import threading
import time
from collections.abc import Callable
from contextlib import AbstractAsyncContextManager

from relight_operator.kube.client import Client
from relight_operator.kube.errors import KubeError
from relight_operator.kube.leader import RETRY_SECONDS, Elector

HUNG_SECONDS = 60.0
BEAT_SECONDS = 1.0
JOIN_SECONDS = 10.0

_log = logging.getLogger(__name__)


class Lease:
    """`connect` opens the client of the lease alone; `elector` makes its user. All methods but `leads` belong to the main loop."""

    def __init__(
        self,
        connect: Callable[[], AbstractAsyncContextManager[Client]],
        elector: Callable[[Client], Elector],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._connect = connect
        self._make = elector
        self._clock = clock
        self._elector: Elector | None = None
        self._thread: threading.Thread | None = None
        self._main: asyncio.AbstractEventLoop | None = None
        self._own: asyncio.AbstractEventLoop | None = None
        self._give_back: asyncio.Event | None = None  # of the thread's loop
        self._acquired = asyncio.Event()
        self._over = asyncio.Event()
        self._beat = clock()  # when the main loop answered last
        self._beating: asyncio.Task[None] | None = None
        self._releasing = False

    def leads(self) -> bool:
        """Whether this process may act now. May be asked from any thread."""
        elector = self._elector
        return not self._releasing and elector is not None and elector.leads()

    async def acquire(self) -> None:
        """Returns once this process leads. Raises KubeError where there is no way to a server."""
        self._main = asyncio.get_running_loop()
        self._beat = self._clock()
        self._thread = threading.Thread(target=self._run, name="lease", daemon=True)
        self._thread.start()
        self._beating = asyncio.create_task(self._keep_beating())
        either = [asyncio.create_task(e.wait()) for e in (self._acquired, self._over)]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in either:
                task.cancel()
        if not self._acquired.is_set():
            raise KubeError("the lease could not be asked for; the log says why")

    async def held(self) -> None:
        """Returns once the lease is lost, when nothing more may be done."""
        await self._over.wait()

    async def release(self) -> None:
        """Let another replica lead at once. Stop acting before this is called."""
        self._releasing = True
        if self._thread is None:
            return
        own, event = self._own, self._give_back
        if own is not None and event is not None:
            try:
                own.call_soon_threadsafe(event.set)
            except RuntimeError:  # its loop has ended
                pass
        await asyncio.to_thread(self._thread.join, JOIN_SECONDS)
        if self._beating is not None:
            self._beating.cancel()

    async def _keep_beating(self) -> None:
        while True:
            self._beat = self._clock()
            await asyncio.sleep(BEAT_SECONDS)

    # -- the thread

    def _run(self) -> None:
        try:
            asyncio.run(self._elect())
        except Exception:
            _log.exception("the lease can be renewed no more")
        self._tell(self._over)

    async def _elect(self) -> None:
        self._own = asyncio.get_running_loop()
        self._give_back = asyncio.Event()
        if self._releasing:  # before there was an event to set
            return
        giving_back = asyncio.create_task(self._give_back.wait())
        async with self._connect() as client:
            elector = self._make(client)
            holding = asyncio.create_task(self._hold(elector))
            await asyncio.wait([holding, giving_back], return_when=asyncio.FIRST_COMPLETED)
            if not holding.done():
                holding.cancel()
                await asyncio.wait([holding])
                await elector.release()
            else:
                giving_back.cancel()
                holding.result()

    async def _hold(self, elector: Elector) -> None:
        await elector.acquire()
        self._elector = elector
        self._tell(self._acquired)
        watching = asyncio.create_task(self._watch_main())
        renewing = asyncio.create_task(elector.hold())
        try:
            await asyncio.wait([watching, renewing], return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (watching, renewing):
                task.cancel()

    async def _watch_main(self) -> None:
        while self._clock() < self._beat + HUNG_SECONDS:  # noqa: ASYNC110  # nothing happens: that is the point
            await asyncio.sleep(RETRY_SECONDS)
        _log.error("the main loop has not answered for %.0f s: the lease is renewed no more", HUNG_SECONDS)

    def _tell(self, event: asyncio.Event) -> None:
        assert self._main is not None
        try:
            self._main.call_soon_threadsafe(event.set)
        except RuntimeError:  # the main loop has been closed: everything is coming to its end
            pass
