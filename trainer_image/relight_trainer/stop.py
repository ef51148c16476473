"""Agreeing on the place at which all ranks stop, at no cost while nobody asks.

A main thread inside a collective hears nothing, so a side thread with a store client of its own listens: for the
agent's command, and for the notice of another rank. On either it publishes this rank's position once and the main
thread goes no further than the end of what it is in until the decision is known:

    (2*s, 0)      at boundary s: s steps are done, the next has not begun (evaluation and saving happen here)
    (2*s, m + 1)  inside part m of the step after s, and m is not its last
    (2*s + 1, 0)  inside that step's last part, in which gradients are exchanged

The furthest position decides: all stop at boundary s; before part m + 1, and what has been done of that step is dropped;
at boundary s + 1. A rank that waits inside a step for its peers is thereby never left alone, whether they meet in each
part or in the last, and no rank has passed the place chosen. Which part is a step's last must be the same on all ranks:
where they have different numbers of parts, it is that of the rank with the fewest, and what follows counts to it.

The same side thread sees that this rank begins a step after the one with which another rank's loop has ended
(`loop_end`): the main thread would wait for that rank's gradients for ever.
"""

import threading
import time
from collections.abc import Callable

from torch.distributed import Store  # type: ignore[attr-defined]

from relight_trainer.loop_end import LastStep, LoopEnd

Position = tuple[int, int]

_START: Position = (0, 0)
_DONE: Position = (2**60, 0)
_GO_ON = "go on"
# One key that all look for wakes them up, whatever for; a stop may be asked for after a loop has ended.
_NOTICE, _STOP, _END = "stop/notice", "stop", "end"


class StopAgreement:
    """One rank's part in the agreement of one generation.

    `store` must be this object's own client: nothing else may wait on it. `requested` says whether this member's
    agent has asked for a stop; the side thread calls it every `poll` seconds. A decision that is not there `patience`
    seconds after the notice is given up by all ranks alike: training goes on, and `say` hears why. `uneven` is called
    by the side thread, once, with where the loop of another rank has ended, the steps that this rank has done, and
    whether it is within the next one.
    """

    def __init__(
        self,
        store: Store,
        *,
        rank: int,
        world: int,
        requested: Callable[[], bool],
        say: Callable[[str], None],
        uneven: Callable[[LastStep, int, bool], None] = lambda *_: None,
        poll: float = 0.02,
        patience: float = 10.0,
    ) -> None:
        self._store = store
        self._rank = rank
        self._positions = [f"stop/position/{i}" for i in range(world)]
        self._requested = requested
        self._say = say
        self._uneven = uneven
        self._ends = LoopEnd(store, rank, world)
        self._poll = poll
        self._patience = patience
        # No lock, which each step would take: the main thread first tells its position and then looks whether it may go on;
        # the side thread first forbids it and then reads the position. Whichever comes first, both know of the other.
        self._position = _START
        self._frozen = False
        self._decided = threading.Event()
        self._stop_at: tuple[int, int] | None = None  # steps that are done, parts of the next
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="relight-stop", daemon=True)
        self._thread.start()

    def at_boundary(self, step: int) -> None:
        """Note that `step` steps are done and the next has not begun."""
        self._position = (2 * step, 0)

    def should_leave(self, step: int, part: int = 0) -> bool:
        """Whether it is decided that this boundary, or `part`, is the end; returns at once, for polling in evaluation."""
        return self._stop_at is not None and (step, part) >= self._stop_at

    def enter(self, step: int, part: int = 0, *, last: bool = True) -> bool:
        """Begin `part` of the step after `step` done ones: False where all ranks stop here instead."""
        return self._pass(step, part, (2 * step + 1, 0) if last else (2 * step, part + 1))

    def finish(self, step: int, how: str = "") -> bool:
        """Leave the loop with `step` steps done and nothing left but to save: False where all ranks stop here instead.

        A stop asked for later finds this rank done and is dropped by all. `how` the loop ended, in words.
        Raises UnevenRanks where another rank's loop has ended after another step.
        """
        going_on = self._pass(step, 0, _DONE)
        self.close()
        if going_on:
            self._ends.announce(step, how)
            self._store.compare_set(_NOTICE, "", _END)
        return going_on

    def wait_for_all(self) -> None:
        """After `finish`: wait until the loops of all ranks have ended."""
        self._ends.wait()

    def close(self) -> None:
        """End the side thread; a position is still published for peers that may ask."""
        self._closed.set()
        self._thread.join(timeout=2.0)

    def _pass(self, step: int, part: int, position: Position) -> bool:
        self._position = position
        if self._frozen and not self._decided.wait(2 * self._patience):
            self._say("the store did not answer: the stop that was asked for is not agreed on, training goes on")
            self._decided.set()
        return not self.should_leave(step, part)

    def _watch(self) -> None:
        try:
            if self._noticed():
                self._store.set(_NOTICE, _STOP)
                self._publish()
                self._decide()
                self._decided.set()
                if self._stop_at is None:
                    self._watch_ends()
            else:
                self._publish()
        except RuntimeError as error:  # the store has gone: the world is ending, or has ended well
            if not self._closed.is_set():
                self._say(f"stop requests can no longer be heard: {str(error).splitlines()[0]}")
        finally:
            self._decided.set()

    def _noticed(self) -> bool:
        """Wait until a stop is asked for; False where the loop has ended before."""
        ended: LastStep | None = None
        told = False
        while not self._closed.wait(self._poll):
            if self._requested():
                return True
            if ended is None and not self._store.check([_NOTICE]):
                continue
            if self._store.get(_NOTICE) == _STOP.encode():
                return True
            ended = ended or self._ends.first()
            told = told or self._tell_if_later(ended)
        return False

    def _watch_ends(self) -> None:
        """No stop is listened to any more, only the end of another rank's loop."""
        while not self._closed.wait(self._poll):
            if self._tell_if_later(self._ends.first()):
                return

    def _tell_if_later(self, ended: LastStep | None) -> bool:
        """Say so where this rank has gone beyond the step with which `ended`."""
        position = self._position
        if ended is None or position == _DONE or position <= (2 * ended.step, 0):
            return False
        place, part = position
        self._uneven(ended, place // 2, place % 2 == 1 or part > 0)
        return True

    def _publish(self) -> None:
        self._frozen = True
        self._store.set(self._positions[self._rank], _text(self._position))

    def _decide(self) -> None:
        """Whoever sees all positions first writes the decision, or, out of patience, that there is none."""
        deadline = time.monotonic() + self._patience
        decision = _GO_ON
        while time.monotonic() < deadline:
            if self._store.check(["stop/decision"]):
                break
            if self._store.check(self._positions):
                furthest = max(map(_numbers, self._store.multi_get(self._positions)))
                decision = _GO_ON if furthest == _DONE else _text(_end_of(furthest))
                break
            time.sleep(0.002)
        else:
            self._say(f"not all ranks answered within {self._patience:g} s: the stop is given up, training goes on")
        agreed = self._store.compare_set("stop/decision", "", decision)
        if agreed != _GO_ON.encode():
            self._stop_at = _numbers(agreed)


def _end_of(position: Position) -> tuple[int, int]:
    """The steps, and the parts of the next one, that are done where what is under way at `position` ends."""
    place, part = position
    return (place + 1) // 2, part


def _text(numbers: tuple[int, int]) -> str:
    return "{} {}".format(*numbers)


def _numbers(text: bytes) -> tuple[int, int]:
    one, other = text.split()
    return int(one), int(other)
