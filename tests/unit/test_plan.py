"""The rules of `plan()`, one by one. How they hold together is test_plan_machine.py's."""

from dataclasses import replace
from typing import Any

import pytest
from sim_views import (
    NOW,
    after,
    agent,
    busy,
    created,
    deleted,
    ended,
    fresh,
    member,
    outcome,
    reasons,
    recovering,
    running,
    seen,
    spec,
    wakeup,
)

from relight_agent.exits import Cause
from relight_operator.api.status import Condition, JobStatus, ProgressStatus, RecoveryStatus
from relight_operator.core.actions import WriteStatus
from relight_operator.core.observed import AgentProgress, SlotView
from relight_operator.core.plan import plan

WORKERS = (member(0, agent=busy()), member(1, agent=busy()))


def with_progress(status: JobStatus) -> JobStatus:
    """What `status` becomes once its progress has been written."""
    return after(seen(status, *WORKERS), NOW - 100)


# -- creating members


def test_the_first_plan_writes_the_slots_and_creates_nobody() -> None:
    actions = plan(seen(JobStatus()), NOW)
    assert created(actions) == []
    status = after(seen(JobStatus()))
    assert [(s.slot, s.incarnation, s.uid) for s in status.slots] == [(0, 0, None), (1, 0, None)]
    assert status.start_time == status.active_since == NOW
    assert created(plan(seen(status), NOW)) == [(0, 0), (1, 0)]


def test_who_has_no_uid_recorded_is_created_again() -> None:
    status = after(seen(JobStatus()))
    assert created(plan(seen(status, member(0, agent=None)), NOW)) == [(1, 0)]


def test_a_lost_members_replacement_is_created_after_the_write_of_its_incarnation() -> None:
    observed = seen(running(), member(0, agent=busy()), member(1, end=ended(Cause.MACHINE_LOST)))
    assert created(plan(observed, NOW)) == []
    assert created(plan(replace(observed, status=after(observed)), NOW)) == [(1, 1)]


@pytest.mark.parametrize(
    "status",
    [
        pytest.param({"phase": "Succeeded"}, id="succeeded"),
        pytest.param({"phase": "Failed"}, id="failed"),
        pytest.param({"stop": "s", "stopping_since": NOW}, id="stopping"),
        pytest.param({"stop": "s", "phase": "Suspended"}, id="suspended"),
    ],
)
def test_nobody_is_created_for_a_job_that_is_not_to_run(status: dict[str, Any]) -> None:
    given = running(**status)
    given.slots[0].uid = None
    assert created(plan(seen(given, member(1), stop="s"), NOW)) == []


# -- losses


@pytest.mark.parametrize(
    ("lost", "cause", "failures"),
    [
        pytest.param(member(1, end=ended(Cause.PREEMPTED, 75)), "Preempted", 0, id="preempted"),
        pytest.param(member(1, end=ended(Cause.MACHINE_LOST)), "MachineLost", 0, id="machine lost"),
        pytest.param(member(1, end=ended(Cause.MACHINE_UNHEALTHY, 73)), "MachineUnhealthy", 0, id="machine unhealthy"),
        pytest.param(None, "Vanished", 0, id="gone without a trace"),
        pytest.param(member(1, end=ended(Cause.OUT_OF_MEMORY, 77)), "OutOfMemory", 1, id="its own fault"),
        pytest.param(member(1, end=ended(Cause.COMPLETED, 0)), "Exception", 1, id="0 before the job had completed"),
    ],
)
def test_a_loss_is_counted_in_the_write_that_raises_the_incarnation(
    lost: SlotView | None, cause: str, failures: int
) -> None:
    members = [m for m in (member(0, agent=busy()), lost) if m is not None]
    status = after(seen(running(), *members))
    assert (status.slots[1].incarnation, status.slots[1].uid) == (1, None)
    assert status.slots[1].exit is not None
    assert status.slots[1].exit.cause == cause
    assert status.recovery is not None
    assert (status.recovery.cause, status.recovery.loss) == (cause, True)
    restarts = status.restarts
    assert (restarts.total, restarts.failures, restarts.disruptions) == (1, failures, 1 - failures)
    assert restarts.by_cause == {cause: 1}
    again = after(seen(status, *members))
    assert again.restarts == restarts, "counted twice"


def test_two_losses_of_one_generation_are_two_losses_and_one_recovery() -> None:
    members = [member(i, end=ended(Cause.MACHINE_LOST, at=NOW - 5 + i)) for i in range(2)]
    status = after(seen(running(), *members))
    assert status.restarts.disruptions == 2
    assert status.recovery is not None
    assert status.recovery.since == NOW - 5


