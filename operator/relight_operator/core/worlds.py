"""Generations: when one is over, when nothing of it can run any more, and when the next one is formed."""

from relight_agent.exits import CAUSE_CLASS, CLASS_ORDER, Cause, Class, exit_of
from relight_agent.files import clip
from relight_operator.api.durations import seconds
from relight_operator.api.status import (
    MAX_HISTORY,
    HealthStatus,
    MemberStatus,
    RecoveryRecord,
    RecoveryStatus,
    WorldStatus,
)
from relight_operator.core import holding, sizes, slots, steps
from relight_operator.core.draft import Draft, outcome_in
from relight_operator.core.observed import SlotView

# `status.handover` after a stop that released nobody: none is asked for again until the members change.
IN_VAIN = 0

MAX_DETAIL_BYTES = 200  # of a recovery of the past


def over(
    draft: Draft, cause: Cause, since: float, detail: str, *, loss: bool, member: str = "", machine: str = ""
) -> None:
    """The present generation is over. Told again, the graver cause and the earlier instant hold.

    `member`: the name of the one whose end it was.
    """
    world, recovery = draft.status.world, draft.status.recovery
    if world is None:
        return
    if recovery is None:
        recovery = RecoveryStatus(
            generation=world.generation, since=since, noticed=draft.now, cause=str(cause), detail=detail,
            member=member, machine=machine,
        )  # fmt: skip
        draft.status.recovery = recovery
        draft.event("Recovering", f"generation {world.generation} is over: {cause}{_said(cause, detail, member)}")
    elif (_gravity(cause), not loss) < (_gravity(Cause(recovery.cause)), not recovery.loss):
        recovery.cause, recovery.detail = str(cause), detail
        recovery.member, recovery.machine = member, machine
    recovery.since = min(recovery.since, since)
    recovery.loss = recovery.loss or loss
    recovery.losses += loss


def _said(cause: Cause, detail: str, member: str) -> str:
    """A failure's words follow in the event that says what becomes of the job: here only whose it was."""
    if CAUSE_CLASS[cause] in (Class.FINAL, Class.COUNTED, Class.STORAGE):
        return f" of {member}" if member else ""
    return f": {detail}" if detail else ""


def hear_ends(draft: Draft) -> None:
    """The generation is over as soon as one member says that it has failed or stopped there."""
    world = draft.status.world
    if world is None:
        return
    for member in draft.world_members():
        outcome, name = outcome_in(member, world), draft.name(member.slot, member.incarnation)
        if outcome is None:
            continue
        if outcome.kind == "failed":
            cause = exit_of(outcome.exit_code).cause
            over(draft, cause, outcome.at, outcome.message, loss=False, member=name, machine=member.machine)
        elif outcome.kind == "stopped":
            resize = draft.status.resize
            asked = resize is not None and resize.generation == world.generation and member.alive
            cause = Cause.RESIZED if asked else Cause.STOPPED
            text = f"stopped at step {outcome.step}"
            over(draft, cause, outcome.at, text, loss=False, member=name, machine=member.machine)


def settled(draft: Draft) -> bool:
    """No member that lives can run the present generation, which is over, any more, nor say anything new about it.

    Who has not started it must have taken notice that it is over: the `run` may still be on its way.
    """
    world = draft.status.world
    assert world is not None
    return all(_settled(m, world) for m in draft.holders())


def _settled(member: SlotView, world: WorldStatus) -> bool:
    agent = member.agent
    if agent is None:
        return False
    if agent.generation == world.generation:
        return outcome_in(member, world) is not None
    return agent.state in ("Starting", "Ready") and agent.acknowledged == f"wait:{world.generation}"


def form(draft: Draft) -> None:
    """The next generation, when there is none that runs and enough members can start one.

    Who was in the last one goes before spares and replacements, and keeps its node rank where the size allows.
    """
    status, spec = draft.status, draft.seen.spec
    recovery, old = status.recovery, status.world
    if old is not None and (recovery is None or not recovery.judged):
        return
    members = _seated(draft, sizes.enough(draft, _candidates(draft)))
    if not members or not _alike(draft, members):
        return
    if recovery is not None and recovery.not_before > draft.now:
        draft.wakeups.append(recovery.not_before - draft.now)
        return
    survivors = [m for m in members if draft.in_world(m.uid)]
    # A plain torchrun's rank 0 always hosts its store; ours lives wherever memory of the job survives.
    master = survivors[0] if survivors and spec.trainer.command is None else members[0]
    assert master.agent is not None
    generation = old.generation + 1 if old is not None else 1
    since = {m.uid: m.since for m in old.members} if old is not None else {}
    steps.close(draft)
    furthest = max(old.previous_furthest_step, status.goodput.reached_step) if old is not None else 0
    status.world = WorldStatus(
        generation=generation,
        run_id=f"{draft.seen.name}-{generation}-{master.uid[:8]}",
        master_slot=master.slot,
        master_address=master.address,
        master_port=master.agent.port,
        members=[
            MemberStatus(
                rank=i,
                slot=m.slot,
                uid=m.uid,
                address=m.address,
                machine=m.machine,
                since=since.get(m.uid, generation),
            )
            for i, m in enumerate(members)
        ],
        wanted=spec.nodes,
        resized=old is not None and len(old.members) != len(members),
        previous_furthest_step=furthest,
        recovering_since=_recovering_since(old, recovery),
        health=HealthStatus(
            startup=seconds(spec.health.startup),
            heartbeat=seconds(spec.health.heartbeat),
            no_progress=seconds(spec.health.no_progress),
        ),
        formed_at=draft.now,
    )
    status.handover = IN_VAIN if old is not None and _changed_nothing(draft, old, members) else None
    sizes.note(draft, len(members))
    _remember(draft, recovery)
    status.recovery = None
    status.resize = None
    holding.is_over(draft)
    status.result = None
    seated = {m.slot for m in members}
    for slot in status.slots:
        slot.completed = None
        if slot.slot in seated:
            slot.failed_starts = 0
    draft.event("GenerationFormed", f"generation {generation}: {len(members)} members, master on slot {master.slot}")


