"""Jobs of one name one after the other, and jobs that share a claim."""

import json
import time
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.relight import Job, Operator, waited_for

pytestmark = pytest.mark.timeout(600)

FINALIZER = "relight.dev/test"


def spec(duration: str, **more: Any) -> dict[str, Any]:
    config = {
        "model": {"type": "digits_cnn", "width": 16},
        "data": {"type": "digits"},
        "train": {"duration": duration, "global_batch": 64, "seed": 0, "threads": 1, "device": "cpu"},
    }
    return {"nodes": 2, "procPerNode": 1, "trainer": {"config": config}, "disruption": {"gracePeriod": "20s"}, **more}


def hold(job: Job, pod: str, *finalizers: str) -> None:
    """The pod's object stays for as long as it has finalizers."""
    body = json.dumps({"metadata": {"finalizers": list(finalizers)}})
    job.kubectl("patch", "pod", pod, "--type=merge", "-p", body)


def test_a_job_applied_again_waits_for_the_pods_of_the_earlier_one(job: Job) -> None:
    job.apply(spec("400ep"))
    old = {s["uid"] for s in job.until_training()["slots"]}
    pods = [job.pod(0), job.pod(1)]
    for pod in pods:
        hold(job, pod, FINALIZER)
    try:
        began = time.monotonic()
        job.kubectl("delete", "trainingjob", job.name, "--timeout=10s")
        assert time.monotonic() - began < 10
        job.apply(spec("15ep"))
        said = waited_for("the condition WaitingForOldPods", lambda: _condition(job, "WaitingForOldPods"))
        assert said["status"] == "True"
        assert job.uids() == {0: "", 1: ""}
    finally:
        for pod in pods:
            hold(job, pod)
    end = job.until_phase("Succeeded")
    assert not old & set(job.uids().values())
    assert (end["restarts"]["total"], end["world"]["generation"]) == (0, 1)
    assert next(c["status"] for c in end["conditions"] if c["type"] == "WaitingForOldPods") == "False"


def test_a_job_applied_again_at_once_trains(job: Job) -> None:
    """Its pods, Service and ConfigMap may still be there, another's, and be taken away any moment."""
    job.apply(spec("400ep"))
    job.until_training()
    job.kubectl("delete", "trainingjob", job.name, "--timeout=10s")
    job.apply(spec("400ep"))
    job.until_training()
    job.kubectl("delete", "trainingjob", job.name, "--timeout=10s")
    job.apply(spec("15ep"))
    end = job.until_phase("Succeeded")
    assert end["restarts"]["failures"] == 0


def test_two_jobs_share_a_claim_and_nothing_else(
    operator: Operator, namespace: str, claim: str, tmp_path: Path
) -> None:
    checkpoint = {"persistentVolumeClaim": {"claimName": claim}, "interval": {"steps": 100}}
    jobs = [Job(operator.cluster, namespace, name) for name in ("first", "second")]
    for number, job in enumerate(jobs):
        wanted = spec("15ep", checkpoint=checkpoint, nodes=1)
        wanted["trainer"]["config"]["train"]["seed"] = number
        job.apply(wanted)
    digests = {job.until_phase("Succeeded")["result"]["weightsDigest"] for job in jobs}
    assert len(digests) == 2
    for job in jobs:
        folder = tmp_path / "checkpoints" / namespace / job.name
        manifests = [json.loads(m.read_text()) for m in folder.glob("step-*/manifest.json")]
        assert [m for m in manifests if m.get("final")], f"{folder} has {len(manifests)} checkpoints, none final"


def _condition(job: Job, kind: str) -> dict[str, Any] | None:
    conditions: list[dict[str, Any]] = job.status().get("conditions") or []
    return next((c for c in conditions if c["type"] == kind and c["status"] == "True"), None)
