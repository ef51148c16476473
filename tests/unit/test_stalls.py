"""Stalls: how long is too long, who holds the others up, and what the job does about it."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import permutations
from typing import Any

import pytest
from sim_views import NOW, after, agent, busy, created, fresh, member, outcome, reasons, running, seen, spec, wakeup

from relight_agent.exits import ExitCode
from relight_agent.stacks import doing, main_thread, short
from relight_agent.stalls import FIRST_STEPS, Beat, Health, Learned, Pace, Paces, Silence, Watch, limit
from relight_operator.api.status import JobStatus, StallStatus
from relight_operator.core.commands import command_for
from relight_operator.core.observed import AgentStall, AgentView, RankStack
from relight_operator.core.plan import plan
from relight_operator.core.stalls import AGENT_SILENT_SECONDS, COLLECT_SECONDS, Suspect, culprit

HEALTH = Health(startup=300.0, heartbeat=10.0, no_progress=100.0)


# -- limits


@pytest.mark.parametrize(
    ("slowest", "stalls", "seconds"),
    [
        pytest.param(None, 0, 100.0, id="not seen yet: as long as anything may take"),
        pytest.param(0.01, 0, 10.0, id="quick: the floor"),
        pytest.param(2.0, 0, 10.0, id="five times is the floor"),
        pytest.param(3.0, 0, 15.0, id="five times the slowest"),
        pytest.param(30.0, 0, 100.0, id="slow: the ceiling"),
        pytest.param(0.01, 2, 40.0, id="each stall doubles it"),
        pytest.param(0.01, 1000, 100.0, id="however many there were"),
    ],
)
def test_how_long_a_silence_may_be(slowest: float | None, stalls: int, seconds: float) -> None:
    assert limit(slowest, HEALTH, stalls) == seconds


def test_what_is_seen_behind_the_last_step_teaches_nothing_of_what_comes() -> None:
    learned = Learned(whole_epoch=True, stalls=3)
    learned.note("after", 0.1)
    assert learned.limit("after", HEALTH) == HEALTH.no_progress


def test_health_comes_from_the_world_and_defaults_where_a_coordinator_says_nothing() -> None:
    assert Health.from_world({"startup": 1.0, "heartbeat": 2, "noProgress": 3.0}) == Health(1.0, 2.0, 3.0)
    assert Health.from_world(None) == Health(1800.0, 60.0, 1800.0)


# -- the watch


class Workers:
    """Workers whose time passes in ticks of 0.1 s, and the watch over them."""

    def __init__(self, count: int = 1, *, learned: Learned | None = None, opaque: bool = False) -> None:
        self.now = 50.0
        self.learned = learned or Learned(whole_epoch=True)
        self.beats: list[Beat | None] = [None] * count
        self.ended: set[int] = set()
        self.epoch: int | None = None
        self.watch = Watch(self.learned, HEALTH, count, now=self.now, opaque=opaque)

    def beat(self, section: str, step: int, rank: int = 0) -> None:
        self.beats[rank] = (section, step, self.now)

    def look(self) -> Silence | None:
        return self.watch.look(self.now, self.beats, ended=frozenset(self.ended), epoch=self.epoch)

    def pass_time(self, seconds: float) -> Iterator[Silence | None]:
        for _ in range(round(seconds * 10)):
            self.now += 0.1
            yield self.look()

    def stays_quiet(self, seconds: float) -> None:
        assert not any(self.pass_time(seconds))

    def overdue_after(self) -> float:
        """Seconds of silence until it is said."""
        began = self.now
        next(s for s in self.pass_time(1000.0) if s is not None)
        return self.now - began

    def train(self, steps: int, seconds: float = 0.5, first: int = 0) -> None:
        """All ranks do `steps` steps of `seconds` each, behind step `first`."""
        for step in range(first, first + steps + 1):
            for rank in range(len(self.beats)):
                self.beat("train", step, rank)
            self.stays_quiet(seconds)


def test_the_slowest_step_sets_the_limit_and_the_first_ones_do_not_count() -> None:
    workers = Workers()
    workers.train(FIRST_STEPS, seconds=9.0)
    assert workers.learned.slowest == {}
    workers.train(10, seconds=3.0, first=FIRST_STEPS)
    assert workers.learned.slowest["train"] == pytest.approx(9.0, abs=0.2)  # the last of the slow ones: the fifth's end
    workers = Workers()
    workers.train(FIRST_STEPS + 10, seconds=3.0)
    assert workers.learned.slowest["train"] == pytest.approx(3.0, abs=0.2)
    assert workers.overdue_after() == pytest.approx(12.0, abs=1.0)  # 15 s, 3 of which have passed


@pytest.mark.parametrize(
    ("beats", "seconds"),
    [
        pytest.param([], HEALTH.startup, id="no sign at all"),
        pytest.param([("start", 0)], HEALTH.startup, id="restores"),
        pytest.param([("start", 0), ("train", 40)], HEALTH.startup, id="compiles for its first step"),
        pytest.param([("start", 0), ("data", 40)], HEALTH.startup, id="waits for its first batch"),
        pytest.param([("train", 40), ("train", 41)], HEALTH.no_progress, id="in its second step"),
        pytest.param([("train", 40), ("evaluation", 40)], HEALTH.no_progress, id="an evaluation before any step"),
        pytest.param([("train", 0), ("train", 9)], HEALTH.no_progress, id="nothing learned"),
        pytest.param([("train", 0), ("train", 9), ("train", 10)], HEALTH.heartbeat, id="learned"),
        pytest.param(
            [("train", 0), ("train", 9), ("train", 10), ("data", 10)], HEALTH.heartbeat, id="data is of a step"
        ),
        pytest.param(
            [("train", 0), ("train", 9), ("train", 10), ("checkpoint", 10)], HEALTH.no_progress, id="first save"
        ),
        pytest.param([("train", 0), ("train", 9), ("end", 9)], HEALTH.no_progress, id="its exit handlers"),
    ],
)
def test_what_a_worker_is_at_decides_how_long_it_may_take(beats: list[tuple[str, int]], seconds: float) -> None:
    workers = Workers()
    for section, step in beats:
        workers.stays_quiet(0.1)
        workers.beat(section, step)
        workers.look()
    assert workers.overdue_after() == pytest.approx(seconds, abs=0.3)


def test_as_long_as_one_worker_may_go_on_nobody_is_overdue() -> None:
    learned = Learned({"train": 1.0, "evaluation": 4.0}, whole_epoch=True)
    workers = Workers(2, learned=learned)
    workers.train(10)
    workers.beat("evaluation", 10)
    began = workers.now
    found = next(s for s in workers.pass_time(100.0) if s is not None)
    assert workers.now - began == pytest.approx(20.0, abs=0.3)  # rank 1 alone would have been overdue after 10
    assert found.local_rank == 1, "it has been silent longer"
    workers.beat("evaluation", 10)
    assert workers.look() is None


def test_who_has_ended_is_not_waited_for_and_a_member_of_whom_all_have_is_not_overdue() -> None:
    workers = Workers(2)
    workers.train(10)
    workers.ended = {0}
    assert workers.overdue_after() < 11
    workers.ended = {0, 1}
    assert workers.look() is None


def test_a_script_that_shows_no_heartbeat_is_left_alone() -> None:
    workers = Workers(opaque=True)
    workers.stays_quiet(3 * HEALTH.startup)
    workers.beat("start", 0)
    workers.look()
    assert workers.overdue_after() == pytest.approx(HEALTH.startup, abs=0.3)


def test_the_steps_of_a_script_are_not_known_before_the_end_of_an_epoch_has_been_seen() -> None:
    workers = Workers(learned=Learned())
    workers.epoch = 0
    workers.train(20)
    workers.stays_quiet(HEALTH.no_progress - 2)
    workers.epoch = 1
    workers.train(1, first=21)
    assert not workers.learned.whole_epoch
    workers.train(2, first=22)
    assert workers.learned.whole_epoch
    assert workers.learned.slowest["train"] == pytest.approx(HEALTH.no_progress - 1.5, abs=0.5)


def test_what_was_learned_holds_in_the_next_generation() -> None:
    first = Workers()
    first.train(20)
    second = Workers(learned=first.learned)
    second.train(FIRST_STEPS, first=20)
    second.train(1, first=20 + FIRST_STEPS)
    assert second.overdue_after() < 11


def test_a_time_in_which_nobody_looked_is_no_silence() -> None:
    workers = Workers()
    workers.train(20)
    workers.now += 3600.0  # the machine was paused, this process with it
    assert workers.look() is None
    workers.stays_quiet(5.0)
    assert workers.overdue_after() < 6


def test_a_pace_is_of_a_window_and_of_the_slowest_worker() -> None:
    paces = Paces(window=10.0, steps=5)
    assert paces.look(0.0, {0: (0.0, 0), 1: (0.0, 0)}) is None
    assert paces.look(9.0, {0: (9.0, 90), 1: (18.0, 90)}) is None
    assert paces.look(10.0, {0: (1.0, 100), 1: (2.0, 100)}) == Pace(1, pytest.approx(0.02), pytest.approx(0.1))
    assert paces.look(15.0, {0: (9.0, 150), 1: (2.5, 150)}) == Pace(1, pytest.approx(0.02), pytest.approx(0.1))
    assert paces.look(20.0, {0: (5.0, 200), 1: (3.0, 200)}) == Pace(0, pytest.approx(0.04), pytest.approx(0.1))
    assert Paces(window=10.0, steps=5).look(100.0, {}) is None


# -- stacks

TEXT = """\
Thread 0x00007f (most recent call first):
  File "/usr/lib/python3.11/threading.py", line 331 in wait
  File "/usr/lib/python3.11/threading.py", line 1002 in _bootstrap

