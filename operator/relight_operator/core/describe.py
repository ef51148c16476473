"""The words for people: the phase, the slots' states, how many members train."""

from relight_agent.exits import Cause
from relight_operator.api.status import TERMINAL, SlotStatus, SuccessorStatus
from relight_operator.core.draft import Draft


def describe(draft: Draft) -> None:
    status = draft.status
    for slot in status.slots:
        slot.state = "Completed" if slot.completed is not None else _state(draft, slot)
        if slot.successor is not None:
            slot.successor.state = _state(draft, slot.successor)
    over = status.world is None or status.recovery is not None or status.phase in TERMINAL
    running = 0 if over else sum(s.state == "Running" and draft.in_world(s.uid) for s in status.slots)
    status.ready_nodes = running
    status.nodes_ready = f"{running}/{draft.seen.spec.nodes}"
    status.selector = f"relight.dev/job={draft.seen.name}"
    if not over:
        for slot in status.slots:
            if slot.state == "Ready" and not draft.in_world(slot.uid):
                slot.state = "Spare"
    if status.phase not in TERMINAL and status.phase != "Suspended":
        status.phase = _phase(draft, running)


def _state(draft: Draft, place: SlotStatus | SuccessorStatus) -> str:
    member = draft.member(place)
    if member is not None and not member.alive:
        return "Ended"
    if member is not None and member.agent is not None:
        return member.agent.state
    return "Starting" if place.uid is not None and place.state == "Pending" else place.state


def _phase(draft: Draft, running: int) -> str:
    world, recovery = draft.status.world, draft.status.recovery
    if world is None or (recovery is not None and recovery.cause == Cause.SUSPENDED.value):
        return "Starting" if any(s.uid is not None for s in draft.status.slots) else "Pending"
    if recovery is not None:
        return "Resizing" if recovery.cause == Cause.RESIZED.value else "Recovering"
    if draft.status.resize is not None:
        return "Resizing"
    silent = draft.status.progress is None  # a script without the client says nothing of its steps
    if world.recovered or (silent and running == len(world.members)):
        return "Running"
    if world.recovering_since is None:
        return "Starting"
    return "Resizing" if world.resized else "Recovering"
