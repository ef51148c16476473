"""How far training is, and what it cost: steps executed, steps lost, time to recover.

`goodput.reachedStep` is the step at which the training's state stands. Restoring moves it, back by what was lost or
forward by what had been done unheard; training moves it forward. So at every instant
executed = reached + lost - the step at which the job's first generation began.
"""

from relight_operator.api.status import ProgressStatus, RecoveryRecord, WorldStatus
from relight_operator.core.draft import Draft, outcome_in
from relight_operator.core.observed import AgentProgress

MAX_NOTICES = 8


def hear(draft: Draft) -> None:
    """What the present generation restored, how far it is, and the instant it got beyond all earlier ones."""
    world = draft.status.world
    if world is None:
        return
    reports = _reports(draft, world)
    progress = _progress(reports)
    if progress is not None and progress.resumed_from is not None and world.resumed_from_step is None:
        _restored(draft, world, progress.resumed_from, progress.resumed_kind, progress.restored_at)
    furthest = _furthest(draft, world)
    if world.resumed_from_step is not None:
        _advance(draft, furthest)
    if not world.recovered and furthest > world.previous_furthest_step:
        _recovered(draft, world, progress, furthest)
    if progress is not None:
        _record(draft, progress, reports)
    _note(draft, list(dict.fromkeys([*_of_members(draft, world), *(n for p in reports for n in p.notices)])))


def close(draft: Draft) -> None:
    """The present generation is left behind: nothing that its members say later is taken into account."""
    world = draft.status.world
    if world is not None and world.resumed_from_step is None:
        # Nobody said what it had restored: what is known is how far it came.
        _advance(draft, _furthest(draft, world))


def completed(draft: Draft, at: float) -> None:
    """All steps are done, so also the lost ones, even where there was no further step to do."""
    world = draft.status.world
    if world is not None and not world.recovered and world.recovering_since is not None:
        world.recovered = True
        _recorded(draft, world, at)
        _count_recovery(draft, at - world.recovering_since, "completed")


def _reports(draft: Draft, world: WorldStatus) -> list[AgentProgress]:
    """What the members of the present generation report, in the order of their ranks."""
    agents = {m.uid: m.agent for m in draft.world_members()}
    said = [agent.progress for m in world.members if (agent := agents.get(m.uid)) is not None]
    return [p for p in said if p is not None and p.generation == world.generation]


def _of_members(draft: Draft, world: WorldStatus) -> list[str]:
    """What the agents of the present generation have to say of their machines."""
    said = {m.uid: (m, m.agent.notices) for m in draft.world_members() if m.agent is not None and m.agent.notices}
    told = [said[seat.uid] for seat in world.members if seat.uid in said]
    return [f"{draft.name(m.slot, m.incarnation)}: {text}" for m, notices in told for text in notices]


def _progress(reports: list[AgentProgress]) -> AgentProgress | None:
    """The furthest report; of several the lowest rank's, since rank 0 alone knows what the whole world measured."""
    return max(reports, key=lambda p: (p.resumed_from is not None, p.step, p.first_step_at is not None), default=None)


def _furthest(draft: Draft, world: WorldStatus) -> int:
    """Steps done in the present generation, by everything that anyone of it has said, the lost ones too; 0 if nothing."""
    said = [0]
    for member in draft.world_members():
        agent, outcome = member.agent, outcome_in(member, world)
        if agent is not None and agent.generation == world.generation:
            said.append(agent.furthest_step)
        if agent is not None and agent.progress is not None and agent.progress.generation == world.generation:
            said.append(agent.progress.step)
        if outcome is not None:
            said.append(outcome.step)
    return max(said)


def _restored(draft: Draft, world: WorldStatus, step: int, kind: str, restored_at: float | None) -> None:
    world.resumed_from_step = step
    world.resumed_kind = kind
    goodput = draft.status.goodput
    lost = max(0, goodput.reached_step - step)
    goodput.lost_steps += lost
    if world.generation > 1:
        # A state that is further than anything heard of proves that its steps were done.
        goodput.executed_steps += max(0, step - goodput.reached_step)
    goodput.reached_step = step
    if (record := _record_of(draft, world)) is not None:
        record.resumed_step, record.resumed_kind, record.lost_steps = step, kind, lost
        record.restored = round(max(0.0, (restored_at or draft.now) - record.since), 3)
    if kind != "scratch":
        draft.status.checkpoint.resumed_from_step = step
        draft.event("Resumed", f"generation {world.generation} goes on from step {step} ({kind})")