def test_two_members_out_of_memory_in_one_generation_cost_one_retry() -> None:
    status = after(seen(running(), *(member(i, end=ended(Cause.OUT_OF_MEMORY, 77)) for i in range(2))))
    assert (status.restarts.failures, status.restarts.counted) == (2, 1)
    assert status.phase == "Recovering"


def test_a_final_end_of_a_member_ends_the_job() -> None:
    status = after(seen(fresh(), member(0), member(1, end=ended(Cause.BAD_CONFIG, 64))))
    assert status.phase == "Failed"
    assert status.last_failure is not None
    assert (status.last_failure.cause, status.last_failure.exit_code) == ("BadConfig", 64)


def test_who_has_completed_may_go_while_its_world_lives() -> None:
    done = outcome("completed")
    status = after(seen(running(), member(0, agent=done), member(1, agent=busy())))
    assert status.slots[0].completed == 1
    status = after(seen(status, member(0, agent=done, end=ended(Cause.MACHINE_LOST)), member(1, agent=busy())))
    assert (status.restarts.total, status.slots[0].incarnation) == (0, 0)
    # ... but it counts as lost once the world has to be mended.
    broken = [member(0, agent=done, end=ended(Cause.MACHINE_LOST)), member(1, agent=outcome("failed", 70))]
    status = after(seen(after(seen(status, *broken)), *broken))
    assert (status.restarts.disruptions, status.slots[0].incarnation) == (1, 1)


@pytest.mark.parametrize("first_sign", [NOW - 1, NOW - 60], ids=["its end", "its deletion"])
def test_a_training_stands_still_from_when_a_leaving_member_asked_for_a_stop(first_sign: float) -> None:
    told = replace(outcome("stopped"), terminating_at=NOW - 60, stopping_at=NOW - 30)
    end = ended(Cause.PREEMPTED, 75, first_sign)
    status = after(seen(running(), member(0, agent=busy()), member(1, agent=told, end=end)))
    assert status.recovery is not None
    assert status.recovery.since == NOW - 30


# -- members that cannot start


@pytest.mark.parametrize(
    ("lost", "failed_starts"),
    [
        pytest.param({"agent": None, "end": ended(Cause.VANISHED, 1)}, 1, id="never said a word"),
        pytest.param({"end": ended(Cause.VANISHED, 1)}, 0, id="said a word"),
        pytest.param({"agent": None, "end": ended(Cause.PREEMPTED, 75)}, 0, id="taken away"),
        pytest.param({"agent": None, "end": ended(Cause.DELETED)}, 0, id="deleted"),
        pytest.param({"agent": None, "end": ended(Cause.EVICTED)}, 0, id="evicted"),
        pytest.param({"agent": None, "end": ended(Cause.MACHINE_PRESSURE)}, 0, id="its machine under pressure"),
        pytest.param({"agent": None, "end": ended(Cause.MACHINE_SHUTDOWN)}, 0, id="its machine shut down"),
        pytest.param({"end": ended(Cause.MACHINE_UNHEALTHY, 73)}, 1, id="said that it cannot"),
    ],
)
def test_what_a_failed_start_is(lost: dict[str, Any], failed_starts: int) -> None:
    status = after(seen(fresh(), member(0), member(1, **lost)))
    assert status.slots[1].failed_starts == failed_starts


def test_failed_starts_back_off_and_end_the_job() -> None:
    status, now, waits = fresh(), NOW, []
    for incarnation in range(5):
        dead = member(1, f"v{incarnation}", incarnation, agent=None, end=ended(Cause.VANISHED, 1, at=now))
        status = after(seen(status, member(0), dead), now)
        if status.phase == "Failed":
            break
        actions = plan(seen(status, member(0)), now)
        assert created(actions) == []
        waits.append(wakeup(actions))
        assert waits[-1] is not None
        now += waits[-1]
        assert created(plan(seen(status, member(0)), now)) == [(1, incarnation + 1)]
    assert waits == [1.0, 2.0, 4.0, 8.0]
    assert [c.reason for c in status.conditions if c.type == "Failed"] == ["StartFailed"]


def test_a_formed_generation_forgets_failed_starts() -> None:
    status = fresh()
    status.slots[1].failed_starts = 4
    assert after(seen(status, member(0), member(1))).slots[1].failed_starts == 0


# -- failures


def settled(code: int, **changes: Any) -> tuple[SlotView, ...]:
    return member(0, agent=outcome("failed", 72)), member(1, agent=outcome("failed", code, **changes))


