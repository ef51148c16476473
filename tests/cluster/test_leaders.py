"""The leading operator ends without a word."""

import os
import signal

import pytest
from tests.cluster import faults
from tests.cluster.relight import SYSTEM, Job, Operator, items, waited_for
from tests.cluster.test_lifecycle import spec
from tests.testbed import Cluster

pytestmark = pytest.mark.timeout(600)


@pytest.mark.parametrize("when", ["after", "before"])
def test_a_leader_killed_about_a_loss_counts_it_once(job: Job, operator: Operator, testbed: Cluster, when: str) -> None:
    del testbed  # its containers' processes can be seen from here
    job.apply(spec("400ep"))
    before = job.until_training()
    leader = faults.operator_of(operator.leader())
    pod = job.pod(1)
    if when == "before":
        os.kill(leader, signal.SIGKILL)
    faults.delete(job, pod)
    if when == "after":
        os.kill(leader, signal.SIGKILL)
    after = job.until_training(before["world"]["generation"] + 1)
    assert after["restarts"]["byCause"] == {"Deleted": 1}
    assert after["goodput"]["lostSteps"] == 0
    names = [p["metadata"]["name"] for p in job.pods()]
    assert sorted(n for n in names if n != pod) == [job.pod(0), job.pod(1)]


def test_a_leader_that_wakes_up_under_another_one_acts_no_more(job: Job, operator: Operator, testbed: Cluster) -> None:
    """It slept through the end of its lease, and in its own eyes it leads."""
    del testbed  # its containers' processes can be seen from here
    job.apply(spec("400ep"))
    before = job.until_training()
    asleep = operator.leader()
    pid = faults.operator_of(asleep)
    os.kill(pid, signal.SIGSTOP)
    try:
        waited_for("another leader", lambda: operator.leader() != asleep, 60)
        pod = job.pod(1)
        faults.delete(job, pod)
    finally:
        os.kill(pid, signal.SIGCONT)
    after = job.until_training(before["world"]["generation"] + 1)
    assert operator.leader() != asleep
    assert after["restarts"]["byCause"] == {"Deleted": 1}
    assert after["goodput"]["lostSteps"] == 0
    names = [p["metadata"]["name"] for p in job.pods()]
    assert sorted(n for n in names if n != pod) == [job.pod(0), job.pod(1)]


def test_agents_are_answered_by_the_leader_alone(operator: Operator) -> None:
    """The coordinator's Service has one address, the leader's."""
    leading = operator.leader()

    def ready() -> list[str]:
        found = items(operator.cluster, "endpoints", f"-n={SYSTEM}")
        return [
            address["targetRef"]["name"]
            for endpoints in found
            for subset in endpoints.get("subsets") or ()
            if any(port["port"] == 8443 for port in subset["ports"])
            for address in subset.get("addresses") or ()
        ]

    waited_for(f"{leading} alone behind the Service", lambda: ready() == [leading], 30)
