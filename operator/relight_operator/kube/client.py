"""A thin client of the API server: dicts in, dicts out, every failure one of `errors`.

`kubernetes.aio` does configuration, authentication and transport; its typed models are left alone (they refuse answers
that lack a field, and parse ten times slower).
"""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, Protocol, cast
from urllib.parse import quote, urlencode

import aiohttp
import kubernetes.aio.client
import kubernetes.aio.config
import yaml

from relight_operator.api.crd import PLURAL
from relight_operator.api.job import API_VERSION
from relight_operator.kube import decode, slim
from relight_operator.kube.errors import Gone, NotConfigured, error_of

Body = dict[str, Any]

REQUEST_SECONDS = 30.0
CHUNK = 16  # objects in an answer, which may have a megabyte and a half each
IN_A_THREAD_BYTES = 65_536  # of an answer: the loop must not stand still while a longer one is read


class Resource(NamedTuple):
    prefix: str
    plural: str

    def path(self, namespace: str | None, name: str | None = None, subresource: str | None = None) -> str:
        middle = ("namespaces", namespace, self.plural) if namespace is not None else (self.plural,)
        parts = [*middle, *(p for p in (name, subresource) if p is not None)]
        return "/".join((self.prefix, *(quote(p, safe="") for p in parts)))


JOBS = Resource(f"/apis/{API_VERSION}", PLURAL)
PODS = Resource("/api/v1", "pods")
NODES = Resource("/api/v1", "nodes")
SERVICES = Resource("/api/v1", "services")
CONFIG_MAPS = Resource("/api/v1", "configmaps")
SECRETS = Resource("/api/v1", "secrets")
EVENTS = Resource("/api/v1", "events")
LEASES = Resource("/apis/coordination.k8s.io/v1", "leases")
BUDGETS = Resource("/apis/policy/v1", "poddisruptionbudgets")
BETA_BUDGETS = Resource("/apis/policy/v1beta1", "poddisruptionbudgets")
NETWORK_POLICIES = Resource("/apis/networking.k8s.io/v1", "networkpolicies")
TOKEN_REVIEWS = Resource("/apis/authentication.k8s.io/v1", "tokenreviews")

# What is kept of the objects of a list, each at once after it has been read.
KEPT: Mapping[Resource, decode.Keep] = {JOBS: slim.job, PODS: slim.pod, NODES: slim.node}


class Client(Protocol):
    """What the operator needs of an API server. Every method raises `errors.KubeError`, nothing else."""

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Body: ...

    async def list(
        self, resource: Resource, namespace: str | None = None, *, labels: str = "", fields: str = ""
    ) -> list[Body]:
        """All objects, in every namespace for None, however many requests that takes; of jobs, pods and machines what `KEPT` says."""
        ...

    async def create(
        self, resource: Resource, namespace: str | None, body: Mapping[str, Any], *, dry_run: bool = False
    ) -> Body:
        """`dry_run`: only say what would come of it; unknown fields are wrong then, from Kubernetes 1.25 on."""
        ...

    async def patch(
        self, resource: Resource, namespace: str | None, name: str, body: Mapping[str, Any], *, status: bool = False
    ) -> Body:
        """A JSON merge patch; with `metadata.resourceVersion` in it, Conflict when that is not the present one."""
        ...

    async def delete(
        self, resource: Resource, namespace: str, name: str, *, uid: str, grace: float | None = None
    ) -> None:
        """Only the object with this uid: Conflict for another of the same name, NotFound for none."""
        ...


