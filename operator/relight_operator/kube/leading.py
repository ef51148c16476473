"""What only the leader may do, and how agents find it."""

from collections.abc import Callable, Mapping
from typing import Any

from relight_operator.kube.client import PODS, Body, Client, Resource
from relight_operator.kube.errors import KubeError, NotFound
from relight_operator.kube.names import LEADER_LABEL


class NotLeading(KubeError):
    """A write was asked of a replica that does not lead."""


class LeaderClient:
    """A client whose writes are refused here while this process does not lead; it may read always."""

    def __init__(self, client: Client, leads: Callable[[], bool]) -> None:
        self._client = client
        self._leads = leads
        self.get = client.get
        self.list = client.list

    async def create(
        self, resource: Resource, namespace: str | None, body: Mapping[str, Any], *, dry_run: bool = False
    ) -> Body:
        self._check()
        return await self._client.create(resource, namespace, body, dry_run=dry_run)

    async def patch(
        self, resource: Resource, namespace: str | None, name: str, body: Mapping[str, Any], *, status: bool = False
    ) -> Body:
        self._check()
        return await self._client.patch(resource, namespace, name, body, status=status)

    async def delete(
        self, resource: Resource, namespace: str, name: str, *, uid: str, grace: float | None = None
    ) -> None:
        self._check()
        await self._client.delete(resource, namespace, name, uid=uid, grace=grace)

    def _check(self) -> None:
        if not self._leads():
            raise NotLeading("this replica does not lead")


class Label:
    """The label on the leader's own pod by which the coordinator's Service finds it."""

    def __init__(self, client: Client, namespace: str, pod: str) -> None:
        self._client = client
        self._namespace = namespace
        self._pod = pod

    async def take(self) -> None:
        """Put it on our pod, after taking it from all others: a dead leader's pod may stay in the Service for long.

        Nothing to do outside a cluster. Raises KubeError.
        """
        if not self._pod:
            return
        for pod in await self._client.list(PODS, self._namespace, labels=f"{LEADER_LABEL}=true"):
            if pod["metadata"]["name"] != self._pod:
                await self._set(pod["metadata"]["name"], None)
        await self._set(self._pod, "true")

    async def _set(self, pod: str, value: str | None) -> None:
        try:
            await self._client.patch(PODS, self._namespace, pod, {"metadata": {"labels": {LEADER_LABEL: value}}})
        except NotFound:
            pass
