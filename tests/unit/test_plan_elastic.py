"""`plan()` of jobs that have spares, change their size, or give their machines back: one rule after the other."""

from dataclasses import replace
from typing import Any

import pytest
from sim_views import NOW, after, agent, busy, created, deleted, ended, member, outcome, reasons, seen, spec, wakeup

from relight_agent.exits import Cause
from relight_operator.api.job import JobSpec
from relight_operator.api.status import (
    HoldStatus,
    JobStatus,
    MemberStatus,
    RecoveryStatus,
    ResizeStatus,
    SlotStatus,
    WorldStatus,
)
from relight_operator.core.commands import command_for
from relight_operator.core.observed import AgentView, Observed, SlotView
from relight_operator.core.plan import plan

ELASTIC = {"minNodes": 1, "maxNodes": 4, "replacementTimeout": "60s", "growCooldown": "100s", "batch": "Flexible"}


def job(nodes: int = 3, spares: int = 0, *, elastic: dict[str, Any] | None = ELASTIC, **more: Any) -> JobSpec:
    return spec(nodes=nodes, spares=spares, **({"elastic": elastic} if elastic else {}), **more)


def world(*seats: tuple[int, str], generation: int = 1, wanted: int = 3, **more: Any) -> WorldStatus:
    """`seats`: (slot, uid) by rank."""
    members = [MemberStatus(rank=i, slot=s, uid=u, address=f"a{s}", since=1) for i, (s, u) in enumerate(seats)]
    given = {"resumed_from_step": 0, "resumed_kind": "scratch", "recovered": True, "formed_at": NOW - 50, **more}
    return WorldStatus(
        generation=generation,
        run_id="r",
        master_slot=seats[0][0],
        master_address="a",
        master_port=1,
        members=members,
        wanted=wanted,
        **given,
    )


def status(slots: int = 3, **changes: Any) -> JobStatus:
    """All slots have a living member; all are in the world unless `world` says otherwise."""
    held = [SlotStatus(slot=i, uid=f"u{i}", state="Ready", machine="m") for i in range(slots)]
    given = JobStatus(phase="Running", slots=held, start_time=0.0, active_since=0.0, nodes_at_start=3)
    given.world = world(*((i, f"u{i}") for i in range(slots)))
    given.goodput.reached_step = given.goodput.executed_steps = 10
    return given.model_copy(update=changes)


def lost(given: JobStatus, *slots: int, since: float = NOW - 100, **more: Any) -> JobStatus:
    """The members of `slots` were lost and counted `NOW - since` seconds ago; nobody has come since."""
    for slot in given.slots:
        if slot.slot in slots:
            slot.incarnation, slot.uid, slot.state = 1, None, "Pending"
    given.recovery = RecoveryStatus(generation=1, since=since, cause="MachineLost", loss=True, judged=True, **more)
    given.phase = "Recovering"
    return given


def members(*slots: int, agents: AgentView | None = None, **more: Any) -> list[SlotView]:
    return [member(i, agent=agents or agent(), **more) for i in slots]


def seats(given: JobStatus) -> list[tuple[int, int]]:
    """(rank, slot) of the present world's members."""
    assert given.world is not None
    return [(m.rank, m.slot) for m in given.world.members]


def look(given: JobStatus, wanted: JobSpec, *views: SlotView, **more: Any) -> Observed:
    return seen(given, *views, spec=wanted, **more)


# -- spares


def test_a_job_with_spares_has_slots_for_them_and_waits_for_nodes_alone() -> None:
    wanted = job(2, 1, elastic=None)
    first = after(look(JobStatus(), wanted))
    assert [s.slot for s in first.slots] == [0, 1, 2]
    assert created(plan(look(first, wanted), NOW)) == [(0, 0), (1, 0), (2, 0)]
    formed = after(look(first, wanted, *members(0, 2)))
    assert seats(formed) == [(0, 0), (1, 2)]
    assert formed.exactness == "bit-equal"
    running = after(look(formed, wanted, member(0, agent=busy()), member(2, agent=busy()), member(1)))
    assert [s.state for s in running.slots] == ["Running", "Spare", "Running"]
    assert running.nodes_ready == "2/2"


def test_a_ready_spare_takes_the_rank_of_who_was_lost_in_the_write_that_counts_the_loss() -> None:
    given = status(4, world=world((0, "u0"), (1, "u1"), (2, "u2")))
    views = [member(0, agent=outcome("failed", 72)), member(1, end=ended(Cause.MACHINE_LOST)), member(2), member(3)]
    views[2] = member(2, agent=outcome("failed", 72))
    told = after(look(given, job(3, 1, elastic=None), *views))
    assert seats(told) == [(0, 0), (1, 3), (2, 2)]
    assert (told.slots[1].incarnation, told.slots[1].uid) == (1, None)
    assert told.restarts.total == 1
    assert told.recovery is None
    assert created(plan(look(told, job(3, 1, elastic=None), *views), NOW)) == [(1, 1)]


