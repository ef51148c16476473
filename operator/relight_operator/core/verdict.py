"""What the end of a generation means: its root cause, and whether the job goes on."""

from collections.abc import Iterable
from dataclasses import dataclass

from relight_agent.exits import CLASS_ORDER, Cause, Class, exit_of
from relight_operator.api.durations import seconds
from relight_operator.api.job import RetrySpec
from relight_operator.api.status import Restarts
from relight_operator.core.observed import AgentOutcome, SlotView


@dataclass(frozen=True)
class RootCause:
    cause: Cause
    klass: Class
    member: SlotView
    outcome: AgentOutcome


def root_cause(members: Iterable[SlotView], generation: int, *, lost: bool, opaque: bool) -> RootCause | None:
    """The failure that ended `generation`, by class first, then by age; None where no member failed.

    `lost`: a member of the generation was lost. `opaque`: the job is a plain command, whose failures cannot be told
    from the consequences of a lost peer, so that with a loss they are taken for such.
    """
    failures = []
    for member in members:
        outcome = member.agent.outcome if member.agent else None
        if outcome is None or outcome.generation != generation or outcome.kind != "failed":
            continue
        meaning = exit_of(outcome.exit_code)
        if lost and opaque and meaning.klass is Class.COUNTED:
            meaning = meaning._replace(cause=Cause.PEER_LOST, klass=Class.COLLATERAL)
        failures.append(RootCause(meaning.cause, meaning.klass, member, outcome))
    return min(failures, key=lambda f: (CLASS_ORDER.index(f.klass), f.outcome.at, f.member.slot), default=None)


@dataclass(frozen=True)
class Verdict:
    """Go on after `backoff` seconds, or fail for `reason`; the counters as they are then."""

    restarts: Restarts
    backoff: float = 0.0
    reason: str | None = None
    message: str = ""


def judge(
    cause: Cause,
    klass: Class,
    restarts: Restarts,
    retry: RetrySpec,
    *,
    progressed: bool,
    checkpoint: int | None,
    now: float,
    again: bool = False,
) -> Verdict:
    """Count one failure and decide.

    `progressed`: the generation did a step that none before it had done. `checkpoint`: the newest committed step.
    `again`: a failure of the same generation has been paid for already, so that this one is free.
    """
    after = restarts.model_copy(deep=True)
    after.total += 1
    if klass is Class.MACHINE:
        after.disruptions += 1
    else:
        after.failures += 1
    after.by_cause[str(cause)] = after.by_cause.get(str(cause), 0) + 1
    if klass is Class.FINAL:
        return Verdict(after, reason=str(cause), message="retrying cannot help")
    if again:
        return Verdict(after)
    after.without_progress = 0 if progressed else after.without_progress + 1
    _spend(klass, after, retry, checkpoint, now)
    budget = "1 failure" if retry.failures == 1 else f"{retry.failures} failures"
    if after.counted > retry.failures:
        return Verdict(
            after, reason="RetriesExhausted", message=f"retry.failures allows {budget} within {retry.window}"
        )
    if len(after.storage_times) > retry.failures:
        message = f"retry.failures allows {budget} of the storage within {retry.window}"
        return Verdict(after, reason="StorageFailed", message=message)
    if after.without_progress >= retry.no_progress_limit:
        message = (
            f"{after.without_progress} failed generations in a row did not get any further (retry.noProgressLimit)"
        )
        return Verdict(after, reason="NoProgress", message=message)
    doublings = min(max(after.counted, len(after.storage_times), after.without_progress, 1) - 1, 30)
    backoff = min(seconds(retry.backoff.initial) * 2.0**doublings, seconds(retry.backoff.max))
    return Verdict(after, backoff=backoff)


def _spend(klass: Class, restarts: Restarts, retry: RetrySpec, checkpoint: int | None, now: float) -> None:
    """Forget what no longer counts, and add this failure to the budget that pays for it. The storage has one of its own."""
    if retry.reset_on_progress and checkpoint is not None and checkpoint > (restarts.checkpoint_step or 0):
        restarts.counted_times, restarts.storage_times = [], []
    start = now - seconds(retry.window)
    restarts.counted_times = [t for t in restarts.counted_times if t > start]
    restarts.storage_times = [t for t in restarts.storage_times if t > start]
    if klass is Class.COUNTED:
        restarts.counted_times.append(now)
    elif klass is Class.STORAGE:
        restarts.storage_times.append(now)
    restarts.counted = len(restarts.counted_times)
    restarts.checkpoint_step = checkpoint
