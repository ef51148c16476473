"""A trace on demand: an annotation becomes a wish in status, a command to the agents, a file for the workers."""

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sim_views import busy, fresh, member, recovering, running, seen

from relight_agent.agent import Agent
from relight_agent.files import PROFILE, JobFile, Progress
from relight_agent.identity import Identity
from relight_operator.api.status import JobStatus, ProfileStatus
from relight_operator.coordinator.wire import command_body
from relight_operator.core.actions import EmitEvent, WriteStatus
from relight_operator.core.commands import command_for
from relight_operator.core.plan import plan
from relight_operator.kube.names import PROFILE_ANNOTATION, profile_of


def planned(status: JobStatus, wanted: str) -> tuple[JobStatus, list[str]]:
    members = [member(slot, agent=busy()) for slot in (0, 1)]
    actions = plan(replace(seen(status, *members), profile=wanted), 100.0)
    written = [a.status for a in actions if isinstance(a, WriteStatus)]
    reasons = [a.reason for a in actions if isinstance(a, EmitEvent)]
    return (written[0] if written else status), reasons


def test_a_new_id_is_asked_of_the_generation_that_runs_and_of_no_other() -> None:
    status, events = planned(running(), "one")
    assert status.profile == ProfileStatus(id="one", generation=1)
    assert "ProfileRequested" in events
    again, events = planned(status, "one")
    assert (again.profile, "ProfileRequested" in events) == (status.profile, False)
    other, _ = planned(status, "two")
    assert other.profile == ProfileStatus(id="two", generation=1)
    kept, _ = planned(status, "")  # the annotation was removed: there is nothing to take back
    assert kept.profile == status.profile


@pytest.mark.parametrize("status", [fresh(), recovering()])
def test_while_no_generation_runs_the_wish_waits(status: JobStatus) -> None:
    assert planned(status, "one")[0].profile is None


@pytest.mark.parametrize(
    ("annotations", "found"),
    [(None, ""), ({}, ""), ({PROFILE_ANNOTATION: "2026-11-27.1"}, "2026-11-27.1"), ({PROFILE_ANNOTATION: "a b\n" + "x" * 99}, "ab" + "x" * 61)],
)  # fmt: skip
def test_what_people_write_into_the_annotation(annotations: Any, found: str) -> None:
    assert profile_of({"metadata": {"annotations": annotations}}) == found


class Training:
    """A generation that has begun, as far as the agent asks."""

    def __init__(self) -> None:
        self.outcome = None
        self.number = 1
        self.trained = False

    def progress(self) -> Progress:
        return Progress(1, step=3, first_step_at=time.monotonic() if self.trained else None)

    def furthest_step(self) -> int:
        return 3

    def spent(self, **_: Any) -> None: ...


def test_the_agent_tells_its_workers_once_and_not_before_they_listen(tmp_path: Path) -> None:
    job = JobFile("default", "t", "u", 0.0, 1, 1, {"kind": "config", "config": {}}, "hash")
    me = Identity(job, "", 0, 0, "u0", str(tmp_path), "127.0.0.1", "http://127.0.0.1:1", "", "", "")
    agent, training = Agent(me), Training()
    status = running(profile=ProfileStatus(id="one", generation=1))
    command = command_body(command_for(status, slot=0, incarnation=0, uid="u0"))["command"]
    assert (command["op"], command["profile"]) == ("run", "one")

    agent._highest, agent._generation = 1, training  # type: ignore[assignment]
    agent._obey(command)
    agent._observe(training)  # type: ignore[arg-type]
    assert not (tmp_path / PROFILE).exists()
    training.trained = True
    agent._observe(training)  # type: ignore[arg-type]
    (tmp_path / PROFILE).unlink()
    agent._obey(command)  # heard again, after a stall for instance
    agent._observe(training)  # type: ignore[arg-type]
    assert not (tmp_path / PROFILE).exists()
    agent._on_event("profile", "a signal")
    agent._observe(training)  # type: ignore[arg-type]
    assert (tmp_path / PROFILE).exists()