def test_a_failure_is_counted_in_the_write_that_judges() -> None:
    members = settled(70)
    status = after(seen(running(), *members))
    assert status.recovery is not None
    assert (status.recovery.judged, status.recovery.cause, status.recovery.not_before) == (True, "Exception", NOW + 5)
    assert status.last_failure is not None
    assert (status.last_failure.member, status.last_failure.message) == ("job-1-0", "why")
    assert (status.restarts.failures, status.restarts.counted, status.restarts.disruptions) == (1, 1, 0)
    assert after(seen(status, *members)).restarts == status.restarts, "counted twice"


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(busy(), id="still running"),
        pytest.param(None, id="not heard of"),
        pytest.param(agent("Ready", 0), id="not started, and not known to have noticed"),
        pytest.param(agent("Ready", 0, acknowledged="run:1"), id="told to run, not started"),
        pytest.param(replace(busy(), state="Stopping"), id="stopping"),
    ],
)
def test_no_judgement_before_every_living_member_is_settled(other: Any) -> None:
    status = after(seen(running(), member(0, agent=other), member(1, agent=outcome("failed", 70))))
    assert status.recovery is not None
    assert (status.recovery.judged, status.restarts.total) == (False, 0)
    assert status.phase == "Recovering"


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(member(0, agent=outcome("failed", 72)), id="failed too"),
        pytest.param(member(0, agent=replace(outcome("failed", 72), state="Starting")), id="its launcher died"),
        pytest.param(member(0, agent=agent("Ready", 0, acknowledged="wait:1")), id="never started, and has noticed"),
    ],
)
def test_judged_once_all_are_settled(other: SlotView) -> None:
    status = after(seen(running(), other, member(1, agent=outcome("failed", 70))))
    assert status.recovery is not None
    assert (status.recovery.judged, status.restarts.failures) == (True, 1)


@pytest.mark.parametrize(
    ("code", "lost", "failures", "without_progress"),
    [
        pytest.param(72, True, 0, 0, id="collateral of a loss"),
        pytest.param(72, False, 1, 1, id="collateral of nothing counts towards noProgress"),
        pytest.param(70, True, 1, 1, id="a failure beside a loss"),
    ],
)
def test_collateral(code: int, lost: bool, failures: int, without_progress: int) -> None:
    status = running()
    assert status.world is not None
    status.world.recovered, status.world.previous_furthest_step = False, 10
    other = member(0, end=ended(Cause.MACHINE_LOST)) if lost else member(0, agent=outcome("failed", 72))
    status = after(seen(status, other, member(1, agent=outcome("failed", code))))
    assert status.recovery is not None
    assert status.recovery.judged
    assert (status.restarts.failures, status.restarts.without_progress) == (failures, without_progress)
    assert status.restarts.counted == (1 if code == 70 else 0)


@pytest.mark.parametrize(
    ("code", "failures"), [pytest.param(72, 0, id="collateral"), pytest.param(70, 1, id="a failure of its own")]
)
def test_who_fails_of_a_member_that_was_told_to_end_costs_no_budget(code: int, failures: int) -> None:
    """It may not have been able to stop with them: its workers hung, or its time was over."""
    told = outcome("stopped", terminating_at=NOW - 18)
    status = after(seen(running(), member(0, agent=outcome("failed", code)), member(1, agent=told, deleting=True)))
    assert status.recovery is not None
    assert status.recovery.judged
    assert (status.restarts.failures, status.restarts.counted) == (failures, failures)
    gone = member(1, agent=told, end=ended(Cause.PREEMPTED))
    status = after(seen(status, member(0, agent=outcome("failed", code)), gone))
    assert status.restarts.by_cause.get("Preempted") == 1
    assert (status.restarts.failures, status.restarts.disruptions) == (failures, 1)


def test_a_failure_that_a_member_told_of_before_it_was_lost_is_counted() -> None:
    dead = member(1, agent=outcome("failed", 70), end=ended(Cause.MACHINE_LOST))
    status = after(seen(running(), member(0, agent=outcome("failed", 72)), dead))
    assert (status.restarts.failures, status.restarts.disruptions) == (1, 1)


def test_a_machine_that_cannot_run_the_job_loses_its_member() -> None:
    status = after(seen(running(), *settled(73)))
    assert (status.slots[1].incarnation, status.slots[1].uid) == (1, None)
    assert (status.restarts.total, status.restarts.disruptions, status.restarts.counted) == (1, 1, 0)
    assert deleted(plan(seen(status, *settled(73)), NOW)) == ["u1"]


def test_the_next_generation_waits_for_the_backoff() -> None:
    members = settled(70)
    status = after(seen(running(), *members))
    actions = plan(seen(status, *members), NOW + 1)
    assert wakeup(actions) == pytest.approx(4.0)
    assert after(seen(status, *members), NOW + 5).world != status.world


