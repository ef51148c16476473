"""Which failures end a job at once: by plan(), from what the agents say to what stands in status."""

from dataclasses import replace
from typing import Any

import pytest
from sim_views import after, member, outcome, running, seen

from relight_agent.exits import Manner
from relight_operator.api.status import JobStatus
from relight_operator.core.observed import AgentView, SlotView


def raised(manner: Manner, *, step: int = 0, fingerprint: str = "f", code: int = 70) -> AgentView:
    agent = outcome("failed", code, step=step)
    assert agent.outcome is not None
    return replace(agent, outcome=replace(agent.outcome, manner=manner, fingerprint=fingerprint))


def at_the_start(**changes: Any) -> JobStatus:
    """Generation 1 has formed, and restored nothing yet."""
    status = running(**changes)
    assert status.world is not None
    world = status.world.model_copy(update={"resumed_from_step": None, "recovered": False})
    goodput = status.goodput.model_copy(update={"reached_step": 0, "executed_steps": 0})
    return status.model_copy(update={"world": world, "goodput": goodput})


def reason_of(status: JobStatus) -> str:
    return next((str(c.reason) for c in status.conditions if c.type == "Failed"), "")


def members(agent: AgentView) -> tuple[SlotView, ...]:
    assert agent.outcome is not None
    return member(0, agent=outcome("failed", 72, step=agent.outcome.step)), member(1, machine="b", agent=agent)


@pytest.mark.parametrize(
    ("status", "manner", "step", "local", "reason"),
    [
        (at_the_start(), Manner.RAISED, 0, True, "DeterministicFailure"),
        (at_the_start(), Manner.EXITED, 0, True, "DeterministicFailure"),
        (at_the_start(), Manner.DIED, 0, True, ""),
        (at_the_start(), Manner.RAISED, 0, False, ""),
        (at_the_start(), Manner.PERMANENT, 0, False, "DeterministicFailure"),
        (running(), Manner.PERMANENT, 10, False, "DeterministicFailure"),
        (running(), Manner.RAISED, 10, True, ""),
    ],
)
def test_what_ends_a_job_at_its_first_failure(
    status: JobStatus, manner: Manner, step: int, local: bool, reason: str
) -> None:
    found = after(seen(status, *members(raised(manner, step=step)), local=local))
    assert reason_of(found) == reason
    assert found.phase == ("Failed" if reason else "Recovering")
    assert [m.name for m in found.blamed_machines] == (["b"] if manner is Manner.DIED else [])


def test_the_same_exception_before_the_state_is_restored_is_recognised_in_a_cluster() -> None:
    once = after(seen(at_the_start(), *members(raised(Manner.RAISED))))
    assert (reason_of(once), once.restarts.fingerprint, once.restarts.fingerprint_step) == ("", "f", 0)
    status = at_the_start(restarts=once.restarts)
    assert reason_of(after(seen(status, *members(raised(Manner.RAISED))))) == "DeterministicFailure"
    assert reason_of(after(seen(status, *members(raised(Manner.RAISED, fingerprint="g"))))) == ""


def test_a_reason_is_not_told_twice() -> None:
    found = after(seen(at_the_start(), *members(raised(Manner.RAISED, code=64))))
    condition = next(c for c in found.conditions if c.type == "Failed")
    assert (condition.reason, condition.message) == ("BadConfig", "why (retrying cannot help)")