def test_survivors_go_before_spares() -> None:
    given = status(3, world=world((2, "u2"), (1, "u1")))
    told = after(
        look(given, job(2, 1, elastic=None), member(0), *(member(i, agent=outcome("failed", 70)) for i in (1, 2)))
    )
    assert told.recovery is not None
    later = told.recovery.not_before + 1
    told = after(
        look(told, job(2, 1, elastic=None), member(0), *(member(i, agent=outcome("failed", 70)) for i in (1, 2))), later
    )
    assert told.world is not None
    assert (told.world.generation, seats(told)) == (2, [(0, 2), (1, 1)])


def test_a_spare_that_cannot_start_does_not_end_a_job_that_runs() -> None:
    given = status(4, world=world((0, "u0"), (1, "u1"), (2, "u2")))
    given.slots[3].failed_starts = 9
    views = [*members(0, 1, 2, agents=busy()), member(3, agent=None, end=ended(Cause.MACHINE_LOST))]
    told = after(look(given, job(3, 1, elastic=None), *views))
    assert (told.phase, told.slots[3].failed_starts) == ("Running", 10)
    assert told.slots[3].not_before > NOW


# -- fewer


@pytest.mark.parametrize(
    ("since", "nodes", "least", "sizes"),
    [
        pytest.param(NOW - 61, 3, 1, [2], id="nobody came in time"),
        pytest.param(NOW - 59, 3, 1, [], id="somebody may still come"),
        pytest.param(NOW - 61, 3, 3, [], id="fewer than the fewest"),
        pytest.param(NOW - 1, 2, 1, [2], id="it wants no more"),
    ],
)
def test_a_smaller_generation_goes_on_when_no_replacement_comes(
    since: float, nodes: int, least: int, sizes: list[int]
) -> None:
    given = lost(status(), 1, since=since)
    wanted = job(nodes, elastic={**ELASTIC, "minNodes": least})
    observed = look(given, wanted, *members(0, 2, agents=outcome("failed", 72)))
    told = after(observed)
    assert told.world is not None
    assert [len(told.world.members)] * (told.world.generation - 1) == sizes
    if sizes:
        assert seats(told) == [(0, 0), (1, 2)]
        assert told.phase == "Resizing"
    if since == NOW - 59:
        assert wakeup(plan(observed, NOW)) == 1


def test_the_master_of_a_smaller_generation_is_a_survivor_and_ranks_have_no_gaps() -> None:
    told = after(look(lost(status(), 0), job(), *members(1, 2, agents=outcome("failed", 72))))
    assert seats(told) == [(0, 2), (1, 1)]
    assert told.world is not None
    assert told.world.master_slot in (1, 2)
    assert told.world.resized


def test_sync_batch_norm_that_would_not_fit_refuses_to_shrink_and_says_why() -> None:
    config = {"sync_bn": {}, "train": {"global_batch": 48, "micro_batch": 12}}
    exact = {**ELASTIC, "batch": "Exact"}
    given = lost(status(4), 1)
    wanted = job(4, elastic=exact, trainer={"config": config})
    fits = after(look(lost(status(), 1), job(3, elastic=exact, trainer={"config": {}}), *members(0, 2)))
    assert seats(fits) == [(0, 0), (1, 2)]
    observed = look(given, wanted, *members(0, 2, 3))
    told = after(observed)
    assert told.world is not None
    assert told.world.generation == 1
    condition = next(c for c in told.conditions if c.type == "ShrinkRefused")
    assert (condition.status, condition.reason) == ("True", "BatchWouldChange")
    assert "micro_batch 12" in condition.message
    assert "ShrinkRefused" in reasons(plan(observed, NOW))
    flexible = job(4, elastic=ELASTIC, trainer={"config": config})
    assert len(seats(after(look(given, flexible, *members(0, 2, 3))))) == 3


def test_the_status_says_what_the_result_is_worth() -> None:
    config = {"trainer": {"config": {}}, "elastic": {**ELASTIC, "batch": "Exact"}}
    fewer = after(look(lost(status(), 1), job(3, **config), *members(0, 2)))
    assert fewer.exactness == "sample-exact"
    back = lost(fewer.model_copy(update={"world": world((0, "u0"), (2, "u2"))}), 9)
    back.slots[1] = SlotStatus(slot=1, incarnation=1, uid="u9", state="Ready", machine="m")
    told = after(look(back, job(3, **config), *members(0, 2), member(1, "u9", 1)))
    assert (seats(told), told.exactness) == ([(0, 0), (1, 2), (2, 1)], "sample-exact")
    assert after(look(lost(status(), 1), job(3), *members(0, 2))).exactness == "approximate"


