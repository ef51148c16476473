"""What each second goes to, case by case. That they add up under every interleaving is test_plan_machine.py's."""

from dataclasses import replace
from typing import Any

import pytest
from sim_views import NOW, after, agent, busy, ended, member, outcome, recovering, running, seen, spec

from relight_agent.exits import Cause
from relight_operator.api.status import JobStatus, SlotStatus, SuccessorStatus
from relight_operator.core.account import ratio
from relight_operator.core.observed import AgentSpent, AgentView, SlotView

FORMED = NOW - 100


def training(seconds: dict[str, float] | None = None, **changes: Any) -> JobStatus:
    """Generation 1, formed 100 s ago, of whose members `seconds` each have been counted."""
    status = running(**changes)
    assert status.world is not None
    status.world.formed_at, status.world.seconds = FORMED, seconds or {}
    status.goodput.counted_until = NOW - 1
    status.goodput.buckets = {kind: 2 * s for kind, s in (seconds or {}).items()}
    return status


def ledger(seconds: dict[str, float], *, until: float = NOW, generation: int = 1) -> AgentSpent:
    return AgentSpent(generation, until, seconds)


def counted(before: JobStatus, *members: SlotView, now: float = NOW, **changes: Any) -> dict[str, float]:
    """What is counted more in the write that these views bring about."""
    old, new = before.goodput.buckets, after(seen(before, *members, **changes), now).goodput.buckets
    return {kind: pytest.approx(s - old.get(kind, 0.0), abs=1e-5) for kind, s in new.items() if s - old.get(kind, 0.0)}  # type: ignore[misc]


def trained(view: AgentView, spent: AgentSpent) -> AgentView:
    return replace(view, spent=spent)


def over(kind: str, code: int = 0, *, at: float) -> AgentView:
    """An agent whose generation ended at `at`."""
    view = outcome(kind, code)
    assert view.outcome is not None
    return replace(view, outcome=replace(view.outcome, at=at))


# -- outside a world


@pytest.mark.parametrize(
    ("slot", "view", "bucket"),
    [
        pytest.param({"uid": None, "machine": ""}, None, "pending", id="not made yet"),
        pytest.param({"machine": ""}, {"machine": ""}, "pending", id="no machine yet"),
        pytest.param({"state": "Starting"}, {"agent": None}, "start", id="not heard of yet"),
        pytest.param({"state": "Starting"}, {"agent": agent("Starting")}, "start", id="imports"),
        pytest.param({"state": "Ready"}, {"agent": agent("Ready")}, "idle", id="waits for the others"),
    ],
)
def test_a_slot_is_counted_by_what_the_write_before_says_of_it(
    slot: dict[str, Any], view: dict[str, Any] | None, bucket: str
) -> None:
    status = JobStatus(phase="Starting", start_time=0.0, active_since=0.0)
    status.slots = [SlotStatus(slot=0, **{"uid": "u0", "machine": "m", **slot})]
    status.goodput.counted_until = NOW - 7
    assert counted(status, *([member(0, **view)] if view is not None else []), spec=spec(nodes=1)) == {bucket: 7.0}


def test_a_member_told_to_go_drains_and_its_slot_waits_from_its_end() -> None:
    status = recovering()
    status.goodput.counted_until = NOW - 10
    told = replace(agent("Ready"), terminating_at=NOW - 6)
    views = member(0, agent=told, end=ended(Cause.PREEMPTED, 76, at=NOW - 4)), member(1, "u9", incarnation=1)
    assert counted(status, *views) == {"idle": 4.0 + 10.0, "drain": 2.0, "pending": 4.0}


def test_a_stopped_job_is_not_counted() -> None:
    status = running(phase="Suspended", stop="s")
    status.slots = [s.model_copy(update={"state": "Ended"}) for s in status.slots]
    status.goodput.counted_until = NOW - 1000
    ends = [member(i, end=ended(Cause.STOPPED, 75)) for i in range(2)]
    assert counted(status, *ends) == {}
    resumed = after(seen(status, *ends))
    assert resumed.goodput.counted_until == NOW
    assert resumed.slots[0].incarnation == 1


