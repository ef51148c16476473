"""The operator as a whole: what is started, in which order, and how it ends."""

import asyncio
import datetime as dt
import logging
import socket
import ssl
import time
import uuid
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from relight_operator.coordinator.connections import Connections
from relight_operator.coordinator.endpoint import Endpoint
from relight_operator.coordinator.mailbox import Mailbox
from relight_operator.coordinator.server import create_app
from relight_operator.kube import certs, decode
from relight_operator.kube.backend import Backend
from relight_operator.kube.client import JOBS, NODES, PODS, Client, KubeClient, connect
from relight_operator.kube.errors import KubeError, NotFound
from relight_operator.kube.feeds import Feeds, Intake
from relight_operator.kube.leader import Elector
from relight_operator.kube.leading import Label, LeaderClient
from relight_operator.kube.lease import Lease
from relight_operator.kube.network import NetworkDefaults
from relight_operator.kube.pods import Coordinator, PodDefaults
from relight_operator.kube.reconciler import Reconciler
from relight_operator.kube.server import Authenticator, health_app
from relight_operator.kube.tokens import TokenReviewer
from relight_operator.kube.workers import work
from relight_operator.kube.workqueue import WorkQueue
from relight_operator.metrics import CONTENT_TYPE, Metrics

CERTIFICATE_SECONDS = 3600.0
SHUTDOWN_SECONDS = 10.0
CRD_SECONDS = 2.0

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Options:
    """What the command line says."""

    defaults: PodDefaults
    namespace: str  # the operator's own: its Lease, its Secret, its Service
    coordinator: str  # host, or host:port, at which agents reach whoever leads
    pod_name: str = ""  # "" outside a cluster
    namespaces: tuple[str, ...] = ()  # to be watched; all where empty
    network: NetworkDefaults = field(default_factory=NetworkDefaults)
    coordinator_port: int = 8443
    http_port: int = 8080
    lease: str = "relight"
    ca_secret: str = "relight-ca"  # noqa: S105  # its name
    workers: int = 8
    resync_seconds: float = 300.0


