"""Members that leave while they live: successors made ready meanwhile, and who takes over when."""

from dataclasses import replace
from typing import Any

import pytest
from sim_cluster import Cluster
from sim_views import (
    NOW,
    after,
    agent,
    busy,
    created,
    deleted,
    ended,
    member,
    outcome,
    reasons,
    running,
    seen,
    spec,
    wakeup,
)

from relight_agent.exits import Cause
from relight_operator.api.status import JobStatus, SuccessorStatus
from relight_operator.core.commands import command_for
from relight_operator.core.observed import AgentView, Observed, SlotView
from relight_operator.core.plan import plan

DELETED = member(1, agent=busy(terminating_at=NOW - 3), deleting=True, leaving=Cause.EVICTED)
ANNOUNCED = member(1, agent=busy(), leaving=Cause.MACHINE_LEAVING)
STAYS = member(0, agent=busy())
HEIR = member(1, "u9", 1)


def saved(**changes: Any) -> AgentView:
    view = outcome("stopped", **changes)
    assert view.outcome is not None
    return replace(view, outcome=replace(view.outcome, saved=True))


def with_heir(**changes: Any) -> JobStatus:
    """Slot 1's member of generation 1 is leaving, and its successor u9 is there."""
    status = running(**changes)
    status.slots[1].last_incarnation = 1
    status.slots[1].successor = SuccessorStatus(incarnation=1, uid="u9")
    return status


@pytest.mark.parametrize(
    "victim",
    [
        pytest.param(DELETED, id="deleted, and the agent knows"),
        pytest.param(member(1, agent=busy(), deleting=True), id="deleted, and the agent does not know yet"),
        pytest.param(member(1, agent=busy(terminating_at=NOW)), id="SIGTERM that the backend knows nothing of"),
        pytest.param(ANNOUNCED, id="its machine is announced to go"),
    ],
)
def test_a_successor_is_announced_and_then_created_while_the_victim_lives(victim: SlotView) -> None:
    observed = seen(running(), STAYS, victim)
    assert created(plan(observed, NOW)) == []
    status = after(observed)
    slot = status.slots[1]
    assert (slot.incarnation, slot.uid, slot.successor) == (0, "u1", SuccessorStatus(incarnation=1))
    assert (status.restarts.total, status.recovery) == (0, None)
    assert created(plan(replace(observed, status=status), NOW)) == [(1, 1)]
    bound = after(replace(observed, status=status, members=(*observed.members, HEIR)))
    assert bound.slots[1].successor == SuccessorStatus(incarnation=1, uid="u9", machine="m", state="Ready")
    assert created(plan(replace(observed, status=bound, members=(*observed.members, HEIR)), NOW)) == []


def test_who_has_completed_has_no_successor() -> None:
    done = member(1, agent=outcome("completed", terminating_at=NOW), deleting=True)
    assert after(seen(running(), STAYS, done)).slots[1].successor is None


def test_a_victim_that_has_saved_is_not_waited_for() -> None:
    gone = replace(DELETED, agent=saved(terminating_at=NOW - 9, stopping_at=NOW - 3))
    observed = seen(with_heir(), member(0, agent=saved()), gone, HEIR)
    status = after(observed)
    assert status.world is not None
    assert [m.uid for m in status.world.members] == ["u0", "u9"]
    assert (status.slots[1].incarnation, status.slots[1].successor) == (1, None)
    assert status.restarts.by_cause == {"Evicted": 1}
    assert status.world.recovering_since == NOW - 3, "it has trained on until then"
    assert status.slots[1].exit is not None
    assert status.slots[1].exit.cause == "Evicted"
    # Nothing of it is counted again once its end is seen.
    later = after(seen(status, member(0, agent=busy(11, 2)), member(1, end=ended(Cause.EVICTED, 75)), HEIR))
    assert later.restarts == status.restarts


