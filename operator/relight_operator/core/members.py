"""Which members to create and which to delete: only ever by what an acknowledged status says (write-ahead)."""

from relight_operator.api.durations import seconds
from relight_operator.api.status import TERMINAL, SlotStatus
from relight_operator.core import blame, code
from relight_operator.core.actions import CreateMember, DeleteMember
from relight_operator.core.draft import Draft
from relight_operator.core.observed import SlotView
from relight_operator.core.slots import is_successor

# Who has been told to end, and has not done so after this long beyond its time, is deleted.
LINGER_SECONDS = 10.0


def creates(draft: Draft) -> list[CreateMember]:
    """The members that the acknowledged status announces and that the status to be written still waits for."""
    status, acknowledged = draft.status, draft.seen.status
    if status.phase in TERMINAL or status.stop is not None or acknowledged.stop is not None:
        return []
    wanted = {w for s in status.slots for w in _uncreated(s)}
    commit = code.commit_to_fetch(draft)
    made = []
    for slot in acknowledged.slots:
        for number, incarnation in _uncreated(slot):
            if (number, incarnation) not in wanted or not code.may_create(draft, number, incarnation):
                continue
            if slot.not_before > draft.now:
                draft.wakeups.append(slot.not_before - draft.now)
            else:
                made.append(CreateMember(number, incarnation, blame.avoided(draft), commit))
    return made


def _uncreated(slot: SlotStatus) -> list[tuple[int, int]]:
    places = () if slot.released else (slot, slot.successor)
    return [(slot.slot, p.incarnation) for p in places if p is not None and p.uid is None]


def deletes(draft: Draft) -> list[DeleteMember]:
    """Members that no slot wants any more, and those that have not ended though they were told to."""
    acknowledged = draft.seen.status
    slots = {s.slot: s for s in acknowledged.slots}
    grace = seconds(draft.seen.spec.disruption.grace_period)
    made = []
    for member in draft.seen.members:
        if not member.alive or member.deleting or not slots:
            continue
        slot = slots.get(member.slot)
        at = _delete_at(draft, member, slot, grace) if slot is not None else draft.now
        if at is None:
            continue
        if at <= draft.now:
            made.append(DeleteMember(member.slot, member.incarnation, member.uid, grace))
        else:
            draft.wakeups.append(at - draft.now)
    return made


def _delete_at(draft: Draft, member: SlotView, slot: SlotStatus, grace: float) -> float | None:
    """The instant from which `member` is to be deleted; None: it may stay."""
    acknowledged = draft.seen.status
    if member.incarnation > max(slot.incarnation, slot.last_incarnation):
        return None  # a newer one than this status knows of: it is the status that is old
    if member.incarnation > slot.incarnation:
        return None if is_successor(slot, member.incarnation, member.uid) else draft.now
    if member.incarnation < slot.incarnation or slot.uid not in (None, member.uid):
        return draft.now
    if acknowledged.completion_time is not None and acknowledged.phase in TERMINAL:
        return acknowledged.completion_time + LINGER_SECONDS
    if acknowledged.stop is not None and acknowledged.stopping_since is not None:
        if not member.machine:
            return draft.now  # it has nothing to save
        # Who has completed does not leave for a stop: it waits to hear that the job has. Here it never will.
        return draft.now if _waits_in_vain(draft, slot) else acknowledged.stopping_since + grace + LINGER_SECONDS
    return None


def _waits_in_vain(draft: Draft, slot: SlotStatus) -> bool:
    world = draft.seen.status.world
    if world is None or slot.completed != world.generation:
        return False
    open_slots = [s for s in draft.seen.status.slots if draft.in_world(s.uid) and s.completed != world.generation]
    return any((m := draft.member(s)) is None or not m.alive for s in open_slots)
