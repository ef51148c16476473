"""One of the replicas leads: a Lease, held on the monotonic clock, given back at the end.

Others wait `DURATION` from the moment they saw the holder's last renewal; the holder itself stops acting `DEADLINE`
after it *began* its last renewal. The difference covers clocks that run at different rates.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any

from relight_operator.kube.client import LEASES, Client
from relight_operator.kube.errors import AlreadyExists, Conflict, KubeError, NotFound
from relight_operator.kube.status import rfc3339

DURATION_SECONDS = 15
DEADLINE_SECONDS = 10.0
RETRY_SECONDS = 2.0

_log = logging.getLogger(__name__)


class Elector:
    """`identity` is this process's own, never used again by another one.

    `place` begins the identities of all processes of this very container: of those but one can live at a time, so what
    an earlier one held is ours at once.
    """

    def __init__(
        self,
        client: Client,
        *,
        namespace: str,
        name: str,
        identity: str,
        place: str = "",
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._client = client
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._place = place
        self._clock = clock
        self._wall = wall
        self._valid_until = float("-inf")
        self._seen: tuple[Any, ...] | None = None  # the other holder's record, and since when it has not changed
        self._seen_at = 0.0

    def leads(self) -> bool:
        """Whether this process may act now."""
        return self._clock() < self._valid_until

    async def acquire(self) -> None:
        """Returns once this process leads."""
        while not await self._try():  # noqa: ASYNC110  # the lease changes far away: nothing here could set an event
            await asyncio.sleep(RETRY_SECONDS)
        _log.info("%s leads", self._identity)

    async def hold(self) -> None:
        """Renews; returns once the lease is lost, when nothing more may be done."""
        while self.leads():
            await asyncio.sleep(RETRY_SECONDS)
            try:
                async with asyncio.timeout(max(0.0, self._valid_until - self._clock())):
                    if not await self._try() and not self.leads():
                        break
            except TimeoutError:
                break
        _log.error("the lease is lost")

    async def release(self) -> None:
        """Let another replica lead at once. Stop acting before this is called."""
        if not self.leads():
            return
        self._valid_until = float("-inf")
        try:
            lease = await self._client.get(LEASES, self._namespace, self._name)
            if lease["spec"].get("holderIdentity") == self._identity:
                spec = {"holderIdentity": "", "leaseDurationSeconds": 1}
                await self._client.patch(LEASES, self._namespace, self._name, _body(lease, spec))
        except KubeError as error:
            _log.warning("the lease could not be given back, others wait until it runs out: %s", error)

    async def _try(self) -> bool:
        """One attempt to get or renew the lease. Errors are a no."""
        began = self._clock()
        try:
            got = await self._take()
        except (Conflict, AlreadyExists):
            return False
        except KubeError as error:
            _log.warning("the lease cannot be renewed now: %s", error)
            return False
        if got:
            self._valid_until = began + DEADLINE_SECONDS
        else:
            self._valid_until = float("-inf")
        return got

    async def _take(self) -> bool:
        now = rfc3339(self._wall())
        spec: dict[str, Any] = {
            "holderIdentity": self._identity, "leaseDurationSeconds": DURATION_SECONDS, "renewTime": now,
        }  # fmt: skip
        try:
            lease = await self._client.get(LEASES, self._namespace, self._name)
        except NotFound:
            metadata = {"name": self._name, "namespace": self._namespace}
            body = {"apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata}
            await self._client.create(
                LEASES, self._namespace, {**body, "spec": {**spec, "acquireTime": now, "leaseTransitions": 0}}
            )
            return True
        held = lease.get("spec") or {}
        if held.get("holderIdentity") != self._identity:
            if not self._free(held):
                return False
            spec |= {"acquireTime": now, "leaseTransitions": int(held.get("leaseTransitions") or 0) + 1}
        await self._client.patch(LEASES, self._namespace, self._name, _body(lease, spec))
        return True

    def _free(self, held: Mapping[str, Any]) -> bool:
        """Whether the other holder has given up, or not renewed for its whole duration, as seen from here."""
        holder = str(held.get("holderIdentity") or "")
        if not holder or (self._place and holder.startswith(self._place)):
            return True
        record = (holder, held.get("renewTime"), held.get("leaseTransitions"))
        if record != self._seen:
            self._seen, self._seen_at = record, self._clock()
        return self._clock() >= self._seen_at + float(held.get("leaseDurationSeconds") or DURATION_SECONDS)


def _body(lease: Mapping[str, Any], spec: Mapping[str, Any]) -> dict[str, Any]:
    return {"metadata": {"resourceVersion": lease["metadata"]["resourceVersion"]}, "spec": spec}
