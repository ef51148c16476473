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
    cause: Cause, klass: Class, restarts: Restarts, retry: RetrySpec, *, progressed: bool, checkpoint: int | None, now: float
) -> Verdict:
    """Count one failure and decide.

    `progressed`: the generation did a step that none before it had done. `checkpoint`: the newest committed step.
    """
    after = restarts.model_copy(deep=True)
    after.total += 1
    after.failures += 1
    after.by_cause[str(cause)] = after.by_cause.get(str(cause), 0) + 1
    after.without_progress = 0 if progressed else after.without_progress + 1
    if klass is Class.FINAL:
        return Verdict(after, reason=str(cause), message="retrying cannot help")
    if retry.reset_on_progress and checkpoint is not None and checkpoint > (after.checkpoint_step or 0):
        after.counted_times = []
    window = seconds(retry.window)
    after.counted_times = [t for t in after.counted_times if t > now - window]
    if klass is Class.COUNTED or klass is Class.STORAGE:
        after.counted_times.append(now)
    after.counted = len(after.counted_times)
    after.checkpoint_step = checkpoint
    if after.counted > retry.failures:
        budget = "1 failure" if retry.failures == 1 else f"{retry.failures} failures"
        return Verdict(after, reason="RetriesExhausted", message=f"retry.failures allows {budget} within {retry.window}")
    if after.without_progress >= retry.no_progress_limit:
        message = f"{after.without_progress} failed generations in a row did not get any further (retry.noProgressLimit)"
        return Verdict(after, reason="NoProgress", message=message)
    doublings = min(max(after.counted, after.without_progress, 1) - 1, 30)
    backoff = min(seconds(retry.backoff.initial) * 2.0**doublings, seconds(retry.backoff.max))
    return Verdict(after, backoff=backoff)
