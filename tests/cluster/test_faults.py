"""Members taken away by what only the testbed can do; what each fault costs is measured by benchmarks/cluster_faults.py."""

import json
import os
import signal
from pathlib import Path
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


def committed(folder: Path, job: Job) -> list[tuple[int, int]]:
    """(generation, step) of each checkpoint of the job that is there."""
    manifests = (folder / job.namespace / job.name).glob("step-*/manifest.json")
    found = (json.loads(path.read_text()) for path in manifests)
    return sorted((int(m["order"]["generation"]), int(m["order"]["step"])) for m in found)


@pytest.mark.long
def test_a_member_that_is_cut_off_is_replaced_and_does_no_harm_when_it_is_back(
    job: Job, testbed: Cluster, claim: str, tmp_path: Path
) -> None:
    checkpoint = {"persistentVolumeClaim": {"claimName": claim}, "interval": {"steps": 100}}
    job.apply(spec("4000ep", checkpoint=checkpoint))
    before = job.until_training()
    uids, pod = job.uids(), job.pod(1)
    node = faults.node_of(job, pod)
    zombie = faults.agent_of(uids[1])
    testbed.partition(node)
    try:
        after = job.until_training(before["world"]["generation"] + 1)
        assert faults.node_of(job, job.pod(1)) != node
        os.kill(zombie, 0)  # cut off, and alive
    finally:
        testbed.heal(node)
    resumed = after["world"]["resumedFromStep"]
    waited_for("the end of the old member", lambda: pod not in {p["metadata"]["name"] for p in job.pods()}, 120)
    step = job.step()
    status = waited_for("more steps", lambda: (s := job.status())["progress"]["step"] > step and s)
    assert status["world"]["generation"] == after["world"]["generation"]
    assert job.uids()[0] == uids[0]
    assert status["restarts"]["byCause"] == {"MachineLost": 1}
    assert (status["restarts"]["counted"], status["goodput"]["lostSteps"]) == (0, 0)
    old = [
        step
        for generation, step in committed(tmp_path / "checkpoints", job)
        if generation < after["world"]["generation"]
    ]
    assert all(step <= resumed for step in old)


@pytest.mark.long
def test_a_pod_that_cannot_end_is_left_behind(job: Job, testbed: Cluster) -> None:
    stays = {"gracePeriod": "20s", "deadMachine": {"forceDelete": False}}
    job.apply(spec("4000ep", disruption=stays))
    before = job.until_training()
    uids, pod = job.uids(), job.pod(1)
    node = faults.node_of(job, pod)
    testbed.kill_machine(node)
    try:
        faults.delete(job, pod)
        after = job.until_training(before["world"]["generation"] + 1)
        stuck = faults.manifest(job, pod)
        assert stuck["metadata"]["deletionTimestamp"]
        assert stuck["metadata"]["uid"] == uids[1]
        assert job.pod(1) != pod
        assert job.uids()[1] not in {uids[1], ""}
    finally:
        testbed.revive_machine(node)
    waited_for("the old pod's end", lambda: pod not in {p["metadata"]["name"] for p in job.pods()}, 120)
    status = job.until_training()
    assert status["world"]["generation"] == after["world"]["generation"]
    assert (status["restarts"]["total"], status["restarts"]["counted"]) == (1, 0)
    assert status["goodput"]["lostSteps"] == 0


@pytest.mark.long
def test_a_member_killed_for_its_memory_is_retried_so_often_and_told_why(job: Job) -> None:
    hungry = ["python3", "-c", "held = []\nwhile True: held.append(bytearray(1 << 24))"]
    limits = {"memory": "256Mi"}  # and not the testbed's GPUs, which a command would look for
    wanted = spec("1ep", nodes=1, retry={"failures": 1, "backoff": {"initial": "0s"}})
    job.apply({**wanted, "trainer": {"command": hungry, "resources": {"limits": limits}}})
    status = job.until_phase("Failed")
    assert status["restarts"]["byCause"] == {"OutOfMemory": 2}
    assert status["restarts"]["counted"] == 2
    failure = status["lastFailure"]
    assert failure["cause"] == "OutOfMemory"
    assert "memory" in failure["message"]


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
def test_a_job_that_is_suspended_while_a_member_leaves_drains_once_and_goes_on(
    job: Job, testbed: Cluster, claim: str, tmp_path: Path
) -> None:
    del testbed  # the claim's volume is a folder of this computer
    checkpoint = {"persistentVolumeClaim": {"claimName": claim}, "interval": {"steps": 10**6}}
    job.apply(spec("400ep", checkpoint=checkpoint))
    before = job.until_training()
    faults.delete(job, job.pod(1))
    for suspended in (True, False):
        body = json.dumps({"spec": {"suspend": suspended, "retry": {"failures": 5}}})
        job.kubectl("patch", "trainingjob", job.name, "--type=merge", "-p", body)
        if suspended:
            stopped = job.until_phase("Suspended")
    assert len(committed(tmp_path / "checkpoints", job)) == 1
    after = job.until_training(before["world"]["generation"] + 1)
    assert after["goodput"]["lostSteps"] == 0
    assert after["restarts"]["total"] == stopped["restarts"]["total"] <= 1
    assert after["restarts"]["counted"] == 0
    faults.delete(job, job.pod(1))
    job.kubectl("delete", "trainingjob", job.name, "--timeout=10s")
    waited_for("the end of all pods", lambda: not job.pods())


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
