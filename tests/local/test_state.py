"""What is stored of a job, and what a later `relight run` makes of it."""

import json
from dataclasses import replace

import pytest
from builders import Finished, Home, Job

pytestmark = pytest.mark.timeout(60)


def test_a_job_that_has_completed_is_not_run_again(finished: Finished) -> None:
    again = finished.home.run(finished.job)
    assert again.code == 0, again.said
    assert "it has completed already; --fresh runs it again" in again.said
    assert again.final == finished.result.final


def test_what_is_trained_cannot_be_changed_and_how_often_it_is_saved_can(finished: Finished) -> None:
    before = (finished.home.state / "job.json").read_bytes()
    changed = finished.home.run(replace(finished.job, steps=200, every=30))
    assert changed.code == 64
    assert "spec.trainer.config.train.duration" in changed.said
    assert "spec.checkpoint.interval" not in changed.said
    assert "--fresh" in changed.said
    assert not changed.stdout
    assert (finished.home.state / "job.json").read_bytes() == before


def test_a_field_that_may_change_does_not_disturb(finished: Finished) -> None:
    changed = finished.home.run(finished.job.with_spec(retry={"failures": 7}))
    assert changed.code == 0, changed.said
    assert finished.home.run(finished.job).code == 0


def test_fresh_forgets_everything(home: Home) -> None:
    job = Job(steps=5, nodes=1)
    first = home.run(job)
    assert first.code == 0, first.said
    stored = json.loads((home.state / "job.json").read_text())["metadata"]
    again = home.run(replace(job, steps=6), "--fresh")
    assert again.code == 0, again.said
    assert again.final["executedSteps"] == 6
    assert json.loads((home.state / "job.json").read_text())["metadata"]["uid"] != stored["uid"]


def test_a_stored_state_that_cannot_be_read_is_said(home: Home) -> None:
    home.state.mkdir(parents=True)
    (home.state / "job.json").write_text('{"half":')
    result = home.run(Job())
    assert result.code == 74
    assert str(home.state / "job.json") in result.said
    assert "--fresh" in result.said
    assert "Traceback" not in result.said


@pytest.mark.parametrize(
    ("fault", "found"),
    [
        ("preempt-node:1", "preempt-node:1"),
        ("kill-node:0@step:x", "kill-node:0@step:x"),
        ("stop-node:0@step:3", "allowed: preempt-node:1@step:40"),
        ("kill-node:2@step:3", "allowed: 0 to 1"),
        ("kill-node:-1@step:3", "kill-node:-1@step:3"),
        ("kill-node:0@step:0", "allowed: 1 or more"),
    ],
)
def test_a_wrong_fault_is_refused_before_anything_starts(home: Home, fault: str, found: str) -> None:
    result = home.run(Job(), "--chaos", fault)
    assert result.code == 64
    assert found in result.said
    assert "Traceback" not in result.said
    assert not home.state.exists()
