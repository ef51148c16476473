"""What else may befall a job's processes; tests/faults says which fault of the model each test stands for."""

import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import (
    SCRIPTS,
    SEED,
    Home,
    Job,
    Result,
    agent_of,
    elastic_agent_of,
    kill,
    preempt,
    script,
    waited_for,
    workers_of,
)
from tests.faults.telling import LOST, RECOVERY

from relight_agent.processes import descendants, is_alive

pytestmark = pytest.mark.timeout(120)

HOOKS = Path(__file__).parent / "hooks"
WAIT_SECONDS = 60.0  # that tests/local/scripts/waiting.py waits
JOB = Job()
THREE = Job(nodes=3)
WITH_LOADERS = replace(JOB, trainer={"config": JOB.config(loader={"workers": 2})})


def goes_on_as_if_nothing_had_happened(result: Result, digest: str, *, generations: int = 2) -> None:
    assert result.code == 0, result.said
    assert result.digest == digest
    assert result.final["goodput"]["lostSteps"] == 0
    assert result.final["executedSteps"] == result.final["steps"]
    assert result.final["world"]["generation"] == generations


@pytest.fixture(scope="session")
def digest_of_three(tmp_path_factory: pytest.TempPathFactory) -> str:
    return Home(tmp_path_factory.mktemp("three")).run(THREE).digest


