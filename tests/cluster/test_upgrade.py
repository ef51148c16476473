"""The operator is replaced by Helm while a job trains."""

import secrets

import pytest
from tests.cluster.relight import CHART, RELEASE, SYSTEM, Job, Operator, items, waited_for
from tests.cluster.test_lifecycle import spec

pytestmark = pytest.mark.timeout(600)


def operators(operator: Operator) -> set[str]:
    return {
        p["metadata"]["uid"]
        for p in items(operator.cluster, "pods", f"-n={SYSTEM}", f"-l=app.kubernetes.io/instance={RELEASE}")
    }


def upgrade(operator: Operator, values: list[str]) -> None:
    """Every replica is replaced, as by a new version's image."""
    before = operators(operator)
    again = f"--set-string=podAnnotations.relight\\.dev/test={secrets.token_hex(4)}"
    operator.cluster.helm("upgrade", RELEASE, CHART, f"-n={SYSTEM}", "--wait", *values, again)
    waited_for("the end of the old replicas", lambda: not before & operators(operator))


def test_an_upgrade_costs_a_job_nothing(job: Job, operator: Operator, values: list[str]) -> None:
    job.apply(spec("30ep"))
    before = job.until_training()
    upgrade(operator, values)
    end = job.until_phase("Succeeded")
    assert end["world"]["generation"] == before["world"]["generation"]
    assert end["restarts"]["total"] == 0
    assert end["goodput"]["lostSteps"] == 0
    undisturbed = Job(job.cluster, job.namespace, "undisturbed")
    undisturbed.apply(spec("30ep"))
    result = undisturbed.until_phase("Succeeded")["result"]
    assert end["result"]["weightsDigest"] == result["weightsDigest"]
