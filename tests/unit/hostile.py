"""TrainingJobs that nobody means well with, and an API server over HTTP that hands them out as they are."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from aiohttp import web

GOOD_SPEC: dict[str, Any] = {"nodes": 1, "trainer": {"module": ["train"]}}
RESOURCES = {
    "/api/v1": [("pods", "Pod", True), ("nodes", "Node", False), ("namespaces", "Namespace", False)],
    "/apis/apiextensions.k8s.io/v1": [("customresourcedefinitions", "CustomResourceDefinition", False)],
    "/apis/relight.dev/v1alpha1": [("trainingjobs", "TrainingJob", True)],
}


def job_text(name: str, spec: str = json.dumps(GOOD_SPEC), status: str = "{}", metadata: str = "") -> str:
    more = f",{metadata}" if metadata else ""
    return (
        f'{{"apiVersion":"relight.dev/v1alpha1","kind":"TrainingJob","metadata":{{"name":"{name}","namespace":"evil",'
        f'"uid":"uid-{name}","resourceVersion":"5","generation":1,"creationTimestamp":"2026-01-02T03:04:05Z"{more}}},'
        f'"spec":{spec},"status":{status}}}'
    )


def spec_with(config: str) -> str:
    return f'{{"nodes":1,"trainer":{{"config":{config}}}}}'


def nested(levels: int) -> str:
    return '{"a":' * levels + "1" + "}" * levels


HOSTILE: dict[str, str] = {
    "deep": job_text("deep", spec_with(nested(1_100))),
    "very-deep": job_text("very-deep", spec_with("[" * 200_000 + "]" * 200_000)),
    "deep-status": job_text("deep-status", status=f'{{"goodput":{nested(5_000)}}}'),
    "many-keys": job_text("many-keys", spec_with(json.dumps({f"key{i}": i for i in range(40_000)}))),
    "fat": job_text("fat", spec_with("[" + ",".join(["{}"] * 150_000) + "]")),
    "long-number": job_text("long-number", spec_with('{"a":%s}' % ("9" * 10_000))),
    "spec-list": job_text("spec-list", "[1,2]"),
    "spec-text": job_text("spec-text", '"no"'),
    "spec-null": job_text("spec-null", "null"),
    "status-list": job_text("status-list", status="[1]"),
    "status-text": job_text("status-text", status='"x"'),
    "odd-status": job_text(
        "odd-status",
        status='{"phase":["Running"],"goodput":{"ratio":"n/a","buckets":{"start":"x"}},"stragglers":[7],'
        '"progress":{"step":{}},"conditions":"none","slots":{"a":1},"spec":[]}',
    ),
    "odd-metadata": job_text("odd-metadata", metadata='"annotations":[],"labels":"x","ownerReferences":{"a":1}'),
    "half-a-letter": job_text("half-a-letter", spec_with('{"a":"\\ud800"}')),
    "bad-utf-8": job_text("bad-utf-8", spec_with('{"a":"BYTE"}')),
}


def as_bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass").replace(b"BYTE", b"\xff\xfe")


class Server:
    """`objects` by plural; `events` are the lines of the watch of TrainingJobs."""

    def __init__(self) -> None:
        self.objects: dict[str, list[str]] = {"trainingjobs": [], "pods": [], "nodes": []}
        self.events: asyncio.Queue[bytes] = asyncio.Queue()
        self.delays: dict[str, float] = {}  # seconds, by plural

    async def answer(self, request: web.Request) -> web.StreamResponse:
        path = request.path.rstrip("/")
        if path == "/api":
            return web.json_response({"kind": "APIVersions", "versions": ["v1"]})
        if path == "/apis":
            groups = []
            for name, number in (("relight.dev", "v1alpha1"), ("apiextensions.k8s.io", "v1")):
                version = {"groupVersion": f"{name}/{number}", "version": number}
                groups.append({"name": name, "versions": [version], "preferredVersion": version})
            return web.json_response({"kind": "APIGroupList", "groups": groups})
        if path in RESOURCES:
            listed = [
                {"name": n, "kind": k, "singularName": k.lower(), "namespaced": s, "verbs": ["list", "watch", "get"]}
                for n, k, s in RESOURCES[path]
            ]
            return web.json_response({"kind": "APIResourceList", "resources": listed})
        plural = path.rpartition("/")[2]
        if plural not in self.objects:
            return web.json_response({"kind": "Status", "code": 404, "reason": "NotFound"}, status=404)
        if request.query.get("watch"):
            return await self._watch(request, plural)
        return self._page(request, plural)

    def _page(self, request: web.Request, plural: str) -> web.Response:
        first, limit = int(request.query.get("continue") or 0), int(request.query.get("limit") or 10**9)
        found = self.objects[plural]
        more = str(first + limit) if first + limit < len(found) else ""
        metadata = json.dumps({"resourceVersion": "9", "continue": more})
        text = '{"apiVersion":"v1","items":[%s],"kind":"List","metadata":%s}\n'
        page = text % (",".join(found[first : first + limit]), metadata)
        return web.Response(body=as_bytes(page), content_type="application/json")

    async def _watch(self, request: web.Request, plural: str) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/json"})
        await response.prepare(request)
        while plural == "trainingjobs":
            await response.write(await self.events.get() + b"\n")
        await asyncio.sleep(60)
        return response

    def tell(self, kind: str, text: str) -> None:
        self.events.put_nowait(as_bytes(f'{{"type":"{kind}","object":{text}}}'))


@asynccontextmanager
async def serving(folder: Path) -> AsyncIterator[tuple[Server, str]]:
    """A server, and the path of a KUBECONFIG for it."""
    server = Server()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", server.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]
    path = kubeconfig(folder, f"http://127.0.0.1:{port}")
    try:
        yield server, path
    finally:
        await runner.cleanup()


def kubeconfig(folder: Path, url: str) -> str:
    """The path of a KUBECONFIG for the server at `url`."""
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "current-context": "c",
        "contexts": [{"name": "c", "context": {"cluster": "s", "user": "u"}}],
        "clusters": [{"name": "s", "cluster": {"server": url}}],
        "users": [{"name": "u", "user": {"token": "t"}}],
    }
    path = folder / "kubeconfig"
    path.write_text(json.dumps(config))
    return str(path)