# -- more


def smaller(**more: Any) -> JobStatus:
    return status(world=world((0, "u0"), (2, "u2"), **more))


@pytest.mark.parametrize(
    ("formed", "spare", "asked"),
    [
        pytest.param(NOW - 101, agent(), True, id="cooled down"),
        pytest.param(NOW - 99, agent(), False, id="too early"),
        pytest.param(NOW - 101, agent("Starting"), False, id="nobody ready"),
    ],
)
def test_a_smaller_generation_stops_to_take_in_who_has_become_ready(
    formed: float, spare: AgentView, asked: bool
) -> None:
    observed = look(smaller(formed_at=formed), job(), *members(0, 2, agents=busy()), member(1, agent=spare))
    told = after(observed)
    assert (told.resize is not None) == asked
    assert ("Resizing" in reasons(plan(observed, NOW))) == asked
    assert (told.phase == "Resizing") == asked
    if formed == NOW - 99:
        assert wakeup(plan(observed, NOW)) == 1


def test_members_are_asked_to_save_and_the_next_generation_has_them_and_the_new_one() -> None:
    given = smaller(resized=True)
    given.resize = ResizeStatus(generation=1, since=NOW - 1)
    commands = [command_for(given, slot=i, incarnation=0, uid=f"u{i}") for i in range(3)]
    assert [(c.op, c.id) for c in commands] == [("save", "save:1"), ("wait", "wait:1"), ("save", "save:1")]
    half = [member(0, agent=outcome("stopped")), member(1), member(2, agent=busy())]
    told = after(look(given, job(), *half))
    assert told.recovery is not None
    assert (told.recovery.cause, told.phase) == ("Resized", "Resizing")
    assert command_for(told, slot=2, incarnation=0, uid="u2").op == "wait"
    done = [member(0, agent=outcome("stopped")), member(1), member(2, agent=outcome("stopped"))]
    formed = after(look(told, job(), *done))
    assert seats(formed) == [(0, 0), (1, 2), (2, 1)]
    assert formed.resize is None
    assert formed.restarts.total == 0
    assert formed.phase == "Resizing"


def test_a_loss_while_members_are_asked_to_save_is_a_loss() -> None:
    given = smaller()
    given.resize = ResizeStatus(generation=1, since=NOW - 1)
    told = after(look(given, job(), member(0, agent=busy()), member(1), member(2, end=ended(Cause.MACHINE_LOST))))
    assert told.recovery is not None
    assert (told.recovery.cause, told.restarts.by_cause) == ("MachineLost", {"MachineLost": 1})


@pytest.mark.parametrize(
    "views",
    [
        pytest.param([member(0, agent=busy()), member(2, agent=agent())], id="one has not begun"),
        pytest.param([member(0, agent=busy()), member(2, agent=None)], id="one has not been heard of"),
    ],
)
def test_nobody_is_asked_to_stop_before_all_have_begun(views: list[SlotView]) -> None:
    assert after(look(smaller(formed_at=0.0), job(), *views, member(1))).resize is None


def test_nothing_is_resized_without_elastic() -> None:
    wanted = job(3, elastic=None)
    assert after(look(smaller(formed_at=0.0), wanted, *members(0, 2, agents=busy()), member(1))).resize is None


# -- another `nodes`


def test_scaled_up_the_job_grows_as_soon_as_all_are_ready() -> None:
    observed = look(status(), job(4), *members(0, 1, 2, agents=busy()))
    told = after(observed)
    assert [s.slot for s in told.slots] == [0, 1, 2, 3]
    assert told.resize is None
    assert created(plan(replace(observed, status=told), NOW)) == [(3, 0)]
    told.slots[3].uid = "u3"
    told = after(look(told, job(4), *members(0, 1, 2, agents=busy()), member(3)))
    assert told.resize is not None
    done = after(look(told, job(4), *members(0, 1, 2, agents=outcome("stopped")), member(3)))
    assert seats(done) == [(0, 0), (1, 1), (2, 2), (3, 3)]