@pytest.fixture
def slow(home: Home, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file with the seconds that each fsync of a member takes longer, for as long as it is there."""
    home.path.mkdir(parents=True)
    file = home.path / "slow"
    monkeypatch.setenv("PYTHONPATH", str(HOOKS))
    monkeypatch.setenv("TESTS_SLOW_DISK", str(file))
    return file


def test_storage_that_cannot_flush_a_folder_is_named_and_used(
    home: Home, digest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(HOOKS))
    monkeypatch.setenv("TESTS_NO_FOLDER_FSYNC", "1")
    result = home.run(JOB, kill(1, at=50))
    goes_on_as_if_nothing_had_happened(result, digest)
    assert home.checkpoints()
    assert "cannot flush a folder to the disk" in result.said


def test_all_members_are_told_to_leave_at_once(home: Home, digest: str, random_from_seed: random.Random) -> None:
    at = random_from_seed.randrange(21, 100)
    result = home.run(home.slow_from(JOB, at), preempt(0, at=at), preempt(1, at=at))
    goes_on_as_if_nothing_had_happened(result, digest)
    assert result.restarts["byCause"] == {"Preempted": 2}
    # Neither is there to keep a snapshot: the one checkpoint that they made together is all there is.
    stopped = result.final["checkpoint"]["resumedFromStep"]
    assert stopped >= at
    assert [s["incarnation"] for s in result.final["slots"]] == [1, 1]
    assert len(re.findall(rf"stopped at step {stopped}, saved", result.said)) >= 2


def test_a_member_told_to_leave_before_it_has_begun_goes_at_once(home: Home, digest: str) -> None:
    run = home.start(JOB)
    run.until(lambda s: any(slot.get("uid") for slot in s.get("slots", ()) if slot["slot"] == 1), "a member")
    agent = waited_for(lambda: agent_of(home, 1))
    waited_for(lambda: descendants(agent))  # its launcher imports torch
    os.kill(agent, signal.SIGTERM)
    told = time.monotonic()
    waited_for(lambda: not is_alive(agent))
    assert time.monotonic() - told < 10  # 2 on a machine that has nothing else to do
    left = run.until(lambda s: s["slots"][1].get("exit"), "its end")["slots"][1]["exit"]
    assert (left["exitCode"], left["cause"]) == (76, "Preempted")
    result = run.wait()
    goes_on_as_if_nothing_had_happened(result, digest, generations=1)
    assert result.restarts["byCause"] == {"Preempted": 1}


def test_a_second_sigterm_changes_nothing_and_loader_processes_take_no_part(home: Home, digest: str) -> None:
    run = home.start(home.paced(WITH_LOADERS))
    run.until_step(10)
    agent = agent_of(home, 1)
    for _ in range(3):
        os.kill(agent, signal.SIGTERM)
        time.sleep(0.05)
    run.until(lambda s: s["world"]["generation"] == 2, "the next generation")
    home.full_speed()
    result = run.wait()
    goes_on_as_if_nothing_had_happened(result, digest)
    assert result.restarts["byCause"] == {"Preempted": 1}
    assert "its successor is ready" in result.said
    logs = "".join(path.read_text() for path in home.state.glob("members/*/log"))
    assert "is killed by signal" not in logs


@pytest.mark.long
@pytest.mark.parametrize("where", ["data", "evaluation"])
def test_a_member_told_to_leave_in_a_wait_of_the_users_code_leaves_within_its_grace(home: Home, where: str) -> None:
    waits, mended = home.path / "waits", home.path / "mended"
    home.path.mkdir(parents=True)
    grace = {"gracePeriod": "5s"}
    run = home.start(Job(trainer=script("waiting.py", where, waits, mended)).with_spec(disruption=grace))
    waited_for(waits.exists)
    mended.touch()  # the next one does not wait
    told = time.monotonic()
    os.kill(agent_of(home, 1), signal.SIGTERM)
    run.until(lambda s: s["slots"][1]["incarnation"] == 1, "its end")
    assert time.monotonic() - told < WAIT_SECONDS / 2
    result = run.wait()
    assert result.code == 0, result.said
    assert result.restarts["byCause"] == {"Preempted": 1}
    assert result.final["goodput"]["lostSteps"] == 0
    assert result.final["executedSteps"] == 40


def test_a_member_told_to_leave_while_a_checkpoint_is_written(home: Home, digest: str, slow: Path) -> None:
    slow.write_text("1")
    run = home.start(home.slow_from(JOB, JOB.every))
    waited_for(lambda: list(home.state.glob("volumes/ckpt/default/*/tmp-*")))
    agent = agent_of(home, 1)
    os.kill(agent, signal.SIGTERM)
    waited_for(lambda: not is_alive(agent))
    slow.unlink()
    result = run.wait()
    goes_on_as_if_nothing_had_happened(result, digest)
    assert result.restarts["byCause"] == {"Preempted": 1}
    # Each that is there is whole, and none was written twice.
    names = [path.name for path in home.checkpoints() if not path.name.endswith(".final")]
    assert len({name.split(".")[0] for name in names}) == len(names)
    assert all((path / "manifest.json").exists() for path in home.checkpoints())
    assert not list(home.state.glob("volumes/ckpt/default/*/tmp-*"))


@pytest.mark.long
def test_a_member_lost_while_a_checkpoint_is_written_is_not_answered_with_waiting_for_the_disk(
    home: Home, digest: str, slow: Path
) -> None:
    run = home.start(home.paced(JOB))
    run.until_step(1)
    slow.write_text("30")
    home.full_speed()
    waited_for(lambda: list(home.state.glob("volumes/ckpt/default/*/tmp-*")))
    os.kill(agent_of(home, 1), signal.SIGKILL)
    run.until(lambda s: s["world"]["generation"] == 2, "the next generation")
    slow.unlink()
    result = run.wait()
    goes_on_as_if_nothing_had_happened(result, digest)
    # Two for last words, and the replacement's start.
    assert float(result.final["goodput"]["lastRecoverySeconds"]) < 14


@pytest.mark.long
def test_a_grace_period_too_short_for_the_save_costs_no_more_than_the_last_checkpoint(
    home: Home, digest: str, slow: Path
) -> None:
    run = home.start(JOB.with_spec(disruption={"gracePeriod": "5s"}))
    waited_for(home.checkpoints)
    slow.write_text("20")
    agents = [agent_of(home, slot) for slot in (0, 1)]
    for agent in agents:
        os.kill(agent, signal.SIGTERM)
    told = time.monotonic()
    waited_for(lambda: not any(is_alive(agent) for agent in agents))
    assert time.monotonic() - told < 5 + 5
    slow.unlink()
    result = run.wait()
    assert result.code == 0, result.said
    assert result.digest == digest
    assert result.final["checkpoint"]["resumedFromStep"] >= JOB.every
    assert result.final["goodput"]["lostSteps"] <= JOB.steps - JOB.every
    assert result.final["executedSteps"] == JOB.steps + result.final["goodput"]["lostSteps"]


def test_a_killed_rank_is_a_failure_that_costs_no_step(home: Home, digest: str) -> None:
    run = home.start(home.paced(JOB))
    run.until_step(10)
    before = home.status()
    os.kill(workers_of(home, 1)[0], signal.SIGKILL)
    home.full_speed()
    result = run.wait()
    goes_on_as_if_nothing_had_happened(result, digest)
    assert result.restarts["byCause"] == {"Exception": 1}
    assert "a worker died without a word" in result.final["lastFailure"]["message"]
    # Nobody was made anew: the members live on.
    assert [s["uid"] for s in result.final["slots"]] == [s["uid"] for s in before["slots"]]


def test_a_killed_elastic_agent_leaves_no_orphans_and_costs_no_step(home: Home, digest: str) -> None:
    run = home.start(home.paced(JOB))
    run.until_step(10)
    elastic_agent = elastic_agent_of(home, 1)
    orphans = descendants(elastic_agent)
    os.kill(elastic_agent, signal.SIGKILL)
    home.full_speed()
    run.until(lambda s: s["world"]["generation"] == 2, "the next generation")
    assert not [pid for pid in orphans if is_alive(pid)]
    goes_on_as_if_nothing_had_happened(run.wait(), digest)


@pytest.mark.parametrize("slot", [0, pytest.param(1, marks=pytest.mark.long)])
def test_a_killed_agent_takes_its_member_along_and_no_other(home: Home, digest: str, slot: int) -> None:
    run = home.start(home.paced(JOB))
    run.until_step(10)
    before = home.status()
    agent = agent_of(home, slot)
    below = descendants(agent)
    os.kill(agent, signal.SIGKILL)
    home.full_speed()
    run.until(lambda s: s["world"]["generation"] == 2, "the next generation")
    assert not [pid for pid in below if is_alive(pid)]
    result = run.wait()
    goes_on_as_if_nothing_had_happened(result, digest)
    assert result.restarts["byCause"] == {"MachineLost": 1}
    assert result.restarts["failures"] == 0
    kept = 1 - slot
    assert result.final["slots"][kept]["uid"] == before["slots"][kept]["uid"]
    # Ranks stay where they were.
    assert [(m["rank"], m["slot"]) for m in result.final["world"]["members"]] == [(0, 0), (1, 1)]


@pytest.mark.long
def test_two_members_lost_at_once_and_another_in_the_recovery(home: Home, digest_of_three: str) -> None:
    run = home.start(THREE, kill(1, at=40), kill(2, at=40))

    def replaced(status: dict[str, Any]) -> bool:
        slots = {s["slot"]: s for s in status.get("slots", ())}
        return bool(slots and slots[2]["incarnation"] == 1 and slots[2].get("uid"))

    assert run.until(replaced, "a replacement")["phase"] == "Recovering"
    os.kill(agent_of(home, 2), signal.SIGKILL)
    result = run.wait()
    # One generation mends it all: none was formed in between.
    goes_on_as_if_nothing_had_happened(result, digest_of_three)
    assert result.restarts["byCause"] == {"MachineLost": 3}
    assert result.restarts["counted"] == 0
    assert [s["incarnation"] for s in result.final["slots"]] == [0, 1, 2]


def test_the_rank_that_raised_is_named_with_its_place_and_its_peers_are_not(home: Home) -> None:
    job = Job(
        trainer=script("failing.py", "step:7"),
        spec={"procPerNode": 2, "retry": {"failures": 0, "backoff": {"initial": "0s"}}},
    )
    result = home.run(job)
    assert result.code == 70, result.said
    failure = result.final["lastFailure"]
    assert failure["rank"] == 3
    assert failure["message"].startswith(f"NoSuchDigit: eleven, on rank 3 ({SCRIPTS / 'failing.py'}:")
    assert result.restarts["byCause"] == {"Exception": 1}


def test_a_rank_that_ends_early_without_an_error_is_no_success(home: Home) -> None:
    home.path.mkdir(parents=True)
    # A script without the client: one that has left the client's loop is refused instead (test_failures.py).
    trainer = script("failing.py", "early", str(home.path / "left.once"))
    result = home.run(Job(trainer=trainer, spec={"retry": {"backoff": {"initial": "0s"}}}))
    assert result.code == 0, result.said
    # Both ranks are run again, because a success needs every rank.
    assert result.final["world"]["generation"] == 2
    assert result.restarts["failures"] == 1


def test_a_wall_clock_that_jumps_changes_nothing(home: Home, digest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour forward in mid-training, two hours back in mid-recovery."""
    home.path.mkdir(parents=True)
    clock = home.path / "clock"
    monkeypatch.setenv("PYTHONPATH", str(HOOKS))
    monkeypatch.setenv("TESTS_CLOCK", str(clock))
    run = home.start(home.paced(JOB), kill(1, at=60))
    run.until_step(1)
    clock.write_text("3600")
    home.full_speed()
    run.until(lambda s: s.get("phase") == "Recovering", "a recovery")
    clock.write_text("-3600")
    result = run.wait()
    goes_on_as_if_nothing_had_happened(result, digest)
    assert result.restarts["byCause"] == {"MachineLost": 1}
    assert 0 < float(result.final["goodput"]["lastRecoverySeconds"]) < 60
    assert {p.name for p in home.path.glob("clock.*")} >= {"clock.member"}, "nobody was told a wrong time"


@pytest.mark.long
def test_a_port_that_is_taken_costs_one_generation(home: Home, digest: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        monkeypatch.setenv("PYTHONPATH", str(HOOKS))
        monkeypatch.setenv("TESTS_PORT", str(taken.getsockname()[1]))
        result = home.run(JOB)
    goes_on_as_if_nothing_had_happened(result, digest)
    assert "in use" in result.said
    assert result.restarts["disruptions"] == 0


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_a_storm_of_kills(tmp_path: Path, record_property: Callable[[str, object], None]) -> None:
    soak = Path(__file__).parents[2] / "benchmarks/soak.py"
    command = [sys.executable, str(soak), "--minutes=10", "--every=20", f"--seed={SEED}", f"--results={tmp_path}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "soak.json").read_text())
    assert len(found["faults"]) >= 15  # it is over when its steps are done, which a quick machine does sooner
    assert found["goodput"] >= 0.5
    record_property(LOST, found["status goodput"]["lostSteps"])
    record_property(RECOVERY, float(found["status goodput"]["lastRecoverySeconds"]))
