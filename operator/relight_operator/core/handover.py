"""Members that will leave while they still live: their successors are made ready meanwhile, and take over.

It trains on until its successor is ready: then the generation stops at an agreed step, and the next one has the successor
in it. Who has been told to end (SIGTERM, a deletion) stops by itself when its time becomes short, and is asked to where
waiting is of no use. Who is only announced to go trains on for as long as it takes: an announcement that is taken back
costs the successor, and nothing is counted.

A member that hangs up while a generation is over has most likely ended, which the backend says a second or more later:
its successor is made ready from then on, and takes over as after any end.
"""

from relight_agent.exits import CAUSE_CLASS, Cause
from relight_operator.api.status import SlotStatus
from relight_operator.core import blame, losses, worlds
from relight_operator.core.draft import Draft, outcome_in
from relight_operator.core.observed import MemberEnd, SlotView
from relight_operator.core.slots import announced, replace

# What a member that will be killed keeps of its time, to stop and to save.
HURRY_SECONDS = 10.0
# A successor that ended before it was needed: the next one is not created sooner.
RETRY_SECONDS = 10.0
# An agent whose connection has broken asks anew at once, if it lives.
ASKS_ANEW_SECONDS = 0.2


def leaving(member: SlotView | None) -> Cause | None:
    """Why a member that lives is going to end; None for one that stays, or has ended."""
    if member is None or not member.alive:
        return None
    if member.leaving is not None:
        return member.leaving
    return Cause.STOPPED if member.told else None


def prepare(draft: Draft) -> None:
    """Announce the successors of members that are leaving; let go those of members that stay after all."""
    for slot in draft.status.slots:
        member = draft.member(slot)
        if slot.successor is not None:
            _look_after(draft, slot, member)
        elif (why := _goes(draft, member)) and not losses.has_done_its_part(draft, slot):
            slot.successor = announced(slot)
            names = draft.name(slot.slot, slot.incarnation), draft.name(slot.slot, slot.successor.incarnation)
            draft.event("Leaving", f"{names[0]} {why}; {names[1]} is made ready meanwhile")


def ask(draft: Draft) -> None:
    """Have the running generation stop once somebody can take over from a leaving member, or none will be there in time."""
    status, world = draft.status, draft.status.world
    if world is None or status.recovery is not None or status.handover in {world.generation, worlds.IN_VAIN}:
        return
    # A plain command cannot stop at an agreed step; and who has not restored yet cannot be asked.
    if draft.seen.spec.trainer.command is not None or world.resumed_from_step is None:
        return
    if any(s.completed == world.generation for s in status.slots):
        return
    seats = [(slot, m) for slot in status.slots if (m := draft.member(slot)) is not None and draft.in_world(m.uid)]
    nobody_stays = all(member.told for _, member in seats)
    for slot, member in seats:
        cause = leaving(member)
        if cause is None or (member.agent is not None and member.agent.state == "Stopping"):
            continue
        why = "its successor is ready" if _heir(draft, slot) is not None else ""
        if not why and member.told:
            why = "all members leave" if nobody_stays else _hurry(draft, slot, member, cause)
        if why:
            status.handover = world.generation
            draft.event("HandingOver", f"{draft.name(slot.slot, slot.incarnation)}: {cause}; {why}")
            return


def hand_over(draft: Draft) -> None:
    """Once a generation has stopped: the slots of leaving members go to the successors that are ready."""
    recovery = draft.status.recovery
    if draft.status.world is not None and (recovery is None or not recovery.judged):
        return
    for slot in draft.status.slots:
        member = draft.member(slot)
        cause = leaving(member)
        heir = _heir(draft, slot)
        if member is None or cause is None or heir is None or not _is_released(draft, slot, member):
            continue
        old = draft.name(slot.slot, slot.incarnation)
        stopping = member.agent.stopping_at if member.agent is not None else None
        if recovery is not None and stopping is not None and draft.in_world(member.uid):
            recovery.since = min(recovery.since, stopping)
        if recovery is not None and draft.in_world(member.uid):
            recovery.losses += 1
            if recovery.cause == Cause.STOPPED.value:  # it was for this one that all stopped
                recovery.cause, recovery.member, recovery.machine = str(cause), old, slot.machine
        losses.count_disruption(draft, cause)
        new = draft.name(slot.slot, heir.incarnation)
        replace(slot, MemberEnd(cause, CAUSE_CLASS[cause], draft.now, message=f"{new} has taken over"))
        draft.event("MemberLost", f"{old}: {cause}: {new} has taken over")