@dataclass
class Operator:
    """`connect` opens a client of its own for whom the others' requests must not hold up."""

    options: Options
    client: KubeClient
    authority: certs.Authority
    connect: Callable[[], AbstractAsyncContextManager[Client]] = connect
    ended: asyncio.Event = field(default_factory=asyncio.Event)
    reason: str = ""  # why it ended by itself

    def __post_init__(self) -> None:
        o = self.options
        place = f"{o.pod_name}_" if o.pod_name else ""
        identity = f"{place or socket.gethostname() + '_'}{uuid.uuid4().hex[:8]}"
        self.lease = Lease(
            self.connect,
            lambda client: Elector(client, namespace=o.namespace, name=o.lease, identity=identity, place=place),
        )
        self.queue = WorkQueue()
        self.primed = False
        self.writes: Client = LeaderClient(self.client, self.lease.leads)
        self.backend = Backend(
            client=self.writes,
            mailbox=Mailbox(time.time, self.queue.add),
            defaults=o.defaults,
            network=o.network,
            coordinator=lambda: Coordinator(f"https://{o.coordinator}", self.authority.bundle()),
            clock=time.time,
        )
        self.metrics = Metrics(lambda: self.backend.store.jobs() if self.leads() else {}, decode.lost)
        self.reconciler = Reconciler(self.backend, self.metrics.on_write)
        self.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_2
        self.feeds = Feeds(Intake(self.backend, self.queue), o.namespaces, lambda: self.end("the watches ended"))

    def leads(self) -> bool:
        """Whether this replica may act and answer now."""
        return self.primed and self.lease.leads()

    def end(self, reason: str = "") -> None:
        """Stop; with a reason, as a failure."""
        self.reason = self.reason or reason
        self.ended.set()

    async def run(self) -> bool:
        """Until `end`; whether that was asked for."""
        self._renew_leaf()
        async with self._servers():
            parts = [asyncio.create_task(self._guarded(p)) for p in (self._lead(), self._keep_certificates())]
            try:
                await self.ended.wait()
            finally:
                for part in parts:
                    part.cancel()
                await asyncio.wait(parts)
                await self.lease.release()
                await self.feeds.stop()
        if self.reason:
            _log.error("ends: %s", self.reason)
        return not self.reason

    async def _guarded(self, part: Coroutine[Any, Any, None]) -> None:
        try:
            await part
        except Exception as error:
            _log.exception("a part of the operator failed")
            self.end(f"{type(error).__name__}: {error}")

    async def _lead(self) -> None:
        await self._wait_for_the_resource()
        self.feeds.start()
        await self.lease.acquire()
        # From now on the lease must be renewed, whatever the priming takes.
        others = [asyncio.create_task(self._guarded(p)) for p in (self._hold(), self._resync())]
        workers = []
        try:
            await Label(self.client, self.options.namespace, self.options.pod_name).take()
            await self._prime()
            self.primed = True
            _log.info("%d jobs", len(self.backend.store.jobs()))
            for _ in range(self.options.workers):
                workers.append(asyncio.create_task(work(self.queue, self.reconciler.reconcile, self.metrics)))  # noqa: PERF401
            await asyncio.wait(workers)  # they end with the queue; a cancellation leaves them to it
        finally:
            self.queue.close()
            for other in others:
                other.cancel()
            if workers:
                # What a worker has begun it finishes, for as long as the lease holds.
                await asyncio.wait(workers, timeout=SHUTDOWN_SECONDS)

    async def _wait_for_the_resource(self) -> None:
        """Kopf looks once, at its start, which resources there are."""
        said = False
        while True:
            try:
                await self.client.list(JOBS, (self.options.namespaces or (self.options.namespace,))[0])
                return
            except NotFound:
                if not said:
                    _log.error("the CustomResourceDefinition of TrainingJobs is not installed: waiting for it")
                said = True
            await asyncio.sleep(CRD_SECONDS)

    async def _hold(self) -> None:
        await self.lease.held()
        self.end("the lease is lost")

    async def _prime(self) -> None:
        """Read everything once: the watches do not say when their first list is complete."""
        await self._read_all()
        b, now = self.backend, self.backend.clock()
        for namespace in self.options.namespaces or (None,):
            for pod in await self.client.list(PODS, namespace, labels="relight.dev/job"):
                b.store.put_pod(pod, now)

    async def _read_all(self) -> None:
        b = self.backend
        try:
            for node in await self.client.list(NODES):
                b.machines.put(node, b.clock())
        except KubeError as error:
            _log.warning("machines cannot be listed, dead ones will not be noticed: %s", error)
        for namespace in self.options.namespaces or (None,):
            for job in await self.client.list(JOBS, namespace):
                b.store.put_job(job)
        for key in b.store.jobs():
            b.store.suspect(key)
            self.queue.add(key)

    async def _resync(self) -> None:
        while True:
            await asyncio.sleep(self.options.resync_seconds)
            try:
                await self._read_all()
            except KubeError as error:
                _log.warning("resync: %s", error)
            except Exception:  # what one object does to it must not end the others' operator
                _log.exception("resync")

    # -- certificates

    def _renew_leaf(self) -> None:
        host = urlsplit(f"//{self.options.coordinator}").hostname or ""
        hosts = dict.fromkeys([host, "localhost"])
        certs.load_into(self.context, certs.new_leaf(self.authority, hosts, dt.datetime.now(dt.UTC)))

    async def _keep_certificates(self) -> None:
        renewed = time.monotonic()
        while True:
            await asyncio.sleep(CERTIFICATE_SECONDS)
            try:
                now = dt.datetime.now(dt.UTC)
                if self.leads():
                    authority = await certs.renewed_authority(
                        self.writes, self.options.namespace, self.options.ca_secret, now
                    )
                else:
                    authority = await certs.ensure_authority(
                        self.client, self.options.namespace, self.options.ca_secret, now
                    )
            except KubeError as error:
                _log.warning("the coordinator's CA cannot be read: %s", error)
                continue
            changed, self.authority = authority != self.authority, authority
            if changed:
                for key in self.backend.store.jobs():
                    self.queue.add(key)  # each hands the new bundle to its pods
            if time.monotonic() > renewed + certs.LEAF_DAYS * 86400 / 2:
                self._renew_leaf()
                renewed = time.monotonic()

    # -- servers

    @asynccontextmanager
    async def _servers(self) -> AsyncIterator[None]:
        # What strangers cause has a pool of connections of its own.
        async with self.connect() as reviews, self._serving(reviews):
            yield

    @asynccontextmanager
    async def _serving(self, reviews: Client) -> AsyncIterator[None]:
        coordinator = Endpoint(
            create_app(
                self.backend.mailbox,
                Authenticator(self.backend.store, TokenReviewer(reviews)),
                self.leads,
                refused=self.metrics.on_refusal,
            ),
            tls=self.context,
            shutdown_timeout=0.5,
        )
        health = web.AppRunner(
            health_app(
                is_alive=lambda: not self.ended.is_set(),
                is_ready=lambda: not self.ended.is_set(),
                metrics=lambda: self._scrape(coordinator.connections),
                content_type=CONTENT_TYPE,
            ),
            access_log=None,
            shutdown_timeout=0.5,
        )
        try:
            await coordinator.start(port=self.options.coordinator_port)
            await health.setup()
            await web.TCPSite(health, port=self.options.http_port).start()
            yield
        finally:
            await coordinator.stop()
            await health.cleanup()

    def _scrape(self, connections: Connections) -> bytes:
        self.metrics.leading.set(self.leads())
        self.metrics.connections.labels("known").set(connections.known)
        self.metrics.connections.labels("unknown").set(connections.strangers)
        self.metrics.queue_depth.set(len(self.queue))
        return self.metrics.exposition()


async def run(options: Options, stop: asyncio.Event) -> bool:
    """Run the operator until `stop`; False when it ended by itself. Raises KubeError when it cannot start."""
    async with connect() as client:
        authority = await certs.ensure_authority(client, options.namespace, options.ca_secret, dt.datetime.now(dt.UTC))
        operator = Operator(options, client, authority)
        stopping = asyncio.create_task(_stop(stop, operator))
        try:
            return await operator.run()
        finally:
            stopping.cancel()


async def _stop(stop: asyncio.Event, operator: Operator) -> None:
    await stop.wait()
    operator.end()