class KubeClient:
    def __init__(self, api: Any) -> None:
        """`api`: a kubernetes.aio.client.ApiClient, which is half typed."""
        self._api = api

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Body:
        return await self._request("GET", resource.path(namespace, name))

    async def list(
        self, resource: Resource, namespace: str | None = None, *, labels: str = "", fields: str = ""
    ) -> list[Body]:
        query = {k: v for k, v in (("labelSelector", labels), ("fieldSelector", fields)) if v}
        keep = KEPT.get(resource)
        query["limit"] = str(CHUNK)
        try:
            return [item async for item in self._chunks(resource, namespace, query, keep)]
        except Gone:  # the continuation has expired: once more, from the beginning
            return [item async for item in self._chunks(resource, namespace, query, keep)]

    async def _chunks(
        self, resource: Resource, namespace: str | None, query: dict[str, str], keep: decode.Keep | None
    ) -> AsyncIterator[Body]:
        path, token = resource.path(namespace), ""
        while True:
            asked = {**query, **({"continue": token} if token else {})}
            page = await self._request("GET", path, query=asked, keep=keep)
            for item in page.get("items") or ():
                if isinstance(item, dict) and slim.names_itself(item):
                    yield item
                else:
                    decode.lost[resource.plural] += 1
            token = (page.get("metadata") or {}).get("continue") or ""
            if not token:
                return

    async def create(
        self, resource: Resource, namespace: str | None, body: Mapping[str, Any], *, dry_run: bool = False
    ) -> Body:
        query = {"dryRun": "All", "fieldValidation": "Strict"} if dry_run else None
        return await self._request("POST", resource.path(namespace), body, query=query)

    async def patch(
        self, resource: Resource, namespace: str | None, name: str, body: Mapping[str, Any], *, status: bool = False
    ) -> Body:
        path = resource.path(namespace, name, "status" if status else None)
        return await self._request("PATCH", path, body, content_type="application/merge-patch+json")

    async def delete(
        self, resource: Resource, namespace: str, name: str, *, uid: str, grace: float | None = None
    ) -> None:
        body: Body = {"preconditions": {"uid": uid}}
        if grace is not None:
            body["gracePeriodSeconds"] = int(grace)
        await self._request("DELETE", resource.path(namespace, name), body)

    async def _request(
        self,
        method: str,
        path: str,
        body: Mapping[str, Any] | None = None,
        *,
        query: Mapping[str, str] | None = None,
        content_type: str = "application/json",
        keep: decode.Keep | None = None,
    ) -> Body:
        url = f"{self._api.configuration.host}{path}" + (f"?{urlencode(query)}" if query else "")
        headers = {"Accept": "application/json", "Content-Type": content_type, "User-Agent": "relight-operator"}
        token = await self._api.configuration.get_api_key_with_prefix("BearerToken", alias="authorization")
        if token:
            headers["Authorization"] = token
        try:
            response = await self._api.rest_client.request(
                method, url, headers=headers, body=body, _request_timeout=aiohttp.ClientTimeout(total=REQUEST_SECONDS)
            )
            data = await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise error_of(0, {"message": f"{method} {path}: {type(error).__name__}: {error}"}) from error
        value = await _read(data, keep) if data else {}
        if not 200 <= response.status < 300 or not isinstance(value, dict):
            raise error_of(response.status, value, retry_after=response.getheader("Retry-After"))
        return cast("Body", value)


async def _read(data: bytes, keep: decode.Keep | None) -> Any:
    """None for what is no JSON: a proxy's words, say."""
    more = () if keep is None else (keep,)
    try:
        if len(data) > IN_A_THREAD_BYTES:
            return await asyncio.to_thread(decode.read, data, *more)
        return decode.read(data, *more)
    except decode.Unreadable:
        return None


@asynccontextmanager
async def connect() -> AsyncIterator[KubeClient]:
    """A client by the service account of this pod, or else by KUBECONFIG. Raises NotConfigured where there is neither."""
    transport: Any = kubernetes.aio.client
    config: Any = kubernetes.aio.config
    configuration = transport.Configuration()
    try:
        config.load_incluster_config(configuration)
    except config.ConfigException:
        try:
            await config.load_kube_config(os.environ.get("KUBECONFIG"), client_configuration=configuration)
        except (config.ConfigException, OSError, TypeError, ValueError, yaml.YAMLError) as error:
            raise NotConfigured(
                f"no cluster: not in a pod with a service account, and KUBECONFIG is of no use ({error})"
            ) from None
    api = transport.ApiClient(configuration)
    try:
        yield KubeClient(api)
    finally:
        await api.close()
        await asyncio.sleep(0)  # lets aiohttp close its connections
