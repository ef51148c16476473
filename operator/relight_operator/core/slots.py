"""The slots and who holds them."""

from relight_operator.api.status import ExitStatus, SlotStatus
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
        member = members.get((slot.slot, slot.incarnation))
        if member is None:
            continue
        if slot.uid is None:
            slot.uid = member.uid
        if slot.uid == member.uid and member.machine:
            slot.machine = member.machine


def replace(slot: SlotStatus, end: MemberEnd) -> None:
    """The slot's member is given up: from the write of this on, the slot waits for its next incarnation."""
    slot.exit = ExitStatus(
        incarnation=slot.incarnation, cause=str(end.cause), exit_code=end.exit_code, message=end.message, time=end.at
    )
    slot.incarnation += 1
    slot.uid = None
    slot.machine = ""
    slot.completed = None
    slot.state = "Pending"
