"""Members that have ended: each is counted in the write that raises its slot's incarnation, so exactly once."""

from dataclasses import replace as changed

from relight_agent.exits import Cause, Class
from relight_operator.api.status import TERMINAL, Failure, SlotStatus
from relight_operator.core import blame, endings, failures, worlds
from relight_operator.core.draft import Draft
from relight_operator.core.observed import MemberEnd, SlotView
from relight_operator.core.slots import replace
from relight_operator.core.verdict import rule_for

# Members in a row that could not start: the back-off doubles up to the maximum, then it is over.
START_BACKOFF_SECONDS = 1.0
START_BACKOFF_MAX_SECONDS = 60.0
MAX_FAILED_STARTS = 5
# Ends that somebody outside the job brought about: they say nothing of whether it can start.
TAKEN = frozenset(
    {
        Cause.PREEMPTED,
        Cause.DELETED,
        Cause.STOPPED,
        Cause.EVICTED,
        Cause.MACHINE_SHUTDOWN,
        Cause.MACHINE_PRESSURE,
    }
)


def lose(draft: Draft) -> None:
    """Give up every member that has ended, or that is gone without a trace."""
    for slot in draft.status.slots:
        member = draft.member(slot)
        if slot.uid is None or (member is not None and member.alive):
            continue
        if has_done_its_part(draft, slot):
            continue  # the rest of its world decides
        lose_one(draft, slot, member, end_of(member, draft.now))
        if draft.status.phase in TERMINAL:
            return


def has_done_its_part(draft: Draft, slot: SlotStatus) -> bool:
    """Whether the slot's member has completed the generation that runs."""
    status = draft.status
    return status.world is not None and slot.completed == status.world.generation and status.recovery is None


def end_of(member: SlotView | None, now: float) -> MemberEnd:
    """How a member that does not live any more has ended."""
    if member is None or member.end is None:
        return MemberEnd(Cause.VANISHED, Class.DISRUPTION, now, message="it is gone and left no word")
    if member.end.klass is Class.COMPLETED:
        message = "ended with 0 before the job had completed"
        return changed(member.end, cause=Cause.EXCEPTION, klass=Class.COUNTED, message=message)
    return member.end


def lose_one(draft: Draft, slot: SlotStatus, member: SlotView | None, end: MemberEnd) -> None:
    """Give up the slot's member, and count that."""
    heard = member.agent if member is not None else None
    name, machine = draft.name(slot.slot, slot.incarnation), slot.machine
    in_world = draft.in_world(slot.uid)
    if in_world:
        # Who is told to go trains on meanwhile, and the first sign of its end was that it was told.
        since = heard.stopping_at if heard is not None and heard.stopping_at is not None else end.at
        worlds.over(draft, end.cause, since, end.message, loss=True, member=name, machine=machine)
    could_start = in_world or end.cause in TAKEN or (heard is not None and end.klass is not Class.MACHINE)
    slot.failed_starts = 0 if could_start else slot.failed_starts + 1
    replace(slot, end)
    slot.not_before = end.at + _start_backoff(slot.failed_starts) if slot.failed_starts else 0.0
    ruled = end.klass is Class.MACHINE and rule_for(draft.seen.spec.retry.rules, end.cause, end.exit_code) is not None
    if blame.is_to_blame(end.cause, end.klass):
        blame.blame(draft, machine, end.at)
    free = end.klass in (Class.DISRUPTION, Class.MACHINE, Class.COLLATERAL) and not ruled
    draft.event("MemberLost", f"{name}: {end.cause}" + (f": {end.message}" if end.message else ""), warning=not free)
    failure = Failure(
        time=end.at,
        cause=str(end.cause),
        machine=machine,
        member=name,
        rank=end.rank,
        exit_code=end.exit_code,
        message=end.message,
    )
    if free:
        count_disruption(draft, end.cause)
    else:
        recovery = draft.status.recovery if in_world else None
        backoff = failures.count(draft, end.cause, end.klass, failure, recovery=recovery, code=end.exit_code)
        if not in_world:  # else the next generation waits, and its member may start meanwhile
            slot.not_before = max(slot.not_before, draft.now + backoff)
    if slot.failed_starts >= MAX_FAILED_STARTS and not _can_do_without(draft) and draft.status.phase not in TERMINAL:
        message = f"slot {slot.slot}: {slot.failed_starts} members in a row ended before they were ready: "
        endings.fail(draft, "StartFailed", message + (end.message or str(end.cause)), failure)


def count_disruption(draft: Draft, cause: Cause) -> None:
    """Count one member that the job has lost through no fault of its own."""
    restarts = draft.status.restarts
    restarts.total += 1
    restarts.disruptions += 1
    restarts.by_cause[str(cause)] = restarts.by_cause.get(str(cause), 0) + 1


def _can_do_without(draft: Draft) -> bool:
    """Whether the job goes on though a slot's members cannot start: without its spare, or as a smaller world."""
    status, elastic = draft.status, draft.seen.spec.elastic
    if status.world is not None and status.recovery is None:
        return True
    heard = [s for s in status.slots if (m := draft.member(s)) is not None and m.alive and m.agent is not None]
    least = draft.seen.spec.nodes if elastic is None else elastic.min_nodes
    return len(heard) >= least


def _start_backoff(failed_starts: int) -> float:
    return float(min(START_BACKOFF_SECONDS * 2.0 ** min(failed_starts - 1, 30), START_BACKOFF_MAX_SECONDS))