def test_a_clock_set_back_takes_nothing_back() -> None:
    status = recovering()
    status.goodput.counted_until = NOW + 50
    assert counted(status, member(0, end=ended(Cause.DELETED)), member(1, "u9", incarnation=1)) == {}


# -- in a world


def test_what_the_ledgers_say_is_counted_for_each_member_and_the_rest_is_left_for_later() -> None:
    views = [member(i, agent=trained(busy(20), ledger({"restore": 5.0, "productive": p, "data": 90 - p}, until=NOW - 2)))
             for i, p in enumerate((80.0, 70.0))]  # fmt: skip
    status = training()
    assert counted(status, *views) == {"rendezvous": 2 * 3.0, "restore": 2 * 5.0, "productive": 150.0, "data": 30.0}
    written = after(seen(status, *views))
    assert written.world is not None
    assert sum(written.world.seconds.values()) == pytest.approx(98.0)
    assert counted(written, *views, now=NOW + 20) == {}, "reports that say nothing new"


def test_who_is_not_heard_of_has_stepped_with_the_others() -> None:
    views = member(0, agent=trained(busy(20), ledger({"productive": 99.0}))), member(1, agent=None)
    assert counted(training(), *views) == {"rendezvous": 2 * 1.0, "productive": 2 * 99.0}
    assert counted(training(), member(0, agent=None), member(1, agent=None)) == {}, "an operator that has just started"


def test_what_no_ledger_explains_when_it_ends_was_a_step_that_never_ended() -> None:
    spent = ledger({"restore": 5.0, "productive": 60.0}, until=NOW - 35)
    views = (
        member(0, agent=trained(over("failed", 72, at=NOW), spent)),
        member(1, agent=trained(busy(), spent), end=ended(Cause.MACHINE_LOST, at=NOW - 30)),
    )
    # Slot 1 died 5 s after its last step; slot 0 stood in a collective until its workers ended.
    assert counted(training(), *views) == {
        "restore": 10.0, "productive": 120.0, "hang": 35.0 + 5.0, "pending": 30.0,
    }  # fmt: skip


def test_who_stops_by_agreement_drains_and_then_waits() -> None:
    spent = ledger({"restore": 5.0, "productive": 93.0, "drain": 0.5}, until=NOW - 1.5)
    stopped = trained(outcome("stopped"), spent)
    gone = replace(stopped, terminating_at=NOW - 3)
    views = member(0, agent=stopped), member(1, agent=gone, end=ended(Cause.PREEMPTED, 75, at=NOW - 0.25))
    # Its agent needs three quarters of a second to go, after which its slot waits for another.
    assert counted(training(), *views) == {
        "restore": 10.0, "productive": 186.0, "drain": 2 * (0.5 + 0.5) + 0.75, "idle": 1.0, "pending": 0.25,
    }  # fmt: skip


def test_each_member_is_settled_once_by_its_own_ledger() -> None:
    status = training({"productive": 90.0})
    first = member(0, agent=trained(over("completed", at=NOW - 4), ledger({"productive": 96.0}, until=NOW - 4)))
    busy_one = member(1, agent=trained(busy(20), ledger({"productive": 95.0}, until=NOW - 5)))
    written = after(seen(status, first, busy_one))
    assert written.world is not None
    assert written.world.closed == [0]
    assert counted(status, first, busy_one) == {"productive": 6.0 + 5.0, "idle": 4.0}
    later = trained(over("completed", at=NOW + 10), ledger({"productive": 100.0, "checkpoint": 10.0}, until=NOW + 10))
    assert counted(written, first, member(1, agent=later), now=NOW + 10) == {
        "productive": 5.0, "checkpoint": 10.0, "idle": 10.0,
    }  # fmt: skip


