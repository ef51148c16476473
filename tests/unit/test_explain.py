"""`relight explain`: what it says of jobs in every state, and where it finds them."""

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from click.testing import CliRunner, Result
from rich.console import Console

from relight_operator.api.status import (
    CheckpointStatus,
    Condition,
    Failure,
    Goodput,
    JobStatus,
    ProgressStatus,
    RecoveryRecord,
    RecoveryStatus,
    Restarts,
    SlotStatus,
)
from relight_operator.cli import explain as cli
from relight_operator.cli.main import group
from relight_operator.errors import RelightError
from relight_operator.explain import tell
from relight_operator.kube import client as kube_client
from relight_operator.kube import errors
from relight_operator.kube.status import dump

START = 1_700_000_000.0
GOLDEN = Path(__file__).parent / "golden"

PREEMPTED = RecoveryRecord(
    generation=1, since=START + 300, cause="Preempted", detail="stopped at step 104, saved", member="digits-1-0",
    machine="gpu-3", losses=1, step=104, noticed=0.02, formed=3.1, restored=3.25, recovered=3.4, resumed_step=104,
    resumed_kind="snapshot",
)  # fmt: skip
LOST = RecoveryRecord(
    generation=2, since=START + 4000, cause="MachineLost", detail="machine gpu-4 does not answer", member="digits-0-0",
    machine="gpu-4", losses=2, step=900, noticed=30.5, formed=75.0, restored=77.0, recovered=95.0, resumed_step=800,
    resumed_kind="checkpoint", lost_steps=100,
)  # fmt: skip
RAISED = RecoveryRecord(
    generation=3, since=START + 5000, cause="Exception", detail="ValueError: [bad] digit\nand more", member="digits-0-1",
    machine="gpu-5", step=950, noticed=0.1, formed=5.2, resumed_step=None,
)  # fmt: skip


def job(**changes: Any) -> JobStatus:
    """One that has been preempted, has lost a machine, and has raised an exception."""
    goodput = Goodput(
        ratio="0.750", lost_steps=100, recoveries=2, counted_until=START + 6000,
        buckets={"productive": 9000.0, "replayed": 30.0, "data": 2500.0, "start": 400.0, "idle": 70.0, "pending": 0.0},
    )  # fmt: skip
    status = JobStatus(
        phase="Running", start_time=START, history=[PREEMPTED, LOST, RAISED], goodput=goodput,
        slots=[SlotStatus(slot=i, uid=f"u{i}", machine="gpu-5", state="Running") for i in range(2)],
        restarts=Restarts(total=4, disruptions=3, failures=1), progress=ProgressStatus(step=1000, total_steps=2000),
        checkpoint=CheckpointStatus(step=1000),
    )  # fmt: skip
    return status.model_copy(update=changes)


def text_of(status: JobStatus, now: float = START + 6000) -> str:
    console = Console(highlight=False, soft_wrap=True, force_terminal=False, width=100)
    with console.capture() as captured:
        cli.show(tell("digits", status, now), console)
    return "".join(line.rstrip() + "\n" for line in captured.get().splitlines())


FAILED = job(
    phase="Failed",
    completion_time=START + 5100,
    conditions=[Condition(type="Failed", status="True", reason="NoProgress", message="3 failed generations in a row")],
    last_failure=Failure(time=START + 5100, cause="Exception", member="digits-0-1", message="ValueError: bad digit"),
)
RECOVERING = job(
    phase="Recovering",
    recovery=RecoveryStatus(generation=4, since=START + 5990, cause="Evicted", detail="drained", member="digits-1-2"),
)
RECOVERING.slots = [SlotStatus(slot=0, state="Ready"), SlotStatus(slot=1, state="Pending")]


@pytest.mark.parametrize(
    ("name", "status"),
    [
        pytest.param("running", job(), id="running"),
        pytest.param("recovering", RECOVERING, id="recovering"),
        pytest.param("failed", FAILED, id="failed"),
        pytest.param("succeeded", job(phase="Succeeded", completion_time=START + 6000), id="succeeded"),
        pytest.param("new", JobStatus(), id="not started"),
    ],
)
def test_what_is_said(name: str, status: JobStatus) -> None:
    assert text_of(status) == (GOLDEN / f"explain-{name}.txt").read_text()


def test_what_happened_is_in_order_and_what_is_forgotten_is_said() -> None:
    status = job()
    moments = tell("digits", status, START + 6000).timeline
    assert [m.at for m in moments] == sorted(m.at for m in moments if m.at is not None)
    assert [m.bad for m in moments] == [False, False, False, True]
    assert moments[1].time == "2023-11-14T22:18:20Z"


def test_a_status_that_nobody_writes_any_more_is_told_as_old() -> None:
    assert tell("digits", job(), START + 6050).advice == tell("digits", job(), START + 6000).advice
    [old, *_] = tell("digits", job(), START + 16000).advice
    assert old == "This is as it was written 2 h 47 min ago: is anybody at work on it?"


