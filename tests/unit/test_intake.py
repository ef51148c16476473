"""Objects that cannot be read, or are too large, cost nobody else anything: lists, watches, rounds, scrapes."""

import asyncio
import json
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hostile import GOOD_SPEC, HOSTILE, as_bytes, job_text, serving
from kube_world import World, scenario

from relight_operator.api.bounds import MAX_DEPTH, MAX_VALUES, excess
from relight_operator.api.status import JobStatus, Restarts
from relight_operator.api.validate import parse_job
from relight_operator.errors import InvalidJob
from relight_operator.kube import decode
from relight_operator.kube.client import JOBS, connect
from relight_operator.kube.feeds import Feeds
from relight_operator.kube.guarded import lines
from relight_operator.metrics import Metrics
from relight_trainer.commands.lr import command as rates
from relight_trainer.yaml_loader import YamlError, load_documents

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def no_cluster(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


def test_a_list_has_every_object_though_some_cannot_be_read(tmp_path: Path, no_cluster: pytest.MonkeyPatch) -> None:
    async def listed() -> list[dict[str, Any]]:
        async with serving(tmp_path) as (server, path):
            no_cluster.setenv("KUBECONFIG", path)
            server.objects["trainingjobs"] = [job_text("first"), *HOSTILE.values(), job_text("last")]
            async with connect() as client:
                return await client.list(JOBS)

    found = asyncio.run(listed())
    assert [body["metadata"]["name"] for body in found] == ["first", *HOSTILE, "last"]
    assert max(len(json.dumps(body)) for body in found) < 4096, "nothing of a spec is kept"


class Seen:
    """What the watches hand over, by the names of jobs."""

    def __init__(self) -> None:
        self.names: list[str] = []
        self.last = asyncio.Event()

    def job(self, kind: str | None, body: dict[str, Any]) -> None:
        self.names.append(body["metadata"]["name"])
        if self.names[-1] == "after":
            self.last.set()

    def pod(self, kind: str | None, body: dict[str, Any]) -> None: ...

    def node(self, kind: str | None, body: dict[str, Any]) -> None: ...


def test_a_watch_goes_on_after_objects_that_cannot_be_read(tmp_path: Path, no_cluster: pytest.MonkeyPatch) -> None:
    seen = Seen()

    async def watched() -> None:
        async with serving(tmp_path) as (server, path):
            no_cluster.setenv("KUBECONFIG", path)
            server.objects["trainingjobs"] = [HOSTILE["deep"], job_text("listed")]
            feeds = Feeds(seen, (), lambda: None)  # type: ignore[arg-type]
            feeds.start()
            try:
                for name, text in HOSTILE.items():
                    server.tell("ADDED", text.replace(f"uid-{name}", f"uid-of-{name}"))
                server.events.put_nowait(b"this is no JSON")
                server.tell("ADDED", job_text("after"))
                await asyncio.wait_for(seen.last.wait(), 20)
            finally:
                await feeds.stop()

    asyncio.run(watched())
    assert set(seen.names) == {*HOSTILE, "listed", "after"}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_object_that_cannot_be_read_is_read_as_far_as_it_names_itself(name: str) -> None:
    body = decode.read(as_bytes(HOSTILE[name]))
    assert body["metadata"]["name"] == name


@pytest.mark.parametrize(
    "data",
    [b"", b"x", b"{", b'{"a"', b'{"a":}', b'{"a":1,}', b'{"items":[1,', b'{"items":[}', b'{"items":[1 2]}', b"{} {}", b'{"a:1}',
     b"{a:1}", b"[" * 5000, b'{"a":"\x01"}', b"\xff\xfe", b'{"items":[{]}'],
)  # fmt: skip
def test_what_is_no_json_is_said_to_be_none(data: bytes) -> None:
    with pytest.raises(decode.Unreadable):
        decode.read(data)


def test_what_is_json_is_read_as_python_reads_it() -> None:
    page = {"kind": "L", "items": [{"a": [1, 2.5, None, True, "é\n"]}, 7, []], "metadata": {"continue": "x"}, "e": {}}
    for text in (json.dumps(page), json.dumps(page, indent=2), " {} ", "[1]", '"a"'):
        assert decode.read(text.encode()) == json.loads(text)


def test_a_line_that_is_too_long_is_left_out_and_the_next_one_is_read() -> None:
    async def read(chunks: list[bytes]) -> list[bytes]:
        async def given() -> Any:
            for chunk in chunks:
                yield chunk

        return [line async for line in lines(given(), most=8)]

    text = b"one\n" + b"x" * 20 + b"\ntwo\n\nthree"
    for size in (1, 3, 7, 100):
        chunks = [text[i : i + size] for i in range(0, len(text), size)]
        assert asyncio.run(read(chunks)) == [b"one", b"two", b"three"]


# -- bounds


def test_the_bounds_are_met_exactly() -> None:
    def nested(levels: int) -> Any:
        value: Any = []
        for _ in range(levels - 1):
            value = [value]
        return value

    assert excess(nested(MAX_DEPTH)) is None
    assert excess(nested(MAX_DEPTH + 1)) is not None
    assert excess([0] * MAX_VALUES) is None
    assert excess([0] * (MAX_VALUES + 1)) is not None


def job_with(spec: dict[str, Any]) -> dict[str, Any]:
    head = {"apiVersion": "relight.dev/v1alpha1", "kind": "TrainingJob", "metadata": {"name": "x"}}
    return {**head, "spec": {**GOOD_SPEC, **spec}}


def env(value: str) -> dict[str, Any]:
    return job_with({"trainer": {"module": ["train"], "env": [{"name": "A", "value": value}]}})


def limits(amount: str) -> dict[str, Any]:
    return job_with({"trainer": {"module": ["train"], "resources": {"limits": {"nvidia.com/gpu": amount}}}})


WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "a nul in a variable": (env("a\0b"), "spec.trainer.env[0].value: a character that no program can be given"),
    "half a letter": (env("a\ud800"), "spec.trainer.env[0].value: a character that no program can be given"),
    "a nul in an argument": (job_with({"trainer": {"script": ["a.py", "\0"]}}), "spec.trainer.script[1]: a character"),
    "a nul in a name": (job_with({"trainer": {"config": {"\0": 1}}}), "spec.trainer.config: a character"),
    "a long variable": (env("a" * 70_000), "spec.trainer.env[0].value: too long; allowed: at most 65536 characters"),
    "a large spec": (job_with({"trainer": {"script": ["a" * 60_000] * 5}}), "spec: too large; found 30"),
    "too many entries": (
        job_with({"trainer": {"config": {"a": [0] * 20_000}}}),
        "spec.trainer.config.a: too many entries",
    ),
    "many GPUs": (limits("1e99"), 'limits["nvidia.com/gpu"]: out of range; found "1e99"; allowed: at most 1024'),
    "a part of a GPU": (limits("1e-3"), 'limits["nvidia.com/gpu"]: not whole'),
    "many workers": (job_with({"procPerNode": 10**9}), "spec.procPerNode: out of range"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_no_machine_could_do_is_refused_in_words(name: str) -> None:
    body, said = WRONG[name]
    with pytest.raises(InvalidJob) as caught:
        parse_job(body)
    assert said in str(caught.value)


@pytest.mark.parametrize("escape", ["\\U00110000", "\\UFFFFFFFF", "\\U7FFFFFFF"])
def test_an_escape_that_names_no_character_is_an_error_in_the_file(escape: str) -> None:
    with pytest.raises(YamlError, match="names no character"):
        load_documents(f'a: "{escape}"'.encode())


def test_rates_of_a_training_without_end_are_shown_at_once(tmp_path: Path) -> None:
    file = tmp_path / "config.yaml"
    file.write_text("train: {duration: 999999999ep}\n")
    result = CliRunner().invoke(rates, [str(file), "--samples", "1000000", "-o", "json"], catch_exceptions=False)
    said = json.loads(result.stdout)
    assert (len(said["rates"]), said["rates"][-1]["step"]) == (10_000, said["steps"] - 1)
    shown = CliRunner().invoke(rates, [str(file), "--samples", "1000000"], catch_exceptions=False).stdout
    assert f"{said['steps'] - 1:>9}" in shown


def test_thousands_of_unknown_fields_cost_no_time() -> None:
    """Each nearest name costs a tenth of a millisecond: they are looked for as far as anybody reads."""
    names = {f"key{i}": i for i in range(9_000)}
    began = time.process_time()
    for spec in (
        {"trainer": {"config": {"data": {"type": "digits", **names}}}},
        {"trainer": {"module": ["a"]}, **names},
    ):
        with pytest.raises(InvalidJob, match=r"\.\.\. and 8950 more"):
            parse_job(job_with(spec))
    assert time.process_time() < began + 5


# -- metrics

ODD: list[Any] = [
    {"goodput": {"ratio": "n/a"}}, {"goodput": {"buckets": {"start": "x"}}}, {"goodput": {"buckets": "start"}}, {"stragglers": [7]},
    {"stragglers": [{"share": [1]}]}, {"stragglers": 1}, {"phase": {"a": 1}}, {"phase": "No such"}, {"progress": {"step": 10**400}}, [], "x",
]  # fmt: skip


@pytest.mark.parametrize("odd", ODD, ids=range(len(ODD)))
def test_a_job_with_an_odd_status_is_counted_and_the_others_are_shown(odd: Any) -> None:
    lost: Counter[str] = Counter()
    good = {"progress": {"step": 7}, "goodput": {"ratio": "0.5"}}
    metrics = Metrics(lambda: {"evil/a": {"status": odd}, "ml/digits": {"status": good}}, lost)
    text = metrics.exposition().decode()
    assert 'relight_job_step{name="digits",namespace="ml"} 7.0' in text
    assert 'relight_job_goodput_ratio{name="digits",namespace="ml"} 0.5' in text
    if odd:
        assert lost["trainingjobs"] == 1
        assert 'relight_unreadable_objects_total{resource="trainingjobs"} 1.0' in text
        assert 'namespace="evil"' not in text


def test_a_status_cannot_make_series_without_end() -> None:
    metrics = Metrics(dict)
    named = {f"cause-{i}": 1 for i in range(100)}
    metrics.on_write(None, JobStatus(), JobStatus(restarts=Restarts(by_cause=named)))
    lines = [x for x in metrics.exposition().decode().splitlines() if x.startswith("relight_failures_total{")]
    assert lines == ['relight_failures_total{cause="Unknown"} 100.0']


# -- rounds


@scenario
async def test_hostile_jobs_become_invalid_and_the_other_one_runs(w: World) -> None:
    await w.apply(GOOD_SPEC)
    for text in HOSTILE.values():
        body = decode.read(as_bytes(text))
        del body["metadata"]["uid"], body["metadata"]["resourceVersion"]
        await w.client.create(JOBS, "evil", body)
    for job in w.client.all("trainingjobs"):
        w.backend.store.put_job(job)
    for key in list(w.backend.store.jobs()):
        for _ in range(3):
            try:
                await w.reconciler.reconcile(key)
            except Exception:  # the worker's business: it tries again later
                break
    said = {job["metadata"]["name"]: _true(job) for job in w.client.all("trainingjobs")}
    assert said.pop("digits") <= {"PodsReady"}
    assert all(
        conditions & {"Invalid", "ReconcileFailed"} for name, conditions in said.items() if name != "odd-metadata"
    ), said
    assert "digits-0-0" in w.pods()


def _true(job: dict[str, Any]) -> set[str]:
    conditions = (job.get("status") or {}).get("conditions") or []
    return {c["type"] for c in conditions if c["status"] == "True"}
