"""The whole operator against an API server over HTTP that is full of one tenant's hostile objects.

What the server, the scheduler and the kubelets do is shown in tests/cluster/test_hostile_tenant.py.
"""

import asyncio
import datetime as dt
import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from hostile import GOOD_SPEC, HOSTILE, RESOURCES, kubeconfig
from kube_fake import FakeClient

from relight_operator.kube import certs
from relight_operator.kube.app import Operator, Options
from relight_operator.kube.client import JOBS, Resource, connect
from relight_operator.kube.errors import KubeError
from relight_operator.kube.pods import PodDefaults

START_SECONDS = 10.0

# Of these everything but the spec may be kept as Python values.
SPECS = {name: text[text.index('"spec":') + 7 : text.rindex(',"status":')] for name, text in HOSTILE.items()}


def text_of(body: dict[str, Any]) -> str:
    name = body["metadata"]["name"]
    if body.get("kind") != "TrainingJob" or name not in SPECS:
        return json.dumps(body)
    head = json.dumps({k: v for k, v in body.items() if k != "spec"})
    return f'{head[:-1]},"spec":{SPECS[name]}}}'


class ApiServer:
    """A FakeClient's objects over HTTP, in a thread and a loop of its own."""

    def __init__(self) -> None:
        self.api = FakeClient()
        self.url = ""
        self._up = threading.Event()
        self._loop = asyncio.new_event_loop()
        self._stop = asyncio.Event()

    @contextmanager
    def serving(self) -> Iterator[None]:
        thread = threading.Thread(target=self._loop.run_until_complete, args=(self._serve(),), daemon=True)
        thread.start()
        assert self._up.wait(10)
        try:
            yield
        finally:
            self._loop.call_soon_threadsafe(self._stop.set)
            thread.join(10)
            self._loop.close()

    async def _serve(self) -> None:
        app = web.Application(client_max_size=1 << 22)
        app.router.add_route("*", "/{path:.*}", self._answer)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        self.url = f"http://127.0.0.1:{site._server.sockets[0].getsockname()[1]}"  # type: ignore[union-attr]
        self._up.set()
        await self._stop.wait()
        await runner.cleanup()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path.rstrip("/")
        if (discovered := _discovery(path)) is not None:
            return web.json_response(discovered)
        parts = path.strip("/").split("/")
        prefix, rest = (
            ("/" + "/".join(parts[:2]), parts[2:]) if parts[0] == "api" else ("/" + "/".join(parts[:3]), parts[3:])
        )
        namespace = None
        if rest[0] == "namespaces":
            namespace, rest = rest[1], rest[2:]
        resource, name = Resource(prefix, rest[0]), rest[1] if len(rest) > 1 else ""
        if request.query.get("watch"):
            return await self._watch(request, resource.plural)
        try:
            text = await self._done(request, resource, namespace, name, status=rest[-1] == "status")
        except KubeError as error:
            said = {"kind": "Status", "message": str(error), "reason": type(error).__name__, "code": error.status}
            return web.json_response(said, status=error.status)
        return web.Response(body=text.encode("utf-8", "surrogatepass"), content_type="application/json")

    async def _done(
        self, request: web.Request, resource: Resource, namespace: str | None, name: str, *, status: bool
    ) -> str:
        body = json.loads(await request.read() or b"{}")
        match request.method:
            case "POST":
                dry_run = "dryRun" in request.query
                return text_of(await self.api.create(resource, namespace, body, dry_run=dry_run))
            case "PATCH":
                return text_of(await self.api.patch(resource, namespace, name, body, status=status))
            case "DELETE":
                await self.api.delete(resource, namespace or "", name, uid=body["preconditions"]["uid"])
                return "{}"
            case _ if name:
                return text_of(await self.api.get(resource, namespace, name))
        labels = request.query.get("labelSelector", "")
        found = await self.api.list(resource, namespace, labels=labels)
        first, limit = int(request.query.get("continue") or 0), int(request.query.get("limit") or 10**9)
        more = str(first + limit) if first + limit < len(found) else ""
        items = ",".join(map(text_of, found[first : first + limit]))
        return f'{{"items":[{items}],"metadata":{{"resourceVersion":"0","continue":"{more}"}}}}'

    async def _watch(self, request: web.Request, plural: str) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        told: dict[str, str] = {}
        while not self._stop.is_set():
            for body in self.api.all(plural):
                metadata = body["metadata"]
                if told.get(metadata["uid"]) != metadata["resourceVersion"]:
                    told[metadata["uid"]] = metadata["resourceVersion"]
                    line = f'{{"type":"MODIFIED","object":{text_of(body)}}}\n'
                    await response.write(line.encode("utf-8", "surrogatepass"))
            await asyncio.sleep(0.05)
        return response


