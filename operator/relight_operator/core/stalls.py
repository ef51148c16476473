"""A generation that no longer moves: who holds it up, and what is done about it.

Each member's agent says when all its workers have been silent for longer than they may. As long as one member does not
say so, the others may just be waiting for it. Once all do, everybody's stacks are asked for, the culprit is named, and
the generation ends as a failure of its own kind.
"""

from collections.abc import Iterable
from typing import NamedTuple, assert_never

from relight_agent.exits import Cause, ExitCode
from relight_operator.api.status import Failure, StallStatus, WorldStatus
from relight_operator.core import endings, worlds
from relight_operator.core.draft import Draft, outcome_in
from relight_operator.core.observed import AgentStall, RankStack, SlotView

# What members get to collect their stacks: recovery is not held up for longer.
COLLECT_SECONDS = 5.0
# An agent with workers reports every second: who has not been heard for this long does not answer.
AGENT_SILENT_SECONDS = 15.0
CONDITION = "Stalled"

_WAITING = {"code": 0, "backward": 1, "collective": 2}  # how likely it is that a rank only waits for another
_STATES = {
    "T": "its process has been stopped",
    "t": "a debugger holds its process",
    "D": "the kernel holds its process",
}


class Suspect(NamedTuple):
    """One rank of a generation that does not move. `stack` is None where its member's agent did not answer."""

    slot: int
    rank: int
    step: int
    stack: RankStack | None


def culprit(suspects: Iterable[Suspect]) -> Suspect:
    """Who holds the others up: who does not even answer, else who is behind, else who is not waiting for a peer."""
    return min(suspects, key=_guilt)


def _guilt(suspect: Suspect) -> tuple[float, ...]:
    stack = suspect.stack
    if stack is None:
        return (1, suspect.step, suspect.rank)
    if not stack.doing:
        return (0, suspect.step, suspect.rank)
    elsewhere = stack.section not in {"train", "data"}
    return (2, suspect.step, _WAITING.get(stack.doing, 0), not elsewhere, -stack.silent, suspect.rank)


def watch(draft: Draft) -> None:
    """See a stall come and go, collect what is to be known of it, and do what `health.onStall` says."""
    status, world = draft.status, draft.status.world
    if world is None or status.recovery is not None:
        return
    stall = status.stall
    if stall is not None and not stall.over and stall.generation != world.generation:
        _close(draft, stall, "Restarted", f"generation {world.generation} has taken over")
    members = {m.uid: m for m in draft.holders()}
    seats = [members.get(m.uid) for m in world.members]
    there = [m for m in seats if m is not None and _is_heard(m)]
    if len(there) < len(seats):
        # A loss, or about to be one; or this operator is new. What is asked now is asked again later.
        if stall is not None and stall.collecting:
            stall.over, stall.collecting = True, False
        return
    first = _first_overdue(draft, world, there)
    if first is None:
        if stall is not None and not stall.over and stall.generation == world.generation:
            _close(draft, stall, "MovesAgain", "the workers make progress again")
        return
    if stall is None or stall.over:
        stall = status.stall = _begin(draft, world, first)
    if stall.collecting and not _collected(draft, world, stall):
        draft.wakeups.append(max(0.0, stall.found + COLLECT_SECONDS - draft.now))
        return
    if stall.collecting:
        stall.collecting = False
        _name(draft, world, stall)
    _act(draft, stall)


def failure_of(draft: Draft, generation: int) -> Failure | None:
    """What a generation failed of that has been ended for a stall."""
    stall = draft.status.stall
    if stall is None or stall.generation != generation or not stall.ended:
        return None
    return Failure(
        time=stall.found,
        cause=str(Cause.STALL),
        machine=stall.machine,
        member=stall.member,
        rank=stall.rank,
        exit_code=int(ExitCode.STALL),
        message=stall.message,
    )


def _is_heard(member: SlotView) -> bool:
    return member.agent is not None and not member.told


def _first_overdue(draft: Draft, world: WorldStatus, members: list[SlotView]) -> AgentStall | None:
    """The longest silence, if no member can be what the others are waiting for."""
    overdue = [stall for m in members if (stall := _stall(m, world)) is not None]
    if not overdue:
        return None
    for member in members:
        outcome = outcome_in(member, world)
        completed = outcome is not None and outcome.kind == "completed"
        if not completed and _stall(member, world) is None and _answers(draft, member):
            draft.wakeups.append(AGENT_SILENT_SECONDS)  # should it fall silent itself, nothing else would tell
            return None
    return min(overdue, key=lambda s: s.since)