def test_scaled_down_the_job_stops_at_a_steps_end_and_releases_who_is_left_over() -> None:
    told = after(look(status(), job(2), *members(0, 1, 2, agents=busy())))
    assert told.resize is not None
    told = after(look(told, job(2), *members(0, 1, 2, agents=outcome("stopped"))))
    assert seats(told) == [(0, 0), (1, 1)]
    assert [s.released for s in told.slots] == [False] * 3, "it may alone hold the state until the others have restored"
    assert told.world is not None
    told.world.resumed_from_step = 10
    views = [*members(0, 1, agents=busy(generation=2)), member(2, agent=outcome("stopped"))]
    released = after(look(told, job(2), *views))
    assert [s.released for s in released.slots] == [False, False, True]
    assert released.slots[2].state == "Released"
    assert released.restarts.total == 0
    observed = look(released, job(2), *views)
    assert deleted(plan(observed, NOW)) == ["u2"]
    assert created(plan(observed, NOW)) == []
    assert command_for(released, slot=2, incarnation=0, uid="u2").op == "exit"
    again = after(look(released, job(3), *views[:2]))
    assert (again.slots[2].released, again.slots[2].incarnation) == (False, 1)
    assert created(plan(look(again, job(3), *views[:2]), NOW)) == [(2, 1)]


def test_where_the_world_shrinks_before_it_has_restored_those_stay_that_hold_the_state() -> None:
    given = status()
    given.world = world((0, "u0"), (1, "u1"), (2, "u2"), resumed_from_step=None, recovered=False)
    for seat in given.world.members[:2]:
        seat.since = 7
    given.recovery = RecoveryStatus(generation=1, since=NOW, cause="MachineLost", judged=True)
    told = after(look(given, job(1), *members(0, 1, 2, agents=outcome("failed", 72))))
    assert seats(told) == [(0, 2)]


# -- machines in vain


def short(since: float = NOW - 601, **more: Any) -> JobStatus:
    return lost(status(), 1, since=since, **more)


def release(given: JobStatus, wanted: JobSpec | None = None, **more: Any) -> JobStatus:
    return after(look(given, wanted or job(elastic=None), *members(0, 2, agents=outcome("failed", 72)), **more))


def test_members_that_wait_in_vain_save_and_end_and_are_tried_again_at_their_own_time() -> None:
    told = release(short())
    assert (told.stop, told.hold) == ("hold-1", HoldStatus(attempts=1))
    assert command_for(told, slot=0, incarnation=0, uid="u0").op == "stop"
    gone = members(0, 2, end=ended(Cause.PREEMPTED, 75))
    waits = after(look(told, job(elastic=None), *gone, jitter=0.25))
    assert waits.hold is not None
    assert (waits.phase, waits.hold.until) == ("Pending", NOW + 30 * 0.75)
    assert waits.active_since is None
    assert waits.restarts == told.restarts, "nobody was lost"
    observed = look(waits, job(elastic=None), *gone)
    assert (created(plan(observed, NOW)), wakeup(plan(observed, NOW))) == ([], 22.5)
    tried = after(observed, NOW + 23)
    assert (tried.stop, tried.hold) == (None, HoldStatus(attempts=1))
    assert created(plan(look(tried, job(elastic=None), *gone), NOW + 23)) == [(0, 1), (1, 1), (2, 1)]
    fresh = members(0, 1, 2, incarnation=1)
    for slot in tried.slots:
        slot.uid = f"u{slot.slot}"
    formed = after(look(tried, job(elastic=None), *fresh), NOW + 30)
    assert formed.hold is None
    assert [c.status for c in formed.conditions if c.type == "WaitingForMachines"] == ["False"]


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        pytest.param(short(since=NOW - 599), job(elastic=None), id="not so long yet"),
        pytest.param(short(not_before=NOW + 5), job(elastic=None), id="a failure's back-off"),
        pytest.param(short(), job(), id="an elastic job that goes on as fewer"),
        pytest.param(lost(status(), 0, 1, 2, since=0.0), job(elastic=None), id="nobody holds anything"),
        pytest.param(status(), job(elastic=None), id="it runs"),
    ],
)
def test_machines_are_held_else(given: JobStatus, wanted: JobSpec) -> None:
    assert release(given, wanted).stop is None


def test_a_member_that_starts_on_its_machine_is_waited_for() -> None:
    given = short()
    given.slots[1].uid = "u9"
    views = [*members(0, 2), member(1, "u9", 1, agent=None)]
    assert after(look(given, job(elastic=None), *views)).stop is None
    views[2] = replace(views[2], machine="")
    assert after(look(given, job(elastic=None), *views)).stop == "hold-1"


def test_a_suspended_job_that_was_waiting_is_suspended() -> None:
    given = short()
    given.stop, given.hold, given.phase = "hold-2", HoldStatus(attempts=2, until=NOW + 99), "Pending"
    for slot in given.slots:
        slot.uid = None
    told = after(look(given, job(elastic=None, suspend=True)))
    assert (told.phase, told.hold) == ("Suspended", None)
    assert after(look(told, job(elastic=None))).stop is None


def test_each_further_wait_is_twice_as_long() -> None:
    given = short()
    given.hold = HoldStatus(attempts=3)
    assert release(given).stop == "hold-4"
