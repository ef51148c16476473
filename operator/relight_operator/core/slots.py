"""The slots and who holds them."""

from relight_operator.api.status import ExitStatus, JobStatus, SlotStatus, SuccessorStatus
from relight_operator.core.draft import Draft
from relight_operator.core.observed import MemberEnd


def start(draft: Draft) -> None:
    """A job's first look: its slots, and the clock of its active time."""
    status = draft.status
    if status.start_time is None:
        status.start_time = draft.now
    if status.active_since is None and status.phase != "Suspended":
        status.active_since = draft.now
    known = {s.slot for s in status.slots}
    status.slots += [SlotStatus(slot=i) for i in range(draft.seen.spec.nodes) if i not in known]


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
