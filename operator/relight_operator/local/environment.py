"""`valueFrom`, `envFrom` and `checkpoint.secretRef` without a cluster: from folders and files that the command line names.

The values go into the members' environment, as a kubelet puts them there, and into no file.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from relight_agent.reserved import STORAGE, is_reserved
from relight_operator.api.environment import FieldRef
from relight_operator.api.job import TrainingJob
from relight_operator.errors import InvalidUsage

MAX_BYTES = 1_048_576  # of one Secret or config map, as in Kubernetes
_OPTION = {"Secret": "--secret", "config map": "--config-map"}


@dataclass(frozen=True)
class Given:
    """The objects that the command line names, by name: each a folder with a file for each key, or a file of KEY=VALUE."""

    secrets: Mapping[str, Path] = field(default_factory=dict)
    config_maps: Mapping[str, Path] = field(default_factory=dict)


@dataclass(frozen=True)
class Values:
    """What members find in their environment beside the variables whose values stand in the job."""

    fixed: Mapping[str, str] = field(default_factory=dict, repr=False)
    fields: Mapping[str, str] = field(default_factory=dict)  # of the member itself, by the path of the pod's field
    namespace: str = "default"
    labels: Mapping[str, str] = field(default_factory=dict)

    def of(self, name: str, uid: str, machine: str, address: str) -> dict[str, str]:
        """For the member `name`."""
        known = {
            "metadata.name": name, "metadata.namespace": self.namespace, "metadata.uid": uid, "spec.nodeName": machine,
            "status.podIP": address, "status.podIPs": address, "status.hostIP": address,
            **self.labels,
        }  # fmt: skip
        return {**self.fixed, **{variable: known.get(path, "") for variable, path in self.fields.items()}}


def paths_of(option: str, given: Iterable[str]) -> dict[str, Path]:
    """Where the objects are, from `NAME=PATH`. Raises InvalidUsage."""
    found = {}
    for text in given:
        name, equals, place = text.partition("=")
        path = Path(place).expanduser()  # no shell does that behind a "="
        if not equals or not name or not place or not (path.is_dir() or path.is_file()):
            # What stands behind the "=" may be the secret itself.
            raise InvalidUsage(
                f"{option} {name}=...: no such folder or file; allowed: NAME=FOLDER, a folder with a file for each key, or "
                "NAME=FILE, a file with lines KEY=VALUE"
            )
        found[name] = path.absolute()
    return found


def resolve(job: TrainingJob, given: Given) -> Values:
    """The values that the job refers to. Raises InvalidUsage, which names the field and never a value."""
    trainer = job.spec.trainer
    read = _Objects(given)
    fixed, fields = dict[str, str](), dict[str, str]()
    for i, source in enumerate(trainer.env_from or ()):
        for kind, ref, name in (
            ("config map", source.config_map_ref, "configMapRef"),
            ("Secret", source.secret_ref, "secretRef"),
        ):
            if ref is not None:
                data = read(kind, ref.name, f"spec.trainer.envFrom[{i}].{name}", optional=ref.optional) or {}
                fixed |= {f"{source.prefix}{key}": value for key, value in data.items()}
    for i, variable in enumerate(trainer.env):
        path = f"spec.trainer.env[{i}].valueFrom"
        if variable.value_from is None:
            fixed.pop(variable.name, None)
            continue
        keyed = (
            ("Secret", variable.value_from.secret_key_ref, "secretKeyRef"),
            ("config map", variable.value_from.config_map_key_ref, "configMapKeyRef"),
        )
        for kind, key, name in keyed:
            if key is not None:
                found = read(kind, key.name, f"{path}.{name}", optional=key.optional)
                if found is not None and key.key not in found and not key.optional:
                    raise InvalidUsage(f"{path}.{name}: {_OPTION[kind]} {key.name}=... has no key {key.key}")
                if found is not None and key.key in found:
                    fixed[variable.name] = found[key.key]
        if variable.value_from.field_ref is not None:
            fields[variable.name] = _known(variable.value_from.field_ref, path)
        if variable.value_from.resource_field_ref is not None:
            raise InvalidUsage(
                f"{path}.resourceFieldRef: without a cluster there is no container with limits: give a value instead"
            )
    fixed = {name: value for name, value in fixed.items() if not is_reserved(name)}
    checkpoint = job.spec.checkpoint
    if checkpoint is not None and checkpoint.secret_ref is not None:
        data = read("Secret", checkpoint.secret_ref.name, "spec.checkpoint.secretRef", optional=False) or {}
        fixed |= {f"{STORAGE}{key}": value for key, value in data.items()}
    metadata = job.metadata
    labels = {f"metadata.labels['{k}']": v for k, v in _labels(job, "labels").items()}
    annotations = {f"metadata.annotations['{k}']": v for k, v in _labels(job, "annotations").items()}
    return Values(fixed, fields, metadata.namespace, {**labels, **annotations})


def _labels(job: TrainingJob, name: str) -> Mapping[str, str]:
    template = job.spec.trainer.template
    found: Mapping[str, str] = getattr(template.metadata, name) if template is not None else {}
    return found


def _known(ref: FieldRef, path: str) -> str:
    if ref.field_path == "spec.serviceAccountName":
        raise InvalidUsage(f"{path}.fieldRef: without a cluster there is no service account: give a value instead")
    return ref.field_path


class _Objects:
    def __init__(self, given: Given) -> None:
        self._given = {"Secret": given.secrets, "config map": given.config_maps}
        self._read: dict[Path, dict[str, str]] = {}

    def __call__(self, kind: str, name: str, field_path: str, *, optional: bool) -> dict[str, str] | None:
        """The keys of an object, None for one that is not given and need not be."""
        place = self._given[kind].get(name)
        if place is None:
            if optional:
                return None
            raise InvalidUsage(
                f"{field_path}: without a cluster there are no {kind}s: add {_OPTION[kind]} {name}=PATH, a folder with a file "
                "for each key or a file with lines KEY=VALUE"
            )
        if place not in self._read:
            self._read[place] = _data(place, f"{_OPTION[kind]} {name}")
        return self._read[place]


def _data(place: Path, option: str) -> dict[str, str]:
    found, size = dict[str, str](), 0
    try:
        # Kubernetes mounts a Secret as links into a folder whose name begins with two dots.
        files = sorted(f for f in place.iterdir() if f.is_file()) if place.is_dir() else [place]
        for file in files:
            with file.open("rb") as stream:
                raw = stream.read(MAX_BYTES + 1 - size)
            size += len(raw)
            if size > MAX_BYTES:
                raise InvalidUsage(f"{option}: {place} holds more than {MAX_BYTES} bytes; allowed: 1 MiB in all")
            text = raw.decode("utf-8")
            if "\0" in text:
                raise InvalidUsage(f"{option}: {file} holds a NUL, which no environment variable can")
            if place.is_dir():
                found[file.name] = text
            else:
                found = _lines(text, f"{option}: {file}")
    except UnicodeDecodeError:
        raise InvalidUsage(f"{option}: {place} is not UTF-8 text, which an environment variable must be") from None
    except OSError as error:
        raise InvalidUsage(f"{option}: {error.strerror}: {error.filename}") from None
    return found


def _lines(text: str, where: str) -> dict[str, str]:
    """`KEY=VALUE` in each line; empty lines and those that begin with # are left out, as by `kubectl --from-env-file`."""
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        key, equals, value = line.partition("=")
        if not equals or not key.strip().isidentifier():
            raise InvalidUsage(f"{where}: line {number} is not KEY=VALUE")
        found[key.strip()] = value
    return found
