"""One tenant may create TrainingJobs, and means no well: the other tenant's job starts, and the lease stays where it is."""

import json
import secrets
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tests.cluster import faults
from tests.cluster.relight import RELEASE, SYSTEM, Job, Operator, items, waited_for
from tests.cluster.test_wrong_jobs import restarts
from tests.testbed import Cluster, ExistingCluster, TestbedError

from relight_operator.kube import decode, slim

pytestmark = pytest.mark.timeout(600)

START_SECONDS = 10.0
MEMORY_LIMIT = 768 << 20  # the chart's


def nested(levels: int) -> str:
    """Lists: for mappings in each other the server of Kubernetes 1.20 itself takes twice the time with each level."""
    return '{"a":%s}' % ("[" * levels + "]" * levels)  # JSON is full of braces


def with_config(config: str) -> str:
    return '{"nodes":1,"trainer":{"config":%s}}' % config  # noqa: UP031  # JSON is full of braces


FAT = "{" + ",".join(f'"k{i}":[' + ",".join(["{}"] * 1_750) + "]" for i in range(250)) + "}"
SPECS = {
    "deep": with_config(nested(80)),
    "very-deep": with_config(nested(1_100)),  # more than Python's parser follows
    "many-keys": with_config(json.dumps({f"key{i}": i for i in range(60_000)})),
    "many-fields": '{{"nodes":1,"trainer":{{"module":["a"],"template":{{"spec":{}}}}}}}'.format(
        json.dumps({f"f{i}": i for i in range(60_000)})
    ),
    "many-nested": with_config('{"data":%s}' % json.dumps({f"key{i}": i for i in range(60_000)})),  # noqa: UP031
    **{f"fat-{i}": with_config(FAT) for i in range(12)},
}
ODD_STATUS: dict[str, Any] = {
    "goodput": {"ratio": "n/a"},
    "progress": {"metrics": {"loss": "\x1b[2J"}},
    "slots": "none",
    "stragglers": [7],
}


@pytest.fixture
def tenant(cluster: ExistingCluster) -> Iterator[str]:
    """The namespace of the hostile one."""
    name = f"relight-test-{secrets.token_hex(4)}"
    cluster.kubectl("create", "namespace", name)
    yield name
    cluster.kubectl("delete", "trainingjobs", "--all", f"-n={name}", "--wait=false")
    cluster.kubectl("delete", "namespace", name, "--wait=false")


def attack(cluster: ExistingCluster, namespace: str, folder: Path) -> dict[str, str]:
    """What the server says of each job: "" for one that it has taken."""
    answers = dict.fromkeys(SPECS, "")
    for name, spec in SPECS.items():
        head = '{"apiVersion":"relight.dev/v1alpha1","kind":"TrainingJob","metadata":{"name":"%s"},"spec":%s}'
        file = folder / f"{name}.json"
        file.write_text(head % (name, spec))
        try:
            cluster.kubectl("create", "--validate=false", f"-n={namespace}", "-f", file)
        except TestbedError as error:
            answers[name] = str(error)[-500:]
    return answers


def jobs(cluster: ExistingCluster, namespace: str) -> list[dict[str, Any]]:
    """By the operator's own reader: Python's parser gives up on them."""
    text = cluster.kubectl("get", "--raw", f"/apis/relight.dev/v1alpha1/namespaces/{namespace}/trainingjobs")
    found: list[dict[str, Any]] = decode.read(text.encode(), slim.job)["items"]
    return found


def lease(cluster: ExistingCluster) -> tuple[str, int]:
    spec = cluster.get("lease", RELEASE, f"-n={SYSTEM}")["spec"]
    return spec["holderIdentity"], spec["leaseTransitions"]


def metrics(cluster: ExistingCluster, pod: str) -> str:
    return cluster.kubectl("get", "--raw", f"/api/v1/namespaces/{SYSTEM}/pods/{pod}:8080/proxy/metrics")


def test_a_tenants_hostile_objects_cost_the_other_tenant_nothing(
    operator: Operator, job: Job, tenant: str, testbed: Cluster, tmp_path: Path
) -> None:
    cluster = operator.cluster
    del testbed  # its containers' processes can be seen from here
    leader = operator.leader()
    before, restarted = lease(cluster), restarts(operator)
    answers = attack(cluster, tenant, tmp_path)
    taken = {name for name, refusal in answers.items() if not refusal}
    assert {"deep", "very-deep", "fat-0", "fat-11", "many-nested"} <= taken, answers
    began = time.monotonic()
    job.apply({"nodes": 2, "trainer": {"command": ["sleep", "60"], "resources": {"requests": {"cpu": "10m"}}}})

    def started() -> bool:
        pods = job.pods()
        return len(pods) == 2 and all(p["status"].get("phase") == "Running" for p in pods)

    waited_for("the other tenant's job", started, START_SECONDS)
    took = time.monotonic() - began

    cluster.kubectl(
        "create",
        f"-n={tenant}",
        "-f-",
        stdin=json.dumps(body("odd", {"nodes": 1, "trainer": {"module": ["a"]}, "suspend": True})),
    )
    Job(cluster, tenant, "odd").until_phase("Suspended", 60)
    patch = json.dumps({"status": ODD_STATUS})
    cluster.kubectl("patch", "trainingjob", "odd", f"-n={tenant}", "--subresource=status", "--type=merge", "-p", patch)

    def judged() -> bool:
        found = jobs(cluster, tenant)
        assert len(found) == len(taken) + 1
        return all({"Invalid", "ReconcileFailed"} & conditions(one) for one in found)

    waited_for("a word about each hostile job", judged, 60)
    told = {one["metadata"]["name"]: reasons(one) for one in jobs(cluster, tenant)}
    assert "nested too deep; allowed: at most 64 levels" in told["deep"]
    assert "too many entries" in told["fat-0"]
    assert items(cluster, "pods", f"-n={tenant}") == []

    said = metrics(cluster, leader)
    assert f'relight_job_ready_nodes{{name="{job.name}",namespace="{job.namespace}"}}' in said
    assert 'relight_unreadable_objects_total{resource="trainingjobs"}' in said
    resident = memory(faults.operator_of(leader))
    assert resident < MEMORY_LIMIT, f"{resident >> 20} MiB"
    assert (lease(cluster), restarts(operator)) == (before, restarted)
    print(f"started in {took:.1f} s, {resident >> 20} MiB resident at most; refused: {answers}")


def body(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    return {"apiVersion": "relight.dev/v1alpha1", "kind": "TrainingJob", "metadata": {"name": name}, "spec": spec}


def conditions(one: dict[str, Any]) -> set[str]:
    found = (one.get("status") or {}).get("conditions") or []
    return {c["type"] for c in found if c["status"] == "True"}


def reasons(one: dict[str, Any]) -> str:
    return " ".join(c.get("message", "") for c in (one.get("status") or {}).get("conditions") or [])


def memory(pid: int) -> int:
    """The most bytes that the process has had resident."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM"))
