"""Secrets on a real kubelet: one that is missing is named and waited for, and none is in anything that the cluster shows."""

import base64
import hashlib
import json
from typing import Any
from urllib.request import urlopen

import pytest
from tests.cluster.relight import SYSTEM, Job, Operator, items, waited_for
from tests.testbed import Cluster

pytestmark = pytest.mark.timeout(400)

PLANTED = {"TOKEN": "planted-1-f00d", "DB_PASSWORD": "planted-2-beef", "RELIGHT_STORAGE_key": "planted-3-cafe"}
SHOWN = ("trainingjobs", "pods", "configmaps", "services", "events", "poddisruptionbudgets", "networkpolicies")
TELL = """
import hashlib, os, time
for name in ("TOKEN", "DB_PASSWORD", "RELIGHT_STORAGE_key", "NODE", "ABSENT"):
    print(name, hashlib.sha256(os.environ.get(name, "").encode()).hexdigest(), flush=True)
time.sleep(20)
"""


def put(job: Job, name: str, **data: str) -> None:
    body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}, "stringData": data}
    job.cluster.kubectl("apply", f"-n={job.namespace}", "-f-", stdin=json.dumps(body))


def missing(job: Job) -> str:
    found = job.status().get("conditions", [])
    return next((c["message"] for c in found if c["type"] == "ReferenceMissing" and c["status"] == "True"), "")


def test_a_missing_secret_is_named_and_a_planted_one_is_in_the_workers_environment_alone(
    job: Job, operator: Operator, testbed: Cluster
) -> None:
    del testbed  # this computer reaches its pods
    put(job, "database", PASSWORD=PLANTED["DB_PASSWORD"])
    put(job, "s3", key=PLANTED["RELIGHT_STORAGE_key"])
    env: list[dict[str, Any]] = [
        {"name": "TOKEN", "valueFrom": {"secretKeyRef": {"name": "api", "key": "token"}}},
        {"name": "ABSENT", "valueFrom": {"secretKeyRef": {"name": "no-such", "key": "k", "optional": True}}},
        {"name": "NODE", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
    ]
    trainer = {
        "command": ["python3", "-c", TELL],
        "env": env,
        "envFrom": [{"prefix": "DB_", "secretRef": {"name": "database"}}],
    }
    # Nothing reads the store: a plain command saves by itself.
    where = {"uri": "s3://bucket/x", "secretRef": {"name": "s3"}}
    job.apply({"nodes": 1, "trainer": {**trainer, "resources": {"requests": {"cpu": "100m"}}}, "checkpoint": where})
    waited_for("the missing Secret's name", lambda: missing(job).startswith("Secret api does not exist"), 30)
    put(job, "api", other="x")
    waited_for("the missing key's name", lambda: "has no key token" in missing(job), 60)
    put(job, "api", token=PLANTED["TOKEN"])
    wanted = {**PLANTED, "NODE": job.pod(0), "ABSENT": ""}
    lines = [f"{name} {hashlib.sha256(text.encode()).hexdigest()}" for name, text in wanted.items()]
    waited_for("the values in the worker's environment", lambda: all(line in "".join(job.logs()) for line in lines), 90)
    assert missing(job) == ""
    assert job.status()["restarts"]["total"] == 0

    shown = [job.kubectl("get", kind, "-o=yaml") for kind in SHOWN]
    shown += job.logs()
    for pod in items(operator.cluster, "pods", f"-n={SYSTEM}"):
        shown.append(operator.cluster.kubectl("logs", pod["metadata"]["name"], f"-n={SYSTEM}", "--all-containers"))
        ports = [p for c in pod["spec"]["containers"] for p in c.get("ports", ()) if p["name"] == "http"]
        with urlopen(f"http://{pod['status']['podIP']}:{ports[0]['containerPort']}/metrics", timeout=10) as answer:
            shown.append(answer.read().decode())
    assert any("relight_" in text for text in shown), "metrics are among them"
    for planted in PLANTED.values():
        for form in (planted, base64.b64encode(planted.encode()).decode()):
            assert not [text for text in shown if form in text]
