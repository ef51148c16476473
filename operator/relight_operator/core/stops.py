"""A stop of the whole job, and going on after it: every member saves and ends, and nothing of that is counted.

Wanted from outside it ends in Suspended; for want of machines (holding.py) in Pending, until the next try.
"""

from relight_agent.exits import Cause, Class
from relight_operator.api.status import TERMINAL, RecoveryStatus
from relight_operator.core import endings, failures, holding
from relight_operator.core.draft import Draft
from relight_operator.core.observed import MemberEnd
from relight_operator.core.slots import let_successors_go, replace


def stop_or_resume(draft: Draft) -> None:
    """Sets `status.stop` when the members are to go, says so when they all have, and clears it to go on."""
    status = draft.status
    wanted = draft.seen.stop or ("suspend" if draft.seen.spec.suspend else None)
    if wanted is not None and status.stop is None:
        failures.judge_at_stop(draft)
        if status.phase in TERMINAL:
            return
        status.stop = wanted
        status.stopping_since = draft.now
        let_successors_go(status)
        draft.event("Stopping", "every member saves its state and ends")
    if status.stop is None or any((m := draft.member(s)) is not None and m.alive for s in status.slots):
        return
    if wanted is None and holding.is_releasing(draft):
        _try_again(draft)
    elif status.phase != "Suspended":
        _suspend(draft)
    elif wanted is None:
        _resume(draft)


def _try_again(draft: Draft) -> None:
    hold = draft.status.hold
    assert hold is not None
    if hold.until is None:
        _interrupt(draft)
        _give_up_members(draft)
        holding.wait(draft)
    elif holding.is_due(draft):
        hold.until = None
        _resume(draft)


def _suspend(draft: Draft) -> None:
    status = draft.status
    _interrupt(draft)
    status.phase, status.hold = "Suspended", None
    draft.condition("Suspended", "True", "Stopped", "all members have ended; resuming starts from the last checkpoint")
    draft.event("Suspended", "all members have ended")


def _interrupt(draft: Draft) -> None:
    """The present world is over, through no fault of its own, and time does not count until the job goes on."""
    status = draft.status
    if status.world is not None:
        status.recovery = RecoveryStatus(
            generation=status.world.generation,
            since=draft.now,
            noticed=draft.now,
            cause=str(Cause.SUSPENDED),
            judged=True,
        )
    endings.pause_clock(draft)


def _resume(draft: Draft) -> None:
    status = draft.status
    if status.phase == "Suspended":
        draft.condition("Suspended", "False", "Resumed", "")
    status.stop = status.stopping_since = None
    status.phase = "Pending"
    status.active_since = draft.now
    draft.event("Resuming", "members are created again")
    _give_up_members(draft)


def _give_up_members(draft: Draft) -> None:
    for slot in draft.status.slots:
        if slot.uid is None:
            continue
        member = draft.member(slot)
        end = member.end if member is not None and member.end is not None else None
        at, code, message = (end.at, end.exit_code, end.message) if end is not None else (draft.now, None, "")
        replace(slot, MemberEnd(Cause.SUSPENDED, Class.DISRUPTION, at, code, message))
