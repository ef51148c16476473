"""A job's template on a real cluster: machines that are kept for it, data of its own, and what the server does not take."""

from collections.abc import Iterator
from typing import Any

import pytest
from tests.cluster.relight import Job, items
from tests.testbed.images import Image

pytestmark = pytest.mark.timeout(300)

POOL = "example.com/pool"
WORKS = "import pathlib; assert pathlib.Path('/data/set').read_text() == 'downloaded'"


@pytest.fixture
def pool(job: Job) -> Iterator[str]:
    """A machine that only those may use who ask for it."""
    free = [n["metadata"]["name"] for n in items(job.cluster, "nodes") if not n["spec"].get("taints")]
    job.kubectl("label", "node", free[0], f"{POOL}=spot")
    job.kubectl("taint", "node", free[0], f"{POOL}=spot:NoSchedule")
    yield free[0]
    job.kubectl("taint", "node", free[0], f"{POOL}-")
    job.kubectl("label", "node", free[0], f"{POOL}-")


def template(image: Image, **toleration: Any) -> dict[str, Any]:
    data = {"name": "data", "mountPath": "/data"}
    download = ["python3", "-c", "open('/data/set', 'w').write('downloaded')"]
    confined = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    return {
        "metadata": {"labels": {"team": "vision"}},
        "spec": {
            "nodeSelector": {POOL: "spot"},
            "tolerations": [{"key": POOL, "operator": "Exists", **toleration}],
            "volumes": [{"name": "data", "emptyDir": {}}],
            "initContainers": [
                {
                    "name": "download",
                    "image": image.reference,
                    "command": download,
                    "volumeMounts": [data],
                    "securityContext": confined,
                }
            ],
            "containers": [{"name": "agent", "volumeMounts": [data]}],
        },
    }


def test_a_template_that_the_server_refuses_makes_no_pod_and_once_mended_brings_the_job_where_it_wants_to_be(
    job: Job, pool: str, relight_images: dict[str, Image]
) -> None:
    trainer = {"command": ["python3", "-c", WORKS], "resources": {"requests": {"cpu": "100m"}}}  # of any machine
    image = relight_images["trainer"]
    job.apply({"nodes": 2, "trainer": {**trainer, "template": template(image, tolerationSecs=5)}})
    status = job.until_phase("Invalid")
    [condition] = [c for c in status["conditions"] if c["type"] == "Invalid"]
    assert "the server does not take a pod as spec.trainer.template makes it" in condition["message"]
    assert "tolerationSecs" in condition["message"]  # in the server's words or in ours
    assert job.pods() == []
    job.apply({"nodes": 2, "trainer": {**trainer, "template": template(image)}})
    job.until_phase("Succeeded")
    pods = job.pods()
    assert [p["spec"]["nodeName"] for p in pods] == [pool, pool]
    assert {p["metadata"]["labels"]["team"] for p in pods} == {"vision"}