@pytest.mark.parametrize(
    ("victim", "other", "heir"),
    [
        pytest.param(saved(), saved(), member(1, "u9", 1, agent=agent("Starting")), id="its successor is not ready"),
        pytest.param(saved(), saved(), member(1, "u9", 1, deleting=True), id="its successor is leaving too"),
        pytest.param(saved(), saved(), replace(HEIR, leaving=Cause.MACHINE_LEAVING), id="on a machine that goes too"),
        pytest.param(outcome("stopped"), saved(), HEIR, id="it has not saved"),
        pytest.param(outcome("failed", 72), saved(), HEIR, id="its workers failed: its memory may be the last"),
        pytest.param(saved(), outcome("stopped"), HEIR, id="nobody else holds the state"),
    ],
)
def test_a_victim_is_waited_for(victim: AgentView, other: AgentView, heir: SlotView) -> None:
    told = replace(DELETED, agent=replace(victim, terminating_at=NOW - 3))
    status = after(seen(with_heir(), member(0, agent=other), told, heir))
    assert (status.slots[1].incarnation, status.slots[1].uid) == (0, "u1")
    assert status.restarts.disruptions == 0


def test_a_committed_checkpoint_lets_everybody_go() -> None:
    status = with_heir()
    status.slots[0].last_incarnation = 1
    status.slots[0].successor = SuccessorStatus(incarnation=1, uid="u8")
    members = [
        member(i, agent=saved(terminating_at=NOW - 3), deleting=True, leaving=Cause.DELETED) for i in range(2)
    ] + [member(0, "u8", 1), HEIR]
    unsaved = after(seen(status, *members))
    assert [s.uid for s in unsaved.slots] == ["u0", "u1"], "the last one holds the only state"
    status.checkpoint.step = 10
    assert [s.uid for s in after(seen(status, *members)).slots] == ["u8", "u9"]


def test_a_victim_that_ends_leaves_its_slot_to_its_successor_and_is_counted_once() -> None:
    status = after(seen(with_heir(), STAYS, member(1, end=ended(Cause.MACHINE_LOST)), HEIR))
    assert (status.slots[1].incarnation, status.slots[1].uid, status.slots[1].successor) == (1, "u9", None)
    assert status.restarts.by_cause == {"MachineLost": 1}


STARTING = member(1, "u9", 1, agent=agent("Starting"))
UNPLACED = replace(STARTING, agent=None, unplaced_since=NOW - 1)


@pytest.mark.parametrize("victim", [DELETED, ANNOUNCED])
def test_a_leaving_member_trains_on_until_its_successor_is_ready(victim: SlotView) -> None:
    for heir in (STARTING, UNPLACED):
        status = after(seen(with_heir(), STAYS, victim, heir))
        assert status.handover is None
        command = command_for(status, slot=1, incarnation=0, uid="u1")
        assert (command.id, command.successor) == ("run:1:successor", True)
        assert command_for(status, slot=0, incarnation=0, uid="u0").id == "run:1"
    assert after(seen(with_heir(), STAYS, victim, HEIR)).handover == 1


@pytest.mark.parametrize(
    ("stays", "victim", "heir"),
    [
        pytest.param(
            STAYS, replace(DELETED, leaving=Cause.PREEMPTED), UNPLACED, id="another pod waits for its machine"
        ),
        pytest.param(STAYS, replace(DELETED, gone_by=NOW + 10), STARTING, id="it is killed in ten seconds"),
        pytest.param(
            replace(STAYS, agent=busy(terminating_at=NOW)), DELETED, STARTING, id="nobody stays that keeps the state"
        ),
    ],
)
def test_a_leaving_member_does_not_wait_in_vain(stays: SlotView, victim: SlotView, heir: SlotView) -> None:
    assert after(seen(with_heir(), stays, victim, heir)).handover == 1


def test_a_member_that_will_be_killed_is_looked_at_before_that() -> None:
    actions = plan(seen(with_heir(), STAYS, replace(DELETED, gone_by=NOW + 30), STARTING), NOW)
    assert wakeup(actions) == 20


