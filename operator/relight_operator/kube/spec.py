"""The frozen spec: what a job was at its first start, in an immutable ConfigMap that its pods are built from. Pure."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from relight_agent.files import JobFile, from_dict
from relight_operator.api.job import JobSpec, Resources, TrainingJob
from relight_operator.api.problems import Problem
from relight_operator.api.template import ACCEPTED
from relight_operator.frozen import MUTABLE, frozen_changes, job_file, may_scale
from relight_operator.kube import names
from relight_operator.kube.names import Owner
from relight_operator.kube.pods import INSTALLED, PodDefaults, has_own_image, metadata
from relight_operator.kube.status import unix_seconds

SPEC_KEY = "spec.json"


@dataclass(frozen=True)
class Frozen:
    config_map: str  # its name
    hash: str
    spec: JobSpec
    job_file: JobFile
    defaults: PodDefaults


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
    digest = hashlib.sha256(_canonical([_spec(job.spec), asdict(defaults), asdict(file)]).encode()).hexdigest()[:10]
    return Frozen(f"{owner.name}-spec-{digest}", digest, job.spec, file, defaults)


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


def load(config_map: Mapping[str, Any]) -> Frozen:
    """What a ConfigMap of ours keeps. Raises ValueError for another."""
    data = config_map.get("data") or {}
    try:
        kept = json.loads(data[SPEC_KEY])
        file = from_dict(JobFile, json.loads(data[names.JOB_FILE_KEY]))
        defaults = from_dict(PodDefaults, kept["pods"])
        spec = JobSpec.model_validate(kept["spec"], by_alias=True, by_name=False, context=ACCEPTED)
        if file is None or defaults is None:
            raise ValueError("a field is missing")
        return Frozen(config_map["metadata"]["name"], kept["hash"], spec, file, defaults)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"not a frozen spec: {error}") from error


def effective(frozen: JobSpec, live: JobSpec) -> tuple[JobSpec, list[str]]:
    """The spec to go by, and the paths of edits that came too late: only `MUTABLE` fields, and the number of an elastic
    job's nodes, may change after the start.
    """
    mutable = {n: getattr(live, n) for n, f in JobSpec.model_fields.items() if (f.alias or n) in MUTABLE}
    if may_scale(frozen, live.nodes):
        mutable["nodes"] = live.nodes
    return frozen.model_copy(update=mutable), frozen_changes(frozen, live)


def _spec(spec: JobSpec) -> dict[str, Any]:
    return spec.model_dump(mode="json", by_alias=True, exclude_none=True)


def _canonical(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
