"""The operator, installed by its chart, against a real API server, scheduler and kubelets."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from tests.cluster import faults
from tests.cluster.relight import SYSTEM, Job, Operator, items, waited_for
from tests.testbed import Cluster, TestbedError

pytestmark = pytest.mark.timeout(600)

CONFIG = {
    "model": {"type": "digits_cnn", "width": 16},
    "data": {"type": "digits"},
    "train": {"duration": "400ep", "global_batch": 64, "seed": 0, "threads": 1, "device": "cpu"},
}
LONG = {"nodes": 2, "procPerNode": 1, "trainer": {"config": CONFIG}, "disruption": {"gracePeriod": "20s"}}
SHORT = {**LONG, "trainer": {"config": {**CONFIG, "train": {**CONFIG["train"], "duration": "15ep"}}}}


def recovered_from(job: Job, slot: int, fault: Callable[[Job, str], None]) -> dict[str, Any]:
    """The status after the job has met the fault and trains again; the other slot's pod stayed."""
    before = job.until_training()
    uids = job.uids()
    fault(job, job.pod(slot))
    after = job.until_training(before["world"]["generation"] + 1)
    assert job.uids()[1 - slot] == uids[1 - slot]
    assert job.uids()[slot] != uids[slot]
    return after


def test_a_job_trains_to_its_end(job: Job) -> None:
    job.apply(SHORT)
    status = job.until_phase("Succeeded")
    assert len(status["result"]["weightsDigest"]) == 64
    assert status["progress"]["percent"] == 100
    assert {"GenerationFormed", "Succeeded"} <= job.events()
    pods = job.pods()
    assert len({p["spec"]["nodeName"] for p in pods}) == 2
    waited_for("the pods' end", lambda: all(
        p["status"]["phase"] == "Succeeded" for p in job.pods()
    ))  # fmt: skip


@pytest.mark.parametrize(
    ("slot", "fault", "causes"),
    [
        pytest.param(1, faults.delete, {"Deleted"}, id="deleted"),
        pytest.param(0, faults.delete, {"Deleted"}, id="the master's pod deleted"),
        pytest.param(1, faults.delete_by_force, {"Deleted"}, id="deleted by force"),
        # Before 1.26 an eviction leaves no trace but the deletion.
        pytest.param(1, faults.evict, {"Evicted", "Deleted"}, id="evicted"),
    ],
)
def test_a_disruption_costs_no_step_and_no_budget(
    job: Job, slot: int, fault: Callable[[Job, str], None], causes: set[str]
) -> None:
    job.apply(LONG)
    after = recovered_from(job, slot, fault)
    restarts = after["restarts"]
    assert (restarts["disruptions"], restarts["counted"], restarts["total"]) == (1, 0, 1)
    assert set(restarts["byCause"]) <= causes
    assert after["goodput"]["lostSteps"] == 0


