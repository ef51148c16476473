"""Members that live and do not answer: their agents hang, or cannot be reached.

Where a generation waits for them they are given up soon; a training that goes on needs no agents, and only what is
silent for as long as a job may be without progress is taken to be no training. Silence is written down before anybody
is given up for it, so that a coordinator that was away itself hears its agents first.
"""

from relight_agent.exits import Cause, Class
from relight_operator.api.durations import seconds
from relight_operator.api.status import TERMINAL
from relight_operator.core import losses
from relight_operator.core.draft import Draft
from relight_operator.core.observed import MemberEnd, SlotView

# Agents ask for their command anew every twenty seconds.
SILENT_SECONDS = 30.0
# From then on, where a generation waits. A machine that is dead is found out sooner, and called so.
GIVE_UP_SECONDS = 60.0


def watch(draft: Draft) -> None:
    """Note which members are silent, and give up those that have been for too long."""
    for slot in draft.status.slots:
        member = draft.member(slot)
        if member is None or not member.alive or not _is_silent(draft, member):
            slot.silent_since = None
            continue
        if slot.silent_since is None:
            slot.silent_since = draft.now
        patience = _patience(draft, member)
        left = slot.silent_since + patience - draft.now
        if left > 0:
            draft.wakeups.append(left)
            continue
        text = f"its agent has not answered for {SILENT_SECONDS + patience:.0f} s"
        losses.lose_one(draft, slot, member, MemberEnd(Cause.MACHINE_UNHEALTHY, Class.MACHINE, draft.now, message=text))
        slot.silent_since = None
        if draft.status.phase in TERMINAL:
            return


def _is_silent(draft: Draft, member: SlotView) -> bool:
    heard_at = member.agent.heard_at if member.agent is not None else draft.seen.listening_since
    if heard_at is None or not member.machine:
        return False
    left = heard_at + SILENT_SECONDS - draft.now
    if left > 0:
        draft.wakeups.append(left)
    return left <= 0


def _patience(draft: Draft, member: SlotView) -> float:
    """For how long a member may be silent, in seconds."""
    status, spec = draft.status, draft.seen.spec
    world = status.world
    if member.agent is None and not draft.in_world(member.uid):
        return seconds(spec.health.startup)
    done = world is not None and any(s.completed == world.generation for s in status.slots)
    if world is not None and status.recovery is None and not done:
        return seconds(spec.health.no_progress)
    return max(GIVE_UP_SECONDS, 2 * seconds(spec.disruption.dead_machine.unreachable_for))
