"""Short ways to say what `plan()` sees, for tests that are tables."""

from dataclasses import replace
from typing import Any

from relight_agent.exits import CAUSE_CLASS, Cause
from relight_operator.api.job import JobSpec
from relight_operator.api.status import JobStatus, MemberStatus, RecoveryStatus, SlotStatus, WorldStatus
from relight_operator.core.actions import Action, CreateMember, DeleteMember, EmitEvent, RequeueAfter, WriteStatus
from relight_operator.core.observed import AgentOutcome, AgentProgress, AgentView, MemberEnd, Observed, SlotView
from relight_operator.core.plan import plan

NOW = 1000.0
HASH = "c0ffee"


def spec(**changes: Any) -> JobSpec:
    return JobSpec.model_validate({"nodes": 2, "trainer": {"script": ["train.py"]}, **changes})


def fresh(**changes: Any) -> JobStatus:
    """Two slots, both with a living member, and no world yet."""
    slots = [SlotStatus(slot=i, uid=f"u{i}", state="Ready", machine="m") for i in range(2)]
    return JobStatus(phase="Starting", slots=slots, start_time=0.0, active_since=0.0).model_copy(update=changes)


def running(**changes: Any) -> JobStatus:
    """Generation 1 of two members, at step 10."""
    world = WorldStatus(
        generation=1,
        run_id="job-1-u0",
        master_slot=0,
        master_address="a0",
        master_port=1,
        members=[MemberStatus(rank=i, slot=i, uid=f"u{i}", address=f"a{i}") for i in range(2)],
        resumed_from_step=0,
        resumed_kind="scratch",
        recovered=True,
    )
    status = fresh(phase="Running", world=world)
    status.goodput.reached_step = status.goodput.executed_steps = 10
    return status.model_copy(update=changes)


def recovering(**changes: Any) -> JobStatus:
    """Slot 1's member of generation 1 was lost; the loss is counted, the next incarnation is there as u9."""
    status = running(phase="Recovering")
    status.slots[1] = SlotStatus(slot=1, incarnation=1, uid="u9", state="Ready", machine="m")
    status.recovery = RecoveryStatus(generation=1, since=900.0, cause="MachineLost", loss=True, judged=True).model_copy(
        update=changes
    )
    return status


def member(slot: int, uid: str | None = None, incarnation: int = 0, **changes: Any) -> SlotView:
    """A living member. `agent=None`: not heard of."""
    view = SlotView(slot, incarnation, uid or f"u{slot}", machine="m", address=f"a{slot}", agent=agent())
    return replace(view, **changes)


def agent(state: str = "Ready", generation: int = 0, **changes: Any) -> AgentView:
    view = AgentView(state=state, generation=generation, port=29500, config_hash=HASH, torch="2.13.0")
    return replace(view, **changes)


def busy(step: int = 10, generation: int = 1, **changes: Any) -> AgentView:
    """An agent whose workers train."""
    progress = AgentProgress(generation, step, total_steps=100, resumed_from=0, first_step_at=1.0)
    return agent("Running", generation, furthest_step=step, progress=progress, **changes)


def outcome(kind: str, code: int = 0, generation: int = 1, step: int = 10, **changes: Any) -> AgentView:
    """An agent whose generation has ended."""
    ended = AgentOutcome(generation, kind, code, step=step, at=NOW - 1, message="why")
    progress = AgentProgress(generation, step, total_steps=100, resumed_from=0, first_step_at=1.0)
    return agent("Ready", generation, furthest_step=step, outcome=ended, progress=progress, **changes)


def ended(cause: Cause, code: int | None = None, at: float = NOW - 1) -> MemberEnd:
    return MemberEnd(cause, CAUSE_CLASS[cause], at, code, "gone")


def seen(status: JobStatus, *members: SlotView, **changes: Any) -> Observed:
    return replace(Observed("job", spec(), status, members, config_hash=HASH), **changes)


def after(observed: Observed, now: float = NOW) -> JobStatus:
    """The status as it is once the plan has been carried out."""
    return next((a.status for a in plan(observed, now) if isinstance(a, WriteStatus)), observed.status)


def created(actions: tuple[Action, ...]) -> list[tuple[int, int]]:
    return [(a.slot, a.incarnation) for a in actions if isinstance(a, CreateMember)]


def deleted(actions: tuple[Action, ...]) -> list[str]:
    return [a.uid for a in actions if isinstance(a, DeleteMember)]


def reasons(actions: tuple[Action, ...]) -> list[str]:
    return [a.reason for a in actions if isinstance(a, EmitEvent)]


def wakeup(actions: tuple[Action, ...]) -> float | None:
    return next((a.seconds for a in actions if isinstance(a, RequeueAfter)), None)