def test_a_generation_that_never_began_spent_its_time_on_forming() -> None:
    failed = [member(i, agent=over("failed", 72, at=NOW)) for i in range(2)]
    assert counted(training(phase="Starting"), *failed) == {"rendezvous": 200.0}


def test_a_command_tells_nothing_and_has_no_ratio() -> None:
    views = [member(i, agent=agent("Running", 1)) for i in range(2)]
    command = spec(trainer={"command": ["true"]})
    status = after(seen(training(), *views, spec=command))
    assert status.goodput.buckets == {"untold": 200.0}
    assert status.goodput.ratio is None


def test_a_world_of_an_operator_that_did_not_count_is_counted_from_now_on() -> None:
    status = training()
    assert status.world is not None
    status.world.formed_at = status.goodput.counted_until = None
    views = [member(i, agent=trained(busy(20), ledger({"productive": 80.0}))) for i in range(2)]
    written = after(seen(status, *views))
    assert written.goodput.buckets == {}
    assert written.world is not None
    assert written.world.formed_at == NOW
    more = [member(i, agent=trained(busy(30), ledger({"productive": 90.0}, until=NOW + 10))) for i in range(2)]
    assert counted(written, *more, now=NOW + 11) == {"productive": 20.0}


@pytest.mark.parametrize(
    ("buckets", "text"),
    [
        ({}, None),
        ({"pending": 5.0}, None),
        ({"untold": 5.0, "start": 1.0}, None),
        ({"untold": 1.0, "productive": 3.0}, "0.750"),
        ({"productive": 1.0, "start": 2.0, "pending": 100.0}, "0.333"),
    ],
)
def test_goodput_is_productive_time_in_all_that_had_a_machine(buckets: dict[str, float], text: str | None) -> None:
    assert ratio(buckets) == text


def test_a_successor_made_ready_beside_a_leaving_member_is_counted_beside_it() -> None:
    status = recovering()
    status.goodput.counted_until = NOW - 10
    status.slots[0].successor = SuccessorStatus(incarnation=1, uid="u8", machine="m")
    views = member(0), member(0, "u8", incarnation=1), member(1, "u9", incarnation=1, end=ended(Cause.DELETED, at=NOW))
    assert counted(status, *views) == {"idle": 20.0, "start": 10.0}


def test_what_a_stall_took_is_the_hang_from_when_it_was_known() -> None:
    # Its ledger stands where the evaluation began that never ended; a part of it has been counted as such.
    status = training({"productive": 60.0, "evaluation": 10.0})
    spent = ledger({"productive": 60.0}, until=NOW - 40)
    views = [member(i, agent=trained(over("failed", 72, at=NOW), spent)) for i in range(2)]
    assert counted(status, *views) == {"hang": 60.0}


# -- the record of what was mended


def test_a_recovery_is_told_of_the_member_that_was_lost_and_not_of_the_first_that_stopped() -> None:
    world = training()
    stopped = after(seen(world, member(0, agent=over("stopped", at=NOW - 2)), member(1, agent=busy())))
    assert stopped.recovery is not None
    assert stopped.recovery.member == "job-0-0"
    lost = member(1, agent=over("stopped", at=NOW - 2), end=ended(Cause.PREEMPTED, 75))
    status = after(seen(stopped, member(0, agent=over("stopped", at=NOW - 2)), lost))
    ready = member(0, agent=over("stopped", at=NOW - 2)), member(1, "u9", incarnation=1)
    for _ in range(3):
        status = after(seen(status, *ready), NOW + 5)
    assert status.world is not None
    assert status.world.generation == 2
    [record] = status.history
    assert (record.generation, record.cause, record.member, record.machine) == (1, "Preempted", "job-1-0", "m")
    assert (record.losses, record.formed, record.restored) == (1, 7.0, None)