def test_a_generation_is_stopped_only_once_the_successor_of_an_announced_member_is_ready() -> None:
    assert after(seen(with_heir(), STAYS, ANNOUNCED, STARTING)).handover is None
    status = after(seen(with_heir(), STAYS, ANNOUNCED, HEIR))
    assert (status.handover, status.recovery) == (1, None)
    for slot, uid in ((0, "u0"), (1, "u1")):
        command = command_for(status, slot=slot, incarnation=0, uid=uid)
        assert (command.id, command.op) == ("save:1", "save")
    assert command_for(status, slot=1, incarnation=1, uid="u9").id == "wait:1"
    over = after(seen(status, member(0, agent=saved()), replace(ANNOUNCED, agent=saved()), HEIR))
    assert over.world is not None
    assert ([m.uid for m in over.world.members], over.handover) == (["u0", "u9"], None)
    assert over.restarts.by_cause == {"MachineLeaving": 1}
    assert command_for(over, slot=1, incarnation=0, uid="u1").op == "exit"
    assert deleted(plan(seen(over, member(0, agent=saved()), replace(ANNOUNCED, agent=saved()), HEIR), NOW)) == ["u1"]


STOPPING = replace(DELETED, agent=replace(busy(terminating_at=NOW - 3, stopping_at=NOW - 1), state="Stopping"))


@pytest.mark.parametrize(
    ("changes", "victim", "trainer"),
    [
        pytest.param({}, STOPPING, {"script": ["t.py"]}, id="its agent has asked for that already"),
        pytest.param({}, ANNOUNCED, {"command": ["t"]}, id="a plain command cannot stop at an agreed step"),
        pytest.param({"resumed_from_step": None}, ANNOUNCED, {"script": ["t.py"]}, id="it has not restored yet"),
    ],
)
def test_a_generation_is_not_stopped(changes: dict[str, Any], victim: SlotView, trainer: dict[str, Any]) -> None:
    status = with_heir()
    assert status.world is not None
    status.world = status.world.model_copy(update=changes)
    other = replace(STAYS, agent=agent("Running", 1))
    assert victim.agent is not None
    quiet = replace(victim, agent=replace(victim.agent, progress=None))
    assert after(seen(status, other, quiet, HEIR, spec=spec(trainer=trainer))).handover is None


def test_a_stop_that_released_nobody_is_not_asked_for_again() -> None:
    status = after(seen(with_heir(), STAYS, ANNOUNCED, HEIR))
    unsaved = [member(0, agent=outcome("stopped")), replace(ANNOUNCED, agent=outcome("stopped")), HEIR]
    status = after(seen(status, *unsaved))
    assert status.world is not None
    assert [m.uid for m in status.world.members] == ["u0", "u1"]
    again = [member(0, agent=busy(11, 2)), replace(ANNOUNCED, agent=busy(11, 2)), HEIR]
    status = after(seen(status, *again))
    assert command_for(status, slot=0, incarnation=0, uid="u0").op == "run"


def test_an_announcement_that_is_taken_back_costs_the_successor_and_nothing_is_counted() -> None:
    stays = (STAYS, member(1, agent=busy()), HEIR)
    observed = seen(with_heir(), *stays)
    assert "Staying" in reasons(plan(observed, NOW))
    status = after(observed)
    assert (status.slots[1].uid, status.slots[1].successor, status.restarts.total) == ("u1", None, 0)
    assert deleted(plan(seen(status, *stays), NOW)) == ["u9"]
    assert command_for(status, slot=1, incarnation=1, uid="u9").op == "exit"
    # Its number has been used up.
    assert after(seen(status, STAYS, ANNOUNCED)).slots[1].successor == SuccessorStatus(incarnation=2)
    assert after(seen(status, STAYS, member(1, end=ended(Cause.DELETED)))).slots[1].incarnation == 2


def test_a_successor_that_is_lost_is_made_anew_after_a_while() -> None:
    observed = seen(with_heir(), STAYS, ANNOUNCED, member(1, "u9", 1, end=ended(Cause.EVICTED)))
    status = after(observed)
    assert (status.slots[1].successor, status.restarts.total) == (None, 0)
    status = after(replace(observed, status=status))
    assert status.slots[1].successor == SuccessorStatus(incarnation=2)
    assert created(plan(replace(observed, status=status), NOW)) == []
    assert created(plan(replace(observed, status=status), NOW + 11)) == [(1, 2)]


