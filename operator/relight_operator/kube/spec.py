"""The frozen spec: what a job was at its first start, in an immutable ConfigMap that its pods are built from. Pure."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from pydantic import ValidationError

from relight_agent.files import JobFile, from_dict
from relight_operator.api.job import KIND, JobSpec, Resources, TrainingJob
from relight_operator.api.problems import Problem, problems_of
from relight_operator.frozen import MUTABLE, job_file, may_scale
from relight_operator.kube import names
from relight_operator.kube.names import Owner
from relight_operator.kube.pods import INSTALLED, PodDefaults, has_own_image, metadata
from relight_operator.kube.status import unix_seconds

SPEC_KEY = "spec.json"
SHORT = 10  # digits of the hash in a ConfigMap's name


class NotOurs(Exception):
    """A ConfigMap is not the frozen spec that it should be; the text says why."""


@dataclass(frozen=True)
class Frozen:
    config_map: str  # its name
    hash: str  # SHA-256 of all that is kept; the status of its job holds it
    spec: JobSpec
    job_file: JobFile
    defaults: PodDefaults
    size: int = field(default=0, compare=False)  # bytes of all that is kept


def problems_in_a_cluster(job: TrainingJob) -> list[Problem]:
    """What is right for `relight run` and cannot work in pods."""
    checkpoint = job.spec.checkpoint
    if checkpoint is not None and checkpoint.uri is not None and checkpoint.uri.startswith("file:"):
        allowed = "persistentVolumeClaim, hostPath or an object store's URI"
        return [Problem("spec.checkpoint.uri", "a pod's own file system does not outlive it", checkpoint.uri, allowed)]
    return []


def freeze(job: TrainingJob, owner: Owner, defaults: PodDefaults) -> Frozen:
    """What `job`, as the server has it now, is from its first start on."""
    created = unix_seconds(job.metadata.creation_timestamp or "")
    checkpoint = job.spec.checkpoint
    root = (checkpoint.uri or names.CHECKPOINTS).rstrip("/") if checkpoint else ""
    folder = f"{root}/{owner.namespace}/{owner.name}" if checkpoint else ""
    # Relative paths of a script are the image's business: its working folder is the agent's.
    file = job_file(
        _resolved(job, defaults),
        uid=owner.uid,
        created=created,
        workdir=".",
        checkpoint_dir=folder,
        code_dir=names.CODE_DIR if job.spec.code is not None else "",
    )
    if has_own_image(job.spec.trainer, defaults) and "PYTHONPATH" in file.env:
        # The job's own would hide the client that was put beside its image.
        file = replace(file, env={**file.env, "PYTHONPATH": f"{INSTALLED}:{file.env['PYTHONPATH']}"})
    digest, size = _digest(_spec(job.spec), asdict(defaults), asdict(file))
    return Frozen(f"{owner.name}-spec-{digest[:SHORT]}", digest, job.spec, file, defaults, size)


def _digest(spec: Any, pods: Any, file: Any) -> tuple[str, int]:
    text = _canonical([spec, pods, file]).encode()
    return hashlib.sha256(text).hexdigest(), len(text)


def _resolved(job: TrainingJob, defaults: PodDefaults) -> TrainingJob:
    """The job with the installation's resources where it names none: their GPUs say how many workers a member has."""
    trainer = job.spec.trainer
    if trainer.resources is not None or not defaults.resources:
        return job
    resources = Resources.model_validate(defaults.resources)
    spec = job.spec.model_copy(update={"trainer": trainer.model_copy(update={"resources": resources})})
    return job.model_copy(update={"spec": spec})


def manifest(frozen: Frozen, owner: Owner) -> dict[str, Any]:
    """The ConfigMap that keeps it."""
    return {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata(owner, frozen.config_map),
        "immutable": True,
        "data": {
            names.JOB_FILE_KEY: _canonical(asdict(frozen.job_file)),
            SPEC_KEY: _canonical({"hash": frozen.hash, "spec": _spec(frozen.spec), "pods": asdict(frozen.defaults)}),
        },
    }


def confirm(found: Mapping[str, Any], frozen: Frozen, owner: Owner) -> None:
    """That a ConfigMap which exists already is the one that would have been made. Raises NotOurs.

    Whoever may create ConfigMaps knows the name beforehand: that it is the right one tells nothing.
    """
    _check_origin(found, owner)
    if found.get("data") != manifest(frozen, owner)["data"] or found.get("binaryData"):
        raise NotOurs("its data are not what this job is")


def load(found: Mapping[str, Any], owner: Owner, digest: str) -> Frozen:
    """The frozen spec in a ConfigMap, `digest` being what the job's status says of it. Raises NotOurs.

    The whole is judged by the rules of today: what has been found to be dangerous since its first start is not run.
    Statuses of earlier versions hold the first ten digits of the hash.
    """
    _check_origin(found, owner)
    data = found.get("data")
    if not isinstance(data, Mapping) or set(data) != {SPEC_KEY, names.JOB_FILE_KEY} or found.get("binaryData"):
        raise NotOurs(f"its data are not {SPEC_KEY} and {names.JOB_FILE_KEY}")
    try:
        kept, file = json.loads(data[SPEC_KEY]), json.loads(data[names.JOB_FILE_KEY])
        made, size = _digest(kept["spec"], kept["pods"], file)
    except (KeyError, TypeError, ValueError, RecursionError):
        raise NotOurs("its data are no frozen spec") from None
    if len(digest) < SHORT or not made.startswith(digest):
        raise NotOurs("its data are not what this job was at its first start")
    try:
        spec = JobSpec.model_validate(kept["spec"], by_alias=True, by_name=False)
    except ValidationError as error:
        words = "; ".join(str(p) for p in problems_of(error, "spec")[:3])
        raise NotOurs(f"it was accepted by an earlier version, and is refused now: {words}") from None
    job_file, defaults = from_dict(JobFile, file), from_dict(PodDefaults, kept["pods"])
    if job_file is None or defaults is None:
        raise NotOurs("a field is missing in its data")
    return Frozen(found["metadata"]["name"], made, spec, job_file, defaults, size)


def _check_origin(found: Mapping[str, Any], owner: Owner) -> None:
    controller = names.controller_of(found)
    if (controller.get("kind"), controller.get("uid")) != (KIND, owner.uid):
        raise NotOurs("it does not belong to this job")
    if found.get("immutable") is not True:
        raise NotOurs("it is not immutable")


def effective(frozen: JobSpec, live: JobSpec) -> JobSpec:
    """The spec to go by: only `MUTABLE` fields, and the number of an elastic job's nodes, may change after the start.

    Edits of other fields come too late: `frozen_changes` names them.
    """
    mutable = {n: getattr(live, n) for n, f in JobSpec.model_fields.items() if (f.alias or n) in MUTABLE}
    if may_scale(frozen, live.nodes):
        mutable["nodes"] = live.nodes
    return frozen.model_copy(update=mutable)


def _spec(spec: JobSpec) -> dict[str, Any]:
    return spec.model_dump(mode="json", by_alias=True, exclude_none=True)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
