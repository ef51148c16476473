"""A job goes on at once with a spare, as fewer where nobody comes, and grows back: no step lost, the same samples."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
from builders import Home, Job, Result, agent_of, waited_for, workers_of

pytestmark = pytest.mark.timeout(150)


def lose(slot: int, *, at: int, away: str = "") -> tuple[str, str]:
    return "--chaos", f"lose-node:{slot}@step:{at}" + (f",for:{away}" if away else "")


def elastic(least: int, most: int, **more: Any) -> dict[str, Any]:
    return {"minNodes": least, "maxNodes": most, "replacementTimeout": "0s", "growCooldown": "0s", **more}


def worlds(result: Result) -> list[int]:
    """The sizes of the generations, in their order."""
    lines = [line for line in result.said.splitlines() if "GenerationFormed" in line]
    return [int(line.split(": generation ")[1].split(": ")[1].split()[0]) for line in lines]


def test_a_spare_takes_the_place_of_a_lost_member_at_once(home: Home, digest: str) -> None:
    job = Job().with_spec(spares=1)
    run = home.start(home.paced(job))
    first = run.until_step(10)["world"]["members"]  # whichever of the three were ready first
    lost, kept = first[1]["slot"], first[0]["slot"]
    spare = 3 - kept - lost
    parked = waited_for(lambda: workers_of(home, spare))
    os.kill(agent_of(home, lost), signal.SIGKILL)
    run.until(lambda s: spare in {m["slot"] for m in s["world"]["members"]}, "the spare has a rank")
    run.until_step(30)
    assert workers_of(home, spare) == parked
    home.full_speed()
    result = run.wait()
    assert result.code == 0, result.said
    final = result.final
    assert final["weightsDigest"] == digest
    assert final["exactness"] == "bit-equal"
    assert final["goodput"]["lostSteps"] == 0
    assert final["executedSteps"] == job.steps
    assert worlds(result) == [2, 2]
    assert [m["slot"] for m in final["world"]["members"]] == [kept, spare]


HOOK = '''
import os
import time
from pathlib import Path

from relight_trainer.hooks import Hook


class UntilAsked(Hook):
    """A world of two does not get beyond step 60 before it is asked to save, however slow the third member's start is."""

    def step_begin(self, run):
        command = Path(os.environ["RELIGHT_GENERATION_DIR"]) / "command.json"
        until = time.monotonic() + 90
        while run.world == 2 and run.step == 60 and not command.exists() and time.monotonic() < until:
            time.sleep(0.01)
'''


def test_a_job_goes_on_as_fewer_and_grows_back_on_the_same_samples(home: Home, tmp_path: Path) -> None:
    home.path.mkdir(parents=True)
    (home.path / "waiting.py").write_text(HOOK)
    config: dict[str, Any] = {
        "model": {"type": "digits_cnn", "width": 4},
        "data": {"type": "digits"},
        "train": {"duration": "90st", "global_batch": 32, "threads": 1, "log_every": 10},
        "hooks": [{"type": "waiting:UntilAsked"}],
    }
    job = Job(nodes=3, trainer={"config": config}).with_spec(elastic=elastic(2, 3))
    result = home.run(job, lose(1, at=45, away="1s"))  # while no checkpoint is being written
    assert result.code == 0, result.said
    final = result.final
    assert worlds(result) == [3, 2, 3]
    # Of two, slot 2's member had rank 1, and keeps it.
    assert [m["slot"] for m in final["world"]["members"]] == [0, 2, 1]
    assert [s["incarnation"] for s in final["slots"]] == [0, 1, 0], "survivors keep their members"
    assert final["goodput"]["lostSteps"] == 0
    assert final["executedSteps"] == 90
    assert final["progress"]["samples"] == 90 * 32
    assert final["exactness"] == "sample-exact"
    assert final["restarts"]["byCause"] == {"MachineLost": 1}
    assert "Resizing: generation 2 stops at a step's end: 2 members become 3" in result.said
    alone = Home(tmp_path / "alone")
    config = {**config, "hooks": [], "train": {**config["train"], "virtual_ranks": 3}}
    whole = alone.run(Job(nodes=1, trainer={"config": config})).final["result"]["metrics"]
    assert not alone.leftovers()
    found = final["result"]["metrics"]
    assert found["test_accuracy"] == whole["test_accuracy"]
    assert float(found["test_loss"]) == pytest.approx(float(whole["test_loss"]), rel=1e-3)


def test_survivors_give_their_machines_back_and_the_job_goes_on_from_their_step(home: Home, digest: str) -> None:
    job = Job().with_spec(disruption={"holdSurvivors": "1s"})
    result = home.run(job, lose(1, at=45, away="4s"))
    assert result.code == 0, result.said
    assert result.digest == digest
    final = result.final
    assert final["exactness"] == "bit-equal"
    assert final["goodput"]["lostSteps"] == 0
    assert final["executedSteps"] == job.steps
    assert "WaitingForMachines: there are machines for 1 of 2 members" in result.said
    assert "Released: all members have ended; the next try is in" in result.said
    assert final["restarts"]["byCause"] == {"MachineLost": 1}
    assert final["slots"][0]["incarnation"] > 0
    assert [c["status"] for c in final["conditions"] if c["type"] == "WaitingForMachines"] == ["False"]
    assert "hold" not in final
