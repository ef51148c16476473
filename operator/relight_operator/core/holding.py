"""Members that wait in vain for a machine save, give theirs back, and are tried again later, at another time than others."""

from relight_operator.api.durations import seconds
from relight_operator.api.elastic import least_nodes
from relight_operator.api.status import HoldStatus
from relight_operator.core import sizes, slots
from relight_operator.core.draft import Draft

# The wait after the first time, or as long as the machines had been held, if that is less; it doubles each time.
FIRST_SECONDS = 30.0
MAX_SECONDS = 1800.0
CONDITION = "WaitingForMachines"


def give_back(draft: Draft) -> None:
    """Have every member save and end, where some hold machines in vain."""
    if not _in_vain(draft):
        return
    status, needed = draft.status, _needed(draft)
    status.hold = HoldStatus(attempts=status.hold.attempts + 1 if status.hold is not None else 1)
    status.stop, status.stopping_since = _stop_id(status.hold), draft.now
    slots.let_successors_go(status)
    why = f"there are machines for {_held(draft)} of {needed} members: they save and give theirs back"
    draft.condition(CONDITION, "True", "MachinesMissing", why)
    draft.event(CONDITION, why, warning=True)


def _in_vain(draft: Draft) -> bool:
    """Whether members have held machines for `holdSurvivors` while others, without which nothing runs, have none."""
    status, spec = draft.status, draft.seen.spec
    recovery = status.recovery
    if status.world is not None and (recovery is None or not recovery.judged or recovery.not_before > draft.now):
        return False
    if any(s.failed_starts for s in slots.wanted_slots(draft)):
        return False  # there was a machine, which was no good: that has an end of its own
    if not 0 < _held(draft) < _needed(draft):
        return False
    left = sizes.waiting_since(draft) + seconds(spec.disruption.hold_survivors) - draft.now
    if left > 0:
        draft.wakeups.append(left)
    return left <= 0


def is_releasing(draft: Draft) -> bool:
    """Whether the stop that is under way is one of these, from its begin to the next try."""
    status = draft.status
    return status.hold is not None and status.stop == _stop_id(status.hold)


def wait(draft: Draft) -> None:
    """All have gone: the time of the next try."""
    hold = draft.status.hold
    assert hold is not None
    first = min(FIRST_SECONDS, seconds(draft.seen.spec.disruption.hold_survivors))
    backoff = min(first * 2.0 ** min(hold.attempts - 1, 30), MAX_SECONDS)
    hold.until = draft.now + backoff * (0.5 + draft.seen.jitter)
    draft.event("Released", f"all members have ended; the next try is in {hold.until - draft.now:.0f} s")


def is_due(draft: Draft) -> bool:
    """Whether it is time for the next try."""
    hold = draft.status.hold
    assert hold is not None
    assert hold.until is not None
    if hold.until > draft.now:
        draft.wakeups.append(hold.until - draft.now)
    return hold.until <= draft.now


def is_over(draft: Draft) -> None:
    """A generation has been formed."""
    if draft.status.hold is not None:
        draft.status.hold = None
        draft.condition(CONDITION, "False", "MachinesFound", "")


def _held(draft: Draft) -> int:
    return sum((m := draft.member(s)) is not None and m.alive and bool(m.machine) for s in slots.wanted_slots(draft))


def _needed(draft: Draft) -> int:
    spec = draft.seen.spec
    return spec.nodes if spec.elastic is None else max(spec.elastic.min_nodes, least_nodes(spec)[0])


def _stop_id(hold: HoldStatus) -> str:
    return f"hold-{hold.attempts}"
