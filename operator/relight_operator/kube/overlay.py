"""A job's `trainer.template`, put over a pod of ours. Pure.

As Kubernetes' strategic merge does it: mappings are merged, the entries of some lists go by a key, other lists replace.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from relight_operator.api.template import Template

# Entries of equal keys are one: the container's are merged, and of the rest the job's is taken.
_KEYS: Mapping[str, tuple[str, ...]] = {
    "containers": ("name",),
    "initContainers": ("name",),
    "ports": ("containerPort", "protocol"),
    "tolerations": ("key", "effect"),
    "topologySpreadConstraints": ("topologyKey",),
    "volumeDevices": ("devicePath",),
    "volumeMounts": ("mountPath",),
    "volumes": ("name",),
}


def overlaid(pod: Mapping[str, Any], template: Template) -> dict[str, Any]:
    """`pod` with `template` over it."""
    metadata = {"labels": dict(template.metadata.labels), "annotations": dict(template.metadata.annotations)}
    over = {"metadata": {name: value for name, value in metadata.items() if value}, "spec": dict(template.spec)}
    return _mapping(pod, over)


def _mapping(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    merged = {name: _value(name, ours[name], value) if name in ours else value for name, value in theirs.items()}
    return {**ours, **merged}


def _value(name: str, ours: Any, theirs: Any) -> Any:
    if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
        return _mapping(ours, theirs)
    if isinstance(ours, list) and isinstance(theirs, list):
        if name == "nodeSelectorTerms":
            return [_both(a, b) for a in ours for b in theirs]
        if name in _KEYS:
            return _by_key(name, ours, theirs)
    return theirs


def _by_key(name: str, ours: list[Any], theirs: list[Any]) -> list[Any]:
    over = {_key(name, item): item for item in theirs}
    kept = [item for item in ours if _key(name, item) not in over]
    if name != "containers":
        return [*kept, *theirs]
    return [_mapping(item, over[_key(name, item)]) if _key(name, item) in over else item for item in ours]


def _key(name: str, item: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(item.get(part) for part in _KEYS[name])


def _both(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, Any]:
    """A term that asks for what either asks for: among terms any one would do, and the machines to be avoided could be had."""
    parts = ("matchExpressions", "matchFields")
    return {part: both for part in parts if (both := [*ours.get(part, ()), *theirs.get(part, ())])}


def dropped(template: Template, pod: Mapping[str, Any]) -> list[str]:
    """The paths in `template` that a server has left out of the `pod` that it made of it: it does not know these fields.

    Servers before 1.25 do that without a word, and every server with fields that its administrators have not enabled.
    """
    return list(_dropped(template.spec, pod.get("spec") or {}, "spec"))


def _dropped(sent: Mapping[str, Any], kept: Mapping[str, Any], path: str) -> Iterator[str]:
    for name, value in sent.items():
        here, found = f"{path}.{name}", kept.get(name)
        if found is None:
            if value:  # what is empty is not always sent back
                yield here
        elif isinstance(value, Mapping) and isinstance(found, Mapping):
            yield from _dropped(value, found, here)
        elif isinstance(value, list) and isinstance(found, list):
            for i, item in enumerate(value):
                match = _same(name, i, item, found) if isinstance(item, Mapping) else None
                if match is not None:
                    yield from _dropped(item, match, f"{here}[{i}]")


def _same(name: str, i: int, item: Mapping[str, Any], found: list[Any]) -> Mapping[str, Any] | None:
    """The entry of `found` that `item` has become; None where that cannot be told."""
    entries = [entry for entry in found if isinstance(entry, Mapping)]
    if name in _KEYS:
        return next((entry for entry in entries if _key(name, entry) == _key(name, item)), None)
    return entries[i] if i < len(entries) else None
