"""What a user brings or asks for: code in a private repository, a trace of a running job."""

import json
from pathlib import Path

import pytest
from tests.cluster import faults
from tests.cluster.relight import Job, waited_for
from tests.cluster.test_operator import LONG
from tests.git_server import TOKEN, new_repository, push, serving
from tests.testbed import Cluster
from tests.testbed.layout import HOST_ADDRESS

pytestmark = pytest.mark.timeout(600)

SCRIPT = Path(__file__).parents[2] / "examples" / "own_script.py"


def test_private_code_is_that_of_the_first_start_and_its_token_is_nowhere(
    job: Job, testbed: Cluster, claim: str, tmp_path: Path
) -> None:
    del testbed  # its machines reach this computer
    repository = new_repository(tmp_path / "served" / "training.git")
    commit = push(repository, SCRIPT.name, SCRIPT.read_text().replace("epochs=20", "epochs=200"))
    with serving(repository.parent, tls=True, address=HOST_ADDRESS) as server:
        secret = {"username": "me", "password": TOKEN, "ca.crt": server.authority}
        body = {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "git-cred"}, "stringData": secret}
        job.cluster.kubectl("apply", f"-n={job.namespace}", "-f-", stdin=json.dumps(body))
        url = f"https://{HOST_ADDRESS}:{server.server_port}/training.git"
        job.apply(
            {
                "nodes": 2,
                "code": {"git": {"url": url, "ref": "main", "secretRef": {"name": "git-cred"}}},
                "trainer": {
                    "script": [SCRIPT.name],
                    "env": [{"name": "OMP_NUM_THREADS", "value": "1"}],
                    "resources": {"requests": {"cpu": "100m"}},  # not the testbed's GPUs, which a script would look for
                },
                "checkpoint": {"persistentVolumeClaim": {"claimName": claim}},
                "disruption": {"gracePeriod": "20s"},
            }
        )
        before = job.until_training()
        push(repository, SCRIPT.name, "raise SystemExit('not the code that this job began with')")
        faults.delete(job, job.pod(1))
        job.until_training(before["world"]["generation"] + 1)
        seen = job.logs()
        status = job.until_phase("Succeeded")
    assert status["code"] == {"commit": commit}
    assert status["restarts"]["byCause"] == {"Deleted": 1}
    seen += [job.kubectl("get", kind, "-o=json") for kind in ("pods", "configmaps", "events", "trainingjobs")]
    assert [text for text in seen if TOKEN in text] == []


def test_an_annotation_has_all_workers_trace_their_next_steps(
    job: Job, testbed: Cluster, claim: str, tmp_path: Path
) -> None:
    del testbed  # the claim's volume is a folder of this computer
    job.apply({**LONG, "checkpoint": {"persistentVolumeClaim": {"claimName": claim}}})
    job.until_training()
    job.kubectl("annotate", "trainingjob", job.name, "relight.dev/profile=first")
    folder = tmp_path / "checkpoints" / job.namespace / job.name / "profiles"
    waited_for("a trace of each worker", lambda: len(list(folder.glob("*.json.gz"))) == 2)
    assert "ProfileRequested" in job.events()
