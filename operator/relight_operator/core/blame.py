"""Machines that were to blame for members' ends: new members stay away from those that were it too often.

What a user's code raises follows the code to every machine and says nothing of this one. What is held against a machine:
it said that it cannot run the job, a member was killed there from outside, it was lost, a worker stalled there, or died
without an exception of its own. A file that is missing, `sys.exit`, a server that does not answer are none of these.
"""

from relight_agent.exits import Cause, Class, Manner
from relight_operator.api.durations import seconds
from relight_operator.api.job import AvoidMachines
from relight_operator.api.status import BlamedMachine, SlotStatus, SuccessorStatus
from relight_operator.core.draft import Draft
from relight_operator.core.slots import announced

Place = SlotStatus | SuccessorStatus
MAX_MACHINES = 32  # in status: the latest to blame
# A member that has found no machine for so long may come to one that is avoided. An autoscaler needs as long for a new one.
PATIENCE_SECONDS = 120.0


def is_to_blame(cause: Cause, klass: Class, manner: Manner = Manner.UNKNOWN) -> bool:
    """Whether such an end is held against the machine."""
    if klass is Class.MACHINE or cause in (Cause.MACHINE_LOST, Cause.STALL):
        return True
    return cause is Cause.EXCEPTION and manner is Manner.DIED


def blame(draft: Draft, machine: str, at: float) -> None:
    """Hold one end against `machine`, and say so where it is avoided from now on."""
    if not machine:
        return
    status, limits = draft.status, draft.seen.spec.retry.avoid_machines
    known = next((m for m in status.blamed_machines if m.name == machine), BlamedMachine(name=machine))
    was_avoided = _is_avoided(known, limits, draft.now)
    times = [*known.times, at][-limits.after_failures :]
    blamed = BlamedMachine(name=machine, times=times)
    others = [m for m in status.blamed_machines if m.name != machine]
    status.blamed_machines = [*others, blamed][-MAX_MACHINES:]
    if not was_avoided and _is_avoided(blamed, limits, draft.now):
        text = f"{machine}: to blame for {len(times)} ends within {limits.for_}; new members stay away from it for {limits.for_}"
        draft.event("MachineAvoided", text, warning=True)


def avoided(draft: Draft) -> tuple[str, ...]:
    """The machines to which no new member is to come, in the order of their names."""
    limits = draft.seen.spec.retry.avoid_machines
    return tuple(sorted(m.name for m in draft.status.blamed_machines if _is_avoided(m, limits, draft.now)))


def forgive(draft: Draft) -> None:
    """Forget what is too long ago, and keep the condition true to what is left."""
    status, limits = draft.status, draft.seen.spec.retry.avoid_machines
    span = seconds(limits.for_)
    kept = [
        m.model_copy(update={"times": [t for t in m.times if t > draft.now - span]}) for m in status.blamed_machines
    ]
    if any(m.times != k.times for m, k in zip(status.blamed_machines, kept, strict=True)):
        status.blamed_machines = [m for m in kept if m.times]
    names = avoided(draft)
    there = next((c for c in status.conditions if c.type == "MachinesAvoided"), None)
    if names:
        message = f"new members stay away from {', '.join(names)}"
        draft.condition("MachinesAvoided", "True", "ToBlame", message)
        ends = [m.times[0] + span for m in status.blamed_machines if m.name in names]
        draft.wakeups.append(max(0.0, min(ends) - draft.now))
    elif there is not None and there.status == "True":
        draft.condition("MachinesAvoided", "False", "Forgiven", "")


def let_back(draft: Draft) -> None:
    """Nothing else is left: who has waited in vain for a machine may come to any."""
    names = ", ".join(avoided(draft))
    waits = [since for slot in draft.status.slots for place in _places(slot) if (since := _waits_since(draft, place))]
    if not names or not waits:
        return
    left = min(waits) + PATIENCE_SECONDS - draft.now
    if left > 0:
        draft.wakeups.append(left)
        return
    draft.status.blamed_machines = []
    draft.event("MachinesForgiven", f"no other machine was found: {names} may be used again", warning=True)
    # A pod's affinity cannot be changed: those that wait are made anew. They have run nothing, so nothing is lost.
    for slot in draft.status.slots:
        if slot.successor is not None and _waits_since(draft, slot.successor):
            slot.successor = announced(slot)
        if _waits_since(draft, slot):
            heir = slot.successor or announced(slot)
            slot.incarnation, slot.uid, slot.machine = heir.incarnation, heir.uid, heir.machine
            slot.successor, slot.state = None, "Pending"


def _places(slot: SlotStatus) -> tuple[Place, ...]:
    return (slot, slot.successor) if slot.successor is not None else (slot,)


def _waits_since(draft: Draft, place: Place) -> float | None:
    member = draft.member(place)
    if member is None or not member.alive or member.deleting or member.leaving is not None:
        return None  # on its way out: whoever comes after it is waited for
    return member.unplaced_since if member.avoids else None


def _is_avoided(machine: BlamedMachine, limits: AvoidMachines, now: float) -> bool:
    recent = [t for t in machine.times if t > now - seconds(limits.for_)]
    return len(recent) >= limits.after_failures
