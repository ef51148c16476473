"""How many members the next generation has: `nodes`, or fewer once their replacements have been waited for."""

from relight_operator.api.durations import seconds
from relight_operator.api.elastic import least_nodes
from relight_operator.core import slots
from relight_operator.core.draft import Draft
from relight_operator.core.observed import SlotView


def enough(draft: Draft, candidates: list[SlotView]) -> list[SlotView]:
    """Those of `candidates`, best first, that form the next generation now; none while more are waited for."""
    spec = draft.seen.spec
    if len(candidates) >= spec.nodes:
        _refusal(draft, "")
        return candidates[: spec.nodes]
    elastic = spec.elastic
    if elastic is None or len(candidates) < elastic.min_nodes:
        return []
    patience = seconds(elastic.replacement_timeout)
    if draft.status.world is None and _coming(draft):
        # An image may take long to pull, and whoever starts without its machine has to wait for the cooldown's end.
        patience = max(patience, seconds(spec.disruption.hold_survivors))
    left = waiting_since(draft) + patience - draft.now
    if left > 0:
        draft.wakeups.append(left)
        return []
    least, why = least_nodes(spec)
    if len(candidates) < least:
        _refusal(draft, why)
        return []
    _refusal(draft, "")
    return candidates


def waiting_since(draft: Draft) -> float:
    """Since when the next generation has been waited for, in unix seconds; time in which nobody was to run apart."""
    status = draft.status
    since = status.active_since if status.active_since is not None else draft.now
    return since if status.recovery is None else max(since, status.recovery.since)


def _coming(draft: Draft) -> bool:
    """Whether a member has a machine and is not ready yet."""
    members = (draft.member(s) for s in slots.wanted_slots(draft))
    return any(
        m is not None and m.alive and m.machine and (m.agent is None or m.agent.state == "Starting") for m in members
    )


def note(draft: Draft, size: int) -> None:
    """What a generation of `size` members makes of the job's result, against one world of the size at the start."""
    status, spec = draft.status, draft.seen.spec
    if spec.trainer.command is not None:
        return  # it resumes by itself, and we do not know how
    if size != status.nodes_at_start:
        status.exactness = "sample-exact" if spec.trainer.config is not None else "approximate"
    elif not status.exactness:
        status.exactness = "bit-equal"


def _refusal(draft: Draft, why: str) -> None:
    before = next((c for c in draft.status.conditions if c.type == "ShrinkRefused"), None)
    if why:
        if before is None or before.status != "True":
            draft.event("ShrinkRefused", why, warning=True)
        draft.condition("ShrinkRefused", "True", "BatchWouldChange", why)
    elif before is not None and before.status == "True":
        draft.condition("ShrinkRefused", "False", "Resolved", "")
