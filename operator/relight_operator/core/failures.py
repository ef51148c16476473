"""What the job's own failures cost it: once a generation, in the one write that judges it."""

from relight_agent.exits import CAUSE_CLASS, CLASS_ORDER, Cause, Class
from relight_operator.api.status import Failure, RecoveryStatus
from relight_operator.core import blame, endings, stalls, worlds
from relight_operator.core.draft import Draft
from relight_operator.core.observed import MemberEnd
from relight_operator.core.slots import replace
from relight_operator.core.verdict import Again, RootCause, judge, no_use, root_cause

MAX_COLLATERAL = 8  # names in lastFailure


def judge_world(draft: Draft) -> None:
    """Once nothing of a generation that is over can run any more: count what it failed of, if it failed."""
    recovery = draft.status.recovery
    if recovery is not None and not recovery.judged and worlds.settled(draft):
        recovery.judged = True
        # Who was told to end is as good as lost: its peers may have failed of that before it has ended.
        _count_root(draft, lost=recovery.loss or any(m.told for m in draft.world_members()))


def judge_at_stop(draft: Draft) -> None:
    """The same for a job that is stopped before its failed generation was judged: by what has been said until now."""
    recovery = draft.status.recovery
    if recovery is not None and not recovery.judged:
        recovery.judged = True
        _count_root(draft, lost=True)


def _count_root(draft: Draft, *, lost: bool) -> None:
    recovery = draft.status.recovery
    assert recovery is not None
    opaque = draft.seen.spec.trainer.command is not None
    root = root_cause(draft.world_members(), recovery.generation, lost=lost, opaque=opaque)
    stall = stalls.failure_of(draft, recovery.generation)
    if stall is not None and (root is None or root.klass is Class.COLLATERAL or root.outcome.at > stall.time):
        if stall.machine:
            blame.blame(draft, stall.machine, stall.time)
        count(draft, Cause.STALL, CAUSE_CLASS[Cause.STALL], stall, recovery=recovery, code=stall.exit_code)
        return
    if root is None or (root.klass is Class.COLLATERAL and lost):
        return
    steps = _steps_done(draft, root)
    failure = Failure(
        time=root.outcome.at,
        cause=str(root.cause),
        machine=root.member.machine,
        member=draft.name(root.member.slot, root.member.incarnation),
        rank=root.outcome.rank,
        exit_code=root.outcome.exit_code,
        message=root.outcome.message,
        step=steps,
        collateral=[draft.name(m.slot, m.incarnation) for m in root.collateral[:MAX_COLLATERAL]],
    )
    if blame.is_to_blame(root.cause, root.klass, root.outcome.manner):
        blame.blame(draft, root.member.machine, root.outcome.at)
    if root.klass is Class.MACHINE:
        _give_up_machine(draft, root)
    # Before it has restored its state a worker has done no step, whichever generation it is of.
    known_by = Again(root.outcome.fingerprint, root.outcome.step) if root.outcome.fingerprint else None
    trained = root.outcome.step > 0 or draft.status.goodput.executed_steps > 0
    hopeless = no_use(root.cause, root.outcome.manner, local=draft.seen.local, trained=trained)
    status = root.outcome.exit_status
    code = status if status is not None else root.outcome.exit_code
    count(draft, root.cause, root.klass, failure, recovery=recovery, code=code, known_by=known_by, hopeless=hopeless)


def _steps_done(draft: Draft, root: RootCause) -> int | None:
    """The steps that the failing worker had done; None where the generation had not even restored its state."""
    world = draft.status.world
    return root.outcome.step if world is not None and world.resumed_from_step is not None else None


def _give_up_machine(draft: Draft, root: RootCause) -> None:
    """The member says that its machine cannot run this job: the slot's next one may come to a better one."""
    slot = draft.slot(root.member.slot)
    if slot.uid == root.member.uid:
        code, message = root.outcome.exit_code, root.outcome.message
        replace(slot, MemberEnd(root.cause, root.klass, root.outcome.at, code, message, root.outcome.rank))


def count(
    draft: Draft,
    cause: Cause,
    klass: Class,
    failure: Failure,
    *,
    recovery: RecoveryStatus | None,
    code: int | None = None,
    known_by: Again | None = None,
    hopeless: str = "",
) -> float:
    """Count one failure; fail the job where its budget ends. Returns the seconds to wait before the next try.

    `recovery`: of the generation that failed, which pays once; None for a member that was in none. `code`, `known_by`,
    `hopeless`: see `judge`.
    """
    status, spec = draft.status, draft.seen.spec
    verdict = judge(
        cause,
        klass,
        status.restarts,
        spec.retry,
        progressed=recovery is not None and _progressed(draft, klass),
        checkpoint=status.checkpoint.step,
        again=recovery is not None and recovery.failed,
        now=draft.now,
        code=code,
        known_by=known_by,
        hopeless=hopeless,
    )
    again = recovery is not None and recovery.failed
    status.restarts = verdict.restarts
    if not (again and status.last_failure is not None and _is_older(status.last_failure, failure)):
        status.last_failure = failure
    if verdict.reason is not None:
        what = "" if verdict.reason == str(cause) else f"{cause}: "  # the reason is told before the message
        endings.fail(draft, verdict.reason, f"{what}{failure.message or 'no message'} ({verdict.message})", failure)
        return 0.0
    if recovery is not None:
        recovery.failed = True
        recovery.not_before = max(recovery.not_before, draft.now + verdict.backoff)
    draft.event(
        "FailureRetried",
        f"{failure.member}: {cause}: {failure.message} ("
        + (
            f"{verdict.paid}; next try in {verdict.backoff:.0f} s"
            if verdict.paid
            else "of a generation that has failed already"
        )
        + ")",
        warning=True,
    )
    return verdict.backoff


def _is_older(one: Failure, other: Failure) -> bool:
    """Whether of two failures of one generation `one` is the root: by class, then by age."""

    def order(failure: Failure) -> tuple[int, float]:
        return CLASS_ORDER.index(CAUSE_CLASS[Cause(failure.cause)]), failure.time

    return order(one) <= order(other)


def _progressed(draft: Draft, klass: Class) -> bool:
    if draft.seen.spec.trainer.command is not None:
        # A plain command's steps are not known: its failures are limited by their number alone.
        return klass is not Class.COLLATERAL
    return draft.status.world is not None and draft.status.world.recovered
