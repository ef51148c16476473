"""`trainer.template`: what a job puts over its members' pods, and what it cannot. How that is done: kube/overlay.py.

The pod is Kubernetes', and so are the fields: a server is asked what it thinks of them before the job starts. Here stands
only what is Relight's in a pod, and where to say instead what is wanted.
"""

import posixpath
from collections.abc import Iterable, Iterator, Mapping
from typing import Annotated, Any, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_core import InitErrorDetails, PydanticCustomError

from relight_operator.api import bounds
from relight_trainer.strict import StrictModel, located, nearest, problem

CONTAINER = "agent"  # in which the workers run
DOMAIN = "relight.dev"  # of what is ours: the API group, labels, annotations
METRICS_PORT = 9090
OWN_VOLUMES = frozenset({"tmp", "shm", "relight", "checkpoints", "agent", "code", "code-secret"})
OWN_INIT_CONTAINERS = frozenset({"install-agent", "fetch-code"})
OWN_PATHS = ("/tmp", "/dev/shm", "/var/run/relight", "/checkpoints", "/opt/relight-agent", "/opt/relight-code")  # noqa: S108  # in the pod
SEALED_PATHS = ("/var/run/relight", "/opt/relight-agent", "/dev/shm/relight", "/dev/termination-log")  # noqa: S108  # nothing goes in there
# What the agent and our init containers alone may see: the member's token, the credentials of the code, the agent's own files.
SEALED_VOLUMES = frozenset({"relight", "code-secret", "agent"})
# Other names of the same folders. Every distribution has these links; an image's own cannot be known.
_LINKS = (("/run/shm", "/dev/shm"), ("/var/run/shm", "/dev/shm"), ("/run", "/var/run"))  # noqa: S108  # in the pod
_KERNEL = ("/proc", "/sys")  # /proc/self/root is all of the file system once more
_DEEPEST = 32
MAX_FIELDS = 256  # of one mapping with fields of Kubernetes or of the trainer's configuration; they know some 40