@pytest.mark.parametrize(
    ("restarts", "retry", "code", "reason"),
    [
        pytest.param({}, {}, 64, "BadConfig", id="final"),
        pytest.param({}, {"failures": 0}, 70, "RetriesExhausted", id="no retries"),
        pytest.param({"without_progress": 2}, {}, 70, "NoProgress", id="no progress"),
        pytest.param({}, {"failures": 0}, 74, "StorageFailed", id="storage"),
    ],
)
def test_a_job_fails(restarts: dict[str, Any], retry: dict[str, Any], code: int, reason: str) -> None:
    given = running()
    assert given.world is not None
    given.world.recovered, given.world.previous_furthest_step = False, 10
    given.restarts = given.restarts.model_copy(update=restarts)
    observed = seen(given, *settled(code), spec=spec(retry=retry))
    actions, status = plan(observed, NOW), after(observed)
    assert (status.phase, status.recovery, status.completion_time) == ("Failed", None, NOW)
    assert [c.reason for c in status.conditions if c.type == "Failed"] == [reason]
    assert reasons(actions)[-1] == reason
    assert status.active_since is None


def test_a_plain_commands_failures_are_limited_by_their_number_alone() -> None:
    given = running(progress=None)
    given.restarts.without_progress = 2
    command = spec(trainer={"command": ["./train.sh"]})
    status = after(seen(given, *settled(70), spec=command))
    assert (status.phase, status.restarts.counted) == ("Recovering", 1)
    lost = member(0, end=ended(Cause.MACHINE_LOST)), member(1, agent=outcome("failed", 1))
    status = after(seen(running(), *lost, spec=command))
    assert (status.restarts.failures, status.restarts.disruptions) == (0, 1)


# -- forming a generation


def test_all_ready_members_form_the_first_generation() -> None:
    observed = seen(fresh(), member(0), member(1))
    status = after(observed)
    assert status.world is not None
    assert (status.world.generation, status.world.master_slot, status.world.master_port) == (1, 0, 29500)
    assert [(m.rank, m.slot, m.uid, m.address) for m in status.world.members] == [
        (0, 0, "u0", "a0"),
        (1, 1, "u1", "a1"),
    ]
    assert reasons(plan(observed, NOW)) == ["GenerationFormed"]


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(None, id="not there"),
        pytest.param(member(1, agent=None), id="not heard of"),
        pytest.param(member(1, agent=agent("Starting")), id="not warm"),
        pytest.param(member(1, agent=agent(terminating_at=1.0)), id="terminating"),
        pytest.param(member(1, deleting=True), id="being deleted"),
        pytest.param(member(1, agent=agent(port=0)), id="without a port"),
    ],
)
def test_no_generation_without_every_member(other: SlotView | None) -> None:
    given = fresh()
    if other is None:
        given.slots[1].uid = None
    status = after(seen(given, *(m for m in (member(0), other) if m is not None)))
    assert status.world is None


@pytest.mark.parametrize(
    "stranger",
    [pytest.param({"config_hash": "other"}, id="configuration"), pytest.param({"torch": "2.10.0"}, id="torch")],
)
def test_members_that_differ_form_no_generation_and_it_is_said(stranger: dict[str, str]) -> None:
    observed = seen(fresh(), member(0), member(1, agent=agent(**stranger)))
    status = after(observed)
    assert status.world is None
    assert [(c.type, c.status) for c in status.conditions] == [("MembersDiffer", "True")]
    assert reasons(plan(observed, NOW)) == ["MembersDiffer"]
    assert plan(replace(observed, status=status), NOW) == (), "said once"
    mended = after(seen(status, member(0), member(1)))
    assert mended.world is not None
    assert [(c.type, c.status) for c in mended.conditions] == [("MembersDiffer", "False")]


@pytest.mark.parametrize(
    ("trainer", "master"), [({"script": ["x"]}, 1), ({"command": ["x"]}, 0)], ids=["a survivor", "a command's rank 0"]
)
def test_the_master_of_a_mended_world(trainer: dict[str, Any], master: int) -> None:
    given = recovering()
    given.slots[0], given.slots[1] = (
        given.slots[1].model_copy(update={"slot": 0}),
        given.slots[0].model_copy(update={"slot": 1, "uid": "u1"}),
    )
    members = member(0, "u9", 1), member(1, agent=outcome("stopped"))
    status = after(seen(given, *members, spec=spec(trainer=trainer)))
    assert status.world is not None
    assert (status.world.generation, status.world.master_slot, status.world.recovering_since) == (2, master, 900.0)
    assert status.recovery is None


def test_a_generation_that_is_lost_before_it_recovered_does_not_stop_the_clock() -> None:
    given = recovering(since=950.0)
    assert given.world is not None
    given.world.recovered, given.world.recovering_since, given.world.previous_furthest_step = False, 900.0, 10
    status = after(seen(given, member(0, agent=outcome("stopped")), member(1, "u9", 1)))
    assert status.world is not None
    assert status.world.recovering_since == 900.0


