"""How often snapshots are taken, and when they are off."""

from itertools import pairwise

import pytest

from relight_agent.cgroup import Usage
from relight_trainer.checkpoint import SnapshotsOff, room
from relight_trainer.snapshot_interval import SHARE, SnapshotInterval


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def taken(every, *, step, cost, steps=2000, disturbed=lambda _: 0.0, crowded=0.0):
    """The steps after which snapshots were taken, where a step takes `step` seconds and a snapshot `cost`.

    `crowded`: the seconds that each of them waits for a CPU.
    """
    clock, busy = Clock(), Clock()
    interval = SnapshotInterval(every, clock, busy if crowded else clock)
    found = []
    for n in range(1, steps + 1):
        clock.now += step
        if interval.is_due():
            interval.begin()
            clock.now += cost + disturbed(n) + crowded
            busy.now += cost
            interval.end()
            found.append(n)
    return found


@pytest.mark.parametrize(
    ("step", "cost", "apart"),
    [
        pytest.param(0.1, 0.0005, 1, id="cheap beside the step"),
        pytest.param(0.003, 0.0005, 1, id="a tiny model: cheap by itself"),
        pytest.param(0.1, 0.008, 8, id="a ResNet-50 alone on its machine"),
        pytest.param(1.0, 0.0099, 1, id="just below the share"),
        pytest.param(0.5, 0.48, 96, id="a billion parameters"),
    ],
)
def test_auto_costs_less_than_its_share(step, cost, apart):
    found = taken(0, step=step, cost=cost)[20:]
    assert {b - a for a, b in pairwise(found)} == {apart}
    assert cost < 0.001 or len(found) * cost <= SHARE * (found[-1] - found[0] + apart) * step


def test_what_disturbs_some_snapshots_does_not_stretch_the_interval():
    assert taken(0, step=0.003, cost=0.0005, disturbed=lambda n: 0.05 if n % 3 else 0.0) == [*range(1, 2001)]


def test_waiting_for_a_cpu_is_no_cost_of_a_snapshot():
    assert taken(0, step=0.03, cost=0.0005, crowded=0.01) == [*range(1, 2001)]


def test_steps_that_follow_each_other_too_soon_share_one():
    found = taken(0, step=0.0001, cost=0.0001, steps=1000)
    assert {b - a for a, b in pairwise(found[1:])} == {24}


def test_a_number_of_steps_is_kept_whatever_it_costs():
    assert taken(1, step=0.0001, cost=1.0, steps=10) == [*range(1, 11)]
    assert taken(4, step=1.0, cost=0.0, steps=12) == [4, 8, 12]


def test_a_memory_limit_that_cannot_hold_them_turns_snapshots_off_with_a_word():
    usage = Usage(0.0, memory_bytes=900_000_000, memory_limit=1_000_000_000)
    room.require(100_000_000, usage)
    with pytest.raises(SnapshotsOff, match=r"do not fit the memory limit \(1000.0 MB, of which 900.0 MB are in use\)"):
        room.require(100_000_001, usage)


@pytest.mark.parametrize("usage", [Usage(0.0), Usage(0.0, memory_bytes=5), Usage(0.0, memory_limit=5)])
def test_without_a_known_limit_everything_fits(usage):
    room.require(10**15, usage)
