"""An in-memory stand-in for the client of an API server: versions, uids, merge patches, preconditions, owners.

It is for the reconciler's own decisions only. What a real server, scheduler and kubelet do is shown in tests/cluster.
"""

import copy
import itertools
from collections.abc import Callable, Mapping
from typing import Any

from relight_operator.kube.client import Body, Resource
from relight_operator.kube.errors import AlreadyExists, Conflict, KubeError, NotFound
from relight_operator.kube.status import rfc3339

Key = tuple[str, str, str]


class FakeClient:
    """`before(verb, plural, name)` is called ahead of every request and may raise what the server would answer."""

    def __init__(self) -> None:
        self.objects: dict[Key, Body] = {}
        self.requests: list[tuple[str, str, str]] = []
        self.before: Callable[[str, str, str], None] = lambda *_: None
        self._versions = itertools.count(1)
        self._uids = itertools.count(1)

    def all(self, plural: str) -> list[Body]:
        return [copy.deepcopy(o) for (p, _, _), o in self.objects.items() if p == plural]

    def named(self, plural: str, name: str) -> Body:
        return copy.deepcopy(self._live(plural, name))

    def edit(self, plural: str, name: str, change: Mapping[str, Any]) -> Body:
        """What somebody else writes."""
        body = self._live(plural, name)
        _merge(body, change)
        self._touch(body)
        return copy.deepcopy(body)

    def remove(self, plural: str, name: str) -> Body:
        """What somebody else deletes, at once."""
        key = next(k for k in self.objects if k[0] == plural and k[2] == name)
        return self.objects.pop(key)

    async def get(self, resource: Resource, namespace: str | None, name: str) -> Body:
        self._asked("get", resource, name)
        return copy.deepcopy(self._find(resource, namespace, name))

    async def list(
        self, resource: Resource, namespace: str | None = None, *, labels: str = "", fields: str = ""
    ) -> list[Body]:
        self._asked("list", resource, labels or fields)
        wanted = [part.split("=") for part in labels.split(",") if part]
        return [
            copy.deepcopy(o)
            for (p, n, _), o in self.objects.items()
            if p == resource.plural and namespace in (None, n) and _matches(o, wanted)
        ]

    async def create(
        self, resource: Resource, namespace: str | None, body: Mapping[str, Any], *, dry_run: bool = False
    ) -> Body:
        made = copy.deepcopy(dict(body))
        name = made.get("metadata", {}).get("name", "")
        self._asked("try" if dry_run else "create", resource, name)
        key = (resource.plural, namespace or "", name)
        if key in self.objects:
            raise AlreadyExists(f"{name} already exists", status=409)
        made["metadata"] |= {"uid": f"uid-{next(self._uids)}", "creationTimestamp": rfc3339(1.7e9), "generation": 1}
        self._touch(made)
        if not dry_run:
            self.objects[key] = made
        return copy.deepcopy(made)

    async def patch(
        self, resource: Resource, namespace: str | None, name: str, body: Mapping[str, Any], *, status: bool = False
    ) -> Body:
        self._asked("patch", resource, name)
        found = self._find(resource, namespace, name)
        version = body.get("metadata", {}).get("resourceVersion")
        if version is not None and version != found["metadata"]["resourceVersion"]:
            raise Conflict(f"{name} has changed", status=409)
        change = {"status": body["status"]} if status else {k: v for k, v in body.items() if k != "status"}
        change = copy.deepcopy(change)
        change.get("metadata", {}).pop("resourceVersion", None)
        _merge(found, change)
        self._touch(found)
        return copy.deepcopy(found)

    async def delete(
        self, resource: Resource, namespace: str, name: str, *, uid: str, grace: float | None = None
    ) -> None:
        self._asked("delete", resource, name)
        found = self._find(resource, namespace, name)
        if found["metadata"]["uid"] != uid:
            raise Conflict("the uid is another's", status=409)
        if resource.plural == "pods" and grace != 0:
            found["metadata"]["deletionTimestamp"] = "2023-11-14T22:13:20Z"
            self._touch(found)
        else:
            del self.objects[resource.plural, namespace, name]

    def _live(self, plural: str, name: str) -> Body:
        return next(o for (p, _, n), o in self.objects.items() if p == plural and n == name)

    def _find(self, resource: Resource, namespace: str | None, name: str) -> Body:
        found = self.objects.get((resource.plural, namespace or "", name))
        if found is None:
            raise NotFound(f"{resource.plural} {name} not found", status=404)
        return found

    def _asked(self, verb: str, resource: Resource, name: str) -> None:
        self.requests.append((verb, resource.plural, name))
        self.before(verb, resource.plural, name)

    def _touch(self, body: Body) -> None:
        body["metadata"]["resourceVersion"] = str(next(self._versions))


def _matches(body: Body, wanted: list[list[str]]) -> bool:
    labels = body["metadata"].get("labels") or {}
    return all(w[0] in labels and (len(w) == 1 or labels[w[0]] == w[1]) for w in wanted)


def _merge(target: Body, patch: Mapping[str, Any]) -> None:
    """RFC 7396, written once more: the code under test must not check itself."""
    for key, value in patch.items():
        if value is None:
            target.pop(key, None)
        elif isinstance(value, Mapping):
            inner = target.get(key)
            if not isinstance(inner, dict):
                inner = target[key] = {}
            _merge(inner, value)
        else:
            target[key] = copy.deepcopy(value)


__all__ = ["FakeClient", "KubeError"]