# -- steps


def resumed(step: int, at: int, kind: str = "snapshot", **changes: Any) -> tuple[SlotView, ...]:
    """Both members of generation 2, which went on from `step` and are at `at`."""
    progress = AgentProgress(2, at, 100, resumed_from=step, resumed_kind=kind, **changes)
    agents = agent("Running", 2, furthest_step=at, progress=progress)
    return member(0, agent=agents), member(1, "u9", 1, agent=agents)


def second_generation() -> JobStatus:
    """Generation 2 was formed after a loss at step 10."""
    status = after(seen(recovering(), member(0, agent=outcome("stopped")), member(1, "u9", 1)))
    assert status.world is not None
    assert status.world.previous_furthest_step == 10
    return status


@pytest.mark.parametrize(
    ("step", "at", "lost", "executed", "recoveries"),
    [
        pytest.param(10, 10, 0, 10, 0, id="restored, not further yet"),
        pytest.param(10, 11, 0, 11, 1, id="from a snapshot"),
        pytest.param(4, 4, 6, 10, 0, id="from a checkpoint"),
        pytest.param(4, 9, 6, 15, 0, id="doing it again"),
        pytest.param(4, 11, 6, 17, 1, id="beyond"),
        pytest.param(12, 12, 0, 12, 1, id="the restored state proves steps that nobody had heard of"),
    ],
)
def test_steps_lost_and_executed(step: int, at: int, lost: int, executed: int, recoveries: int) -> None:
    members = resumed(step, at)
    status = after(seen(second_generation(), *members))
    goodput = status.goodput
    assert (goodput.lost_steps, goodput.executed_steps, goodput.recoveries) == (lost, executed, recoveries)
    assert goodput.executed_steps == goodput.reached_step + goodput.lost_steps
    again = after(seen(status, *members), NOW + 60)
    assert again.goodput == goodput, "counted twice"


def test_a_loss_in_the_middle_of_a_replay_loses_only_what_was_done_again() -> None:
    status = after(seen(second_generation(), *resumed(4, 7)))
    assert status.goodput.lost_steps == 6
    assert status.world is not None
    status.world = status.world.model_copy(update={"generation": 3, "resumed_from_step": None})
    again = AgentProgress(3, 5, 100, resumed_from=5)
    status = after(seen(status, member(0, agent=agent("Running", 3, progress=again)), member(1, "u9", 1)))
    assert (status.goodput.lost_steps, status.goodput.reached_step, status.goodput.executed_steps) == (8, 5, 13)


def test_recovery_time_ends_with_the_first_new_step() -> None:
    status = after(seen(second_generation(), *resumed(10, 14, first_step_at=908.5)))
    assert status.goodput.last_recovery_seconds == "8.50"
    status = after(seen(second_generation(), *resumed(4, 14, first_step_at=908.5)))
    assert status.goodput.last_recovery_seconds == "100.00", "the first step was one done before"


def test_an_earlier_jobs_checkpoint_is_no_step_of_this_one() -> None:
    given = after(seen(fresh(), member(0), member(1)))
    progress = AgentProgress(1, 60, 100, resumed_from=50, resumed_kind="checkpoint")
    agents = agent("Running", 1, furthest_step=60, progress=progress)
    status = after(seen(given, member(0, agent=agents), member(1, agent=agents)))
    assert (status.goodput.executed_steps, status.goodput.lost_steps, status.goodput.reached_step) == (10, 0, 60)


def test_the_heartbeats_of_the_lost_are_steps_done() -> None:
    dead = member(1, agent=busy(13), end=ended(Cause.MACHINE_LOST))
    status = after(seen(running(), member(0, agent=busy(12)), dead))
    assert (status.goodput.reached_step, status.goodput.executed_steps) == (13, 13)


# -- completion


def test_succeeded_is_written_once_every_member_has_completed() -> None:
    done = outcome("completed", step=100)
    status = after(seen(running(), member(0, agent=done), member(1, agent=busy(99))))
    assert (status.phase, status.slots[0].state) == ("Running", "Completed")
    observed = seen(status, member(1, agent=done), member(0, agent=None))
    status = after(observed)
    assert (status.phase, status.completion_time) == ("Succeeded", NOW)
    assert status.result is not None
    assert status.result.steps == status.goodput.executed_steps == 100
    assert reasons(plan(observed, NOW)) == ["Succeeded"]


def test_a_recovery_at_the_very_end_ends_with_the_completion() -> None:
    done = replace(outcome("completed", generation=2), progress=AgentProgress(2, 10, 10, resumed_from=10))
    status = after(seen(second_generation(), member(0, agent=done), member(1, "u9", 1, agent=done)))
    assert (status.phase, status.goodput.recoveries) == ("Succeeded", 1)


