"""One thread that writes what is seen: training hands it work and goes on, whatever the storage does."""

import queue
import threading
from collections.abc import Callable

WAITING = 512  # pieces of work; beyond that the newest are dropped, for memory must not grow with a slow disk


class Writer:
    """Runs what it is given, in order, in a thread of its own.

    The first piece that fails ends the writing, and `say` hears why; training goes on.
    """

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._work: queue.Queue[Callable[[], None] | None] = queue.Queue(WAITING)
        self._broken = False
        self._dropped = False
        self._thread: threading.Thread | None = None

    def put(self, work: Callable[[], None]) -> None:
        """Have `work` done soon. Never waits."""
        if self._broken:
            return
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="observe", daemon=True)
            self._thread.start()
        try:
            self._work.put_nowait(work)
        except queue.Full:
            if not self._dropped:
                self._dropped = True
                self._say("observe: the storage is too slow for all that is to be shown: some of it is left out")

    def close(self, timeout: float) -> bool:
        """Finish what is waiting, within `timeout` seconds; whether that was done."""
        if self._thread is None:
            return True
        try:
            self._work.put(None, timeout=timeout)
        except queue.Full:
            return False
        self._thread.join(timeout)
        return not self._thread.is_alive()

    def _run(self) -> None:
        while (work := self._work.get()) is not None:
            if self._broken:
                continue
            try:
                work()
                del work  # it holds the tensors that it wrote, and the next piece may be a hundred steps away
            except Exception as error:
                self._broken = True
                self._say(f"observe: nothing is shown any more, training goes on: {type(error).__name__}: {error}")
