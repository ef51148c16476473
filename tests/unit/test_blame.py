"""Machines that are to blame too often: who is held to account, for how long, and what happens when no other is left."""

from dataclasses import replace
from typing import Any

import pytest
from sim_views import (
    NOW,
    after,
    agent,
    busy,
    created,
    ended,
    fresh,
    member,
    outcome,
    reasons,
    running,
    seen,
    spec,
    wakeup,
)

from relight_agent.exits import Cause, Class, Manner
from relight_operator.api.status import BlamedMachine, JobStatus
from relight_operator.core.actions import CreateMember
from relight_operator.core.blame import MAX_MACHINES, PATIENCE_SECONDS, is_to_blame
from relight_operator.core.observed import SlotView
from relight_operator.core.plan import plan


@pytest.mark.parametrize(
    ("cause", "klass", "manner", "expected"),
    [
        (Cause.MACHINE_UNHEALTHY, Class.MACHINE, Manner.UNKNOWN, True),
        (Cause.MACHINE_LOST, Class.DISRUPTION, Manner.UNKNOWN, True),
        (Cause.STALL, Class.COUNTED, Manner.UNKNOWN, True),
        (Cause.EXCEPTION, Class.COUNTED, Manner.DIED, True),
        (Cause.EXCEPTION, Class.COUNTED, Manner.RAISED, False),  # the code's, wherever it runs: a missing file too
        (Cause.EXCEPTION, Class.COUNTED, Manner.EXITED, False),
        (Cause.EXCEPTION, Class.COUNTED, Manner.PERMANENT, False),
        (Cause.EXCEPTION, Class.COUNTED, Manner.UNKNOWN, False),  # a plain command tells no crash from an exception
        (Cause.OUT_OF_MEMORY, Class.COUNTED, Manner.DIED, False),
        (Cause.PEER_LOST, Class.COLLATERAL, Manner.UNKNOWN, False),
        (Cause.PREEMPTED, Class.DISRUPTION, Manner.UNKNOWN, False),
        (Cause.DELETED, Class.DISRUPTION, Manner.UNKNOWN, False),
        (Cause.BAD_CONFIG, Class.FINAL, Manner.RAISED, False),
    ],
)
def test_what_is_held_against_a_machine(cause: Cause, klass: Class, manner: Manner, expected: bool) -> None:
    assert is_to_blame(cause, klass, manner) is expected


PATIENT = spec(disruption={"holdSurvivors": "24h"})  # or the job would give its machines back


def blamed(*times: float, name: str = "bad") -> BlamedMachine:
    return BlamedMachine(name=name, times=list(times))


def avoids(status: JobStatus, now: float = NOW, **retry: Any) -> tuple[str, ...]:
    """The machines that a member which is created now is to avoid."""
    given = status.model_copy(deep=True)
    given.slots[1].uid = None
    actions = plan(
        seen(given, member(0), spec=spec(retry={"avoidMachines": retry}, disruption={"holdSurvivors": "24h"})), now
    )
    return next(a.avoid for a in actions if isinstance(a, CreateMember))


