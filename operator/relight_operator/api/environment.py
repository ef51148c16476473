"""`trainer.env` and `trainer.envFrom`: Kubernetes' own fields, by which Secrets and config maps reach the workers.

A reference is part of the job and is frozen with it. The value is read by the kubelet as it starts a container: neither
the operator nor the job's objects ever hold it.
"""

import json
import re
from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, NamedTuple, Self

from pydantic import BeforeValidator, Field, ValidationError, WithJsonSchema, model_validator

from relight_operator.api.base import ApiModel, EnvName, ObjectName, env_name, matching
from relight_operator.api.bounds import MAX_TEXT
from relight_trainer.identity import is_harmless
from relight_trainer.strict import located, nearest, problem

FIELD_PATHS = (
    "metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName", "status.hostIP",
    "status.podIP", "status.podIPs",
)  # fmt: skip
_KEYED = r"metadata\.(labels|annotations)\['[^'\s]{1,317}'\]"
_FIELD_PATTERN = rf"^({'|'.join(re.escape(p) for p in FIELD_PATHS)}|{_KEYED})$"
_AMOUNTS = ("cpu", "memory", "ephemeral-storage")
RESOURCES = tuple(f"{kind}.{name}" for kind in ("limits", "requests") for name in _AMOUNTS)
_RESOURCE_PATTERN = rf"^((limits|requests)\.({'|'.join(_AMOUNTS)}|hugepages-[0-9A-Za-z]+))$"
_DIVISOR = r"^(0|1|1m|1k|1M|1G|1T|1P|1E|1Ki|1Mi|1Gi|1Ti|1Pi|1Ei)$"  # the ones that Kubernetes takes


