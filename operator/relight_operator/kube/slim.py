"""What the operator keeps of the objects that it watches: of a job no spec, of a pod what the classifier reads. Pure.

Each function may be applied to what it has returned.

Whoever may create objects decides how large they are; what is kept of one must not depend on it. A job's spec is read
from the server when a round needs it. Labels, annotations and owners are those that Relight goes by.
"""

import sys
from collections.abc import Mapping
from typing import Any

from relight_operator.api import bounds
from relight_operator.api.status import JobStatus
from relight_operator.kube import names

Body = dict[str, Any]

MAX_STATUS_VALUES = 200_000  # a job of a thousand members has a fifth of that
MAX_POD_VALUES = 10_000  # of what is kept
MAX_TEXT = 4096  # characters of a text in a pod; a kubelet writes no longer words of an end
_CONDITIONS = frozenset({"PodScheduled", "DisruptionTarget"})  # of a pod, which the classifier asks for
_STATE = frozenset({"reason", "message", "exitCode", "finishedAt"})  # of a container
UNREADABLE = "unreadable"  # a status that holds this is nobody's

_METADATA = {
    **dict.fromkeys(("name", "namespace", "uid", "resourceVersion", "creationTimestamp", "deletionTimestamp"), str),
    **dict.fromkeys(("generation", "deletionGracePeriodSeconds"), int),
}
_LABELS = (names.JOB_LABEL, names.SLOT_LABEL, names.INCARNATION_LABEL)
# Beside the status model's own: where the frozen spec is.
_STATUS = frozenset({f.alias or n for n, f in JobStatus.model_fields.items()} | {"spec"})


def job(body: Mapping[str, Any]) -> Body:
    """A TrainingJob without its spec."""
    status = body.get("status")
    if status is None:
        kept = {}
    elif not isinstance(status, Mapping):
        kept = {UNREADABLE: "not a mapping"}
    else:
        kept = {k: v for k, v in status.items() if k in _STATUS or k == UNREADABLE}
        if wrong := bounds.excess(kept, values=MAX_STATUS_VALUES):
            kept = {UNREADABLE: str(wrong)}
    return {"metadata": _metadata(body), **({"status": kept} if kept else {})}


def names_itself(body: Mapping[str, Any]) -> bool:
    """Whether an object has the name and the uid by which everything here goes."""
    metadata = _mapping(body.get("metadata"))
    return all(isinstance(metadata.get(k), str) for k in ("name", "uid"))


def pod(body: Mapping[str, Any]) -> Body:
    spec, status = _mapping(body.get("spec")), _mapping(body.get("status"))
    metadata = _metadata(body)
    kept: Body = {"nodeName": spec.get("nodeName")}
    if fields := _match_fields(spec):
        required = {"nodeSelectorTerms": [{"matchFields": fields}]}
        kept["affinity"] = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}
    if isinstance(spec.get("initContainers"), list):
        kept["initContainers"] = [
            {k: c[k] for k in ("name", "restartPolicy") if k in c}
            for c in spec["initContainers"]
            if isinstance(c, Mapping)
        ]
    said: Body = {k: _text(status[k]) for k in ("phase", "reason", "message", "podIP") if status.get(k) is not None}
    for name in ("containerStatuses", "initContainerStatuses"):
        if isinstance(status.get(name), list):
            said[name] = [_container(c) for c in status[name] if isinstance(c, Mapping)]
    if isinstance(status.get("conditions"), list):
        said["conditions"] = [_condition(c) for c in status["conditions"] if _matters(c)]
    if bounds.excess([kept, said], values=MAX_POD_VALUES):
        kept, said = {"nodeName": spec.get("nodeName")}, {"phase": status.get("phase")}
    return {"metadata": metadata, "spec": kept, "status": said}


def _match_fields(spec: Mapping[str, Any]) -> list[Body]:
    """The kinds of requirements that a pod has on its machine's name, each once."""
    node = _mapping(_mapping(spec.get("affinity")).get("nodeAffinity"))
    terms = _mapping(node.get("requiredDuringSchedulingIgnoredDuringExecution")).get("nodeSelectorTerms")
    lists = [_mapping(term).get("matchFields") for term in terms] if isinstance(terms, list) else []
    found = {str(_mapping(field).get("operator")) for fields in lists if isinstance(fields, list) for field in fields}
    return [{"operator": operator} for operator in sorted(found)]


def _matters(condition: Any) -> bool:
    return isinstance(condition, Mapping) and condition.get("type") in _CONDITIONS


def _condition(found: Mapping[str, Any]) -> Body:
    return {k: _text(found[k]) for k in ("type", "status", "reason", "message", "lastTransitionTime") if found.get(k)}


def _container(found: Mapping[str, Any]) -> Body:
    kept: Body = {"name": _text(found.get("name"))}
    state = _mapping(found.get("state"))
    for name in ("waiting", "terminated"):
        if isinstance(state.get(name), Mapping):
            kept["state"] = {name: {k: _text(v) for k, v in state[name].items() if k in _STATE}}
    return kept


def _text(value: Any) -> Any:
    return value[:MAX_TEXT] if isinstance(value, str) else value


def node(body: Mapping[str, Any]) -> Body:
    """A machine: whether it answers, and its taints."""
    spec, status = _mapping(body.get("spec")), _mapping(body.get("status"))
    taints = [{"key": t.get("key")} for t in spec.get("taints") or () if isinstance(t, Mapping)]
    ready = [
        {k: c.get(k) for k in ("type", "status")}
        for c in status.get("conditions") or ()
        if isinstance(c, Mapping) and c.get("type") == "Ready"
    ]
    return {"metadata": _metadata(body), "spec": {"taints": taints}, "status": {"conditions": ready}}


def _metadata(body: Mapping[str, Any]) -> Body:
    found = _mapping(body.get("metadata"))
    kept: Body = {k: found[k] for k, kind in _METADATA.items() if isinstance(found.get(k), kind)}
    labels, annotations = _mapping(found.get("labels")), _mapping(found.get("annotations"))
    if ours := {k: labels[k] for k in _LABELS if k in labels}:
        kept["labels"] = ours
    told: Body = {}
    if isinstance(annotations.get(names.CA_ANNOTATION), str):
        told[names.CA_ANNOTATION] = sys.intern(annotations[names.CA_ANNOTATION])  # the same for all pods
    if names.PROFILE_ANNOTATION in annotations:
        told[names.PROFILE_ANNOTATION] = str(annotations[names.PROFILE_ANNOTATION])[: names.MAX_PROFILE_ID * 4]
    if told:
        kept["annotations"] = told
    if controller := names.controller_of({"metadata": found}):
        kept["ownerReferences"] = [{k: controller[k] for k in ("kind", "name", "uid", "controller") if k in controller}]
    return kept


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}
