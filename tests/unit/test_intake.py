"""Objects that cannot be read, or are too large, cost nobody else anything: lists, watches, rounds, scrapes."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from hostile import GOOD_SPEC, HOSTILE, as_bytes, job_text, serving
from kube_world import World, scenario

from relight_operator.api.bounds import MAX_DEPTH, MAX_VALUES, excess
from relight_operator.kube import decode
from relight_operator.kube.client import JOBS, connect
from relight_operator.kube.feeds import Feeds
from relight_operator.kube.guarded import lines

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
