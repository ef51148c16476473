"""Two operators that both think they lead: what one has done, the other finds done.

The Lease keeps this from happening (test_kube_leader.py, cluster/test_leaders.py). Here it has failed, for good.
"""

import asyncio
import random
from collections import Counter
from collections.abc import Mapping
from typing import Any

import pytest
from kube_fake import FakeClient
from kube_world import KEY, World

from relight_operator.kube.client import Body, Resource
from relight_operator.kube.errors import KubeError

pytestmark = pytest.mark.timeout(60)


class SlowClient(FakeClient):
    """Others act while a request is under way, and while its answer is."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self._rng = rng

    async def _pause(self) -> None:
        for _ in range(self._rng.randrange(4)):
            await asyncio.sleep(0)

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Body:
        await self._pause()
        return await super().get(resource, namespace, name)

    async def create(
        self, resource: Resource, namespace: str | None, body: Mapping[str, Any], *, dry_run: bool = False
    ) -> Body:
        await self._pause()
        made = await super().create(resource, namespace, body, dry_run=dry_run)
        await self._pause()
        return made

    async def patch(
        self, resource: Resource, namespace: str | None, name: str, body: Mapping[str, Any], *, status: bool = False
    ) -> Body:
        await self._pause()
        patched = await super().patch(resource, namespace, name, body, status=status)
        await self._pause()
        return patched


def operators(rng: random.Random) -> tuple[World, World]:
    first, second = World(), World()
    first.client = second.client = SlowClient(rng)
    first.start()
    second.start()
    return first, second


async def rounds(world: World, count: int) -> None:
    for _ in range(count):
        for job in world.client.all("trainingjobs"):
            world.backend.store.put_job(job)
        for pod in world.client.all("pods"):
            world.backend.store.put_pod(pod, world.now)
        try:
            await world.reconciler.reconcile(KEY)
        except KubeError:
            await asyncio.sleep(0)  # its queue would try again


async def both(worlds: tuple[World, World], count: int = 15) -> None:
    await asyncio.gather(*(rounds(w, count) for w in worlds))


@pytest.mark.parametrize("seed", range(25))
def test_a_job_under_two_operators_has_no_member_twice_and_no_loss_counted_twice(seed: int) -> None:
    async def scenario() -> None:
        rng = random.Random(seed)
        worlds = operators(rng)
        first, second = worlds
        await first.apply()
        await both(worlds)
        assert first.pods() == ["digits-0-0", "digits-1-0"]
        for name in first.pods():
            first.run(name)  # agents talk to one of them
        await both(worlds)
        assert first.status.world is not None

        gone = first.client.remove("pods", "digits-1-0")
        gone["metadata"]["deletionTimestamp"] = "2023-11-14T22:13:20Z"
        for world in worlds:
            world.backend.store.remove_pod(gone, world.now)
        await both(worlds)
        assert first.pods() == ["digits-0-0", "digits-1-1"]
        assert (first.status.restarts.total, first.status.restarts.by_cause) == (1, {"Deleted": 1})

        assert second.status == first.status
        uids = {p["metadata"]["name"]: p["metadata"]["uid"] for p in first.client.all("pods")}
        assert {f"digits-{s.slot}-{s.incarnation}": s.uid for s in first.status.slots} == uids
        made = Counter(name for verb, plural, name in first.client.requests if (verb, plural) == ("delete", "pods"))
        assert not made, "a member was taken for a stranger"

    asyncio.run(scenario())
