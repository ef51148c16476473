"""Ctrl-C, and going on afterwards."""

import pytest
from builders import Home, Job, kill

pytestmark = pytest.mark.timeout(300)

JOB = Job()
LONG = Job(name="long", steps=300)


@pytest.fixture(scope="module")
def long_digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return Home(tmp_path_factory.mktemp("long")).run(LONG).digest


def test_ctrl_c_saves_and_the_next_run_goes_on_from_there(home: Home, long_digest: str) -> None:
    job = home.paced(LONG)
    run = home.start(job, output="text")
    run.until(lambda s: any(slot.get("uid") for slot in s.get("slots", [])), "a member")
    second = home.run(job)
    assert second.code == 74, second.said
    assert f"(pid {run.process.pid})" in second.said

    run.until_step(1)
    run.interrupt()
    stopped = run.wait()
    assert stopped.code == 130, stopped.said
    status = home.status()
    assert status["phase"] == "Suspended"
    step = status["checkpoint"]["step"]
    assert 0 < step < LONG.steps
    assert f"saved at step {step}; go on with: relight run " in stopped.said
    assert not home.leftovers()

    home.full_speed()
    result = home.run(job)
    assert result.digest == long_digest
    assert result.final["checkpoint"]["resumedFromStep"] == step
    assert result.final["goodput"]["lostSteps"] == 0
    assert result.final["executedSteps"] == LONG.steps
    assert result.final["restarts"]["total"] == 0


def test_ctrl_c_twice_does_not_wait(home: Home, long_digest: str) -> None:
    job = home.paced(LONG)
    run = home.start(job)
    run.until_step(25)
    run.interrupt()
    run.until(lambda s: s.get("stop"), "a stop under way")
    run.interrupt()
    stopped = run.wait(20.0)
    assert stopped.code == 130, stopped.said
    assert stopped.final["phase"] == "Suspended"
    assert not home.leftovers()
    home.full_speed()
    result = home.run(job)
    assert result.digest == long_digest
    assert result.final["checkpoint"]["resumedFromStep"] >= 20
    assert result.final["goodput"]["lostSteps"] <= LONG.every


def test_ctrl_c_in_the_middle_of_a_recovery_keeps_what_only_a_survivor_holds(home: Home, digest: str) -> None:
    at = 37
    run = home.start(JOB, kill(0, at=at))
    run.until(lambda s: s.get("phase") == "Recovering", "a recovery")
    run.interrupt()
    stopped = run.wait()
    assert stopped.code == 130, stopped.said
    assert not home.leftovers()
    result = home.run(JOB, kill(0, at=at))  # fired already: once in a job's life
    assert result.digest == digest
    assert result.final["checkpoint"]["resumedFromStep"] == at
    assert result.final["goodput"]["lostSteps"] == 0
    assert result.restarts["byCause"] == {"MachineLost": 1}


def test_ctrl_c_before_anything_has_been_trained(home: Home) -> None:
    run = home.start(JOB)
    run.until(lambda s: any(slot.get("uid") for slot in s.get("slots", [])), "a member")
    run.interrupt()
    stopped = run.wait(30.0)
    assert stopped.code == 130, stopped.said
    assert "nothing had been saved yet" in stopped.said
