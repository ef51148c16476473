"""However a job is cut, it ends with the weights of the one that was not, and says truly what the cuts cost."""

import random

import pytest
from builders import Finished, Home, Job, Result, kill, preempt, script

pytestmark = pytest.mark.timeout(120)

JOB = Job()


def check(result: Result, digest: str, *, causes: dict[str, int], at: int, lost: range = range(1)) -> None:
    """`at`: the step at which the last fault was fired."""
    assert result.code == 0, result.said
    final = result.final
    assert final["phase"] == "Succeeded"
    assert final["weightsDigest"] == digest
    assert final["restarts"]["byCause"] == causes
    assert final["restarts"]["disruptions"] == final["restarts"]["total"] == sum(causes.values())
    assert final["restarts"]["failures"] == 0
    goodput = final["goodput"]
    assert goodput["lostSteps"] in lost
    assert final["executedSteps"] == final["steps"] + goodput["lostSteps"]
    resumed = final["checkpoint"]["resumedFromStep"]
    # A preempted member may do a few more steps until all ranks have agreed where to stop.
    assert 0 < at - lost.stop < resumed <= final["steps"]
    assert final["slots"][0]["slot"] == 0
    assert final["world"]["recovered"] or resumed == final["steps"]


def test_nothing_happens(finished: Finished, home: Home) -> None:
    again = home.run(finished.job)
    assert again.digest == finished.result.digest
    for result in (finished.result, again):
        assert result.final["executedSteps"] == result.final["steps"] == JOB.steps
        assert result.final["goodput"]["lostSteps"] == 0
        assert result.final["restarts"]["total"] == 0
        assert result.final["world"]["generation"] == 1
        assert "resumedFromStep" not in result.final["checkpoint"]


def test_a_node_is_preempted(home: Home, digest: str, random_from_seed: random.Random) -> None:
    at = random_from_seed.randrange(5, 80)
    result = home.run(home.slow_from(JOB, at), preempt(1, at=at))
    check(result, digest, causes={"Preempted": 1}, at=at)
    # It has trained on until somebody could take over: nobody stood still for longer than a recovery takes.
    assert result.final["checkpoint"]["resumedFromStep"] > at + 1
    assert float(result.final["goodput"]["lastRecoverySeconds"]) < 8.0  # 0.3 on a machine that has nothing else to do


@pytest.mark.parametrize("slot", [0, 1])
def test_a_node_is_lost(home: Home, digest: str, random_from_seed: random.Random, slot: int) -> None:
    at = random_from_seed.randrange(5, 115)
    result = home.run(JOB, kill(slot, at=at))
    check(result, digest, causes={"MachineLost": 1}, at=at)
    assert result.final["checkpoint"]["resumedFromStep"] == at
    assert [s["incarnation"] for s in result.final["slots"]] == [int(slot == 0), int(slot == 1)]


def test_one_node_is_preempted_and_then_the_other_is_lost(
    home: Home, digest: str, random_from_seed: random.Random
) -> None:
    first = random_from_seed.randrange(5, 50)
    second = random_from_seed.randrange(first + 50, 115)
    result = home.run(home.slow_from(JOB, first), preempt(1, at=first), kill(0, at=second))
    check(result, digest, causes={"Preempted": 1, "MachineLost": 1}, at=second)
    assert result.final["goodput"]["recoveries"] == 2


def test_a_node_is_lost_while_the_other_trains_on_in_its_grace_period(home: Home, digest: str) -> None:
    # What was done last is in nobody's memory but that of the member that is about to go.
    result = home.run(home.slow_from(JOB, 30), preempt(1, at=30), kill(0, at=32))
    check(result, digest, causes={"Preempted": 1, "MachineLost": 1}, at=32)
    assert result.final["checkpoint"]["resumedFromStep"] == 32


def test_all_nodes_are_lost_at_once(home: Home, digest: str, random_from_seed: random.Random) -> None:
    # Not where a checkpoint is due: the kill comes before it.
    at = JOB.every * random_from_seed.randrange(1, 5) + random_from_seed.randrange(1, JOB.every)
    result = home.run(JOB, kill(0, at=at), kill(1, at=at))
    check(result, digest, causes={"MachineLost": 2}, at=at, lost=range(JOB.every + 1))
    # How far they had got since their last report, nobody lives to tell.
    assert result.final["goodput"]["lostSteps"] <= at % JOB.every
    assert result.final["checkpoint"]["resumedFromStep"] == at - at % JOB.every


@pytest.mark.parametrize("slots", [(1,), (0, 1)], ids=["one node", "all nodes"])
def test_a_script_does_the_steps_that_status_says_and_no_others(
    home: Home, random_from_seed: random.Random, slots: tuple[int, ...]
) -> None:
    at, counted = random_from_seed.randrange(41, 60), home.path / "counted"
    job = Job(trainer=script("counting.py", counted), every=20)
    result = home.run(job, *(kill(slot, at=at) for slot in slots))
    assert result.code == 0, result.said
    back = at if len(slots) == 1 else at - at % 20
    assert [int(step) for step in counted.read_text().split()] == [*range(1, at + 1), *range(back + 1, 81)]
    assert result.final["steps"] == 80
    assert result.final["checkpoint"]["resumedFromStep"] == back
    assert result.final["goodput"]["lostSteps"] <= at - back
    assert result.final["executedSteps"] == 80 + result.final["goodput"]["lostSteps"]