def test_another_generations_completion_is_none() -> None:
    done = outcome("completed", generation=1)
    status = after(seen(second_generation(), member(0, agent=done), member(1, "u9", 1, agent=done)))
    assert [s.completed for s in status.slots] == [None, None]


@pytest.mark.parametrize("phase", ["Succeeded", "Failed"])
def test_what_has_ended_stays_as_it_was_written_and_lingerers_are_deleted(phase: str) -> None:
    status = running(phase=phase, completion_time=NOW)
    members = member(0, agent=outcome("completed")), member(1, end=ended(Cause.COMPLETED, 0))
    actions = plan(seen(status, *members), NOW + 1)
    assert [type(a).__name__ for a in actions] == ["RequeueAfter"]
    assert wakeup(actions) == 9.0
    assert deleted(plan(seen(status, *members), NOW + 10)) == ["u0"]


# -- stops


@pytest.mark.parametrize(
    ("changes", "stop"),
    [
        pytest.param({"stop": "s1"}, "s1", id="Ctrl-C"),
        pytest.param({"spec": spec(suspend=True)}, "suspend", id="suspend"),
    ],
)
def test_a_stop_waits_for_everyone_and_counts_nothing(changes: dict[str, Any], stop: str) -> None:
    status = after(seen(running(), *WORKERS, **changes))
    assert (status.stop, status.stopping_since, status.phase) == (stop, NOW, "Running")
    gone = member(1, agent=outcome("stopped"), end=ended(Cause.PREEMPTED, 75))
    status = after(seen(status, member(0, agent=outcome("failed", 70)), gone, **changes))
    assert (status.phase, status.restarts.total) == ("Running", 0)
    both = member(0, agent=outcome("stopped"), end=ended(Cause.PREEMPTED, 75)), gone
    status = after(seen(status, *both, **changes), NOW + 7)
    assert (status.phase, status.active_since, status.active_seconds) == ("Suspended", None, NOW + 7)
    assert (status.restarts.total, [s.incarnation for s in status.slots]) == (0, [0, 0])
    assert plan(seen(status, *both, **changes), NOW + 50) == ()
    status = after(seen(status, *both), NOW + 90)
    assert (status.phase, status.stop, status.active_since) == ("Pending", None, NOW + 90)
    assert [(s.incarnation, s.uid) for s in status.slots] == [(1, None), (1, None)]
    assert status.restarts.total == 0
    assert created(plan(seen(status, *both), NOW + 91)) == [(0, 1), (1, 1)]


def test_a_resumed_job_has_no_recovery_time() -> None:
    given = recovering(cause="Suspended", since=1.0)
    status = after(seen(given, member(0, agent=outcome("stopped")), member(1, "u9", 1)))
    assert status.world is not None
    assert (status.world.recovering_since, status.phase) == (None, "Starting")


def test_a_job_that_is_created_suspended_starts_nobody() -> None:
    status = after(seen(JobStatus(), spec=spec(suspend=True)))
    assert (status.phase, status.active_since, status.active_seconds) == ("Suspended", None, 0.0)
    assert plan(seen(status, spec=spec(suspend=True)), NOW) == ()


def test_a_failure_before_the_stop_is_counted_with_it() -> None:
    given = running(recovery=RecoveryStatus(generation=1, since=1.0, cause="Exception"))
    members = member(0, agent=busy()), member(1, agent=outcome("failed", 70))
    status = after(seen(given, *members, stop="s1"))
    assert (status.stop, status.restarts.failures) == ("s1", 1)
    assert after(seen(status, *members, stop="s1")).restarts == status.restarts
    status = after(seen(given, *members, stop="s1", spec=spec(retry={"failures": 0})))
    assert (status.stop, status.phase) == (None, "Failed")


def test_who_does_not_leave_for_a_stop_is_deleted_after_its_grace() -> None:
    status = running(stop="s1", stopping_since=NOW)
    observed = seen(status, *WORKERS, stop="s1", spec=spec(disruption={"gracePeriod": "30s"}))
    assert deleted(plan(observed, NOW + 39)) == []
    assert deleted(plan(observed, NOW + 40)) == ["u0", "u1"]


def test_who_has_completed_is_not_waited_for_when_the_job_cannot_complete() -> None:
    status = running(stop="s1", stopping_since=NOW)
    status.slots[0].completed = 1
    done = member(0, agent=outcome("completed"))
    assert deleted(plan(seen(status, done, WORKERS[1], stop="s1"), NOW)) == []
    gone = member(1, end=ended(Cause.PREEMPTED, 75))
    assert deleted(plan(seen(status, done, gone, stop="s1"), NOW)) == ["u0"]


