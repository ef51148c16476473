"""The operator's two servers: the coordinator over HTTPS for agents, and health and metrics over HTTP for the cluster."""

import asyncio
import hashlib
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from relight_operator.coordinator.server import Verdict
from relight_operator.coordinator.wire import Report
from relight_operator.kube import names
from relight_operator.kube.backend import Backend
from relight_operator.kube.client import TOKEN_REVIEWS, Client
from relight_operator.kube.errors import KubeError
from relight_operator.kube.names import pod_name

CACHE_SECONDS = 60.0
CACHE_NO_SECONDS = 5.0
MAX_CACHED = 20_000
_CLAIMS = "authentication.kubernetes.io/"


@dataclass(frozen=True)
class Claims:
    """Whose pod's token it is."""

    namespace: str
    pod: str
    uid: str


class TokenReviewer:
    """`claims(token)` by TokenReview, remembered for a minute. Tokens themselves are not kept."""

    def __init__(self, client: Client, clock: Callable[[], float] = time.monotonic) -> None:
        self._client = client
        self._clock = clock
        self._known: dict[bytes, tuple[float, Claims | None]] = {}
        self._asking: dict[bytes, asyncio.Lock] = {}

    async def claims(self, token: str) -> Claims | None:
        """None for a token that is definitely not a pod's of this cluster for us. Raises KubeError."""
        digest = hashlib.sha256(token.encode()).digest()
        lock = self._asking.setdefault(digest, asyncio.Lock())
        try:
            async with lock:  # an agent reports and waits at once: one question
                until, claims = self._known.get(digest, (0.0, None))
                if self._clock() < until:
                    return claims
                claims = await self._ask(token)
                if len(self._known) >= MAX_CACHED:
                    self._known.clear()
                self._known[digest] = (self._clock() + (CACHE_SECONDS if claims else CACHE_NO_SECONDS), claims)
                return claims
        finally:
            if not lock.locked():
                self._asking.pop(digest, None)

    async def _ask(self, token: str) -> Claims | None:
        body = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": [names.TOKEN_AUDIENCE]},
        }
        answer = await self._client.create(TOKEN_REVIEWS, None, body)
        return claims_of(answer.get("status") or {})


def claims_of(status: Mapping[str, Any]) -> Claims | None:
    """The claims in a TokenReview's status; None where it says no, or the token is no pod's."""
    if not status.get("authenticated") or names.TOKEN_AUDIENCE not in (status.get("audiences") or ()):
        return None
    user = status.get("user") or {}
    account, extra = str(user.get("username") or "").split(":"), user.get("extra") or {}
    pod, uid = (next(iter(extra.get(_CLAIMS + key) or ("",))) for key in ("pod-name", "pod-uid"))
    if account[:2] != ["system", "serviceaccount"] or len(account) != 4 or not (pod and uid):
        return None
    return Claims(account[2], pod, uid)


class Authenticator:
    """Whether a token belongs to the very member that a report is about; also remembers when each was heard."""

    def __init__(self, backend: Backend, reviewer: TokenReviewer) -> None:
        self._b = backend
        self._reviewer = reviewer

    async def __call__(self, token: str, report: Report) -> Verdict:
        job = self._b.store.job(report.job)
        if job is None or job["metadata"]["uid"] != report.job_uid:
            return "no"
        try:
            claims = await self._reviewer.claims(token) if token else None
        except KubeError:
            return "unknown"
        namespace, name = report.job.split("/")
        member = Claims(namespace, pod_name(name, report.slot, report.incarnation), report.uid)
        if claims != member:
            return "no"
        self._b.heard[report.uid] = self._b.clock()
        return "yes"


def health_app(
    *, is_alive: Callable[[], bool], is_ready: Callable[[], bool], metrics: Callable[[], bytes], content_type: str
) -> web.Application:
    """/healthz: the process is worth keeping. /readyz: it leads, or stands by to lead. /metrics: for Prometheus."""

    async def healthz(_: web.Request) -> web.Response:
        return _plain(is_alive())

    async def readyz(_: web.Request) -> web.Response:
        return _plain(is_ready())

    async def scrape(_: web.Request) -> web.Response:
        return web.Response(body=metrics(), headers={"Content-Type": content_type})

    app = web.Application()
    app.router.add_get("/healthz", healthz)
    app.router.add_get("/readyz", readyz)
    app.router.add_get("/metrics", scrape)
    return app


def _plain(good: bool) -> web.Response:
    return web.Response(text="ok\n" if good else "not yet\n", status=200 if good else 503)
