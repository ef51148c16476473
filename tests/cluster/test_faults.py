"""Members taken away by what only the testbed can do; what each fault costs is measured by benchmarks/cluster_faults.py."""

import json
import os
import signal
from typing import Any

import pytest
from tests.cluster import faults
from tests.cluster.relight import Job, waited_for
from tests.cluster.test_lifecycle import spec
from tests.testbed import Cluster, TestbedError

pytestmark = pytest.mark.timeout(600)


def test_a_drained_machine_is_left_without_a_lost_step(job: Job, testbed: Cluster) -> None:
    job.apply(spec("400ep"))
    before = job.until_training()
    uids, pod = job.uids(), job.pod(1)
    node = faults.node_of(job, pod)
    try:
        testbed.drain(node)
        after = job.until_training(before["world"]["generation"] + 1)
        assert faults.node_of(job, job.pod(1)) != node
    finally:
        testbed.kubectl("uncordon", node)
    assert job.uids()[0] == uids[0]
    assert set(after["restarts"]["byCause"]) <= {"Evicted", "Deleted"}
    assert (after["restarts"]["total"], after["restarts"]["counted"]) == (1, 0)
    assert after["goodput"]["lostSteps"] == 0


def test_a_killed_container_costs_no_step_and_no_budget(job: Job, testbed: Cluster) -> None:
    del testbed  # its containers' processes can be seen from here
    job.apply(spec("400ep"))
    before = job.until_training()
    uids = job.uids()
    faults.kill_process(job, job.pod(1))
    after = job.until_training(before["world"]["generation"] + 1)
    assert job.uids()[0] == uids[0]
    assert after["restarts"]["byCause"] == {"MachineUnhealthy": 1}
    assert after["restarts"]["counted"] == 0
    assert after["goodput"]["lostSteps"] == 0


@pytest.mark.long
def test_a_disruption_that_is_announced_and_withdrawn_changes_nothing(job: Job) -> None:
    """A server marks a pod before it deletes it, and may think better of it."""
    job.apply(spec("400ep"))
    before = job.until_training()
    pod = job.pod(1)
    for value in ("True", "False"):
        body = faults.manifest(job, pod)
        conditions: list[dict[str, Any]] = [c for c in body["status"]["conditions"] if c["type"] != "DisruptionTarget"]
        told = {"type": "DisruptionTarget", "status": value, "reason": "PreemptionByScheduler", "message": "by a test"}
        body["status"]["conditions"] = [*conditions, told]
        path = f"/api/v1/namespaces/{job.namespace}/pods/{pod}/status"
        job.cluster.kubectl("replace", "--raw", path, "-f-", stdin=json.dumps(body))
        step = job.step()
        waited_for("more steps", lambda step=step: job.step() > step)  # type: ignore[misc]
    after = job.status()
    assert job.uids() == {s["slot"]: s["uid"] for s in before["slots"]}
    assert (after["world"]["generation"], after["restarts"]["total"]) == (before["world"]["generation"], 0)


@pytest.mark.long
def test_what_happens_while_the_api_server_is_away_is_not_lost(job: Job, testbed: Cluster) -> None:
    job.apply(spec("400ep"))
    before = job.until_training()
    uids, agent = job.uids(), faults.agent_of(job.uids()[1])
    server = next(
        int(line.split()[0])
        for line in testbed.run_on("control", "ps", "-A", "-o", "pid,args").splitlines()
        if "kube-apiserver" in line or "hyperkube" in line
    )
    testbed.run_on("control", "kill", "-9", str(server))
    os.kill(agent, signal.SIGKILL)
    after = waited_for("a new generation", lambda: _after(job, before["world"]["generation"]), 180)
    assert job.uids()[0] == uids[0]
    assert after["restarts"]["byCause"] == {"MachineUnhealthy": 1}
    assert after["goodput"]["lostSteps"] == 0
    assert len({p["metadata"]["name"] for p in job.pods()}) == len(job.pods())


def _after(job: Job, generation: int) -> dict[str, Any] | None:
    """The status once a later generation is at work; None too while nobody answers."""
    try:
        status = job.status()
    except TestbedError:
        return None
    world = status.get("world") or {}
    return status if world.get("generation", 0) > generation and world.get("recovered") else None


@pytest.mark.long
def test_a_machine_on_which_members_are_killed_is_avoided(job: Job, testbed: Cluster) -> None:
    del testbed  # its containers' processes can be seen from here
    job.apply(spec("4000ep"))
    status = job.until_training()
    slot_0, killed = job.uids()[0], dict[str, int]()
    while max(killed.values(), default=0) < 2:
        pod = job.pod(1)
        node = faults.node_of(job, pod)
        faults.kill_process(job, pod)
        killed[node] = killed.get(node, 0) + 1
        status = job.until_training(status["world"]["generation"] + 1)
    bad = next(node for node, times in killed.items() if times == 2)
    assert faults.node_of(job, job.pod(1)) != bad
    assert "MachineAvoided" in job.events()
    assert any(c["type"] == "MachinesAvoided" and bad in c["message"] for c in status["conditions"])
    assert job.uids()[0] == slot_0
    assert (status["restarts"]["counted"], status["goodput"]["lostSteps"]) == (0, 0)