def test_evictions_take_one_member_at_a_time(job: Job) -> None:
    def allowed() -> int:
        return int((budget() or {}).get("status", {}).get("disruptionsAllowed", 0))

    def budget() -> Any:
        return job.cluster.get("poddisruptionbudget", "digits", f"-n={job.namespace}")

    job.apply(LONG)
    before = job.until_training()
    waited_for("leave for an eviction", lambda: allowed() == 1)
    second = job.pod(1)
    faults.evict(job, job.pod(0))
    with pytest.raises(TestbedError, match="disruption budget"):
        faults.evict(job, second)
    after = job.until_training(before["world"]["generation"] + 1)
    waited_for("leave for another one", lambda: allowed() == 1)
    faults.evict(job, second)
    after = job.until_training(after["world"]["generation"] + 1)
    assert (after["restarts"]["disruptions"], after["goodput"]["lostSteps"]) == (2, 0)
    job.kubectl("patch", "trainingjob", "digits", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    waited_for("the budget's end", lambda: budget() is None)


def test_the_schedulers_preemption_is_called_so(job: Job, testbed: Cluster) -> None:
    del testbed  # its machines have GPUs
    job.apply(LONG)
    after = recovered_from(job, 1, faults.preempt)
    assert after["restarts"]["byCause"] == {"Preempted": 1}
    assert after["goodput"]["lostSteps"] == 0


@pytest.mark.slow
def test_a_dead_machine_is_left(job: Job, testbed: Cluster) -> None:
    killed = []

    def kill(job: Job, pod: str) -> None:
        node = faults.node_of(job, pod)
        killed.append(node)
        testbed.kill_machine(node)

    job.apply(LONG)
    try:
        after = recovered_from(job, 1, kill)
        assert after["restarts"]["byCause"] == {"MachineLost": 1}
        assert after["goodput"]["lostSteps"] == 0
    finally:
        for node in killed:
            testbed.revive_machine(node)


def test_the_leaders_end_in_mid_recovery_changes_nothing(job: Job, operator: Operator) -> None:
    job.apply(LONG)

    def both(job: Job, pod: str) -> None:
        faults.delete(job, pod)
        operator.cluster.kubectl("delete", "pod", operator.leader(), f"-n={SYSTEM}", "--wait=false")

    after = recovered_from(job, 1, both)
    assert after["restarts"]["byCause"] == {"Deleted": 1}
    pods = job.pods()
    members = [
        (p["metadata"]["labels"]["relight.dev/slot"], p["metadata"]["labels"]["relight.dev/incarnation"]) for p in pods
    ]
    assert len(members) == len(set(members))


def test_training_goes_on_while_no_operator_is_there(job: Job, operator: Operator) -> None:
    job.apply(LONG)
    job.until_training()
    generation = job.status()["world"]["generation"]
    operator.scale(0)
    try:
        before = job.step()
        time.sleep(5)
    finally:
        operator.scale(2)
    waited_for("steps that were done meanwhile", lambda: job.step() > before)
    status = job.until_training()
    assert (status["world"]["generation"], status["restarts"]["total"]) == (generation, 0)


def test_a_job_is_deleted_while_no_operator_is_there(job: Job, operator: Operator) -> None:
    job.apply(LONG)
    job.until_training()
    operator.scale(0)
    try:
        began = time.monotonic()
        job.kubectl("delete", "trainingjob", "digits", "--timeout=10s")
        assert time.monotonic() - began < 10
        for kind in ("pods", "services", "configmaps", "poddisruptionbudgets"):
            selected = (kind, f"-n={job.namespace}", "-l=relight.dev/job=digits")
            waited_for(f"no {kind}", lambda what=selected: not items(job.cluster, *what))  # type: ignore[misc]
    finally:
        operator.scale(2)


def test_a_wrong_job_becomes_invalid_in_words(job: Job) -> None:
    wrong = {**SHORT, "trainer": {"config": {**CONFIG, "model": {"type": "digits_cn"}}}}
    job.apply(wrong)
    status = job.until_phase("Invalid")
    message = next(c["message"] for c in status["conditions"] if c["type"] == "Invalid")
    assert "spec.trainer.config.model" in message
    assert "digits_cnn" in message
    assert job.pods() == []


def test_an_empty_value_of_a_variable_is_a_value(job: Job) -> None:
    job.apply({**SHORT, "trainer": {**SHORT["trainer"], "env": [{"name": "PROXY", "value": ""}]}, "suspend": True})
    job.until_phase("Suspended", 30)


def test_an_edit_of_a_frozen_field_is_ignored_and_said(job: Job) -> None:
    job.apply(LONG)
    job.until_training()
    job.kubectl("patch", "trainingjob", "digits", "--type=merge", "-p", '{"spec":{"nodes":3}}')

    def said() -> bool:
        conditions = job.status()["conditions"]
        return any(c["type"] == "SpecChangeIgnored" and "spec.nodes" in c["message"] for c in conditions)

    waited_for("the condition SpecChangeIgnored", said)
    assert len(job.pods()) == 2