def test_a_job_that_completes_during_a_stop_has_succeeded() -> None:
    members = [member(i, agent=outcome("completed", step=100)) for i in range(2)]
    assert after(seen(running(stop="s1", stopping_since=NOW), *members, stop="s1")).phase == "Succeeded"


# -- deletions


@pytest.mark.parametrize(
    ("found", "gone"),
    [
        pytest.param(member(1), True, id="an older incarnation"),
        pytest.param(member(1, "u9", 1), False, id="the holder"),
        pytest.param(member(1, "other", 1), True, id="another of the same name"),
        pytest.param(member(1, "new", 2), False, id="a newer one than this status knows"),
        pytest.param(member(7), True, id="no such slot"),
        pytest.param(member(1, deleting=True), False, id="being deleted already"),
        pytest.param(member(1, end=ended(Cause.DELETED)), False, id="gone already"),
    ],
)
def test_who_is_deleted(found: SlotView, gone: bool) -> None:
    holders = [member(0, agent=outcome("stopped"))] + ([] if found.uid == "u9" else [member(1, "u9", 1)])
    assert deleted(plan(seen(recovering(), *holders, found), NOW)) == ([found.uid] if gone else [])


# -- deadlines


def test_the_deadline_counts_active_time_only() -> None:
    limited = spec(activeDeadlineSeconds=100)
    given = running(active_seconds=60.0, active_since=NOW)
    assert wakeup(plan(seen(given, *WORKERS, spec=limited), NOW + 10)) == pytest.approx(30.0)
    status = after(seen(given, *WORKERS, spec=limited), NOW + 40)
    assert status.phase == "Failed"
    assert status.last_failure is not None
    assert status.last_failure.cause == "DeadlineExceeded"


# -- phases


@pytest.mark.parametrize(
    ("status", "members", "phase"),
    [
        pytest.param(JobStatus(), (), "Pending", id="nothing yet"),
        pytest.param(after(seen(JobStatus())), (), "Pending", id="nobody created"),
        pytest.param(after(seen(JobStatus())), (member(0, agent=None),), "Starting", id="one created"),
        pytest.param(fresh(), (member(0), member(1)), "Starting", id="the first generation is formed"),
        pytest.param(second_generation(), resumed(4, 4), "Recovering", id="mending"),
        pytest.param(second_generation(), resumed(10, 11), "Running", id="mended"),
        pytest.param(running(), WORKERS, "Running", id="running"),
        pytest.param(running(), settled(70), "Recovering", id="failed, to be retried"),
        pytest.param(
            recovering(cause="Suspended"), (member(0), member(1, "u9", 1, agent=None)), "Starting", id="resumed"
        ),
    ],
)
def test_phase(status: JobStatus, members: tuple[SlotView, ...], phase: str) -> None:
    assert after(seen(status, *members)).phase == phase


def test_a_script_that_says_nothing_of_its_steps_runs_once_all_members_do() -> None:
    given = after(seen(fresh(), member(0), member(1)))
    assert after(seen(given, member(0, agent=agent("Running", 1)), member(1))).phase == "Starting"
    status = after(seen(given, *(member(i, agent=agent("Running", 1)) for i in range(2))))
    assert (status.phase, status.ready_nodes, status.nodes_ready) == ("Running", 2, "2/2")


def test_a_coordinator_that_has_just_started_takes_nothing_back() -> None:
    status = with_progress(running())
    assert status.ready_nodes == 2
    actions = plan(seen(status, *(replace(w, agent=None) for w in WORKERS), listening_since=NOW), NOW)
    assert [type(a).__name__ for a in actions] == ["RequeueAfter"]


# -- writes and events


def test_progress_alone_is_written_every_so_often() -> None:
    status = with_progress(running())
    assert status.progress is not None
    assert status.progress.updated == NOW - 100
    further = [member(i, agent=busy(20)) for i in range(2)]
    actions = plan(seen(status, *further), NOW - 97)
    assert [type(a).__name__ for a in actions] == ["RequeueAfter"]
    assert wakeup(actions) == pytest.approx(7.0)
    status = after(seen(status, *further), NOW - 90)
    assert status.progress is not None
    assert (status.progress.step, status.progress.updated, status.goodput.reached_step) == (20, NOW - 90, 20)


def test_anything_else_is_written_at_once_with_the_progress() -> None:
    status = with_progress(running())
    status = after(seen(status, member(0, agent=busy(20)), member(1, end=ended(Cause.MACHINE_LOST))), NOW - 99)
    assert (status.phase, status.goodput.reached_step) == ("Recovering", 20)


