"""The operator's two servers: the coordinator over HTTPS for agents, and health and metrics over HTTP for the cluster."""

from collections.abc import Callable

from aiohttp import web

from relight_operator.coordinator.limits import Reason
from relight_operator.coordinator.wire import Report
from relight_operator.kube.names import pod_name
from relight_operator.kube.store import Store
from relight_operator.kube.tokens import Claims, NotReviewed, TokenReviewer


class Authenticator:
    """Whether a token belongs to the very member that a report is about: None, or why not."""

    def __init__(self, store: Store, reviewer: TokenReviewer) -> None:
        self._store = store
        self._reviewer = reviewer

    async def __call__(self, token: str, report: Report, peer: str) -> Reason | None:
        if not self._is_of_a_job(report):
            return Reason.NOT_THE_MEMBERS
        namespace, name = report.job.split("/")
        member = Claims(namespace, pod_name(name, report.slot, report.incarnation), report.uid)
        try:
            good = await self._reviewer.is_of(token, member, peer)
        except NotReviewed as error:
            return error.reason
        if not good or not self._is_of_a_job(report):  # which may have gone while the API server was asked
            return Reason.NOT_THE_MEMBERS
        return None

    def _is_of_a_job(self, report: Report) -> bool:
        job = self._store.job(report.job)
        return job is not None and job["metadata"]["uid"] == report.job_uid


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