Current thread 0x00008f (most recent call first):
  File "/venv/lib/python3.11/site-packages/torch/autograd/graph.py", line 829 in _engine_run_backward
  File "/venv/lib/python3.11/site-packages/torch/_tensor.py", line 648 in backward
"""


def test_the_main_thread_is_the_last_one() -> None:
    frames = main_thread(TEXT)
    assert [short(f) for f in frames] == [
        "autograd/graph.py:829 in _engine_run_backward",
        "torch/_tensor.py:648 in backward",
    ]
    assert main_thread("") == []


@pytest.mark.parametrize(
    ("path", "what"),
    [
        ("/venv/torch/distributed/distributed_c10d.py", "collective"),
        ("/x/relight_trainer/peers.py", "collective"),
        ("/x/relight_trainer/stop.py", "collective"),
        ("/venv/torch/autograd/graph.py", "backward"),
        ("/venv/torch/nn/modules/linear.py", "code"),
        ("/venv/torch/utils/data/dataloader.py", "code"),
        ("/home/me/train.py", "code"),
    ],
)
def test_what_a_rank_is_at_shows_in_its_innermost_frame(path: str, what: str) -> None:
    assert doing([f'  File "{path}", line 1 in f', '  File "/venv/torch/distributed/x.py", line 1 in g']) == what
    assert doing([]) == ""


# -- the culprit


def stack(rank: int, doing: str = "collective", section: str = "train", step: int = 8, **more: Any) -> RankStack:
    given = {"silent": 10.0, "state": "S", "frames": ("f.py:1 in f",) if doing else (), **more}
    return RankStack(rank, section, step, doing=doing, **given)


def suspect(rank: int, *args: Any, **more: Any) -> Suspect:
    found = stack(rank, *args, **more)
    return Suspect(rank, rank, found.step, found)


def mute(rank: int, step: int = 8) -> Suspect:
    """Its agent does not answer."""
    return Suspect(rank, rank, step, None)


@pytest.mark.parametrize(
    "suspects",
    [
        pytest.param([suspect(0, "code"), suspect(1), suspect(2)], id="not in the collective"),
        pytest.param([suspect(0, "code"), suspect(1, "backward"), suspect(2, "backward")], id="before its backward"),
        pytest.param([suspect(0, "code", "data"), suspect(1, "backward"), suspect(2)], id="its data loader hangs"),
        pytest.param([suspect(0, step=7), suspect(1, step=8), suspect(2, step=8)], id="a step behind"),
        pytest.param(
            [suspect(0, "backward", step=7), suspect(1, "code", "data")], id="a step behind, wherever others are"
        ),
        pytest.param([suspect(0, "", state="T"), suspect(1, "code", step=7)], id="stopped"),
        pytest.param([suspect(0, ""), suspect(1, "backward", step=7)], id="does not answer"),
        pytest.param(
            [suspect(0, "", state="D"), mute(1, step=7)], id="a process that does not answer, before an agent"
        ),
        pytest.param([mute(0), suspect(1, step=7), suspect(2, "code")], id="its agent does not answer"),
        pytest.param([suspect(0, "code", "evaluation"), suspect(1, "code")], id="in another section"),
        pytest.param([suspect(0, "code", "checkpoint"), suspect(1, "code"), suspect(2)], id="its storage hangs"),
        pytest.param([suspect(0, silent=12.0), suspect(1, silent=10.0)], id="all wait: silent longest"),
        pytest.param([suspect(0), suspect(1)], id="all alike: the lowest rank"),
        pytest.param([suspect(0, "code")], id="alone"),
    ],
)
def test_rank_0_is_the_culprit(suspects: list[Suspect]) -> None:
    for order in permutations(suspects):
        assert culprit(order).rank == 0


# -- the job

LATE = AgentStall(generation=1, rank=0, section="train", step=10, since=NOW - 12)


def late(rank: int, step: int = 10, **changes: Any) -> AgentView:
    return busy(step, stall=replace(LATE, rank=rank, step=step), heard_at=NOW - 0.5, **changes)


def told(rank: int, doing: str, step: int = 10, command: str = "dump:1.1", **more: Any) -> AgentView:
    """Overdue, and it has sent its stacks."""
    return late(rank, step, stacks_id=command, stacks=(stack(rank, doing, step=step, **more),))


def job(*agents: AgentView | None, status: JobStatus | None = None, on_stall: str = "Restart") -> Any:
    views = [member(i, agent=a) for i, a in enumerate(agents)]
    return seen(status or running(), *views, spec=spec(health={"onStall": on_stall}), listening_since=NOW)


def asked(found: float = NOW - 1) -> JobStatus:
    return running(stall=StallStatus(generation=1, since=NOW - 12, found=found))


def test_all_are_asked_for_their_stacks_once_all_are_overdue() -> None:
    observed = job(late(0), late(1))
    status = after(observed)
    assert status.stall is not None
    assert (status.stall.collecting, status.stall.since, status.recovery) == (True, NOW - 12, None)
    assert wakeup(plan(observed, NOW)) == COLLECT_SECONDS
    for i in (0, 1):
        command = command_for(status, slot=i, incarnation=0, uid=f"u{i}")
        assert (command.id, command.op, command.generation) == ("dump:1.1", "dump", 1)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(busy(), id="one member may still go on"),
        pytest.param(busy(heard_at=NOW - AGENT_SILENT_SECONDS), id="it was heard a moment ago"),
        pytest.param(busy(stall=replace(LATE, generation=0)), id="it is overdue in another generation"),
        pytest.param(late(1, terminating_at=NOW - 1), id="it is told to end"),
        pytest.param(None, id="not heard of since this operator began"),
        pytest.param(outcome("failed", ExitCode.EXCEPTION), id="it has failed, which is another story"),
    ],
)
def test_it_is_no_stall_while_the_others_may_wait_for_one(other: AgentView | None) -> None:
    assert after(job(late(0), other)).stall is None


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(busy(heard_at=NOW - AGENT_SILENT_SECONDS - 1), id="its agent does not answer"),
        pytest.param(agent("Starting", heard_at=NOW - 99), id="it never started"),
        pytest.param(outcome("completed"), id="it has completed"),
    ],
)
def test_a_member_that_nobody_can_wait_for_does_not_hide_a_stall(other: AgentView) -> None:
    assert after(job(late(0), other)).stall is not None


def test_the_culprit_is_named_and_the_generation_ends_as_a_failure() -> None:
    observed = job(told(0, "backward"), told(1, "code"), status=asked())
    status = after(observed)
    stall, recovery = status.stall, status.recovery
    assert stall is not None
    assert recovery is not None
    assert (stall.rank, stall.slot, stall.member, stall.machine) == (1, 1, "job-1-0", "m")
    assert (stall.section, stall.step, stall.frames) == ("train", 10, ["f.py:1 in f"])
    assert stall.message == "rank 1 has made no progress for 12 s in train after step 10: it is at f.py:1 in f"
    assert (recovery.cause, recovery.since, recovery.loss) == ("Stall", NOW - 12, False)
    assert "Stalled" in reasons(plan(observed, NOW))
    assert command_for(status, slot=1, incarnation=0, uid="u1").id == "wait:1"


def test_a_stall_is_counted_once_and_the_next_generation_closes_it() -> None:
    observed = job(told(0, "backward"), told(1, "", state="T"), status=asked())
    status = after(observed)
    ends = [member(i, agent=outcome("failed", ExitCode.PEER_LOST)) for i in (0, 1)]
    judged = after(seen(status, *ends))
    assert judged.restarts.by_cause == {"Stall": 1}
    assert judged.restarts.counted == 1
    failure = judged.last_failure
    assert failure is not None
    assert (failure.cause, failure.exit_code, failure.rank, failure.member) == ("Stall", 71, 1, "job-1-0")
    assert failure.message.endswith("its process has been stopped")
    formed = after(seen(judged, *ends), NOW + 60)
    assert formed.world is not None
    assert formed.world.generation == 2
    assert formed.restarts.by_cause == {"Stall": 1}
    closed = after(seen(formed, *[member(i, agent=busy(generation=2)) for i in (0, 1)]), NOW + 61)
    assert closed.stall is not None
    assert closed.stall.over
    assert [c.status for c in closed.conditions if c.type == "Stalled"] == ["False"]


def test_an_exception_that_came_first_is_the_cause_all_the_same() -> None:
    observed = job(told(0, "backward"), told(1, "code"), status=asked(found=NOW + 1))
    status = after(observed, NOW + 2)
    ends = [member(0, agent=outcome("failed", ExitCode.OUT_OF_MEMORY)), member(1, agent=outcome("failed", 72))]
    assert after(seen(status, *ends), NOW + 3).restarts.by_cause == {"OutOfMemory": 1}


def test_who_does_not_answer_in_time_is_not_waited_for() -> None:
    answered, mum = told(0, "backward"), busy(heard_at=NOW - 60)
    early = after(job(answered, mum, status=asked(found=NOW - COLLECT_SECONDS + 1)))
    assert early.stall is not None
    assert early.stall.collecting
    status = after(job(answered, mum, status=asked(found=NOW - COLLECT_SECONDS)))
    assert status.stall is not None
    assert status.stall.rank == 1
    assert status.stall.message.endswith("its agent does not answer")
    assert status.recovery is not None


def test_stacks_of_an_earlier_stall_are_no_answer() -> None:
    status = asked()
    assert status.stall is not None
    status.stall.number = 2
    again = after(job(told(0, "code"), told(1, "code"), status=status))
    assert again.stall is not None
    assert again.stall.collecting


def test_a_stall_that_ends_by_itself_is_forgotten() -> None:
    status = after(job(busy(11, heard_at=NOW), late(1), status=asked()))
    assert status.stall is not None
    assert (status.stall.over, status.stall.ended, status.recovery) == (True, False, None)
    assert command_for(status, slot=0, incarnation=0, uid="u0").id == "run:1"
    again = after(job(late(0), late(1), status=status))
    assert again.stall is not None
    assert again.stall.command == "dump:1.2"


def test_a_stall_may_only_be_reported() -> None:
    status = after(job(told(0, "code"), told(1, "backward"), status=asked(), on_stall="Report"))
    assert status.stall is not None
    assert (status.stall.rank, status.recovery, status.phase) == (0, None, "Running")
    assert [c.status for c in status.conditions if c.type == "Stalled"] == ["True"]
    assert command_for(status, slot=0, incarnation=0, uid="u0").id == "run:1"
    quiet = plan(job(told(0, "code"), told(1, "backward"), status=status, on_stall="Report"), NOW + 60)
    assert "Stalled" not in reasons(quiet)
    moves = after(job(busy(11), busy(11), status=status, on_stall="Report"), NOW + 60)
    assert [(c.status, c.reason) for c in moves.conditions if c.type == "Stalled"] == [("False", "MovesAgain")]
    changed = after(job(told(0, "code"), told(1, "backward"), status=status), NOW + 60)
    assert changed.recovery is not None, "onStall counts at once"


def test_a_stall_may_fail_the_job() -> None:
    observed = job(told(0, "code"), told(1, "backward"), status=asked(), on_stall="Fail")
    status = after(observed)
    assert (status.phase, [c.reason for c in status.conditions if c.type == "Failed"]) == ("Failed", ["Stall"])
    assert status.last_failure is not None
    assert status.last_failure.exit_code == ExitCode.STALL
    assert command_for(status, slot=0, incarnation=0, uid="u0").code == 71
    assert created(plan(observed, NOW)) == []


def test_a_loss_outranks_a_stall() -> None:
    status = after(
        seen(asked(), member(0, agent=told(0, "backward")), replace(member(1), agent=told(1, "code"), deleting=True))
    )
    assert status.stall is not None
    assert status.stall.over


def test_a_new_operator_that_has_not_heard_everybody_takes_nothing_back() -> None:
    status = after(job(told(0, "code"), told(1, "backward"), status=asked(), on_stall="Report"))
    assert after(job(None, told(1, "backward"), status=status, on_stall="Report")) == status
    collecting = after(job(None, late(1), status=asked()))
    assert collecting.stall is not None
    assert (collecting.stall.over, collecting.stall.ended) == (True, False)
    again = after(job(late(0), late(1), status=collecting))
    assert again.stall is not None
    assert again.stall.command == "dump:1.2"


def test_the_next_generation_is_told_how_patient_to_be() -> None:
    ready = [member(i, agent=agent("Ready")) for i in (0, 1)]
    health = {"startup": "10m", "heartbeat": "5s", "noProgress": "1m30s"}
    status = after(seen(fresh(), *ready, spec=spec(health=health)))
    assert status.world is not None
    assert status.world.dump()["health"] == {"startup": 600.0, "heartbeat": 5.0, "noProgress": 90.0}
    assert Health.from_world(status.world.dump()["health"]) == Health(600.0, 5.0, 90.0)
