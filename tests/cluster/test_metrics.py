"""A real Prometheus reads what the pods of the operator and of a job say at their named ports; promtool has nothing to add."""

import json
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

import pytest
from tests.cluster.relight import SYSTEM, Job, Operator, items, waited_for
from tests.cluster.test_operator import LONG
from tests.testbed import Cluster
from tests.testbed.binaries import binaries

pytestmark = pytest.mark.timeout(300)

# Debian's cannot ask an API server which pods there are: it is told in a file.
CONFIGURATION = """
global: {{scrape_interval: 1s}}
scrape_configs:
- {{job_name: pods, file_sd_configs: [{{files: [{targets}]}}]}}
"""
PORTS = {"http", "metrics"}  # the operator's, a trainer's

OF_A_TRAINER = {
    "relight_train_step",
    "relight_train_loss",
    "relight_train_samples_total",
    "relight_train_total_steps",
    "relight_checkpoint_last_step",
    "relight_checkpoint_last_success_timestamp_seconds",
}
OF_EACH_TRAINER = {
    "relight_train_generation",
    "relight_train_step_duration_seconds_count",
    "relight_snapshot_last_step",
}

Query = Callable[[str], list[dict[str, Any]]]


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def targets(cluster: Cluster, *namespaces: str) -> list[dict[str, Any]]:
    """The pods that have an address, as Prometheus wants to be told of them."""
    return [
        {
            "targets": [f"{pod['status']['podIP']}:{port['containerPort']}"],
            "labels": {"pod": pod["metadata"]["name"]},
        }
        for namespace in namespaces
        for pod in items(cluster, "pods", f"-n={namespace}")
        if pod["status"].get("podIP")
        for port in pod["spec"]["containers"][0].get("ports", ())
        if port["name"] in PORTS
    ]


@pytest.fixture
def told(tmp_path: Path) -> Path:
    """The file that says what is scraped."""
    return tmp_path / "targets.json"


@pytest.fixture
def query(tmp_path: Path, told: Path) -> Iterator[Query]:
    """What a running Prometheus answers to an instant query: `[{"metric": labels, "value": [time, text]}, ...]`."""
    configuration = tmp_path / "prometheus.yml"
    configuration.write_text(CONFIGURATION.format(targets=told))
    address = f"127.0.0.1:{free_port()}"
    command = [
        binaries().prometheus,
        f"--config.file={configuration}",
        f"--storage.tsdb.path={tmp_path / 'data'}",
        f"--web.listen-address={address}",
    ]
    log = tmp_path / "prometheus.log"

    def ask(words: str) -> list[dict[str, Any]]:
        try:
            with urlopen(f"http://{address}/api/v1/query?query={quote(words)}", timeout=10) as answer:
                found: list[dict[str, Any]] = json.load(answer)["data"]["result"]
        except OSError:
            assert process.poll() is None, log.read_text()
            return []
        return found

    with log.open("w") as said, subprocess.Popen(command, stdout=said, stderr=said) as process:
        yield ask
        process.terminate()


def total(found: list[dict[str, Any]]) -> float:
    return sum(float(series["value"][1]) for series in found)


def complaints(cluster: Cluster, namespace: str, pod: str, port: int) -> str:
    """What `promtool check metrics` says of a pod's page."""
    address = items(cluster, "pods", f"-n={namespace}", f"--field-selector=metadata.name={pod}")[0]["status"]["podIP"]
    with urlopen(f"http://{address}:{port}/metrics", timeout=10) as answer:
        page = answer.read()
    promtool = binaries().prometheus.with_name("promtool")
    done = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, check=False, timeout=30)
    return (done.stdout + done.stderr).decode()


def test_prometheus_reads_operator_and_trainers(
    job: Job, operator: Operator, testbed: Cluster, query: Query, told: Path
) -> None:
    folder = told.with_name("checkpoints")
    folder.mkdir()
    folder.chmod(0o777)
    job.apply({**LONG, "checkpoint": {"hostPath": {"path": str(folder)}, "interval": {"steps": 200}}})
    job.until_training()
    pods = {job.pod(0), job.pod(1)}
    told.write_text(json.dumps(targets(testbed, SYSTEM, job.namespace)))
    masters = waited_for("a committed checkpoint", lambda: query("relight_checkpoint_last_step"))
    waited_for("each pod's first page", lambda: len(query("relight_train_generation")) == len(pods))

    for name in OF_A_TRAINER:
        assert [series["metric"]["pod"] for series in query(name)] == [masters[0]["metric"]["pod"]], name
    for name in OF_EACH_TRAINER:
        assert {series["metric"]["pod"] for series in query(name)} == pods, name
        assert {series["metric"]["node_rank"] for series in query(name)} == {"0", "1"}, name
    assert total(query("relight_train_step")) > 0
    assert waited_for("a rate", lambda: total(query("rate(relight_train_samples_total[10s])"))) > 0

    assert total(query('relight_jobs{phase="Running"}')) >= 1
    assert total(query("relight_leading")) == 1
    assert total(query("relight_reconciles_total")) > 0
    assert query("relight_reconcile_seconds_count")

    before = total(query('relight_disruptions_total{cause="Deleted"}'))
    job.kubectl("delete", "pod", job.pod(1), "--wait=false")
    waited_for("the disruption", lambda: total(query('relight_disruptions_total{cause="Deleted"}')) == before + 1)
    waited_for("the recovery", lambda: total(query("relight_recovery_seconds_count")) >= 1)
    job.until_training(2)

    assert complaints(testbed, job.namespace, job.pod(0), 9090) == ""
    assert complaints(testbed, SYSTEM, operator.leader(), 8080) == ""
    assert {series["metric"]["instance"].partition(":")[2] for series in query("up == 0")} <= {"9090"}  # ended pods

    job.kubectl("delete", "trainingjob", job.name, "--wait=false")
    gone = f'relight_job_step{{name="{job.name}",namespace="{job.namespace}"}}'
    waited_for("the end of the job's series", lambda: not query(gone))