POD_FIELDS = frozenset(
    (
        "affinity", "automountServiceAccountToken", "containers", "dnsConfig", "dnsPolicy", "enableServiceLinks", "hostAliases",
        "hostIPC", "hostNetwork", "hostPID", "hostUsers", "initContainers", "nodeSelector", "os", "preemptionPolicy",
        "priorityClassName", "resourceClaims", "runtimeClassName", "schedulerName", "schedulingGates", "securityContext",
        "serviceAccountName", "tolerations", "topologySpreadConstraints", "volumes",
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
    "overhead": "runtimeClassName",
    "priority": "priorityClassName",
    "readinessGates": "",
    "resources": "spec.trainer.resources",
    "restartPolicy": "",
    "serviceAccount": "serviceAccountName",
    "setHostnameAsFQDN": "",
    "shareProcessNamespace": "",
    "subdomain": "",
    "terminationGracePeriodSeconds": "spec.disruption.gracePeriod",
}
CONTAINER_FIELDS = frozenset(
    ("name", "imagePullPolicy", "ports", "resizePolicy", "securityContext", "volumeDevices", "volumeMounts", "workingDir")
)  # fmt: skip
CONTAINER_FIELDS_ELSEWHERE = {
    "args": "spec.trainer.script, .module or .command",
    "command": "spec.trainer.script, .module or .command",
    "env": "spec.trainer.env",
    "envFrom": "spec.trainer.envFrom",
    "image": "spec.trainer.image",
    "lifecycle": "",
    "livenessProbe": "spec.health",
    "readinessProbe": "spec.health",
    "resources": "spec.trainer.resources; here only claims",
    "restartPolicy": "spec.retry",
    "startupProbe": "spec.health",
    "stdin": "",
    "stdinOnce": "",
    "terminationMessagePath": "",
    "terminationMessagePolicy": "",
    "tty": "",
}
# Lists of mappings, which are put together with Relight's own.
POD_LISTS = ("volumes", "initContainers", "containers", "tolerations")
CONTAINER_LISTS = ("volumeMounts", "volumeDevices", "ports")


_Text = Annotated[str, Field(max_length=bounds.MAX_TEXT)]


class TemplateMetadata(StrictModel):
    labels: Annotated[dict[str, _Text], Field(max_length=MAX_FIELDS)] = Field(
        {}, description="Labels of each pod, none of relight.dev."
    )
    annotations: Annotated[dict[str, _Text], Field(max_length=MAX_FIELDS)] = Field(
        {}, description="Annotations of each pod, none of relight.dev."
    )

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
    spec: Annotated[dict[str, Any], Field(max_length=MAX_FIELDS)] = Field(
        {},
        description="Fields of a pod's spec: `tolerations`, `nodeSelector`, `affinity`, `priorityClassName`, `volumes`, "
        f"`initContainers`, `securityContext`, ...; of its container `{CONTAINER}`, in which the workers run: `volumeMounts`, "
        "`ports`, `securityContext`, `imagePullPolicy`, `workingDir`. Tolerations, volumes, init containers, mounts and ports "
        "come to Relight's own; mappings are merged, and null takes a field out of them; other lists replace. What is Relight's "
        "is refused, with where to say it. Before the job's first start the API server is asked whether it takes such a pod.",
    )

    @model_validator(mode="after")
    def _what_is_not_ours(self) -> Self:
        if wrong := list(_of_pod(self.spec)):
            raise ValidationError.from_exception_data("template", wrong)
        return self


_Loc = tuple[int | str, ...]


def _of_pod(spec: Mapping[str, Any]) -> Iterator[InitErrorDetails]:
    if _depth(spec) > _DEEPEST:
        yield located(problem("range", "too deep", allowed=f"{_DEEPEST} levels"), ("spec",), "...")
        return
    for name, value in spec.items():
        if error := _field(name, POD_FIELDS, POD_FIELDS_ELSEWHERE):
            yield located(error, ("spec", name), value)
    yield from _lists(spec, POD_LISTS, ("spec",))
    for i, volume in _entries(spec, "volumes"):
        yield from _named(volume, ("spec", "volumes", i), OWN_VOLUMES)
    for i, container in _entries(spec, "initContainers"):
        here: _Loc = ("spec", "initContainers", i)
        yield from _named(container, here, OWN_INIT_CONTAINERS)
        yield from _lists(container, CONTAINER_LISTS, here)
        yield from _of_volumes(container, here)
    yield from _of_affinity(spec.get("affinity"))
    ours = [container for _, container in _entries(spec, "containers") if container.get("name") == CONTAINER]
    for i, container in _entries(spec, "containers"):
        here = ("spec", "containers", i)
        if container.get("name") != CONTAINER:
            allowed = f"{CONTAINER}; what runs beside it is an init container with restartPolicy: Always"
            error = problem("name", "not the container of the workers", allowed=allowed)
            yield located(error, (*here, "name"), container.get("name"))
        elif container is not ours[0]:
            yield located(problem("name", "given twice", allowed="one of them"), (*here, "name"), CONTAINER)
        else:
            yield from _of_container(container, here)


def _of_container(container: Mapping[str, Any], here: _Loc) -> Iterator[InitErrorDetails]:
    if len(container) > MAX_FIELDS:
        yield located(problem("range", "too many fields", allowed=f"at most {MAX_FIELDS}"), here, f"{len(container)}")
        return
    for name, value in container.items():
        claims_only = name == "resources" and isinstance(value, Mapping) and value.keys() == {"claims"}
        if not claims_only and (error := _field(name, CONTAINER_FIELDS, CONTAINER_FIELDS_ELSEWHERE)):
            yield located(error, (*here, name), value)
    yield from _lists(container, CONTAINER_LISTS, here)
    yield from _of_volumes(container, here)
    for i, mount in _entries(container, "volumeMounts"):
        path = mount.get("mountPath")
        if isinstance(path, str) and not _may_be_mounted(path):
            sealed = ", ".join((*SEALED_PATHS, *_KERNEL))
            allowed = f"any path but {', '.join(OWN_PATHS)}, what they are in, and what is in {sealed}"
            error = problem("reserved", "used by Relight", allowed=allowed)
            yield located(error, (*here, "volumeMounts", i, "mountPath"), path)
    for i, port in _entries(container, "ports"):
        if port.get("containerPort") == METRICS_PORT:
            allowed = f"any port but {METRICS_PORT}, where the metrics are"
            error = problem("reserved", "used by Relight", allowed=allowed)
            yield located(error, (*here, "ports", i, "containerPort"), METRICS_PORT)


def _of_volumes(container: Mapping[str, Any], here: _Loc) -> Iterator[InitErrorDetails]:
    """A container of a job's own sees none of the volumes that are sealed, at no path."""
    for name in ("volumeMounts", "volumeDevices"):
        for i, mount in _entries(container, name):
            volume = mount.get("name")
            if isinstance(volume, str) and volume in SEALED_VOLUMES:
                allowed = f"any volume but {', '.join(sorted(SEALED_VOLUMES))}"
                yield located(problem("reserved", "used by Relight", allowed=allowed), (*here, name, i, "name"), volume)


_REQUIRED = ("nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms")


def _of_affinity(affinity: Any) -> Iterator[InitErrorDetails]:
    """The one list in it that is put together with Relight's own: kube/overlay.py."""
    here: _Loc = ("spec", "affinity")
    found = affinity
    for name in ("", *_REQUIRED):
        if name:
            here, found = (*here, name), found.get(name)
        if found is None:
            return
        wanted: tuple[type, str] = (list, "a list of mappings") if name == _REQUIRED[-1] else (Mapping, "a mapping")
        if not isinstance(found, wanted[0]):
            yield located(problem("type", "wrong type", allowed=wanted[1]), here, found)
            return
    for i, term in enumerate(found):
        if not isinstance(term, Mapping):
            yield located(problem("type", "wrong type", allowed="a mapping"), (*here, i), term)
            continue
        for part in ("matchExpressions", "matchFields"):
            if not isinstance(term.get(part, []), list):
                error = problem("type", "wrong type", allowed="a list of mappings")
                yield located(error, (*here, i, part), term[part])


def _may_be_mounted(path: str) -> bool:
    """As the runtime will read it: from the root, without detours, by way of the links that every image has."""
    plain = posixpath.normpath(f"/{path.lstrip('/')}").rstrip("/") + "/"
    for link, place in _LINKS:
        if plain.startswith(f"{link}/"):
            plain = place + plain.removeprefix(link)
            break
    if plain.startswith(tuple(f"{kernel}/" for kernel in _KERNEL)):
        return False
    around = any(f"{own}/".startswith(plain) for own in (*OWN_PATHS, *SEALED_PATHS))
    return not around and not plain.startswith(tuple(f"{sealed}/" for sealed in SEALED_PATHS))


def _field(name: str, known: Iterable[str], elsewhere: Mapping[str, str]) -> PydanticCustomError | None:
    """What is wrong with the name of a field. One that nobody here knows is the server's to judge: it may be a newer one."""
    if name in elsewhere:
        return problem(
            "elsewhere", "not to be set here", allowed=elsewhere[name] or "nothing: Relight needs it as it is"
        )
    if name not in known and (near := nearest(name, {*known, *elsewhere}, cutoff=0.85)):
        return problem("unknown", "unknown field", allowed="the fields of Kubernetes", near=near)
    return None


def _lists(holder: Mapping[str, Any], names: Iterable[str], here: _Loc) -> Iterator[InitErrorDetails]:
    for name in names:
        items = holder.get(name, [])
        if not isinstance(items, list):
            yield located(problem("type", "wrong type", allowed="a list of mappings"), (*here, name), items)
            continue
        for i, item in enumerate(items):
            if not isinstance(item, Mapping):
                yield located(problem("type", "wrong type", allowed="a mapping"), (*here, name, i), item)


def _named(item: Mapping[str, Any], here: _Loc, own: Iterable[str]) -> Iterator[InitErrorDetails]:
    name = item.get("name")
    if not isinstance(name, str):
        yield located(problem("missing", "missing", allowed="a name"), (*here, "name"), name)
    elif name in own:
        allowed = f"any name but {', '.join(sorted(own))}"
        yield located(problem("reserved", "used by Relight", allowed=allowed), (*here, "name"), name)


def _entries(holder: Mapping[str, Any], name: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    items = holder.get(name)
    for i, item in enumerate(items) if isinstance(items, list) else ():
        if isinstance(item, Mapping):
            yield i, item


def _depth(value: Any, most: int = _DEEPEST) -> int:
    """How many containers are in each other, counted as far as matters."""
    inner = value.values() if isinstance(value, Mapping) else value if isinstance(value, list) else None
    if inner is None or most < 0:
        return 0
    return 1 + max((_depth(item, most - 1) for item in inner), default=0)