def _hurry(draft: Draft, slot: SlotStatus, member: SlotView, cause: Cause) -> str:
    """Why a member that has been told to end is not to train on until its successor is ready; "" where it may."""
    heir = draft.member(slot.successor) if slot.successor is not None else None
    if cause is Cause.PREEMPTED and heir is not None and heir.unplaced_since is not None:
        return "somebody waits for its machine, and there is none for a successor"
    if member.gone_by is None:
        return ""
    left = member.gone_by - HURRY_SECONDS - draft.now
    if left > 0:
        draft.wakeups.append(left)
        return ""
    return "its time is short"


def _look_after(draft: Draft, slot: SlotStatus, member: SlotView | None) -> None:
    successor = slot.successor
    assert successor is not None
    name = draft.name(slot.slot, successor.incarnation)
    heir = draft.member(successor)
    if successor.uid is not None and (heir is None or not heir.alive):
        slot.successor = None
        slot.not_before = draft.now + RETRY_SECONDS
        end = losses.end_of(heir, draft.now)
        if blame.is_to_blame(end.cause, end.klass):
            blame.blame(draft, successor.machine, end.at)
        draft.event("SuccessorLost", f"{name}: {end.cause}" + (f": {end.message}" if end.message else ""), warning=True)
    elif member is not None and not _goes(draft, member) and not _may_have_hung_up(draft, member):
        slot.successor = None
        draft.event("Staying", f"{draft.name(slot.slot, slot.incarnation)} stays after all: {name} is let go")


def _goes(draft: Draft, member: SlotView | None) -> str:
    """What is to be told of a member that will end, or most likely has; "" for one that stays."""
    if (cause := leaving(member)) is not None:
        return f"is leaving: {cause}"
    hung_up_at = member.agent.hung_up_at if member is not None and member.alive and member.agent is not None else None
    if member is None or hung_up_at is None or draft.status.recovery is None or not draft.in_world(member.uid):
        return ""
    left = hung_up_at + ASKS_ANEW_SECONDS - draft.now
    if left > 0:
        draft.wakeups.append(left)
        return ""
    return "is not heard any more"


def _may_have_hung_up(draft: Draft, member: SlotView) -> bool:
    """Of one not heard since the operator's start nothing is known; a recovery does not end without having heard it."""
    return member.alive and member.agent is None and draft.status.recovery is not None and draft.in_world(member.uid)


def _heir(draft: Draft, slot: SlotStatus) -> SlotView | None:
    """The successor, once it can take the slot over."""
    heir = draft.member(slot.successor) if slot.successor is not None else None
    return heir if heir is not None and worlds.can_run(heir) and leaving(heir) is None else None


def _is_released(draft: Draft, slot: SlotStatus, member: SlotView) -> bool:
    """Whether `member` may go: it has no part in the generation that has ended, or what it holds is held elsewhere."""
    world = draft.status.world
    if world is None or not draft.in_world(member.uid):
        return True
    outcome = outcome_in(member, world)
    if outcome is None or outcome.kind != "stopped" or not outcome.saved:
        return False
    committed = draft.status.checkpoint.step
    if committed is not None and committed >= outcome.step:
        return True
    for other in draft.status.slots:
        holder = draft.member(other)
        if other is slot or holder is None or not draft.in_world(holder.uid) or holder.told:
            continue
        theirs = outcome_in(holder, world)
        if theirs is not None and theirs.kind == "stopped" and theirs.saved:
            return True
    return False