def test_heartbeats_alone_are_not_written_for_ever() -> None:
    status = with_progress(running())
    ahead = [member(i, agent=replace(busy(10), furthest_step=15)) for i in range(2)]
    status = after(seen(status, *ahead), NOW)
    assert status.goodput.reached_step == 15
    assert plan(seen(status, *ahead), NOW + 60) == ()


def test_a_plan_with_nothing_to_do_does_nothing() -> None:
    assert plan(seen(with_progress(running()), *WORKERS), NOW + 60) == ()


def test_events_follow_the_write_they_tell_of() -> None:
    actions = plan(seen(running(), member(0, agent=busy()), member(1, end=ended(Cause.MACHINE_LOST))), NOW)
    assert isinstance(actions[0], WriteStatus)
    assert reasons(actions) == ["Recovering", "MemberLost"]


def test_what_one_member_alone_has_flushed_is_a_checkpoint_of_the_job() -> None:
    flushed, lost = busy(9), busy(10)
    assert flushed.progress is not None
    assert lost.progress is not None
    knows = replace(flushed, progress=replace(flushed.progress, checkpoint=10))
    gone = replace(lost, progress=replace(lost.progress, checkpoint=5))
    status = after(seen(running(), member(0, agent=gone, end=ended(Cause.MACHINE_LOST)), member(1, agent=knows)))
    assert status.checkpoint.step == 10


def test_notices_are_said_once() -> None:
    told = busy()
    assert told.progress is not None
    told = replace(told, progress=replace(told.progress, notices=("step 8 is damaged",)))
    observed = seen(running(), member(0, agent=told), member(1, agent=busy()))
    assert reasons(plan(observed, NOW)) == ["Notice"]
    assert plan(replace(observed, status=after(observed)), NOW + 60) == ()
    assert after(observed).checkpoint.notices == ["step 8 is damaged"]


def test_more_notices_than_are_kept_do_not_chase_each_other() -> None:
    def told(text: str, count: int) -> Any:
        progress = AgentProgress(1, 10, 100, resumed_from=0, notices=tuple(f"{text}{i}" for i in range(count)))
        return replace(busy(), progress=progress)

    observed = seen(running(), member(0, agent=told("a", 6)), member(1, agent=told("b", 6)))
    status = after(observed)
    assert status.checkpoint.notices == ["a0", "a1", "a2", "a3", "a4", "a5", "b0", "b1"]
    assert plan(replace(observed, status=status), NOW + 60) == ()
    status = after(seen(status, member(0, agent=told("c", 3)), member(1, agent=told("b", 1))))
    assert status.checkpoint.notices == ["a3", "a4", "a5", "b0", "b1", "c0", "c1", "c2"]


def test_a_condition_keeps_the_instant_of_its_last_change() -> None:
    given = running(conditions=[Condition(type="Suspended", status="True", reason="x", last_transition_time=5.0)])
    status = after(seen(given, stop="s1"))
    assert [(c.status, c.last_transition_time) for c in status.conditions] == [("True", 5.0)]


def test_progress_is_shown_as_people_read_it() -> None:
    status = after(seen(running(), *WORKERS))
    assert status.progress is not None
    expected = ProgressStatus(step=10, total_steps=100, percent=10, text="10% 10/100", eta_seconds=9990, updated=NOW)
    assert status.progress == expected


def test_steps_of_a_generation_that_never_said_where_it_began_are_counted_when_it_is_left_behind() -> None:
    agents = agent("Running", 2, furthest_step=14)
    dead = [member(0, agent=agents, end=ended(Cause.MACHINE_LOST)), member(1, "u9", 1, agent=agents)]
    status = after(seen(second_generation(), *dead))
    assert status.goodput.reached_step == 10
    dead[1] = replace(dead[1], end=ended(Cause.MACHINE_LOST))
    status = after(seen(status, *dead))
    status = after(seen(status, *dead, member(0, "n0", 1), member(1, "n1", 2)))
    assert status.world is not None
    assert (status.world.generation, status.world.previous_furthest_step) == (3, 14)
    assert (status.goodput.reached_step, status.goodput.executed_steps) == (14, 14)


def test_another_member_of_the_same_name_is_not_the_one_that_was_recorded() -> None:
    status = after(seen(running(), member(0, agent=busy()), member(1, "other")))
    assert (status.slots[1].incarnation, status.restarts.by_cause) == (1, {"Vanished": 1})


def test_completions_of_a_generation_that_came_to_nothing_are_forgotten() -> None:
    given = recovering()
    given.slots[0].completed = 1
    status = after(seen(given, member(0, agent=outcome("completed")), member(1, "u9", 1)))
    assert status.world is not None
    assert (status.world.generation, status.slots[0].completed, status.result) == (2, None, None)
