"""`trainer.template`: what a job puts over its members' pods, and what it cannot. How that is done: kube/overlay.py.

The pod is Kubernetes', and so are the fields: a server is asked what it thinks of them before the job starts. Here stands
only what is Relight's in a pod, and where to say instead what is wanted.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from relight_trainer.strict import StrictModel, located, nearest, problem

CONTAINER = "agent"  # in which the workers run
DOMAIN = "relight.dev"
OWN_VOLUMES = frozenset({"tmp", "shm", "relight", "checkpoints", "agent", "code", "code-secret"})
OWN_INIT_CONTAINERS = frozenset({"install-agent", "fetch-code"})
OWN_PATHS = ("/tmp", "/dev/shm", "/var/run/relight", "/checkpoints", "/opt/relight-agent", "/opt/relight-code")  # noqa: S108  # in the pod
METRICS_PORT = 9090

POD_FIELDS = frozenset(
    (
        "affinity", "automountServiceAccountToken", "containers", "dnsConfig", "dnsPolicy", "enableServiceLinks", "hostAliases",
        "hostIPC", "hostNetwork", "hostPID", "hostUsers", "initContainers", "nodeSelector", "os", "overhead", "preemptionPolicy",
        "priority", "priorityClassName", "readinessGates", "resourceClaims", "runtimeClassName", "schedulerName",
        "schedulingGates", "securityContext", "serviceAccountName", "tolerations", "topologySpreadConstraints", "volumes",
    )
)  # fmt: skip
# Whose business it is instead; "" where it is nobody's but Relight's.
POD_FIELDS_ELSEWHERE = {
    "activeDeadlineSeconds": "spec.activeDeadlineSeconds",
    "ephemeralContainers": "kubectl debug",
    "hostname": "",
    "hostnameOverride": "",
    "imagePullSecrets": "spec.trainer.imagePullSecrets",
    "nodeName": "nodeSelector, or affinity: a member that is lost has to come up elsewhere",
    "resources": "spec.trainer.resources",
    "restartPolicy": "",
    "serviceAccount": "serviceAccountName",
    "setHostnameAsFQDN": "",
    "shareProcessNamespace": "",
    "subdomain": "",
    "terminationGracePeriodSeconds": "spec.disruption.gracePeriod",
}
CONTAINER_FIELDS = frozenset(
    (
        "name",
        "imagePullPolicy",
        "ports",
        "resizePolicy",
        "securityContext",
        "volumeDevices",
        "volumeMounts",
        "workingDir",
    )
)
CONTAINER_FIELDS_ELSEWHERE = {
    "args": "spec.trainer.script, .module or .command",
    "command": "spec.trainer.script, .module or .command",
    "env": "spec.trainer.env",
    "envFrom": "spec.trainer.env",
    "image": "spec.trainer.image",
    "lifecycle": "",
    "livenessProbe": "spec.health",
    "readinessProbe": "spec.health",
    "resources": "spec.trainer.resources",
    "restartPolicy": "spec.retry",
    "startupProbe": "spec.health",
}


class TemplateMetadata(StrictModel):
    labels: dict[str, str] = Field({}, description="Labels of each pod, none of relight.dev.")
    annotations: dict[str, str] = Field({}, description="Annotations of each pod, none of relight.dev.")

    @model_validator(mode="after")
    def _not_ours(self) -> Self:
        wrong = [
            located(problem("reserved", "set by Relight", allowed=f"any but {DOMAIN}/*"), (field, key), value)
            for field, keys in (("labels", self.labels), ("annotations", self.annotations))
            for key, value in keys.items()
            if key.partition("/")[0] == DOMAIN or key.partition("/")[0].endswith(f".{DOMAIN}")
        ]
        if wrong:
            raise ValidationError.from_exception_data("metadata", wrong)
        return self


class Template(StrictModel):
    """What is put over each member's pod."""

    metadata: TemplateMetadata = Field(TemplateMetadata(), description="Labels and annotations of the pods.")
    spec: dict[str, Any] = Field(
        {},
        description="Fields of a pod's spec: `tolerations`, `nodeSelector`, `affinity`, `priorityClassName`, `volumes`, "
        f"`initContainers`, `securityContext`, ...; of its container `{CONTAINER}`, in which the workers run: `volumeMounts`, "
        "`ports`, `securityContext`, `imagePullPolicy`, `workingDir`. Tolerations, volumes, init containers and mounts come to "
        "Relight's own; mappings are merged; other lists replace. What is Relight's is refused, with where to say it. "
        "Before the job's first start the API server is asked whether it takes such a pod.",
    )

    @model_validator(mode="after")
    def _what_is_not_ours(self) -> Self:
        if wrong := list(_of_pod(self.spec)):
            raise ValidationError.from_exception_data("template", wrong)
        return self


