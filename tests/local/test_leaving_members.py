"""Members that leave with notice: their successors are ready before they go, and nothing is lost with them."""

import os
import signal
from typing import Any

import pytest
from builders import Home, Job, agent_of, preempt

from relight_agent.files import LEAVING, read_json
from relight_operator.local.private import run_root

pytestmark = pytest.mark.timeout(300)

PATIENCE = 200.0  # seconds, on a machine that has other things to do
LONG = Job(name="leaving", steps=300, every=5000)
ALONE = Job(name="alone", nodes=1, steps=300, every=5000).with_spec(disruption={"gracePeriod": "20s"})


@pytest.fixture(scope="module")
def long_digest(tmp_path_factory: pytest.TempPathFactory) -> str:
    return Home(tmp_path_factory.mktemp("undisturbed")).start(LONG).wait(PATIENCE).digest


def announce(slot: int, *, at: int) -> tuple[str, str]:
    return "--chaos", f"announce-node:{slot}@step:{at}"


def slot_of(status: dict[str, Any], number: int) -> dict[str, Any]:
    return next((s for s in status.get("slots", ()) if s["slot"] == number), {})


def test_a_member_whose_machine_is_announced_to_go_is_replaced_between_two_steps(home: Home, long_digest: str) -> None:
    run = home.start(home.paced(LONG), announce(1, at=20))
    made = run.until(lambda s: slot_of(s, 1).get("successor", {}).get("uid"), "a successor")
    assert (made["phase"], made["world"]["generation"]) == ("Running", 1), "training goes on meanwhile"
    run.until(lambda s: s["world"]["generation"] == 2, "its taking over")
    home.full_speed()
    result = run.wait(PATIENCE)
    assert result.digest == long_digest
    assert result.restarts["byCause"] == {"MachineLeaving": 1}
    goodput = result.final["goodput"]
    assert (goodput["lostSteps"], goodput["recoveries"], result.final["executedSteps"]) == (0, 1, LONG.steps)
    assert result.final["world"]["resumedKind"] == "snapshot"
    assert [s["incarnation"] for s in result.final["slots"]] == [0, 1]
    assert not home.leftovers()


def test_an_announcement_that_is_taken_back_costs_nothing_but_the_successor(home: Home, long_digest: str) -> None:
    run = home.start(home.paced(LONG))
    run.until_step(1)
    mark = run_root(home.state) / f"{LONG.name}-0-0" / LEAVING
    mark.touch()
    run.until(lambda s: slot_of(s, 0).get("successor"), "a successor")
    mark.unlink()
    run.until(lambda s: not slot_of(s, 0).get("successor"), "its being let go")
    home.full_speed()
    result = run.wait(PATIENCE)
    assert result.digest == long_digest
    assert (result.restarts["total"], result.final["world"]["generation"]) == (0, 1)
    assert [s["incarnation"] for s in result.final["slots"]] == [0, 0]
    assert "stays after all" in result.said
    assert not home.leftovers()


def test_a_preempted_members_successor_starts_in_its_grace_period(home: Home, digest: str) -> None:
    result = home.run(home.slow_from(Job(), 30), preempt(1, at=30))
    assert result.digest == digest
    assert result.restarts["byCause"] == {"Preempted": 1}
    assert result.final["goodput"]["lostSteps"] == 0
    # With a peer that keeps the state in memory nobody has waited for the storage.
    assert result.final["world"]["resumedKind"] == "snapshot"
    assert result.said.index("is made ready meanwhile") < result.said.index("GenerationFormed: generation 2")


def test_a_member_that_hangs_when_it_is_told_to_go_leaves_its_last_snapshot(home: Home) -> None:
    undisturbed = Home(home.path / "undisturbed").run(ALONE).digest
    run = home.start(home.paced(ALONE))
    run.until_step(20)
    agent = agent_of(home, 0)
    worker = read_json(run_root(home.state) / "alone-0-0" / "gen-1" / "pid-0")
    os.kill(int(worker), signal.SIGSTOP)
    home.full_speed()
    os.kill(agent, signal.SIGTERM)
    os.kill(agent, signal.SIGTERM)  # a second one changes nothing
    ended = run.until(lambda s: slot_of(s, 0).get("exit"), "its end")["slots"][0]["exit"]
    assert ended["exitCode"] == 75, ended
    assert "the last snapshot is saved" in ended["message"]
    result = run.wait(PATIENCE)
    assert result.digest == undisturbed
    assert result.final["goodput"]["lostSteps"] == 0
    assert result.final["checkpoint"]["resumedFromStep"] >= 20
