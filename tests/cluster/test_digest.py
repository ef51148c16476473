"""A job trains to the same weights in the cluster and by `relight run` in the same image: Python, packages, configuration alike."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.cluster.relight import Job, Operator, waited_for
from tests.cluster.test_operator import SHORT
from tests.testbed import Cluster

EXAMPLES = Path(__file__).parents[2] / "examples"
MINUTES = 60
RUN = "python3 -m relight_operator.cli run /job/job.yaml --state-dir /tmp/state -o json 2> /tmp/said || cat /tmp/said"


@pytest.fixture
def volume(testbed: Cluster, namespace: str, tmp_path: Path) -> Iterator[None]:
    """A volume for the claim of examples/checkpoints.yaml: a folder of this computer, which every machine has."""
    folder = tmp_path / "volume"
    folder.mkdir()
    folder.chmod(0o777)
    spec = {
        "accessModes": ["ReadWriteMany"],
        "capacity": {"storage": "5Gi"},
        "hostPath": {"path": str(folder)},
        "claimRef": {"namespace": namespace, "name": "checkpoints"},
    }
    body = {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": namespace}, "spec": spec}
    testbed.kubectl("apply", "-f-", stdin=json.dumps(body))
    yield
    testbed.kubectl("delete", "persistentvolume", namespace, "--wait=false")


def digest_without_a_cluster(job: Job, image: str, manifest: str) -> str:
    """What `relight run` says of this job in a pod of that image."""
    config = {"kind": "ConfigMap", "apiVersion": "v1", "metadata": {"name": "job"}, "data": {"job.yaml": manifest}}
    mounts = [{"name": "job", "mountPath": "/job"}, {"name": "shm", "mountPath": "/dev/shm"}]
    container = {"name": "run", "image": image, "command": ["sh", "-c", RUN], "volumeMounts": mounts}
    volumes = [{"name": "job", "configMap": {"name": "job"}}, {"name": "shm", "emptyDir": {"medium": "Memory"}}]
    pod = {
        "kind": "Pod",
        "apiVersion": "v1",
        "metadata": {"name": "run"},
        "spec": {"restartPolicy": "Never", "containers": [container], "volumes": volumes},
    }
    for body in (config, pod):
        job.cluster.kubectl("apply", f"-n={job.namespace}", "-f-", stdin=json.dumps(body))
    ended = {"Succeeded", "Failed"}
    waited_for("the end of `relight run`", lambda: phase(job, "run") in ended, 10 * MINUTES)
    said = job.kubectl("logs", "run")
    assert said.startswith("{"), said
    return str(json.loads(said)["weightsDigest"])


def phase(job: Job, pod: str) -> str:
    found: str = job.cluster.get("pod", pod, f"-n={job.namespace}")["status"]["phase"]
    return found


def image_of(job: Job) -> str:
    image: str = job.pods()[0]["spec"]["containers"][0]["image"]
    return image


def manifest_of(spec: dict[str, Any]) -> str:
    metadata = {"name": "digits"}
    return json.dumps({"apiVersion": "relight.dev/v1alpha1", "kind": "TrainingJob", "metadata": metadata, "spec": spec})


@pytest.mark.timeout(600)
def test_the_digest_is_that_of_relight_run_in_the_same_image(job: Job) -> None:
    job.apply(SHORT)
    status = job.until_phase("Succeeded")
    assert status["result"]["weightsDigest"] == digest_without_a_cluster(job, image_of(job), manifest_of(SHORT))


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.usefixtures("volume")
@pytest.mark.parametrize("duration", ["10ep", pytest.param("", marks=pytest.mark.long, id="as it is")])
def test_the_example_does_as_its_file_says(operator: Operator, namespace: str, duration: str) -> None:
    """`duration` in place of its own, which two cores that run all tests need ten minutes for."""
    manifest = yaml.safe_load((EXAMPLES / "digits-cluster.yaml").read_text())
    if duration:
        manifest["spec"]["trainer"]["config"]["train"]["duration"] = duration
    job = Job(operator.cluster, namespace, "digits-cluster")
    job.kubectl("apply", f"-f={EXAMPLES / 'checkpoints.yaml'}")
    operator.cluster.kubectl("apply", f"-n={namespace}", "-f-", stdin=json.dumps(manifest))
    job.until_training()
    assert len({pod["spec"]["nodeName"] for pod in job.pods()}) == 2
    status = job.until_phase("Succeeded", 10 * MINUTES)
    assert status["result"]["weightsDigest"] == digest_without_a_cluster(job, image_of(job), json.dumps(manifest))
