"""The slots and who holds them: `nodes` for the world and `spares` beside it, whichever they are."""

from relight_agent.exits import Cause, Class
from relight_operator.api.status import ExitStatus, JobStatus, SlotStatus, SuccessorStatus
from relight_operator.core.draft import Draft
from relight_operator.core.observed import MemberEnd

# A script without the client never says that it has restored.
RESTORE_SECONDS = 60.0


def start(draft: Draft) -> None:
    """A job's first look, or one after its `nodes` have grown: its slots, and the clock of its active time."""
    status, spec = draft.status, draft.seen.spec
    if status.start_time is None:
        status.start_time = draft.now
    if status.nodes_at_start == 0:
        status.nodes_at_start = spec.nodes
    away = status.phase == "Suspended" or (status.hold is not None and status.hold.until is not None)
    if status.active_since is None and not away:
        status.active_since = draft.now
    wanted = spec.nodes + spec.spares
    for slot in status.slots:
        if slot.released and len(wanted_slots(draft)) < wanted:
            slot.released, slot.state = False, "Pending"
            slot.failed_starts, slot.not_before = 0, 0.0
    known = {s.slot for s in status.slots}
    missing = wanted - len(wanted_slots(draft))
    fresh = (number for number in range(len(known) + wanted) if number not in known)
    status.slots += [SlotStatus(slot=next(fresh)) for _ in range(missing)]


def wanted_slots(draft: Draft) -> list[SlotStatus]:
    return [s for s in draft.status.slots if not s.released]


def release(draft: Draft) -> None:
    """Give up the slots that the job has too many of, the present world's apart: those it leaves first.

    Of the rest, those that cannot take part yet go first, then those of the highest numbers.
    """
    spec = draft.seen.spec
    wanted = wanted_slots(draft)
    surplus = len(wanted) - spec.nodes - spec.spares
    if surplus <= 0 or _may_be_needed(draft):
        return
    known = {(s.slot, p.incarnation) for s in draft.seen.status.slots for p in (s, s.successor) if p is not None}
    idle = [s for s in wanted if not draft.in_world(s.uid)]
    for slot in sorted(idle, key=lambda s: (_ready(draft, s), -s.slot))[:surplus]:
        name = draft.name(slot.slot, slot.incarnation)
        slot.successor = None
        if (slot.slot, slot.incarnation) in known:  # else nobody can have created it
            replace(slot, MemberEnd(Cause.RESIZED, Class.DISRUPTION, draft.now, message="the job has become smaller"))
        slot.released, slot.state = True, "Released"
        draft.event("MemberReleased", f"{name}: the job wants {spec.nodes} members and {spec.spares} spares")


def _may_be_needed(draft: Draft) -> bool:
    """Whether the present world has yet to restore: who was in the last one may alone hold its state."""
    world = draft.status.world
    if world is None or draft.status.recovery is not None or world.resumed_from_step is not None:
        return False
    left = (world.formed_at or 0.0) + RESTORE_SECONDS - draft.now
    if left > 0:
        draft.wakeups.append(left)
    return left > 0


def _ready(draft: Draft, slot: SlotStatus) -> bool:
    member = draft.member(slot)
    return member is not None and member.agent is not None and member.agent.state == "Ready"


def bind(draft: Draft) -> None:
    """Record the uids of members that have been created, and the machines they have come to."""
    members = {(m.slot, m.incarnation): m for m in draft.seen.members}
    for slot in draft.status.slots:
        for place in (slot, slot.successor):
            member = members.get((slot.slot, place.incarnation)) if place is not None else None
            if place is None or member is None:
                continue
            if place.uid is None:
                place.uid = member.uid
            if place.uid == member.uid and member.machine:
                place.machine = member.machine


def replace(slot: SlotStatus, end: MemberEnd) -> None:
    """The slot's member is given up: from the write of this on, the slot is its successor's, or waits for its next one."""
    slot.exit = ExitStatus(
        incarnation=slot.incarnation, cause=str(end.cause), exit_code=end.exit_code, message=end.message, time=end.at
    )
    heir = slot.successor or announced(slot)
    slot.incarnation, slot.uid, slot.machine = heir.incarnation, heir.uid, heir.machine
    slot.successor = None
    slot.completed = None
    slot.state = "Pending"


def announced(slot: SlotStatus) -> SuccessorStatus:
    """The slot's next incarnation, whose number nobody has had before. It is created once this has been written."""
    slot.last_incarnation = max(slot.incarnation, slot.last_incarnation) + 1
    return SuccessorStatus(incarnation=slot.last_incarnation)


def is_successor(slot: SlotStatus, incarnation: int, uid: str) -> bool:
    """Whether that member is the one that makes itself ready to take the slot over."""
    heir = slot.successor
    return heir is not None and heir.incarnation == incarnation and heir.uid in {None, uid}


def let_successors_go(status: JobStatus) -> None:
    """Nobody is to be replaced any more: who makes itself ready to take a slot over is not wanted."""
    for slot in status.slots:
        slot.successor = None