def _stall(member: SlotView, world: WorldStatus) -> AgentStall | None:
    stall = member.agent.stall if member.agent is not None else None
    return stall if stall is not None and stall.generation == world.generation else None


def _answers(draft: Draft, member: SlotView) -> bool:
    heard_at = member.agent.heard_at if member.agent is not None else None
    return heard_at is None or draft.now - heard_at <= AGENT_SILENT_SECONDS


def _begin(draft: Draft, world: WorldStatus, first: AgentStall) -> StallStatus:
    before = draft.status.stall
    number = before.number + 1 if before is not None and before.generation == world.generation else 1
    return StallStatus(generation=world.generation, number=number, since=first.since, found=draft.now)


def _collected(draft: Draft, world: WorldStatus, stall: StallStatus) -> bool:
    if draft.now >= stall.found + COLLECT_SECONDS:
        return True
    running = [m for m in draft.holders() if draft.in_world(m.uid) and outcome_in(m, world) is None]
    return all(m.agent is not None and m.agent.stacks_id == stall.command for m in running)


def _name(draft: Draft, world: WorldStatus, stall: StallStatus) -> None:
    found = culprit(_suspects(draft, world, stall))
    member = draft.member(draft.slot(found.slot))
    own = _stall(member, world) if member is not None else None
    stall.rank, stall.slot, stall.step = found.rank, found.slot, found.step
    if own is not None and own.rank == found.rank:
        stall.since = own.since
    stall.section = found.stack.section if found.stack is not None else own.section if own is not None else ""
    stall.frames = list(found.stack.frames) if found.stack is not None else []
    if member is not None:
        stall.machine = member.machine
        stall.member = draft.name(member.slot, member.incarnation)
    stall.message = _words(stall, found, draft.now)
    draft.condition(CONDITION, "True", "NoProgress", stall.message)
    draft.event("Stalled", f"{stall.member}: {stall.message}", warning=True)


def _suspects(draft: Draft, world: WorldStatus, stall: StallStatus) -> list[Suspect]:
    found = []
    workers = draft.seen.spec.workers_per_node
    by_uid = {m.uid: m for m in draft.holders()}
    for each in world.members:
        member = by_uid.get(each.uid)
        if member is None or outcome_in(member, world) is not None or member.agent is None:
            continue
        agent = member.agent
        if agent.stacks_id == stall.command and agent.stacks:
            found += [Suspect(each.slot, s.rank, s.step, s) for s in agent.stacks]
        else:
            own = _stall(member, world)
            rank, step = (own.rank, own.step) if own is not None else (each.rank * workers, agent.furthest_step)
            found.append(Suspect(each.slot, rank, step, None))
    return found


def _words(stall: StallStatus, found: Suspect, now: float) -> str:
    place = f" in {stall.section}" if stall.section else ""
    text = (
        f"rank {stall.rank} has made no progress for {max(0.0, now - stall.since):.0f} s{place} after step {stall.step}"
    )
    if found.stack is None:
        return f"{text}: its agent does not answer"
    if found.stack.frames:
        return f"{text}: it is at {', called by '.join(found.stack.frames[:2])}"
    return f"{text}: {_STATES.get(found.stack.state, 'its process does not answer')}"


def _act(draft: Draft, stall: StallStatus) -> None:
    match draft.seen.spec.health.on_stall:
        case "Restart":
            stall.ended = True
            worlds.over(
                draft, Cause.STALL, stall.since, stall.message, loss=False, member=stall.member, machine=stall.machine
            )
        case "Fail":
            stall.ended = True
            failure = failure_of(draft, stall.generation)
            endings.fail(draft, str(Cause.STALL), f"{stall.message} (health.onStall is Fail)", failure)
        case "Report":
            pass
        case unknown:
            assert_never(unknown)


def _close(draft: Draft, stall: StallStatus, reason: str, message: str) -> None:
    stall.over, stall.collecting = True, False
    before = next((c for c in draft.status.conditions if c.type == CONDITION), None)
    if before is not None and before.status == "True":
        draft.condition(CONDITION, "False", reason, message)
        draft.event(reason, message)
