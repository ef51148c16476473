"""When a checkpoint is written: at once where that is quick, beside the training where the state is large or the storage slow.

A save beside the training holds up a step for one copy of the state.
"""

import threading
import time
from collections.abc import Callable
from functools import cache, partial
from typing import Any

from relight_trainer.checkpoint import room
from relight_trainer.checkpoint.container import State
from relight_trainer.checkpoint.errors import CheckpointError, StorageFailed
from relight_trainer.checkpoint.exchange import Exchange
from relight_trainer.checkpoint.folder import CheckpointFolder
from relight_trainer.checkpoint.manifest import Checkpoint
from relight_trainer.checkpoint.shards import Content, Memory

LARGE_BYTES = 64 << 20  # from here on a copy is quicker than any storage
SLOW_SECONDS = 2.0  # what a checkpoint may hold up all ranks; the next one after a slower one is written beside them
_AT_ONCE, _BESIDE, _NOT_NOW = b"at once", b"beside", b"not now"


class Saver:
    """The saves of one rank of one generation; all ranks make the same calls at the same steps.

    `exchange` is this object's own, for a thread waits on it, and a store's client serves one call at a time; `agree` is
    used by the caller's thread alone, and so is `say`.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        exchange: Exchange,
        *,
        agree: Exchange,
        rank: int,
        world: int,
        local_world: int = 1,
        timeout: float,
        say: Callable[[str], None],
        slow: float = SLOW_SECONDS,
        large: int = LARGE_BYTES,
    ) -> None:
        self._folder = folder
        self._exchange = exchange
        self._agreeing = agree
        self._rank = rank
        self._world = world
        self._local_world = local_world
        self._timeout = timeout
        self._say = say
        self._slow = slow
        self._large = large
        self._is_slow = False  # rank 0's judgement alone
        self._memory: Memory = {}  # of what is being written beside the training
        self._making_room: threading.Thread | None = None
        self._running: _Running | None = None
        self.own: Callable[[], State] | None = None  # gives what this rank has for itself

    def prepare(self, state: Callable[[], State]) -> None:
        """Begin to make room for the copies of a large state. Call it once the state has all its tensors."""
        try:
            content = Content(state())
        except CheckpointError:
            return  # the save will say what is wrong, where all ranks hear of it
        if content.size >= self._large and self._fits(content):
            work = partial(content.make_room, self._rank, self._world, self._memory)
            self._making_room = threading.Thread(target=work, name="relight-checkpoint", daemon=True)
            self._making_room.start()

    def due(
        self,
        state: Callable[[], State],
        *,
        generation: int,
        step: int,
        cursor: dict[str, Any],
        before_waiting: Callable[[], None] = lambda: None,
    ) -> Checkpoint | None:
        """A checkpoint is due: the one that has been committed, if that is so on return.

        `before_waiting` is called ahead of a save that training waits for.

        A storage that fails is told and does not end training: what was there before is untouched. Where the one
        before is still being written, this one is left out, and told. Raises what `CheckpointFolder.save` raises beside
        `StorageFailed`.
        """
        content = cache(lambda: self._content(state()))
        how = self._agree(step, content)
        arguments = {"generation": generation, "step": step, "cursor": cursor, "final": False}
        if how == _NOT_NOW:
            self._say(f"the storage is slow: no checkpoint of step {step}, the one before is still being written")
            return None
        if how == _BESIDE:
            self.wait()
            held = self._held(content)
            self._running = _Running(lambda: self._save(held, arguments), step)
            return None
        before_waiting()
        try:
            return self.now(state(), **arguments)
        except StorageFailed as error:
            self._failed(f"the checkpoint of step {step}", error)
            return None

    def now(self, state: State, **arguments: Any) -> Checkpoint:
        """Save at once, after what is still being written. Arguments and errors are those of `CheckpointFolder.save`."""
        self.wait()
        began = time.monotonic()
        saved = self._save(lambda: self._content(state), arguments)
        took = time.monotonic() - began
        if took > self._slow and not self._is_slow and not arguments.get("final"):
            self._is_slow = True
            if self._rank == 0:
                self._say(
                    f"a checkpoint took {took:.1f} s: from now on they are written beside the training, where memory allows"
                )
        return saved

    @property
    def writing(self) -> int | None:
        """The step of the checkpoint that is being written beside the training, where there is one."""
        return self._running.step if self._running is not None else None

    def poll(self) -> Checkpoint | None:
        """The checkpoint that has been committed beside the training since the last call; waits for nothing."""
        if self._running is None or not self._running.done:
            return None
        return self.wait()

    def wait(self) -> Checkpoint | None:
        """As `poll`, once nothing is being written any more."""
        running, self._running = self._running, None
        if running is None:
            return None
        try:
            return running.result()
        except StorageFailed as error:
            self._failed(running.what, error)
            return None

    def _agree(self, step: int, content: Callable[[], Content]) -> bytes:
        """What rank 0 says: its save is the last to end, for it commits."""
        key = f"save/{step}"
        if self._rank == 0:
            busy = self._running is not None and not self._running.done
            how = _NOT_NOW if busy else _BESIDE if self._may_be_beside(content) else _AT_ONCE
            self._agreeing.put(key, how)
            return how
        return self._agreeing.get(key, self._timeout)

    def _may_be_beside(self, content: Callable[[], Content]) -> bool:
        try:
            found = content()
        except CheckpointError:
            return self._is_slow
        return (self._is_slow or found.size >= self._large) and (bool(self._memory) or self._fits(found))

    def _fits(self, content: Content) -> bool:
        """Whether this machine has memory for its ranks' shares once more."""
        return room.fits(content.size * self._local_world // self._world)

    def _held(self, content: Callable[[], Content]) -> Callable[[], Content]:
        """The rank's share of the content as it is now; an error in it is raised where all ranks hear of it."""
        if self._making_room is not None:
            self._making_room.join()
            self._making_room = None
        try:
            held = content().hold(self._rank, self._world, self._memory)
        except CheckpointError as error:
            return _raising(error)
        return lambda: held

    def _content(self, state: State) -> Content:
        return Content(state, self.own() if self.own is not None else None)

    def _save(self, state: Callable[[], Content], arguments: dict[str, Any]) -> Checkpoint:
        return self._folder.save(state, rank=self._rank, world=self._world, exchange=self._exchange, **arguments)

    def _failed(self, what: str, error: StorageFailed) -> None:
        self._say(f"training goes on without {what}: {error}")


class _Running:
    """One save in a thread, and how it ended. An ending interpreter does not wait for it."""

    def __init__(self, save: Callable[[], Checkpoint], step: int) -> None:
        self.step = step
        self.what = f"the checkpoint of step {step}"
        self._save = save
        self._saved: Checkpoint | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._run, name="relight-checkpoint", daemon=True)
        self._thread.start()

    @property
    def done(self) -> bool:
        return not self._thread.is_alive()

    def result(self) -> Checkpoint | None:
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._saved

    def _run(self) -> None:
        try:
            self._saved = self._save()
        except BaseException as error:
            self._error = error


def _raising(error: CheckpointError) -> Callable[[], Content]:
    def raises() -> Content:
        raise error

    return raises