@pytest.mark.parametrize(
    ("times", "retry", "expected"),
    [
        pytest.param((), {}, (), id="nothing"),
        pytest.param((NOW,), {}, (), id="once"),
        pytest.param((NOW - 60, NOW), {}, ("bad",), id="twice"),
        pytest.param((NOW - 3700, NOW), {}, (), id="the first too long ago"),
        pytest.param((NOW - 60, NOW), {"for": "30s"}, (), id="a shorter memory"),
        pytest.param((NOW,), {"afterFailures": 1}, ("bad",), id="once is enough"),
        pytest.param((NOW - 60, NOW), {"afterFailures": 3}, (), id="twice is not"),
    ],
)
def test_when_a_machine_is_avoided(times: tuple[float, ...], retry: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert avoids(fresh(blamed_machines=[blamed(*times)] if times else []), **retry) == expected


@pytest.mark.parametrize(
    ("end", "agents"),
    [
        pytest.param(ended(Cause.MACHINE_UNHEALTHY, 73), agent(), id="it said so"),
        pytest.param(ended(Cause.MACHINE_UNHEALTHY, 137), None, id="killed from outside"),
        pytest.param(ended(Cause.MACHINE_LOST), busy(), id="lost"),
    ],
)
def test_a_second_end_on_one_machine_makes_it_avoided_and_says_so(end: Any, agents: Any) -> None:
    given = running(blamed_machines=[blamed(NOW - 60, name="gpu-3")])
    given.slots[1].machine = "gpu-3"
    dead = member(1, machine="gpu-3", agent=agents, end=end)
    observed = seen(given, member(0, agent=busy()), dead)
    status = after(observed)
    assert [(m.name, m.times) for m in status.blamed_machines] == [("gpu-3", [NOW - 60, NOW - 1])]
    assert "MachineAvoided" in reasons(plan(observed, NOW))
    [condition] = [c for c in status.conditions if c.type == "MachinesAvoided"]
    assert (condition.status, condition.message) == ("True", "new members stay away from gpu-3")
    again = plan(replace(observed, status=status), NOW + 60)
    assert [a for a in again if isinstance(a, CreateMember)] == [CreateMember(1, 1, ("gpu-3",))]
    assert "MachineAvoided" not in reasons(again)


def test_a_crash_is_held_against_the_root_causes_machine_alone() -> None:
    crashed = outcome("failed", 70)
    assert crashed.outcome is not None
    crashed = replace(crashed, outcome=replace(crashed.outcome, manner=Manner.DIED))
    status = after(
        seen(running(), member(0, machine="a", agent=outcome("failed", 72)), member(1, machine="b", agent=crashed))
    )
    assert [m.name for m in status.blamed_machines] == ["b"]


def test_what_is_too_long_ago_is_forgotten_and_the_condition_taken_back() -> None:
    members = member(0, agent=busy()), member(1, agent=busy())
    status = after(seen(running(blamed_machines=[blamed(NOW - 60, NOW)]), *members))
    assert wakeup(plan(seen(status, *members), NOW)) <= 3540
    status = after(seen(status, *members), NOW + 3600)
    assert status.blamed_machines == []
    assert [(c.type, c.status) for c in status.conditions] == [("MachinesAvoided", "False")]


def test_status_keeps_no_more_machines_than_it_can_bear() -> None:
    many = [blamed(NOW - 1, name=f"m{i}") for i in range(MAX_MACHINES)]
    dead = member(1, machine="new", end=ended(Cause.MACHINE_LOST))
    given = running(blamed_machines=many)
    given.slots[1].machine = "new"
    names = [m.name for m in after(seen(given, member(0, agent=busy()), dead)).blamed_machines]
    assert (len(names), names[0], names[-1]) == (MAX_MACHINES, "m1", "new")


def waiting(since: float, **changes: Any) -> SlotView:
    return member(1, agent=None, machine="", unplaced_since=since, avoids=True, **changes)


def test_who_finds_no_machine_for_long_may_come_to_an_avoided_one() -> None:
    given = fresh(blamed_machines=[blamed(NOW - 60, NOW)])
    members = member(0), waiting(NOW)
    assert wakeup(plan(seen(given, *members, spec=PATIENT), NOW + 1)) == PATIENCE_SECONDS - 1
    observed, later = seen(after(seen(given, *members, spec=PATIENT)), *members, spec=PATIENT), NOW + PATIENCE_SECONDS
    status = after(observed, later)
    assert (status.slots[1].incarnation, status.slots[1].uid, status.blamed_machines) == (1, None, [])
    assert status.restarts.total == 0, "it has run nothing: nothing is lost"
    assert "MachinesForgiven" in reasons(plan(observed, later))
    again = plan(seen(status, *members, spec=PATIENT), later)
    assert [a for a in again if isinstance(a, CreateMember)] == [CreateMember(1, 1, ())]


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"avoids": False}, id="it avoids nothing"),
        pytest.param({"unplaced_since": None}, id="it has a machine"),
        pytest.param({"end": ended(Cause.DELETED)}, id="it is gone"),
    ],
)
def test_others_wait_on(changes: dict[str, Any]) -> None:
    given = fresh(blamed_machines=[blamed(NOW - 60, NOW)])
    status = after(seen(given, member(0), replace(waiting(NOW), **changes)), NOW + 600)
    assert [m.name for m in status.blamed_machines] == ["bad"]
    assert created(plan(seen(status, member(0)), NOW + 600)) in ([], [(1, 1)])
