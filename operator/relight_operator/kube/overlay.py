"""A job's `trainer.template`, put over a pod of ours. Pure.

As Kubernetes' strategic merge does it: mappings are merged, null takes a field away, the entries of some lists go by a key,
other lists replace.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from relight_operator.api.template import METRICS_PORT, Template

# By these an entry of a list is known. The container's entries are merged, and of the rest the job's is taken.
_KEYS: Mapping[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "ports": ("containerPort", "protocol"),
    "tolerations": ("key", "effect"),
    "volumeDevices": ("devicePath",),
    "volumeMounts": ("mountPath",),
    "volumes": ("name",),
}


def overlaid(pod: Mapping[str, Any], template: Template) -> dict[str, Any]:
    """`pod` with `template` over it."""
    metadata = {"labels": dict(template.metadata.labels), "annotations": dict(template.metadata.annotations)}
    over = {"metadata": {name: value for name, value in metadata.items() if value}, "spec": dict(template.spec)}
    made = _mapping(pod, over)
    return _on_host_network(made) if made["spec"].get("hostNetwork") is True else made


def _on_host_network(pod: dict[str, Any]) -> dict[str, Any]:
    """Where the cluster's names are not known by themselves, and a port that is told is taken from the machine's others."""
    containers = [
        {**c, "ports": [p for p in c.get("ports", ()) if p.get("containerPort") != METRICS_PORT]}
        for c in pod["spec"]["containers"]
    ]
    return {**pod, "spec": {"dnsPolicy": "ClusterFirstWithHostNet", **pod["spec"], "containers": containers}}


def _mapping(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    merged = {name: _value(name, ours.get(name), value) for name, value in theirs.items() if value is not None}
    return {**{name: value for name, value in ours.items() if theirs.get(name, value) is not None}, **merged}


def _value(name: str, ours: Any, theirs: Any) -> Any:
    if isinstance(theirs, Mapping):
        return _mapping(ours if isinstance(ours, Mapping) else {}, theirs)
    if isinstance(ours, list) and isinstance(theirs, list):
        if name == "nodeSelectorTerms":
            return [_both(a, b) for a in ours for b in theirs]
        if name in _KEYS:
            return _by_key(name, ours, theirs)
    return theirs


def _by_key(name: str, ours: list[Any], theirs: list[Any]) -> list[Any]:
    if name != "containers":
        return [*(item for item in ours if not any(_replaces(name, new, item) for new in theirs)), *theirs]
    return [next((_mapping(item, new) for new in theirs if _replaces(name, new, item)), item) for item in ours]


def _replaces(name: str, new: Mapping[str, Any], item: Mapping[str, Any]) -> bool:
    if name == "tolerations":  # without an effect, of any
        return new.get("key") == item.get("key") and new.get("effect") in {None, "", item.get("effect")}
    return _key(name, new) == _key(name, item)


def _key(name: str, item: Mapping[str, Any]) -> list[Any]:
    return [item.get(part) for part in _KEYS[name]]


def _both(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """A term that asks for what either asks for: among terms any one would do, and the machines to be avoided could be had."""
    parts = ("matchExpressions", "matchFields")
    return {part: both for part in parts if (both := [*(ours.get(part) or ()), *(theirs.get(part) or ())])}


def dropped(template: Template, pod: Mapping[str, Any]) -> list[str]:
    """The paths in `template` that a server has left out of the `pod` that it made of it: it does not know these fields.

    Servers before 1.25 do that without a word, and every server with fields that its administrators have not enabled.
    """
    return list(_dropped(template.spec, pod.get("spec") or {}, "spec"))


def _dropped(sent: Mapping[str, Any], kept: Mapping[str, Any], path: str) -> Iterator[str]:
    for name, value in sent.items():
        here, found = f"{path}.{name}", kept.get(name)
        if found is None:
            # What is empty is not always sent back; of these alone "false" says something.
            if value or (value is False and name == "hostUsers"):
                yield here
        elif isinstance(value, Mapping) and isinstance(found, Mapping):
            yield from _dropped(value, found, here)
        elif isinstance(value, list) and isinstance(found, list):
            for i, item in enumerate(value):
                if isinstance(item, Mapping):
                    lost = (list(_dropped(item, entry, f"{here}[{i}]")) for entry in _same(name, i, item, value, found))
                    yield from min(lost, key=len, default=())


def _same(name: str, i: int, item: Mapping[str, Any], sent: list[Any], found: list[Any]) -> list[Mapping[str, Any]]:
    """What `item` may have become among `found`, which a webhook may have added to."""
    entries = [entry for entry in found if isinstance(entry, Mapping)]
    if name in _KEYS or "name" in item:
        keys = _KEYS.get(name, ("name",))
        return [entry for entry in entries if all(entry.get(key) == item.get(key) for key in keys)]
    return [entries[i]] if len(entries) == len(found) == len(sent) else []
