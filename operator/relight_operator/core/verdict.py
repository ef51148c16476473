"""What the end of a generation means: its root cause, and whether the job goes on."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, assert_never

from relight_agent.exits import CLASS_ORDER, Cause, Class, ExitCode, Manner, exit_of
from relight_operator.api.durations import seconds
from relight_operator.api.job import RetryRule, RetrySpec
from relight_operator.api.status import Restarts
from relight_operator.core.observed import AgentOutcome, SlotView

# Between two members' words about one instant lies what their reports took on the way.
REPORT_SECONDS = 2.0
# What follows from code, data and state alone. Memory is shared with others, a stall may be the network's.
REPEATABLE = frozenset({Cause.EXCEPTION, Cause.NON_FINITE_LOSS})


# How a plain command that has lost a peer says so: where another one says something else, that is what the peer died of.
_PEER_GONE = re.compile(
    r"/gloo/|Connection (closed|reset) by peer|Broken pipe|Dist(Backend|Network|Store)Error|ncclRemoteError"
)


@dataclass(frozen=True)
class RootCause:
    cause: Cause
    klass: Class
    member: SlotView
    outcome: AgentOutcome
    collateral: tuple[SlotView, ...] = ()  # the other members that failed


def root_cause(members: Iterable[SlotView], generation: int, *, lost: bool, opaque: bool) -> RootCause | None:
    """The failure that ended `generation`, by class first, then by age; None where no member failed.

    `lost`: a member of the generation was lost, or has been told to end. `opaque`: the job is a plain command, whose failures cannot be told
    from the consequences of a lost peer, so that with a loss they are taken for such.
    """
    spoken = [
        (m, m.agent.outcome)
        for m in members
        if m.agent is not None and m.agent.outcome is not None and m.agent.outcome.generation == generation
    ]
    failures = []
    for member, outcome in spoken:
        if outcome.kind != "failed":
            continue
        meaning = exit_of(outcome.exit_code)
        if lost and opaque and meaning.klass is Class.COUNTED:
            meaning = meaning._replace(cause=Cause.PEER_LOST, klass=Class.COLLATERAL)
        failures.append(RootCause(meaning.cause, meaning.klass, member, outcome))

    def first(failure: RootCause) -> tuple[int, bool, float, int]:
        consequence = opaque and _PEER_GONE.search(failure.outcome.message) is not None
        return CLASS_ORDER.index(failure.klass), consequence, failure.outcome.at, failure.member.slot

    root = min(failures, key=first, default=None)
    if root is not None and root.klass is Class.COLLATERAL and not lost:
        root = _left_early(spoken, root) or root
    if root is None:
        return None
    others = sorted((f.member for f in failures if f.member is not root.member), key=lambda m: m.slot)
    return replace(root, collateral=tuple(others))


def _left_early(spoken: Sequence[tuple[SlotView, AgentOutcome]], collateral: RootCause) -> RootCause | None:
    """The rank that ended with 0, and without a result, while others still needed it: what they failed of."""
    if any(outcome.kind == "stopped" for _, outcome in spoken):
        return None  # they failed of who left for a reason
    for member, outcome in sorted(spoken, key=lambda s: (s[1].at, s[0].slot)):
        early = outcome.kind == "completed" and outcome.weights_digest is None
        rank = outcome.rank if early else outcome.left
        if rank is None or (early and outcome.at > collateral.outcome.at + REPORT_SECONDS):
            continue
        said = replace(
            outcome,
            kind="failed",
            exit_code=int(ExitCode.EXCEPTION),
            rank=rank,
            message=f"rank {rank} ended with exit code 0 before the others were done: a success needs every rank",
        )
        return RootCause(Cause.EXCEPTION, Class.COUNTED, member, said)
    return None


class Again(NamedTuple):
    """By what a failure is recognised when it comes again: the exception, and the steps done before it."""

    fingerprint: str
    step: int


@dataclass(frozen=True)
class Verdict:
    """Go on after `backoff` seconds, or fail for `reason`; the counters as they are then."""

    restarts: Restarts
    backoff: float = 0.0
    reason: str | None = None
    message: str = ""
    paid: str = ""  # in words: from which budget, and what is left of it


def no_use(cause: Cause, manner: Manner, *, local: bool, trained: bool) -> str:
    """The reason why a retry cannot help; "" if it may help.

    `local`: a person waits for `relight run`, on a machine that stays the same. `trained`: the job has done a step.
    """
    if cause is not Cause.EXCEPTION:
        return ""
    match manner:
        case Manner.PERMANENT:
            return "every retry would fail in the same way: the program cannot be loaded, or uses a name that does not exist"
        case Manner.RAISED | Manner.EXITED:
            return (
                "`relight run` does not retry a failure before the first step, unless a rule in retry.rules says so"
                if (local and not trained)
                else ""
            )
        case Manner.DIED | Manner.UNKNOWN:
            return ""
        case _:
            assert_never(manner)


def rule_for(rules: Sequence[RetryRule], cause: Cause, code: int | None) -> tuple[int, RetryRule] | None:
    """The first rule for a failure of `cause` seen as exit code `code`, and its place among `rules`."""
    return next(((i, rule) for i, rule in enumerate(rules) if rule.match.covers(cause, code)), None)


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
    code: int | None = None,
    known_by: Again | None = None,
    hopeless: str = "",
) -> Verdict:
    """Count one failure and decide.

    `progressed`: the generation did a step that none before it had done. `checkpoint`: the newest committed step.
    `again`: a failure of the same generation has been paid for already, so that this one is free. `code`: its exit
    code, as the user knows it. `known_by`: by what it is recognised when it comes again, None where it is not.
    `hopeless`: why there is no retry (see `no_use`); "" if there is one.
    """
    after = restarts.model_copy(deep=True)
    after.total += 1
    if klass is Class.MACHINE:
        after.disruptions += 1
    else:
        after.failures += 1
    after.by_cause[str(cause)] = after.by_cause.get(str(cause), 0) + 1
    ruled = rule_for(retry.rules, cause, code)
    if ruled is None and klass is Class.FINAL:
        return Verdict(after, reason=str(cause), message="retrying cannot help")
    if ruled is None and hopeless:
        return Verdict(after, reason="DeterministicFailure", message=hopeless)
    if again and not (ruled is not None and _ends_at_once(ruled[1])):
        return Verdict(after)
    after.without_progress = 0 if progressed else after.without_progress + 1
    purse = _purse(klass, ruled)
    _spend(purse, after, retry, checkpoint, now)
    if ruled is None and cause in REPEATABLE and known_by is not None:
        known, after.fingerprint = after.fingerprint, known_by.fingerprint
        before, after.fingerprint_step = after.fingerprint_step, known_by.step
        if (known, before) == known_by:
            message = f"the same exception as the last time at the same step, {known_by.step}: it would come again"
            return Verdict(after, reason="DeterministicFailure", message=message)
    spent = _overspent(purse, ruled, after, retry)
    if spent is not None:
        return Verdict(after, reason=spent[0], message=spent[1])
    if after.without_progress >= retry.no_progress_limit:
        message = (
            f"{after.without_progress} failed generations in a row did not get any further (retry.noProgressLimit)"
        )
        return Verdict(after, reason="NoProgress", message=message)
    tries = [after.counted, len(after.storage_times), after.without_progress, *map(len, after.rule_times.values())]
    doublings = min(max(*tries, 1) - 1, 30)
    backoff = min(seconds(retry.backoff.initial) * 2.0**doublings, seconds(retry.backoff.max))
    return Verdict(after, backoff=backoff, paid=_paid(purse, ruled, after, retry))


# Who pays for a failure: retry.failures, the same for the storage, a rule by its text, or nobody.
_JOB, _STORAGE, _NOBODY = "retry.failures", "storage", ""


def _purse(klass: Class, ruled: tuple[int, RetryRule] | None) -> str:
    if ruled is None:
        return {Class.COUNTED: _JOB, Class.STORAGE: _STORAGE}.get(klass, _NOBODY)
    rule = ruled[1]
    match rule.action:
        case "Fail":
            return rule.match.text
        case "Retry":
            return _JOB
        case "Ignore":
            return _NOBODY
        case _:
            assert_never(rule.action)


def _ends_at_once(rule: RetryRule) -> bool:
    return rule.action == "Fail" and (rule.after or 1) == 1


def _overspent(
    purse: str, ruled: tuple[int, RetryRule] | None, restarts: Restarts, retry: RetrySpec
) -> tuple[str, str] | None:
    """The reason and the words with which the job ends where `purse` is empty now."""
    budget = "1 failure" if retry.failures == 1 else f"{retry.failures} failures"
    if ruled is not None and ruled[1].action == "Fail":
        number, rule = ruled
        found, allowed = len(restarts.rule_times.get(purse, ())), rule.after or 1
        times = f", {found} times within {retry.window}" if allowed > 1 else ""
        return ("RetryRule", f"retry.rules[{number}]: {rule.match.text}{times}") if found >= allowed else None
    if purse == _JOB and restarts.counted > retry.failures:
        return "RetriesExhausted", f"retry.failures allows {budget} within {retry.window}"
    if purse == _STORAGE and len(restarts.storage_times) > retry.failures:
        return "StorageFailed", f"retry.failures allows {budget} of the storage within {retry.window}"
    return None


def _paid(purse: str, ruled: tuple[int, RetryRule] | None, restarts: Restarts, retry: RetrySpec) -> str:
    if ruled is not None and ruled[1].action == "Fail":
        return f"{len(restarts.rule_times[purse])} of it, and retry.rules[{ruled[0]}] ends the job at {ruled[1].after}"
    if purse == _STORAGE:
        return f"failure {len(restarts.storage_times)} of the storage, {retry.failures} allowed"
    return f"failure {restarts.counted} of {retry.failures} allowed" if purse == _JOB else "free"


def _spend(purse: str, restarts: Restarts, retry: RetrySpec, checkpoint: int | None, now: float) -> None:
    """Forget what no longer counts, and add this failure to the budget that pays for it."""
    if retry.reset_on_progress and checkpoint is not None and checkpoint > (restarts.checkpoint_step or 0):
        restarts.counted_times, restarts.storage_times, restarts.rule_times = [], [], {}
    start = now - seconds(retry.window)
    restarts.counted_times = [t for t in restarts.counted_times if t > start]
    restarts.storage_times = [t for t in restarts.storage_times if t > start]
    there = {rule.match.text for rule in retry.rules}
    kept = {text: [t for t in times if t > start] for text, times in restarts.rule_times.items() if text in there}
    restarts.rule_times = {text: times for text, times in kept.items() if times}
    if purse == _JOB:
        restarts.counted_times.append(now)
    elif purse == _STORAGE:
        restarts.storage_times.append(now)
    elif purse:
        restarts.rule_times.setdefault(purse, []).append(now)
    restarts.counted = len(restarts.counted_times)
    restarts.checkpoint_step = checkpoint
