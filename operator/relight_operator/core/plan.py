"""`plan()`: what to do about one job, from what is seen of it. Level-triggered, idempotent, no I/O, no clock.

At most one status write a plan. Members are created only from what an acknowledged status says (write-ahead), so a
plan that changes slots writes first, and the next one creates.
"""

from relight_operator.api.status import TERMINAL, JobStatus
from relight_operator.core import (
    account,
    blame,
    code,
    endings,
    failures,
    handover,
    holding,
    losses,
    members,
    profiles,
    resizing,
    silence,
    slots,
    stalls,
    steps,
    stops,
    stragglers,
    worlds,
)
from relight_operator.core.actions import Action, RequeueAfter, WriteStatus
from relight_operator.core.describe import describe
from relight_operator.core.draft import Draft
from relight_operator.core.observed import Observed


def plan(seen: Observed, now: float) -> tuple[Action, ...]:
    """The actions that bring the job nearer to what its spec wants, in the order to apply them. `now`: unix seconds.

    Events come after the write that they tell of: who cannot make that write does not tell them either.
    """
    draft = Draft(seen, now, seen.status.model_copy(deep=True))
    if seen.status.phase not in TERMINAL:  # what has ended stays as it was written
        _decide(draft)
        describe(draft)
    created, deleted, written = members.creates(draft), members.deletes(draft), _write(draft)
    requeue = [RequeueAfter(max(0.0, min(draft.wakeups)))] if draft.wakeups else []
    return (*created, *deleted, *written, *requeue)


def _decide(draft: Draft) -> None:
    status = draft.status
    slots.start(draft)
    slots.bind(draft)
    code.pin(draft)
    steps.hear(draft)
    endings.complete(draft)
    if status.phase not in TERMINAL:
        if status.stop is None:
            worlds.hear_ends(draft)
            stalls.watch(draft)
            stragglers.watch(draft)
        stops.stop_or_resume(draft)
    decisions = (
        losses.lose,
        silence.watch,
        handover.prepare,
        failures.judge_world,
        blame.forgive,
        blame.let_back,
        endings.deadline,
        slots.release,
        handover.hand_over,
        worlds.form,
        handover.ask,
        profiles.ask,
        resizing.resize,
        holding.give_back,
    )
    for decide in decisions:
        if status.phase in TERMINAL or status.stop is not None:
            return
        decide(draft)


def _write(draft: Draft) -> list[Action]:
    before, after = draft.seen.status, draft.status
    if after == before:
        return []
    if _steady(after) == _steady(before):
        written = before.progress.updated if before.progress is not None else draft.now
        left = written + draft.seen.progress_interval - draft.now
        if left > 0:
            draft.wakeups.append(left)
            return []
    if after.progress is not None and _passing(after) != _passing(before):
        after.progress.updated = draft.now
    account.settle(draft)
    return [WriteStatus(after), *draft.events]


def _steady(status: JobStatus) -> JobStatus:
    """What is left when that which moves on every step is taken away: a change of it is written at once."""
    checkpoint = status.checkpoint.model_copy(update={"step": None, "snapshot_step": None})
    goodput = status.goodput.model_copy(update={"executed_steps": 0, "reached_step": 0})
    return status.model_copy(update={"progress": None, "checkpoint": checkpoint, "goodput": goodput})


def _passing(status: JobStatus) -> tuple[object, ...]:
    return status.progress, status.checkpoint, status.goodput
