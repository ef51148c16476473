"""Ranks that are several steps apart agree on what none of them has used, and ask each other nothing before that."""

import threading
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

import pytest
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st

from relight_trainer.unused import Unused

pytestmark = pytest.mark.timeout(120)
COUNT = 4  # parameters


class Counted:
    """A store that counts what it is asked to keep."""

    def __init__(self, store: Any) -> None:
        self._store = store
        self.sets: list[str] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def set(self, key: str, value: str) -> None:
        self.sets.append(key)
        self._store.set(key, value)


class Meeting:
    """The collective: the ranks of one step come together, and no others."""

    def __init__(self, world: int) -> None:
        self._used: list[set[int]] = []
        self._world = world
        self._all_here = threading.Barrier(world, timeout=20)
        self.meetings = 0

    def nowhere_used(self, unused: Sequence[int], count: int) -> list[int]:
        self._used.append(set(range(count)) - set(unused))
        self._all_here.wait()
        used = set().union(*self._used[-self._world :])
        if self._all_here.wait() == 0:
            self.meetings += 1
        self._all_here.wait()
        return [i for i in unused if i not in used]


def settled(
    steps: list[list[list[int]]], ahead: int, together: Sequence[int] = ()
) -> tuple[list[list[list[int]]], Counted, Meeting]:
    """What each of the ranks is told in each of `steps`, which give each rank's unused parameters.

    Rank 0 waits before each step until the others, where they need nothing of it, are `ahead` steps further, as
    processes whose GPUs are behind may be.
    """
    world = len(steps[0])
    store, meeting = Counted(dist.HashStore()), Meeting(world)
    ranks = [
        Unused(
            lambda: store,
            rank=r,
            world=world,
            nowhere_used=meeting.nowhere_used,
            poll=0.002,
            timeout=timedelta(seconds=20),
        )  # type: ignore[arg-type, return-value]
        for r in range(world)
    ]
    done = [0] * world
    told: list[list[list[int]]] = [[] for _ in ranks]
    errors: list[BaseException] = []

    def run(rank: int) -> None:
        try:
            for number, unused in enumerate(steps):
                wanted = min(number + ahead, len(steps))
                for _ in range(20):
                    if rank or min(done[1:]) >= wanted:
                        break
                    threading.Event().wait(0.001)
                told[rank].append(ranks[rank].settle(unused[rank], COUNT, together=number in together))
                done[rank] = number + 1
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(world)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    for one in ranks:
        one.close()
    assert errors == []
    return told, store, meeting


def expected(steps: list[list[list[int]]]) -> list[list[list[int]]]:
    common = [sorted(set.intersection(*map(set, step))) for step in steps]
    return [common for _ in steps[0]]


parameters = st.one_of(st.just([]), st.lists(st.integers(0, COUNT - 1), unique=True).map(sorted))


@given(
    st.integers(2, 3).flatmap(lambda w: st.lists(st.lists(parameters, min_size=w, max_size=w), min_size=1, max_size=8)),
    st.integers(0, 3),
    st.sets(st.integers(0, 7), max_size=2),
)
@settings(max_examples=60, deadline=None)
def test_each_rank_is_told_what_no_rank_has_used(steps: list[list[list[int]]], ahead: int, together: set[int]) -> None:
    told, _, _ = settled(steps, ahead, sorted(together))
    assert told == expected(steps)


@pytest.mark.parametrize("ahead", [0, 3])
def test_one_rank_asks_in_a_late_step(ahead: int) -> None:
    steps: list[list[list[int]]] = [[[], []]] * 3 + [[[1, 2], []]] + [[[1], [1]]] + [[[], []]] + [[[2], [2, 3]]]
    told, _, meeting = settled(steps, ahead)
    assert told == expected(steps)
    assert meeting.meetings <= 3  # those after the furthest rank's step


def test_steps_that_use_everything_write_nothing_and_meet_nowhere() -> None:
    told, store, meeting = settled([[[], [], []]] * 50, 0)
    assert told == [[[]] * 50] * 3
    assert store.sets == []
    assert meeting.meetings == 0
