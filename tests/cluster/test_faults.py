"""Members taken away by what only the testbed can do; what each fault costs is measured by benchmarks/cluster_faults.py."""

import pytest
from tests.cluster import faults
from tests.cluster.relight import Job
from tests.cluster.test_lifecycle import spec
from tests.testbed import Cluster

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
