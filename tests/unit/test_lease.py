"""The lease is renewed beside everything else: what keeps the main loop busy does not lose it, what hangs it does."""

import asyncio
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from kube_fake import FakeClient

from relight_operator.kube import leader, lease
from relight_operator.kube.client import Client
from relight_operator.kube.errors import KubeError, NotConfigured
from relight_operator.kube.leader import Elector
from relight_operator.kube.lease import Lease

pytestmark = pytest.mark.timeout(30)

DEADLINE = 1.0


@pytest.fixture(autouse=True)
def fast(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader, "DEADLINE_SECONDS", DEADLINE)
    monkeypatch.setattr(leader, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(lease, "RETRY_SECONDS", 0.02)
    monkeypatch.setattr(lease, "BEAT_SECONDS", 0.02)


class Servers:
    """One API server; each client that is opened for it is counted, with the thread that did it."""

    def __init__(self) -> None:
        self.api = FakeClient()
        self.opened_by: list[str] = []

    @asynccontextmanager
    async def connect(self) -> AsyncIterator[Client]:
        self.opened_by.append(threading.current_thread().name)
        yield self.api

    def lease(self, identity: str = "a") -> Lease:
        return Lease(self.connect, lambda c: Elector(c, namespace="ns", name="relight", identity=identity))

    @property
    def renewals(self) -> int:
        return sum(verb == "patch" for verb, _, _ in self.api.requests)


def test_a_main_loop_that_is_busy_does_not_lose_the_lease() -> None:
    servers = Servers()

    async def main() -> None:
        held = servers.lease()
        await held.acquire()
        before, until = servers.renewals, time.monotonic() + 3 * DEADLINE
        while time.monotonic() < until:  # validates, parses, compares: and never lets another task in
            sum(range(1000))
            assert held.leads()
        assert servers.renewals > before
        assert held.leads()
        await held.release()
        assert not held.leads()

    asyncio.run(main())
    assert servers.opened_by == ["lease"], "a client of its own, in a thread of its own"
    assert servers.api.named("leases", "relight")["spec"]["holderIdentity"] == ""
    assert servers.api.named("leases", "relight")["spec"].get("leaseTransitions") == 0


def test_a_main_loop_that_hangs_gives_others_the_lead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "HUNG_SECONDS", 0.3)
    servers = Servers()

    async def main() -> None:
        held = servers.lease()
        await held.acquire()
        time.sleep(0.3 + 2 * DEADLINE)  # noqa: ASYNC251  # it hangs: that is the point
        assert not held.leads()
        await asyncio.wait_for(held.held(), 5)
        await held.release()

    asyncio.run(main())


def test_a_lease_that_another_one_takes_is_lost() -> None:
    servers = Servers()

    async def main() -> None:
        held = servers.lease()
        await held.acquire()
        servers.api.edit("leases", "relight", {"spec": {"holderIdentity": "b"}})
        await asyncio.wait_for(held.held(), 5)
        assert not held.leads()
        await held.release()

    asyncio.run(main())
    assert servers.api.named("leases", "relight")["spec"]["holderIdentity"] == "b"


def test_a_standby_that_is_stopped_ends_at_once() -> None:
    servers = Servers()

    async def main() -> None:
        first, second = servers.lease(), servers.lease("b")
        await first.acquire()
        waiting = asyncio.create_task(second.acquire())
        await asyncio.sleep(0.1)
        waiting.cancel()
        await asyncio.wait([waiting])
        await asyncio.wait_for(second.release(), 5)
        assert first.leads()
        await first.release()

    asyncio.run(main())


def test_a_client_that_cannot_be_opened_is_an_error() -> None:
    @asynccontextmanager
    async def connect() -> AsyncIterator[Client]:
        raise NotConfigured("no cluster")
        yield FakeClient()

    async def main() -> None:
        held = Lease(connect, lambda c: Elector(c, namespace="ns", name="relight", identity="a"))
        with pytest.raises(KubeError):
            await held.acquire()
        await held.release()

    asyncio.run(main())