def test_an_unknown_cause_of_a_newer_version_is_told_as_it_is() -> None:
    assert "Abducted" in text_of(job(history=[PREEMPTED.model_copy(update={"cause": "Abducted"})]))


# -- where it is found


def run(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(group, ["explain", *arguments], input=stdin)


def document(name: str = "digits", status: JobStatus | None = None) -> dict[str, Any]:
    return {"kind": "TrainingJob", "metadata": {"name": name}, "spec": {}, "status": dump(status or job())}


@pytest.fixture(autouse=True)
def nowhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """No local job, no cluster; the folder of local states."""
    for name in ("KUBERNETES_SERVICE_HOST", "KUBECONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(tmp_path)
    return tmp_path / "state/relight"


def stored(states: Path, namespace: str, name: str) -> None:
    (states / namespace / name).mkdir(parents=True)
    (states / namespace / name / "job.json").write_text(json.dumps(document(name)))


@pytest.mark.parametrize("form", ["job as JSON", "job as YAML", "status alone", "final of relight run"])
def test_a_file_may_hold_the_job_or_its_status(tmp_path: Path, form: str) -> None:
    file = tmp_path / "digits.x"
    value = {"job as JSON": document(), "job as YAML": document(), "status alone": dump(job())}.get(
        form, {**job().dump(), "weightsDigest": None, "executedSteps": 7}
    )
    text = yaml.safe_dump(value) if form == "job as YAML" else json.dumps(value)
    file.write_text(text)
    assert "digits-1-0 on gpu-3: Preempted" in run(str(file)).output
    assert "digits-1-0 on gpu-3: Preempted" in run("-", stdin=text).output


def test_a_local_job_is_found_by_name_and_by_folder(nowhere: Path) -> None:
    stored(nowhere, "default", "digits")
    stored(nowhere, "research", "other")
    assert run("digits").output.startswith("digits: Running")
    assert run(str(nowhere / "default/digits")).output.startswith("digits: Running")
    assert run("other", "-n", "research").output.startswith("other: Running")
    assert json.loads(run("digits", "-o", "json").output)["goodput"] == "0.750"


@pytest.mark.parametrize(
    ("job_given", "text", "code"),
    [
        pytest.param("digitz", 'no such job: "digitz"', 64, id="unknown"),
        pytest.param("digitz", 'Did you mean "digits"?', 64, id="unknown, with the nearest"),
        pytest.param("no/such/folder", "neither a file nor a state folder", 64, id="no such path"),
        pytest.param("broken", "neither JSON nor YAML", 74, id="neither JSON nor YAML"),
        pytest.param("list", "found no object", 74, id="no object"),
        pytest.param("other", "neither kind: TrainingJob nor a phase", 74, id="something else"),
        pytest.param("wrong", "not the status of a TrainingJob", 74, id="a status of another shape"),
    ],
)
def test_what_cannot_be_told_gets_a_reason(nowhere: Path, job_given: str, text: str, code: int) -> None:
    stored(nowhere, "default", "digits")
    files = {"broken": "{", "list": "[]", "other": '{"kind": "Pod"}', "wrong": '{"phase": "Running", "slots": 7}'}
    if job_given in files:
        Path(job_given).write_text(files[job_given])
    error = run(job_given).exception
    assert isinstance(error, RelightError)
    assert text in str(error)
    assert "\n" not in str(error)
    assert error.exit_code == code


class FakeServer:
    """An API server with the jobs `digits` in `ml`, and none elsewhere; or one that answers with an error."""

    error: errors.KubeError | None = None

    async def get(self, _: object, namespace: str, name: str) -> dict[str, Any]:
        if self.error is not None:
            raise self.error
        if (namespace, name) != ("ml", "digits"):
            raise errors.NotFound("not found", status=404)
        return document()

    async def list(self, _: object, namespace: str) -> list[dict[str, Any]]:
        return [document()] if namespace == "ml" else []


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeServer:
    server = FakeServer()

    @contextlib.asynccontextmanager
    async def connect() -> AsyncIterator[FakeServer]:
        yield server

    monkeypatch.setattr(kube_client, "connect", connect)
    context = {"name": "c", "context": {"cluster": "k", "namespace": "ml"}}
    (tmp_path / "config").write_text(yaml.safe_dump({"current-context": "c", "contexts": [context]}))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    return server


def test_a_job_in_the_cluster_is_found_in_the_namespace_of_the_context(server: FakeServer, nowhere: Path) -> None:
    assert run("digits").output.startswith("digits: Running at step 1000 of 2000")
    assert 'Did you mean "digits"?' in str(run("digit").exception)
    assert "not in namespace research of the cluster" in str(run("digits", "-n", "research").exception)
    stored(nowhere, "default", "digits")
    server.error = errors.Forbidden("no", status=403)
    assert run("digits").exit_code == 0, "a local run comes first"
    refused = run("digits", "--cluster").exception
    assert isinstance(refused, cli.ClusterError)
    assert (str(refused), refused.exit_code) == ("the cluster gives no answer: no", 69)