@pytest.mark.parametrize("spec_changes", [{"suspend": True}, {"active_deadline_seconds": 1}])
def test_successors_are_let_go_where_the_job_stops(spec_changes: dict[str, Any]) -> None:
    observed = seen(with_heir(), STAYS, ANNOUNCED, HEIR, spec=spec().model_copy(update=spec_changes))
    status = after(observed)
    assert status.slots[1].successor is None
    assert "u9" in deleted(plan(replace(observed, status=status), NOW))


@pytest.mark.parametrize("how", ["deleted", "announced", "all announced"])
def test_no_step_is_lost_to_a_member_that_leaves(how: str) -> None:
    cluster = Cluster(spec(), 200)
    for _ in range(8):
        cluster.round()
    for victim in cluster.living() if how == "all announced" else cluster.living()[-1:]:
        if how == "deleted":
            cluster.delete(victim)
        else:
            cluster.announce(victim, True)
    cluster.quiet_down()
    status = cluster.store.status
    victims = 2 if how == "all announced" else 1
    cause = "Preempted" if how == "deleted" else "MachineLeaving"
    assert status.restarts.by_cause == {cause: victims}
    assert (status.goodput.lost_steps, status.goodput.executed_steps) == (0, 200)
    assert cluster.truth.lost == 0
    assert cluster.truth.handed_over == victims or how == "deleted"


PEERS_GONE = member(0, agent=outcome("failed", 72))


def hung_up(seconds: float, **changes: Any) -> SlotView:
    """Slot 1's member, whose connection broke so long ago."""
    return member(1, agent=busy(hung_up_at=NOW - seconds), **changes)


def test_who_hangs_up_while_its_peers_have_lost_it_has_a_successor_before_its_end_is_known() -> None:
    observed = seen(running(), PEERS_GONE, hung_up(0.3))
    status = after(observed)
    slot = status.slots[1]
    assert (slot.uid, slot.successor) == ("u1", SuccessorStatus(incarnation=1))
    assert status.restarts.total == 0
    assert created(plan(replace(observed, status=status), NOW)) == [(1, 1)]
    # Its end is told: the cause counts as ever, and the successor has the slot.
    over = after(seen(with_heir(), PEERS_GONE, hung_up(0.3, end=ended(Cause.OUT_OF_MEMORY, 137)), HEIR))
    assert over.restarts.by_cause == {"OutOfMemory": 1}
    assert over.slots[1].uid == "u9"


@pytest.mark.parametrize(
    "observed",
    [
        pytest.param(seen(running(), STAYS, hung_up(60)), id="the training goes on"),
        pytest.param(seen(running(), PEERS_GONE, member(1, agent=busy())), id="heard again"),
        pytest.param(seen(running(), PEERS_GONE, hung_up(0.05)), id="it may ask anew"),
    ],
)
def test_who_hangs_up_has_no_successor_where(observed: Observed) -> None:
    assert after(observed).slots[1].successor is None


def test_who_has_just_hung_up_is_looked_at_again_when_it_should_have_asked_anew() -> None:
    assert wakeup(plan(seen(running(), PEERS_GONE, hung_up(0.05)), NOW)) == pytest.approx(0.15)


def test_a_successor_of_one_that_is_heard_again_is_let_go() -> None:
    observed = seen(with_heir(), PEERS_GONE, member(1, agent=busy()), HEIR)
    assert "Staying" in reasons(plan(observed, NOW))
    assert (after(observed).slots[1].successor, after(observed).restarts.total) == (None, 0)


def test_a_successor_of_one_that_has_not_been_heard_since_the_operators_start_is_kept_until_it_is() -> None:
    status = after(seen(with_heir(), PEERS_GONE, hung_up(0.3), HEIR))
    assert status.recovery is not None
    unheard = after(seen(status, PEERS_GONE, member(1, agent=None), HEIR))
    assert unheard.slots[1].successor is not None
    assert after(seen(unheard, PEERS_GONE, member(1, agent=busy()), HEIR)).slots[1].successor is None
