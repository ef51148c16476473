"""Kopf's watches, as feeds: every event goes into the store and the queue, and nothing else happens here.

Kopf runs in a thread and a loop of its own: it ends whatever tasks it finds in its loop, and a slow reconciler must not
stop a watch. Only `on.event` is used: the other handlers put finalizers or annotations on the jobs.
"""

import asyncio
import logging
import threading
from collections.abc import Callable, Sequence
from typing import Any

import kopf

from relight_operator.api.crd import PLURAL
from relight_operator.api.job import GROUP, VERSION
from relight_operator.kube import decode, guarded, names
from relight_operator.kube.backend import Backend
from relight_operator.kube.client import CHUNK
from relight_operator.kube.workqueue import WorkQueue

Body = dict[str, Any]
Handler = Callable[[str | None, Body], None]

JOIN_SECONDS = 15.0

_log = logging.getLogger(__name__)


class Intake:
    """Where events go; its methods run in the loop of the store."""

    def __init__(self, backend: Backend, queue: WorkQueue) -> None:
        self._b = backend
        self._queue = queue

    def job(self, kind: str | None, body: Body) -> None:
        store = self._b.store
        self._queue.add(store.remove_job(body) if kind == "DELETED" else store.put_job(body))

    def pod(self, kind: str | None, body: Body) -> None:
        store, now = self._b.store, self._b.clock()
        key = store.remove_pod(body, now) if kind == "DELETED" else store.put_pod(body, now)
        if key is not None:
            self._queue.add(key)

    def node(self, kind: str | None, body: Body) -> None:
        machines, name, now = self._b.machines, body["metadata"]["name"], self._b.clock()
        if kind == "DELETED":
            machines.remove(name, now)
        elif not machines.put(body, now):
            return
        for key in self._b.store.keys_on(name):
            self._queue.add(key)


class Feeds:
    """The watches of jobs, pods and nodes, from `start` to `stop`. `on_end` is called when they end by themselves."""

    def __init__(self, intake: Intake, namespaces: Sequence[str], on_end: Callable[[], None]) -> None:
        self._intake = intake
        self._namespaces = namespaces
        self._on_end = on_end
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        loop = asyncio.get_running_loop()

        def handed_over(handler: Handler) -> Handler:
            return lambda kind, body: _call_soon(loop, handler, kind, body)

        registry = _registry(*(handed_over(h) for h in (self._intake.job, self._intake.pod, self._intake.node)))
        self._thread = threading.Thread(target=self._run, args=(loop, registry), name="kopf", daemon=True)
        self._thread.start()

    async def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            await asyncio.to_thread(self._thread.join, JOIN_SECONDS)

    def _run(self, loop: asyncio.AbstractEventLoop, registry: kopf.OperatorRegistry) -> None:
        try:
            kopf.run(
                registry=registry,
                settings=_settings(),
                standalone=True,
                clusterwide=not self._namespaces,
                namespaces=list(self._namespaces),
                stop_flag=self._stop,
            )
        except Exception:
            _log.exception("the watches failed")
        if not self._stop.is_set():
            _call_soon(loop, lambda *_: self._on_end(), None, {})


def _registry(on_job: Handler, on_pod: Handler, on_node: Handler) -> kopf.OperatorRegistry:
    registry = kopf.OperatorRegistry()

    @kopf.on.login(registry=registry)
    async def login(**kwargs: Any) -> Any:
        found = kopf.login_with_service_account(**kwargs) or kopf.login_with_kubeconfig(**kwargs)
        return guarded.credentials(found) if found is not None else None

    @kopf.on.event(GROUP, VERSION, PLURAL, registry=registry)
    async def job(event: Any, **_: Any) -> None:
        on_job(event["type"], event["object"])

    @kopf.on.event("v1", "pods", labels={names.JOB_LABEL: kopf.PRESENT}, registry=registry)
    async def pod(event: Any, **_: Any) -> None:
        on_pod(event["type"], event["object"])

    @kopf.on.event("v1", "nodes", registry=registry)
    async def node(event: Any, **_: Any) -> None:
        on_node(event["type"], event["object"])

    return registry


def _settings() -> kopf.OperatorSettings:
    settings = kopf.OperatorSettings()
    settings.posting.enabled = False
    settings.scanning.disabled = True  # it would want to watch namespaces and CRDs
    settings.watching.connect_timeout = 10.0
    settings.watching.chunk_size = CHUNK
    settings.watching.label_selectors["v1/pods"] = names.JOB_LABEL  # by the server: not every pod of the cluster
    settings.networking.request_timeout = 30.0
    return settings


def _guarded(handler: Handler, kind: str | None, body: Body) -> None:
    try:
        handler(kind, body)
    except Exception:  # one object must not take the others along; the next list has it again
        _log.exception("an event of a watch could not be taken in")
        decode.lost["events"] += 1


def _call_soon(loop: asyncio.AbstractEventLoop, handler: Handler, kind: str | None, body: Body) -> None:
    try:
        loop.call_soon_threadsafe(_guarded, handler, kind, body)
    except RuntimeError:  # the loop has been closed: everything is coming to its end
        pass
