"""Succeeded means done: planned steps or `run.finish()`, on all ranks after the same step, and the script's end with 0."""

import time
from typing import Any

import pytest
from builders import Home, Job, script, waited_for

pytestmark = pytest.mark.timeout(120)


def job(how: str, *arguments: object, nodes: int = 1, **spec: Any) -> Job:
    return Job(trainer=script("ends.py", how, *arguments), nodes=nodes, every=5, spec=spec)


def test_a_break_without_finish_is_no_success_and_the_same_job_with_it_goes_on(home: Home) -> None:
    broken = home.run(job("break"))
    assert broken.code == 64, broken.said
    assert (broken.final["phase"], broken.reason) == ("Failed", "BadConfig")
    message = broken.final["lastFailure"]["message"]
    assert "left its training loop in step 13 of 20" in message
    assert "run.finish()" in message

    again = home.run(job("break"))
    assert again.code == 64, "no other run of it says that it has completed"
    assert again.final["checkpoint"]["resumedFromStep"] == 12


def test_a_break_with_finish_is_a_success_with_the_weights_of_that_step(home: Home) -> None:
    result = home.run(job("break, finish", nodes=2))
    assert result.code == 0, result.said
    assert result.final["steps"] == 13
    assert "00013" in home.checkpoints()[-1].name
    assert "it has completed already" in home.run(job("break, finish", nodes=2)).said


def test_ranks_with_unequal_numbers_of_batches_are_told_apart_at_once_and_no_machine_is_blamed(home: Home) -> None:
    began = time.monotonic()
    result = home.run(job("uneven", nodes=2))
    assert result.code == 64, result.said
    assert time.monotonic() - began < 60  # health.noProgress is 30 minutes
    message = result.final["lastFailure"]["message"]
    assert "the loop of rank 1 ended after step 18 (2 epochs of 9 batches of a DataLoader of TensorDataset)" in message
    assert "rank 0 has begun step 19" in message
    assert result.restarts["failures"] == 1
    assert not result.final.get("blamedMachines")


def test_what_stands_behind_the_loop_is_done_again_where_a_machine_is_lost_in_it(home: Home) -> None:
    done = home.path / "done"
    result = home.run(job("tail", done, nodes=2))
    assert result.code == 0, result.said
    assert sorted(done.read_text().splitlines()) == ["rank 0 after step 20", "rank 1 after step 20"]
    assert result.final["steps"] == result.final["executedSteps"] == 20
    assert result.final["goodput"]["lostSteps"] == 0
    assert result.final["world"]["generation"] == 2
    assert len(result.digest) == 64


def test_a_stop_does_not_wait_for_what_stands_behind_the_loop_and_the_next_run_does_it_again(home: Home) -> None:
    go = home.path / "go"
    run = home.start(job("wait", go))
    waited_for(go.with_suffix(".there").exists)
    began = time.monotonic()
    run.interrupt()
    stopped = run.wait()
    assert stopped.code == 130, stopped.said
    assert time.monotonic() - began < 45  # a stop at leisure may take two minutes
    assert stopped.final["phase"] == "Suspended"
    go.touch()
    again = home.run(job("wait", go))
    assert again.code == 0, again.said
    assert (again.final["steps"], again.final["goodput"]["lostSteps"]) == (20, 0)