def _field_path(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(_FIELD_PATTERN, value):
        allowed = f"{', '.join(FIELD_PATHS)}, metadata.labels['KEY'] or metadata.annotations['KEY']"
        raise problem("field", "not a field that a variable can be", allowed=allowed, near=nearest(value, FIELD_PATHS))
    return value


def _resource(value: Any) -> Any:
    if isinstance(value, str) and not re.fullmatch(_RESOURCE_PATTERN, value):
        allowed = f"{', '.join(RESOURCES)}, or those of hugepages-*"
        raise problem(
            "resource", "not a resource that a variable can be", allowed=allowed, near=nearest(value, RESOURCES)
        )
    return value


def _prefix(value: Any) -> Any:
    # A prefix that ends in the middle of a reserved name is met by the agent, which leaves such a variable out.
    return env_name(value)


ObjectKey = Annotated[str, matching(r"^[-._a-zA-Z0-9]+$", 'letters, digits, "-", "_" and "."', 253)]
Prefix = Annotated[
    str,
    BeforeValidator(_prefix),
    matching(r"^([A-Za-z_][A-Za-z0-9_]*)?$", 'letters, digits and "_", no digit first', 256),
]


class SecretReference(ApiModel):
    name: ObjectName = Field(description="The Secret's name.")


class SecretKey(ApiModel):
    name: ObjectName = Field(description="The Secret's name, in the job's namespace.")
    key: ObjectKey = Field(description="The key in it.")
    optional: bool = Field(False, description="Without the Secret or the key, the variable is not set.")


class ConfigMapKey(ApiModel):
    name: ObjectName = Field(description="The config map's name, in the job's namespace.")
    key: ObjectKey = Field(description="The key in it.")
    optional: bool = Field(False, description="Without the config map or the key, the variable is not set.")


class FieldRef(ApiModel):
    api_version: Annotated[str, WithJsonSchema({"type": "string", "enum": ["v1"]})] = Field("v1", description="`v1`.")
    field_path: Annotated[
        str,
        BeforeValidator(_field_path),
        WithJsonSchema({"type": "string", "pattern": _FIELD_PATTERN, "maxLength": 400}),
    ] = Field(description="A field of the member's pod, such as `metadata.name` or `metadata.labels['team']`.")

    @model_validator(mode="after")
    def _version(self) -> Self:
        if self.api_version != "v1":
            wrong = located(
                problem("version", "not a version of pods", allowed="v1"), ("apiVersion",), self.api_version
            )
            raise ValidationError.from_exception_data("fieldRef", [wrong])
        return self


class ResourceFieldRef(ApiModel):
    container_name: ObjectName | None = Field(None, description="A container of the pod; without it, the workers' own.")
    resource: Annotated[
        str,
        BeforeValidator(_resource),
        WithJsonSchema({"type": "string", "pattern": _RESOURCE_PATTERN, "maxLength": 100}),
    ] = Field(description="`limits.cpu`, `limits.memory`, `requests.memory`, ...")
    divisor: Annotated[str, matching(_DIVISOR, "1, 1m, 1k, 1M, 1Mi, 1Gi and the like", 8)] | None = Field(
        None, description="The unit of the value; without it, 1."
    )


class EnvVarSource(ApiModel):
    """Where a variable's value comes from."""

    not_yet: ClassVar = frozenset({"fileKeyRef"})
    exactly_one: ClassVar = ("secret_key_ref", "config_map_key_ref", "field_ref", "resource_field_ref")

    secret_key_ref: SecretKey | None = Field(None, description="A key of a Secret.")
    config_map_key_ref: ConfigMapKey | None = Field(None, description="A key of a config map.")
    field_ref: FieldRef | None = Field(None, description="A field of the member's pod.")
    resource_field_ref: ResourceFieldRef | None = Field(None, description="A resource of the member's container.")


class EnvVar(ApiModel):
    name: EnvName = Field(description="Not one of torchrun's own or RELIGHT_*.")
    value: Annotated[str, Field(max_length=MAX_TEXT)] = Field(
        "", description="Its value, taken as it is; numbers and booleans in quotes."
    )
    value_from: EnvVarSource | None = Field(
        None,
        description="Where the value comes from, in the place of `value`. The kubelet reads it as each member's container "
        "starts, and it is kept nowhere else.",
    )

    @model_validator(mode="after")
    def _one_value(self) -> Self:
        wrong = []
        if self.value_from is not None and self.value:
            error = problem("both", "given beside valueFrom", allowed="one of value and valueFrom", secret=True)
            wrong.append(located(error, ("value",), "..."))
        if self.value_from is not None and self.name == "PYTHONPATH":
            allowed = "value: Relight may have to put a folder of its own before it"
            wrong.append(
                located(problem("reserved", "not for PYTHONPATH", allowed=allowed), ("valueFrom",), "valueFrom")
            )
        if wrong:
            raise ValidationError.from_exception_data("env", wrong)
        return self


class SecretSource(ApiModel):
    name: ObjectName = Field(description="The Secret's name, in the job's namespace.")
    optional: bool = Field(False, description="Without the Secret, its variables are not set.")


class ConfigMapSource(ApiModel):
    name: ObjectName = Field(description="The config map's name, in the job's namespace.")
    optional: bool = Field(False, description="Without the config map, its variables are not set.")


class EnvFromSource(ApiModel):
    """All keys of one object as variables."""

    exactly_one: ClassVar = ("secret_ref", "config_map_ref")

    prefix: Prefix = Field("", description="What is put before each key.")
    secret_ref: SecretSource | None = Field(None, description="A Secret.")
    config_map_ref: ConfigMapSource | None = Field(None, description="A config map.")


class Needed(NamedTuple):
    """One object, and maybe one key of it, that the job's members are started with."""

    field: str  # its path in the job
    kind: str  # Secret | config map
    name: str
    key: str  # "" for all keys
    optional: bool


def native(model: ApiModel) -> dict[str, Any]:
    """The field as Kubernetes takes it in a container."""
    return model.model_dump(mode="json", by_alias=True, exclude_defaults=True)


def references(env: list[EnvVar], env_from: list[EnvFromSource] | None) -> dict[str, str]:
    """What stands for the values that only the kubelet knows, by the variable's name, in a job's identity.

    Keys with which `envFrom` may set anything are named by its place: `envFrom-0`, which no variable can be called.

    >>> references([], [EnvFromSource(prefix="DB_", secret_ref=SecretSource(name="db"))])
    {'envFrom-0': '{"prefix": "DB_", "secretRef": {"name": "db"}}'}
    >>> references([], [EnvFromSource(prefix="AWS_", secret_ref=SecretSource(name="s3"))])
    {}
    """
    found = {e.name: _text(native(e.value_from)) for e in env if e.value_from is not None}
    whole = {f"envFrom-{i}": _text(native(e)) for i, e in enumerate(env_from or ()) if not is_harmless(f"{e.prefix}*")}
    return {**found, **whole}


def _text(value: Mapping[str, Any]) -> str:
    return json.dumps(value, sort_keys=True)


def literals(env: list[EnvVar]) -> dict[str, str]:
    """The variables whose values stand in the job."""
    return {e.name: e.value for e in env if e.value_from is None}


def needed(env: list[EnvVar], env_from: list[EnvFromSource] | None) -> list[Needed]:
    """The Secrets and config maps that are read as a member starts."""
    found = []
    for i, variable in enumerate(env):
        source = variable.value_from
        if source is None:
            continue
        path = f"spec.trainer.env[{i}].valueFrom"
        for field, kind, ref in (
            ("secretKeyRef", "Secret", source.secret_key_ref),
            ("configMapKeyRef", "config map", source.config_map_key_ref),
        ):
            if ref is not None:
                found.append(Needed(f"{path}.{field}", kind, ref.name, ref.key, ref.optional))
    for i, whole in enumerate(env_from or ()):
        path = f"spec.trainer.envFrom[{i}]"
        for field, kind, all_of in (
            ("secretRef", "Secret", whole.secret_ref),
            ("configMapRef", "config map", whole.config_map_ref),
        ):
            if all_of is not None:
                found.append(Needed(f"{path}.{field}", kind, all_of.name, "", all_of.optional))
    return found