def _advance(draft: Draft, step: int) -> None:
    goodput = draft.status.goodput
    goodput.executed_steps += max(0, step - goodput.reached_step)
    goodput.reached_step = max(goodput.reached_step, step)


def _recovered(draft: Draft, world: WorldStatus, progress: AgentProgress | None, furthest: int) -> None:
    world.recovered = True
    draft.status.restarts.without_progress = 0
    at = draft.now
    if progress is not None and progress.first_step_at is not None and progress.resumed_from is not None:
        beyond_at_once = progress.resumed_from >= world.previous_furthest_step
        at = progress.first_step_at if beyond_at_once else at
    _recorded(draft, world, at)
    if world.recovering_since is not None:
        _count_recovery(draft, at - world.recovering_since, f"back at step {furthest}")


def _record_of(draft: Draft, world: WorldStatus) -> RecoveryRecord | None:
    """The record of what `world` mends."""
    last = draft.status.history[-1] if draft.status.history else None
    return last if last is not None and last.generation == world.generation - 1 else None


def _recorded(draft: Draft, world: WorldStatus, at: float) -> None:
    if (record := _record_of(draft, world)) is not None:
        record.recovered = round(max(record.restored or 0.0, at - record.since), 3)


def _count_recovery(draft: Draft, took: float, what: str) -> None:
    draft.status.goodput.recoveries += 1
    draft.status.goodput.last_recovery_seconds = f"{max(0.0, took):.2f}"
    draft.event("Recovered", f"{what} after {max(0.0, took):.1f} s")


def _record(draft: Draft, progress: AgentProgress, reports: list[AgentProgress]) -> None:
    if progress.resumed_from is not None or progress.step:  # before it has restored, a generation is at no step
        _show(draft, progress)
    checkpoint = draft.status.checkpoint
    # Whoever has flushed its snapshot on leaving may be alone in knowing of it.
    committed = [p.checkpoint for p in reports if p.checkpoint is not None]
    if committed:
        checkpoint.step = max(committed)
    if progress.snapshot is not None:
        checkpoint.snapshot_step = progress.snapshot


def _note(draft: Draft, reported: list[str]) -> None:
    """Keep and tell what is new. Only what nobody reports any more makes room: else two notices would chase each other."""
    kept = draft.status.checkpoint.notices
    past = [n for n in kept if n not in reported]
    room = MAX_NOTICES - len(kept) + len(past)
    new = [n for n in reported if n not in kept][:room]
    dropped = past[: max(0, len(kept) + len(new) - MAX_NOTICES)]
    draft.status.checkpoint.notices = [n for n in kept if n not in dropped] + new
    for notice in new:
        draft.event("Notice", notice, warning=True)


def _show(draft: Draft, progress: AgentProgress) -> None:
    before = draft.status.progress
    percent = min(100, 100 * progress.step // progress.total_steps) if progress.total_steps else 0
    after = ProgressStatus(
        step=progress.step,
        total_steps=progress.total_steps,
        epoch=progress.epoch,
        samples=progress.samples,
        percent=percent,
        text=f"{percent}% {progress.step}/{progress.total_steps}" if progress.total_steps else f"step {progress.step}",
        eta_seconds=before.eta_seconds if before is not None else None,
        metrics=progress.metrics,
        updated=before.updated if before is not None else 0.0,
    )
    if after != before:  # the estimate moves with the clock: it alone is no news
        after.eta_seconds = _eta(progress, draft.now)
        after.updated = draft.now
        draft.status.progress = after


def _eta(progress: AgentProgress, now: float) -> int | None:
    """Seconds left at this generation's speed, its first step apart."""
    if not progress.total_steps or progress.first_step_at is None or progress.resumed_from is None:
        return None
    done, spent = progress.step - progress.resumed_from - 1, now - progress.first_step_at
    return round(spent / done * (progress.total_steps - progress.step)) if done > 0 and spent > 0 else None
