"""Spares and sizes in a cluster: what `plan()` decides about them, by real pods and the scale subresource."""

from typing import Any

import pytest
from tests.cluster import faults
from tests.cluster.relight import Job, waited_for
from tests.cluster.test_lifecycle import spec

pytestmark = pytest.mark.timeout(600)


def seated(status: dict[str, Any]) -> dict[int, str]:
    """Slot and uid of each member of the present world, by rank."""
    return {m["slot"]: m["uid"] for m in sorted(status["world"]["members"], key=lambda m: m["rank"])}


def test_a_spare_takes_the_place_of_a_deleted_pod_and_the_lost_one_becomes_the_spare(job: Job) -> None:
    job.apply({**spec("400ep"), "spares": 1})
    job.until_training()
    waited_for("a spare", lambda: any(s["state"] == "Spare" for s in job.status()["slots"]))
    before = job.status()
    lost = next(s for s in seated(before) if s != 0)
    job.kubectl("delete", "pod", job.pod(lost), "--wait=false")
    after = job.until_training(before["world"]["generation"] + 1)
    spare = ({0, 1, 2} - seated(before).keys()).pop()
    assert spare in seated(after)
    assert lost not in seated(after)
    assert after["restarts"]["counted"] == after["goodput"]["lostSteps"] == 0
    assert after["exactness"] == "bit-equal"
    again = waited_for("the lost one's slot as a spare", lambda: ready_again(job, lost))
    assert seated(again) == seated(after), "nothing was formed anew for it"


def ready_again(job: Job, slot: int) -> dict[str, Any] | None:
    status = job.status()
    found = next(s for s in status["slots"] if s["slot"] == slot)
    return status if found["incarnation"] > 0 and found["state"] == "Spare" else None


def test_a_job_is_scaled_by_kubectl_and_keeps_its_samples(job: Job) -> None:
    elastic = {"minNodes": 1, "maxNodes": 3, "replacementTimeout": "5s", "growCooldown": "5s"}
    job.apply({**spec("400ep"), "nodes": 2, "elastic": elastic})
    before = job.until_training()
    job.kubectl("scale", f"trainingjob/{job.name}", "--replicas=3")
    larger = job.until_training(before["world"]["generation"] + 1)
    assert len(seated(larger)) == 3
    assert seated(before).items() <= seated(larger).items(), "survivors keep their pods"
    job.kubectl("scale", f"trainingjob/{job.name}", "--replicas=1")
    smaller = job.until_training(larger["world"]["generation"] + 1)
    assert len(seated(smaller)) == 1
    waited_for("the others' end", lambda: len(job.pods()) == 1)
    after = job.status()
    assert after["exactness"] == "sample-exact"
    assert after["goodput"]["lostSteps"] == after["restarts"]["total"] == 0


def test_a_job_whose_replacement_finds_no_machine_goes_on_as_fewer_and_grows_back(job: Job) -> None:
    elastic = {"minNodes": 1, "maxNodes": 2, "replacementTimeout": "3s", "growCooldown": "3s"}
    job.apply({**spec("400ep"), "nodes": 2, "elastic": elastic})
    before = job.until_training()
    nodes = [n["metadata"]["name"] for n in job.cluster.get("nodes")["items"]]
    try:
        for node in nodes:
            job.cluster.kubectl("cordon", node)
        job.kubectl("delete", "pod", job.pod(1), "--wait=false")
        smaller = job.until_training(before["world"]["generation"] + 1)
        assert list(seated(smaller)) == [0]
    finally:
        for node in nodes:
            job.cluster.kubectl("uncordon", node)
    larger = job.until_training(smaller["world"]["generation"] + 1)
    assert list(seated(larger)) == [0, 1]
    assert larger["goodput"]["lostSteps"] == 0
    assert larger["exactness"] == "sample-exact"
    assert faults.node_of(job, job.pod(1))
