"""The CustomResourceDefinition, from the models: a structural schema that Kubernetes 1.20 takes as 1.37 does.

Plain types, no anyOf, $ref or null; `oneOf` with `required` for "exactly one of"; CEL rules only when asked for, because
servers before 1.25 refuse or drop them. The same rules hold always: the operator applies its models.
"""

from collections.abc import Mapping
from typing import Any

import yaml
from pydantic import BaseModel

from relight_agent.reserved import PREFIXES, TORCHRUN
from relight_operator.api.job import (
    GROUP,
    KIND,
    MAX_NAME,
    NAME_PATTERN,
    VERSION,
    JobSpec,
)
from relight_operator.api.status import PHASES

Schema = dict[str, Any]

PLURAL = "trainingjobs"
_KEPT = (
    "type", "description", "default", "enum", "pattern", "minimum", "maximum", "minLength", "maxLength", "minItems", "maxItems",
    "minProperties", "maxProperties", "required", "oneOf", "x-kubernetes-int-or-string",
)  # fmt: skip
_FREE_FORM = "x-kubernetes-preserve-unknown-fields"
_COLUMNS = (  # name, type, path, shown with -o wide only
    ("Phase", "string", ".status.phase", False),
    ("Nodes", "string", ".status.nodesReady", False),
    ("Progress", "string", ".status.progress.text", False),
    ("Loss", "string", ".status.progress.metrics.loss", False),
    ("Restarts", "integer", ".status.restarts.total", False),
    ("Checkpoint", "integer", ".status.checkpoint.step", True),
    ("Goodput", "string", ".status.goodput.ratio", True),
    ("Reason", "string", ".status.lastFailure.cause", True),
    ("Age", "date", ".metadata.creationTimestamp", False),
)


class _Plain(yaml.SafeDumper):
    """No anchors: a value that is used twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002  # the signature is PyYAML's
        return True


def crd(*, cel: bool = False) -> dict[str, Any]:
    """The CustomResourceDefinition as a JSON object."""
    return {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": ["tj"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": object_schema(cel=cel)},
                    "subresources": {
                        "status": {},
                        "scale": {
                            "specReplicasPath": ".spec.nodes",
                            "statusReplicasPath": ".status.readyNodes",
                            "labelSelectorPath": ".status.selector",
                        },
                    },
                    "additionalPrinterColumns": [
                        {"name": name, "type": kind, "jsonPath": path, **({"priority": 1} if wide else {})}
                        for name, kind, path, wide in _COLUMNS
                    ],
                }
            ],
        },
    }


def render(*, cel: bool = False) -> str:
    """The CustomResourceDefinition as YAML."""
    head = "# Generated from the models by `relight crd`; a test compares.\n"
    return head + yaml.dump(crd(cel=cel), Dumper=_Plain, sort_keys=False, width=120, allow_unicode=True)


def object_schema(*, cel: bool = False) -> Schema:
    """The structural schema of a whole TrainingJob."""
    spec = structural(JobSpec)
    if cel:
        _add_cel(spec)
    return {
        "type": "object",
        "description": "One training job. Members that are lost are replaced; training goes on where it was.",
        "required": ["spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {
                "type": "object",
                "properties": {"name": {"type": "string", "pattern": NAME_PATTERN, "maxLength": MAX_NAME}},
            },
            "spec": spec,
            "status": _status(),
        },
    }


def structural(model: type[BaseModel]) -> Schema:
    """The structural schema of a model of the API."""
    schema = model.model_json_schema(by_alias=True)
    return _structural(schema, schema.get("$defs", {}))


def _structural(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Schema:
    schema = resolved(schema, definitions)
    made: Schema = {key: schema[key] for key in _KEPT if key in schema}
    if isinstance(made.get("description"), str):
        made["description"] = " ".join(made["description"].split())
    if isinstance(made.get("default"), (dict, list)) or made.get("default", ...) in {None, ""}:
        del made["default"]  # a server fills in single values (1.20 takes "" for null); the models know the rest
    if "const" in schema:
        made["enum"] = [schema["const"]]
    if "properties" in schema:
        made["properties"] = {name: _structural(s, definitions) for name, s in schema["properties"].items()}
    elif isinstance(schema.get("additionalProperties"), Mapping):
        made["additionalProperties"] = _structural(schema["additionalProperties"], definitions)
    elif schema.get("type") == "object":
        made[_FREE_FORM] = True
    if "items" in schema:
        made["items"] = _structural(schema["items"], definitions)
    return made


def resolved(schema: Mapping[str, Any], definitions: Mapping[str, Any]) -> Mapping[str, Any]:
    """`schema` without $ref and without the null that optional fields have; what stands beside them wins."""
    beside = {k: v for k, v in schema.items() if k not in {"$ref", "anyOf"}}
    if "$ref" in schema:
        return {**resolved(definitions[schema["$ref"].rpartition("/")[2]], definitions), **beside}
    if "anyOf" in schema:
        (only,) = [s for s in schema["anyOf"] if s.get("type") != "null"]
        return {**resolved(only, definitions), **beside}
    return schema


def _add_cel(spec: Schema) -> None:
    reserved = "|".join([*sorted(TORCHRUN), *(f"{p}.*" for p in PREFIXES)])
    properties = spec["properties"]
    name = properties["trainer"]["properties"]["env"]["items"]["properties"]["name"]
    name["x-kubernetes-validations"] = [{"rule": f"!self.matches('^({reserved})$')", "message": "set by Relight"}]
    backoff = properties["retry"]["properties"]["backoff"]
    rule = "duration(self.initial) <= duration(self.max)"
    bounds = "!has(self.elastic) || (self.elastic.minNodes <= self.nodes && self.nodes <= self.elastic.maxNodes)"
    spec["x-kubernetes-validations"] = [{"rule": bounds, "message": "nodes must lie within elastic's bounds"}]
    backoff["x-kubernetes-validations"] = [{"rule": rule, "message": "initial must not be longer than max"}]


def _status() -> Schema:
    """The fields that people and other controllers read; the operator alone writes, and by its own model."""
    text, count = {"type": "string"}, {"type": "integer"}
    condition = dict.fromkeys(("type", "status", "reason", "message", "lastTransitionTime"), text)
    return _open(
        phase={"type": "string", "enum": list(PHASES)},
        conditions={
            "type": "array",
            "items": {**_open(**condition, observedGeneration=count), "required": ["type", "status"]},
            "x-kubernetes-list-type": "map",
            "x-kubernetes-list-map-keys": ["type"],
        },
        readyNodes=count,
        nodesReady=text,
        exactness=text,
        selector=text,
        restarts=_open(total=count, disruptions=count, failures=count, counted=count),
        progress=_open(
            step=count,
            totalSteps=count,
            percent=count,
            text=text,
            metrics={"type": "object", "additionalProperties": text},
        ),
        checkpoint=_open(step=count, location=text, resumedFromStep=count, snapshotStep=count),
        goodput=_open(
            ratio=text,
            productiveSeconds={"type": "number"},
            buckets={"type": "object", "additionalProperties": {"type": "number"}},
            lostSteps=count,
            lastRecoverySeconds=text,
        ),
        lastFailure=_open(cause=text, machine=text, exitCode=count, message=text),
        result=_open(weightsDigest=text, metrics={"type": "object", "additionalProperties": text}),
    )


def _open(**properties: Schema) -> Schema:
    return {"type": "object", _FREE_FORM: True, "properties": properties}