def _discovery(path: str) -> dict[str, Any] | None:
    if path == "/api":
        return {"versions": ["v1"]}
    if path == "/apis":
        found = [p.split("/")[2:] for p in RESOURCES if p.startswith("/apis/")]
        versions = [(g, {"groupVersion": f"{g}/{v}", "version": v}) for g, v in found]
        return {"groups": [{"name": g, "versions": [v], "preferredVersion": v} for g, v in versions]}
    if path in RESOURCES:
        listed = [
            {"name": n, "kind": k, "singularName": "", "namespaced": s, "verbs": ["list", "watch"]}
            for n, k, s in RESOURCES[path]
        ]
        return {"resources": listed}
    return None


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


def conditions(body: dict[str, Any]) -> set[str]:
    return {c["type"] for c in (body.get("status") or {}).get("conditions") or [] if c["status"] == "True"}


@pytest.mark.timeout(120)
def test_the_other_tenants_job_starts_and_the_lease_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server = ApiServer()
    for name in ("KUBERNETES_SERVICE_HOST", "KUBERNETES_SERVICE_PORT"):
        monkeypatch.delenv(name, raising=False)

    def put(namespace: str, name: str, spec: dict[str, Any]) -> None:
        body = {"apiVersion": "relight.dev/v1alpha1", "kind": "TrainingJob", "spec": spec}
        made = server.api.create(JOBS, namespace, {**body, "metadata": {"name": name, "namespace": namespace}})
        asyncio.run_coroutine_threadsafe(made, server._loop).result(10)

    def jobs() -> dict[str, dict[str, Any]]:
        return {b["metadata"]["name"]: b for b in server.api.all("trainingjobs")}

    async def until(what: str, found: Any, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not found():
            assert time.monotonic() < end, (
                f"{what}: not within {seconds:.0f} s: {[(n, b.get('status')) for n, b in jobs().items()]}"
            )
            await asyncio.sleep(0.05)

    async def attacked() -> None:
        options = Options(
            PodDefaults(image="trainer:1"),
            "system",
            "localhost",
            coordinator_port=free_port(),
            http_port=free_port(),
            resync_seconds=0.5,
        )
        async with connect() as client:
            authority = await certs.ensure_authority(client, "system", options.ca_secret, dt.datetime.now(dt.UTC))
            operator = Operator(options, client, authority)
            running = asyncio.create_task(operator.run())
            await until("leads", operator.leads, 10)
            holder = server.api.named("leases", "relight")["spec"]["holderIdentity"]
            for name in SPECS:
                put("evil", name, {})
            put("good", "good", GOOD_SPEC)
            await until(
                "the other tenant's pod",
                lambda: [p["metadata"]["name"] for p in server.api.all("pods") if "good" in p["metadata"]["name"]],
                START_SECONDS,
            )
            fit = {
                "odd-metadata",
                "deep-status",
                "status-list",
                "status-text",
                "odd-status",
            }  # but for their status, which the server here keeps
            await until(
                "a word about each",
                lambda: all(
                    conditions(b) & {"Invalid", "ReconcileFailed"} for n, b in jobs().items() if n not in {*fit, "good"}
                ),
                20,
            )
            async with (
                aiohttp.ClientSession() as session,
                session.get(f"http://localhost:{options.http_port}/metrics") as answer,
            ):
                assert 'relight_job_lost_steps{name="good",namespace="good"}' in await answer.text()
            assert operator.leads()
            lease = server.api.named("leases", "relight")["spec"]
            assert (lease["holderIdentity"], lease["leaseTransitions"]) == (holder, 0)
            operator.end()
            assert await running

    with server.serving():
        monkeypatch.setenv("KUBECONFIG", kubeconfig(tmp_path, server.url))
        asyncio.run(attacked())
    assert server.api.named("leases", "relight")["spec"]["holderIdentity"] == ""