_Loc = tuple[int | str, ...]


def _of_pod(spec: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
    for name, value in spec.items():
        here: _Loc = ("spec", name)
        if error := _field(name, POD_FIELDS, POD_FIELDS_ELSEWHERE):
            yield located(error, here, value)
    for i, volume in _entries(spec, "volumes"):
        yield from _named(volume, ("spec", "volumes", i), OWN_VOLUMES)
    for i, container in _entries(spec, "initContainers"):
        yield from _named(container, ("spec", "initContainers", i), OWN_INIT_CONTAINERS)
    for name in ("volumes", "initContainers", "containers", "tolerations"):
        if not isinstance(spec.get(name, []), list):
            yield located(problem("type", "wrong type", allowed="a list"), ("spec", name), spec[name])
    for i, container in _entries(spec, "containers"):
        yield from _of_container(container, ("spec", "containers", i))


def _of_container(container: Mapping[str, Any], here: _Loc) -> Iterator[InitErrorDetails]:
    if container.get("name") != CONTAINER:
        allowed = f"{CONTAINER}; what runs beside it is an init container with restartPolicy: Always"
        yield located(
            problem("name", "not the container of the workers", allowed=allowed), (*here, "name"), container.get("name")
        )
        return
    for name, value in container.items():
        if error := _field(name, CONTAINER_FIELDS, CONTAINER_FIELDS_ELSEWHERE):
            yield located(error, (*here, name), value)
    for i, mount in _entries(container, "volumeMounts"):
        path = mount.get("mountPath")
        if isinstance(path, str) and any(f"{own}/".startswith(f"{path.rstrip('/')}/") for own in OWN_PATHS):
            allowed = f"any path but {', '.join(OWN_PATHS)}, and what they are in"
            yield located(
                problem("reserved", "used by Relight", allowed=allowed), (*here, "volumeMounts", i, "mountPath"), path
            )
    for i, port in _entries(container, "ports"):
        if port.get("containerPort") == METRICS_PORT:
            allowed = f"any port but {METRICS_PORT}, where the metrics are"
            yield located(
                problem("reserved", "used by Relight", allowed=allowed),
                (*here, "ports", i, "containerPort"),
                METRICS_PORT,
            )


def _field(name: str, known: Iterable[str], elsewhere: Mapping[str, str]) -> PydanticCustomError | None:
    """What is wrong with the name of a field. One that nobody here knows is the server's to judge: it may be a newer one."""
    if name in elsewhere:
        return problem("elsewhere", "set by Relight", allowed=elsewhere[name] or "nothing: a member's is as it is")
    if name not in known and (near := nearest(name, known, cutoff=0.85)):
        return problem("unknown", "unknown field", allowed="the fields of Kubernetes", near=near)
    return None


def _named(item: Mapping[str, Any], here: _Loc, own: Iterable[str]) -> Iterator[InitErrorDetails]:
    name = item.get("name")
    if not isinstance(name, str):
        yield located(problem("missing", "missing", allowed="a name"), (*here, "name"), name)
    elif name in own:
        allowed = f"any name but {', '.join(sorted(own))}"
        yield located(problem("reserved", "used by Relight", allowed=allowed), (*here, "name"), name)


def _entries(holder: Mapping[str, Any], name: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """The mappings in a list; what else is there is the server's to judge."""
    items = holder.get(name)
    for i, item in enumerate(items) if isinstance(items, list) else ():
        if isinstance(item, Mapping):
            yield i, item
