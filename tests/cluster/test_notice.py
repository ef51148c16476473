"""Members that leave with notice: a taint on their machine, or a deletion that they have yet to obey."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
from tests.cluster import faults
from tests.cluster.relight import Job, waited_for
from tests.cluster.test_operator import LONG

pytestmark = pytest.mark.timeout(600)

TAINT = "karpenter.sh/disrupted"
OWN_TAINT = "example.com/maintenance"


@contextmanager
def tainted(job: Job, node: str, key: str) -> Iterator[None]:
    job.kubectl("taint", "node", node, f"{key}=:NoSchedule")
    try:
        yield
    finally:
        job.kubectl("taint", "node", node, f"{key}:NoSchedule-")


def successor(job: Job, slot: int) -> dict[str, Any] | None:
    found: dict[str, Any] | None = job.status()["slots"][slot].get("successor")
    return found


def test_a_taint_that_is_taken_back_costs_only_the_successor(job: Job) -> None:
    job.apply(LONG)
    job.until_training()
    uids = job.uids()
    with tainted(job, faults.node_of(job, job.pod(1)), TAINT):
        made = waited_for("a successor", lambda: (successor(job, 1) or {}).get("uid"))
    waited_for("its being let go", lambda: successor(job, 1) is None)
    waited_for("its end", lambda: all(p["metadata"]["uid"] != made or has_ended(p) for p in job.pods()))
    status = job.status()
    assert (status["restarts"]["total"], status["world"]["generation"]) == (0, 1)
    assert job.uids() == uids
    assert {"Leaving", "Staying"} <= job.events()


def has_ended(pod: dict[str, Any]) -> bool:
    return "deletionTimestamp" in pod["metadata"] or pod["status"]["phase"] in {"Succeeded", "Failed"}


def test_a_member_on_a_machine_that_is_to_go_is_replaced_between_two_steps(job: Job) -> None:
    job.apply({**LONG, "disruption": {"gracePeriod": "20s", "watchTaints": [OWN_TAINT]}})
    before = job.until_training()
    uids, node = job.uids(), faults.node_of(job, job.pod(1))
    with tainted(job, node, OWN_TAINT):
        after = job.until_training(before["world"]["generation"] + 1)
        assert faults.node_of(job, job.pod(1)) != node
    assert job.uids()[0] == uids[0]
    assert job.uids()[1] != uids[1]
    assert after["restarts"]["byCause"] == {"MachineLeaving": 1}
    assert after["goodput"]["lostSteps"] == 0
    print("seconds without a step:", after["goodput"]["lastRecoverySeconds"])
    assert {"HandingOver", "MemberLost"} <= job.events()


def test_a_successor_is_created_before_the_victim_has_ended(job: Job) -> None:
    job.apply(LONG)
    before = job.until_training()
    victim = job.pod(1)
    agent = faults.agent_of(faults.manifest(job, victim)["metadata"]["uid"])
    os.kill(agent, signal.SIGSTOP)  # it cannot obey before its grace period ends
    faults.delete(job, victim)
    made = waited_for("a successor", lambda: (successor(job, 1) or {}).get("uid"), 15)
    there = {p["metadata"]["uid"]: p for p in job.pods()}
    assert made in there
    assert any(p["metadata"]["name"] == victim for p in there.values())
    after = job.until_training(before["world"]["generation"] + 1)
    assert job.uids()[1] == made
    assert after["restarts"]["disruptions"] == 1
    assert after["goodput"]["lostSteps"] == 0
