"""How a job ends: completed, failed, or out of time."""

from relight_agent.exits import ExitCode
from relight_operator.api.status import TERMINAL, Failure, Result
from relight_operator.core import steps
from relight_operator.core.draft import Draft, outcome_in
from relight_operator.core.slots import let_successors_go


def complete(draft: Draft) -> None:
    """Record who has completed; the job has succeeded once every member of one generation has."""
    status, world = draft.status, draft.status.world
    if world is None:
        return
    at = draft.now
    for slot in status.slots:
        outcome = outcome_in(draft.member(slot), world)
        if outcome is None or outcome.kind != "completed" or not draft.in_world(slot.uid):
            continue
        slot.completed = world.generation
        at = min(at, outcome.at)
        if outcome.weights_digest is not None or outcome.metrics or status.result is None:
            status.result = Result(weights_digest=outcome.weights_digest, metrics=outcome.metrics, steps=outcome.step)
    members = {m.slot for m in world.members}
    if all(s.completed == world.generation for s in status.slots if s.slot in members):
        steps.close(draft)
        steps.completed(draft, at)
        _finish(draft, "Succeeded", "Completed", "every member completed")


def fail(draft: Draft, reason: str, message: str, failure: Failure | None = None) -> None:
    """`failure`: what the job died of, where it is not the last failure already."""
    status = draft.status
    if failure is not None or status.last_failure is None:
        status.last_failure = failure or Failure(
            time=draft.now, cause=reason, message=message, exit_code=int(ExitCode.EXCEPTION)
        )
    steps.close(draft)
    _finish(draft, "Failed", reason, message)


def deadline(draft: Draft) -> None:
    """Fail the job once it has been active for `activeDeadlineSeconds`."""
    status, limit = draft.status, draft.seen.spec.active_deadline_seconds
    if limit is None or status.active_since is None or status.phase in TERMINAL:
        return
    left = limit - status.active_seconds - (draft.now - status.active_since)
    if left > 0:
        draft.wakeups.append(left)
        return
    message = f"active for more than activeDeadlineSeconds ({limit} s)"
    failure = Failure(time=draft.now, cause="DeadlineExceeded", message=message, exit_code=int(ExitCode.EXCEPTION))
    fail(draft, "DeadlineExceeded", message, failure)


def pause_clock(draft: Draft) -> None:
    """Time from now on does not count as active."""
    status = draft.status
    if status.active_since is not None:
        status.active_seconds += max(0.0, draft.now - status.active_since)
        status.active_since = None


def _finish(draft: Draft, phase: str, reason: str, message: str) -> None:
    draft.status.phase = phase
    draft.status.recovery = None
    let_successors_go(draft.status)
    draft.status.completion_time = draft.now
    pause_clock(draft)
    draft.condition(phase, "True", reason, message)
    draft.event(phase if phase == "Succeeded" else reason, message, warning=phase == "Failed")