def _changed_nothing(draft: Draft, old: WorldStatus, members: list[SlotView]) -> bool:
    """Whether `old` has stopped so that somebody could be replaced, and nobody was."""
    stopped = draft.status.recovery is not None and draft.status.recovery.cause == Cause.STOPPED.value
    asked = draft.status.handover in {old.generation, IN_VAIN}
    return asked and stopped and {m.uid for m in old.members} == {m.uid for m in members}


def _remember(draft: Draft, recovery: RecoveryStatus | None) -> None:
    """Begin the record of what the generation just formed mends."""
    if recovery is None or not recovery.since:
        return
    since = recovery.since
    record = RecoveryRecord(
        generation=recovery.generation, since=since, cause=recovery.cause, detail=clip(recovery.detail, MAX_DETAIL_BYTES),
        member=recovery.member, machine=recovery.machine, losses=recovery.losses,
        step=draft.status.goodput.reached_step, noticed=_after(since, recovery.noticed or since),
        formed=_after(since, draft.now),
    )  # fmt: skip
    draft.status.history = [*draft.status.history, record][-MAX_HISTORY:]


def _after(since: float, at: float) -> float:
    return round(max(0.0, at - since), 3)


def _candidates(draft: Draft) -> list[SlotView]:
    """Who can start the next generation, best first: who has been in the last ones longest, then by rank, then by slot.

    So where the world becomes smaller before it has restored, those stay that hold the state.
    """
    old = draft.status.world
    places = {m.uid: (0, m.since, m.rank) for m in old.members} if old is not None else {}
    ready = [m for s in slots.wanted_slots(draft) if (m := draft.member(s)) is not None and can_run(m)]
    return sorted(ready, key=lambda m: places.get(m.uid, (1, 0, m.slot)))


def _seated(draft: Draft, members: list[SlotView]) -> list[SlotView]:
    """`members` in the order of their node ranks: survivors keep theirs, a replacement takes its slot's, others any."""
    old = draft.status.world
    seats: dict[int, SlotView] = {}
    before = old.members if old is not None else []
    by_uid, by_slot = {m.uid: m.rank for m in before}, {m.slot: m.rank for m in before}
    left = []
    for member in sorted(members, key=lambda m: m.uid not in by_uid):
        rank = by_uid.get(member.uid, by_slot.get(member.slot))
        if rank is not None and rank < len(members) and rank not in seats:
            seats[rank] = member
        else:
            left.append(member)
    free = (rank for rank in range(len(members)) if rank not in seats)
    seats |= dict(zip(list(free), left, strict=True))
    return [seats[rank] for rank in range(len(members))]


def _recovering_since(old: WorldStatus | None, recovery: RecoveryStatus | None) -> float | None:
    """The first sign of the loss to be mended: the earlier one, where a generation ended before it had mended its own."""
    if old is None or recovery is None or recovery.cause == Cause.SUSPENDED.value:
        return None
    if old.recovering_since is not None and not old.recovered:
        return min(old.recovering_since, recovery.since)
    return recovery.since


def can_run(member: SlotView) -> bool:
    """Whether the member could be in the next generation."""
    agent = member.agent
    return member.alive and not member.told and agent is not None and agent.state == "Ready" and agent.port > 0


def _alike(draft: Draft, members: list[SlotView]) -> bool:
    """Whether all of them have the job's configuration and one version of torch; if not, a condition says so."""
    agents = [m.agent for m in members if m.agent is not None]
    strangers = [m for m in members if m.agent is not None and m.agent.config_hash != draft.seen.config_hash]
    versions = sorted({a.torch for a in agents})
    problem = ""
    if strangers:
        names = ", ".join(draft.name(m.slot, m.incarnation) for m in strangers)
        problem = f"another configuration than the job's: {names}"
    elif other_code := _other_code(draft, members):
        problem = f"another commit of the job's code: {other_code}"
    elif len(versions) > 1:
        problem = f"different versions of torch: {', '.join(v or 'none' for v in versions)}"
    before = next((c for c in draft.status.conditions if c.type == "MembersDiffer"), None)
    if problem:
        if before is None or before.status != "True":
            draft.event("MembersDiffer", f"no generation can be formed: {problem}", warning=True)
        draft.condition("MembersDiffer", "True", "MembersDiffer", problem)
    elif before is not None and before.status == "True":
        draft.condition("MembersDiffer", "False", "MembersAlike", "")
    return not problem


def _other_code(draft: Draft, members: list[SlotView]) -> str:
    """The names of members whose code is not the job's."""
    code = draft.status.code
    if code is None:
        return ""
    others = (m for m in members if m.agent is not None and m.agent.commit != code.commit)
    return ", ".join(draft.name(m.slot, m.incarnation) for m in others)


def _gravity(cause: Cause) -> int:
    return CLASS_ORDER.index(CAUSE_CLASS[cause])
