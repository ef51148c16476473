"""The lease: one holder at a time, by the monotonic clock, whatever the server's times say."""

import asyncio

import pytest
from kube_fake import FakeClient

from relight_operator.kube.client import LEASES
from relight_operator.kube.errors import Unavailable
from relight_operator.kube.leader import DEADLINE_SECONDS, DURATION_SECONDS, Elector
from relight_operator.kube.leading import Label, LeaderClient, NotLeading

pytestmark = pytest.mark.timeout(20)


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def elector(client: FakeClient, clock: Clock, name: str) -> Elector:
    return Elector(client, namespace="ns", name="relight", identity=name, clock=clock, wall=lambda: 1.7e9 + clock())


def test_the_first_leads_and_the_second_waits() -> None:
    client, clock = FakeClient(), Clock()
    a, b = elector(client, clock, "a"), elector(client, clock, "b")
    asyncio.run(a.acquire())
    assert a.leads()
    assert not asyncio.run(b._try())
    assert not b.leads()


def test_a_holder_that_cannot_renew_stops_before_another_may_begin() -> None:
    client, clock = FakeClient(), Clock()
    a, b = elector(client, clock, "a"), elector(client, clock, "b")
    asyncio.run(a.acquire())
    asyncio.run(b._try())
    both = []
    for _ in range(4 * DURATION_SECONDS):
        clock.now += 0.5
        asyncio.run(b._try())
        both.append((a.leads(), b.leads()))
    assert (True, True) not in both
    assert both[-1] == (False, True)
    assert client.named("leases", "relight")["spec"]["leaseTransitions"] == 1


def test_a_holder_that_renews_is_never_replaced() -> None:
    client, clock = FakeClient(), Clock()
    a, b = elector(client, clock, "a"), elector(client, clock, "b")
    asyncio.run(a.acquire())
    for _ in range(30):
        clock.now += DURATION_SECONDS / 3
        assert asyncio.run(a._try())
        assert not asyncio.run(b._try())


def test_the_lease_counts_from_before_the_request_was_sent() -> None:
    client, clock = FakeClient(), Clock()
    a = elector(client, clock, "a")

    def slow(verb: str, _: str, __: str) -> None:
        if verb == "create":
            clock.now += DEADLINE_SECONDS

    client.before = slow
    assert asyncio.run(a._try())
    assert not a.leads()


def test_a_server_that_does_not_answer_costs_the_lease_in_time() -> None:
    client, clock = FakeClient(), Clock()
    a = elector(client, clock, "a")
    asyncio.run(a.acquire())

    def down(*_: str) -> None:
        raise Unavailable("down")

    client.before = down
    clock.now += DEADLINE_SECONDS - 0.1
    assert not asyncio.run(a._try())
    assert a.leads()
    clock.now += 0.1
    assert not a.leads()


def test_a_lease_that_is_given_back_is_free_at_once() -> None:
    client, clock = FakeClient(), Clock()
    a, b = elector(client, clock, "a"), elector(client, clock, "b")
    asyncio.run(a.acquire())
    asyncio.run(a.release())
    assert not a.leads()
    assert asyncio.run(b._try())


def test_two_that_try_at_once_do_not_both_get_it() -> None:
    client, clock = FakeClient(), Clock()
    a, b = elector(client, clock, "a"), elector(client, clock, "b")
    asyncio.run(a.acquire())
    asyncio.run(a.release())
    real = client.patch

    async def late(*args: object, **kwargs: object) -> object:
        client.patch = real  # type: ignore[method-assign]
        assert await b._try()
        return await real(*args, **kwargs)  # type: ignore[arg-type]

    client.patch = late  # type: ignore[method-assign, assignment]
    assert not asyncio.run(a._try())
    assert (a.leads(), b.leads()) == (False, True)


def test_a_container_that_was_restarted_takes_over_from_itself_at_once() -> None:
    client, clock = FakeClient(), Clock()
    asyncio.run(elector(client, clock, "pod-1_a").acquire())
    names = {"namespace": "ns", "name": "relight"}
    other = Elector(client, **names, identity="pod-2_b", place="pod-2_", clock=clock)
    again = Elector(client, **names, identity="pod-1_c", place="pod-1_", clock=clock)
    assert not asyncio.run(other._try())
    assert asyncio.run(again._try())


def test_who_does_not_lead_reads_and_does_not_write() -> None:
    async def body() -> None:
        client, leads = FakeClient(), [False]
        guarded = LeaderClient(client, lambda: leads[0])
        with pytest.raises(NotLeading):
            await guarded.create(LEASES, "ns", {"metadata": {"name": "x"}})
        with pytest.raises(NotLeading):
            await guarded.patch(LEASES, "ns", "x", {})
        with pytest.raises(NotLeading):
            await guarded.delete(LEASES, "ns", "x", uid="u")
        assert await guarded.list(LEASES, "ns") == []
        assert [r[0] for r in client.requests] == ["list"]
        leads[0] = True
        await guarded.create(LEASES, "ns", {"metadata": {"name": "x"}})

    asyncio.run(body())


def test_the_new_leader_takes_the_label_from_the_old_ones_pod() -> None:
    async def body() -> None:
        from relight_operator.kube.client import PODS

        client = FakeClient()
        for name, labels in (("old", {"relight.dev/leader": "true"}), ("new", {})):
            await client.create(PODS, "ns", {"metadata": {"name": name, "namespace": "ns", "labels": labels}})
        await Label(client, "ns", "new").take()
        labelled = await client.list(PODS, "ns", labels="relight.dev/leader=true")
        assert [p["metadata"]["name"] for p in labelled] == ["new"]
        patches = [name for verb, _, name in client.requests if verb == "patch"]
        assert patches == ["old", "new"]

    asyncio.run(body())
