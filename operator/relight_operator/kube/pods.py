"""`CreateMember` -> pod manifest, and the job's other objects. Pure: what is sent depends on the arguments alone.

Pods satisfy the restricted Pod Security Standard but for a hostPath that the job itself asks for.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from relight_agent.files import JobFile
from relight_agent.reserved import STORAGE
from relight_operator.api.environment import native
from relight_operator.api.job import OWN_RESOURCES, CheckpointSpec, GitSource, JobSpec, TrainerSpec
from relight_operator.core.actions import CreateMember
from relight_operator.kube import names
from relight_operator.kube.names import Owner, pod_name
from relight_operator.kube.overlay import overlaid

UNREACHABLE_SECONDS = 30  # after which the cluster itself deletes a pod of a machine that does not answer
INSTALLED = "/opt/relight-agent"  # in an image of the user's own: agent and client, from the installation's
FETCH_SECONDS = 600  # how long a server of code may not answer before the member gives up
# More than that evicts the pod, so that a runaway does not fill the machine's disk for others; what needs more has a volume.
TMP_SIZE = "64Gi"
CODE_SIZE = "16Gi"
AGENT_SIZE = "256Mi"  # a few megabytes of Python
TOKEN_SECONDS = 3600  # kubelet renews at 80 %; the agent reads the token anew for each request


class Coordinator(NamedTuple):
    """Where the agents of a new pod find their coordinator: not frozen, an upgrade may move it."""

    url: str
    ca_bundle: str  # PEM


@dataclass(frozen=True)
class PodDefaults:
    """What the operator's installation gives every pod; part of the frozen spec."""

    image: str
    image_pull_policy: str = "IfNotPresent"
    image_pull_secrets: Sequence[str] = ()
    resources: Mapping[str, Any] = field(default_factory=dict)  # as in a container's spec
    user: int = 10001  # a number: kubelet cannot prove that a name is not root's


def job_labels(owner: Owner) -> dict[str, str]:
    return {names.JOB_LABEL: owner.name}


def metadata(owner: Owner, name: str) -> dict[str, Any]:
    """Of an object that belongs to the job as a whole, and ends with it."""
    return {
        "name": name,
        "namespace": owner.namespace,
        "labels": job_labels(owner),
        "ownerReferences": [owner.reference()],
    }


def service(owner: Owner) -> dict[str, Any]:
    """The headless Service that gives pods their names; members themselves are addressed by IP."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata(owner, owner.name),
        "spec": {
            "clusterIP": "None",
            "publishNotReadyAddresses": True,
            "selector": job_labels(owner),
            "ports": [{"name": "metrics", "port": names.METRICS_PORT}],
        },
    }


def pod(  # noqa: PLR0917  # the ingredients of a pod
    owner: Owner,
    member: CreateMember,
    job: JobFile,
    spec: JobSpec,
    defaults: PodDefaults,
    config_map: str,
    coordinator: Coordinator,
) -> dict[str, Any]:
    """The pod of (slot, incarnation). `spec` is the frozen one, `config_map` holds the frozen job file."""
    name = pod_name(owner.name, member.slot, member.incarnation)
    trainer = spec.trainer
    shm: dict[str, Any] = {"medium": "Memory"}
    if trainer.shared_memory is not None:
        shm["sizeLimit"] = trainer.shared_memory
    volumes = [
        {"name": "tmp", "emptyDir": {"sizeLimit": TMP_SIZE}},
        {"name": "shm", "emptyDir": shm},
        {"name": "relight", "projected": {"sources": _sources(config_map)}},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  # in the pod
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
        {"name": "relight", "mountPath": names.MOUNT, "readOnly": True},
    ]
    storage = checkpoint_volume(spec.checkpoint)
    if storage is not None:
        volumes.append({"name": "checkpoints", **storage})
        mounts.append({"name": "checkpoints", "mountPath": names.CHECKPOINTS})
    init = []
    if has_own_image(trainer, defaults):
        volumes.append({"name": "agent", "emptyDir": {"sizeLimit": AGENT_SIZE}})
        mounts.append({"name": "agent", "mountPath": INSTALLED, "readOnly": True})
        init.append(_install(trainer, defaults))
    if spec.code is not None:
        volumes += _code_volumes(spec.code.git)
        mounts.append({"name": "code", "mountPath": names.CODE, "readOnly": True})
        init.append(_fetch(spec.code.git, member, trainer, defaults))
    secrets = _pull_secrets(trainer, defaults)
    body = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": name,
            "namespace": owner.namespace,
            "labels": {
                **job_labels(owner),
                names.SLOT_LABEL: str(member.slot),
                names.INCARNATION_LABEL: str(member.incarnation),
            },
            "annotations": {names.CA_ANNOTATION: coordinator.ca_bundle},
            "ownerReferences": [owner.reference()],
        },
        "spec": {
            "restartPolicy": "Never",
            "hostname": name,
            "subdomain": owner.name,
            "automountServiceAccountToken": False,
            "enableServiceLinks": False,
            "terminationGracePeriodSeconds": math.ceil(job.grace_seconds),
            "securityContext": {
                "runAsNonRoot": True,
                "runAsUser": defaults.user,
                "runAsGroup": defaults.user,
                "fsGroup": defaults.user,
                "fsGroupChangePolicy": "OnRootMismatch",  # a large volume is not walked for every pod
                "seccompProfile": {"type": "RuntimeDefault"},
            },
            **({"imagePullSecrets": secrets} if secrets else {}),
            "tolerations": [
                {
                    "key": f"node.kubernetes.io/{key}",
                    "operator": "Exists",
                    "effect": "NoExecute",
                    "tolerationSeconds": UNREACHABLE_SECONDS,
                }
                for key in ("not-ready", "unreachable")
            ],
            **pod_affinity(member.avoid),
            # One lost machine should take as few members along as possible; a full cluster may still pack them.
            "topologySpreadConstraints": [
                {
                    "maxSkew": 1,
                    "topologyKey": "kubernetes.io/hostname",
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {"matchLabels": job_labels(owner)},
                }
            ],
            **({"initContainers": init} if init else {}),
            "containers": [
                {
                    "name": names.CONTAINER,
                    **_program(trainer, defaults),
                    "env": _environment(member, trainer, defaults, coordinator),
                    **_env_from(spec),
                    "ports": [{"name": "metrics", "containerPort": names.METRICS_PORT}],
                    "resources": _resources(trainer, defaults),
                    "terminationMessagePolicy": "File",
                    "volumeMounts": mounts,
                }
            ],
            "volumes": volumes,
        },
    }
    return overlaid(body, trainer.template) if trainer.template is not None else body


def pod_affinity(avoid: Sequence[str]) -> dict[str, Any]:
    """Required, not preferred: the scheduler adds up its wishes, and would rather spread members over machines than obey
    this one. Where nothing else is left, the core takes it back (core/blame.py). By the nodes' names, since labels
    differ from them; a server takes one name a requirement.
    """
    if not avoid:
        return {}
    fields = [{"key": "metadata.name", "operator": "NotIn", "values": [name]} for name in avoid]
    required = {"nodeSelectorTerms": [{"matchFields": fields}]}
    return {"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": required}}}


def checkpoint_volume(checkpoint: CheckpointSpec | None) -> dict[str, Any] | None:
    """The volume source of the durable storage, None where the job has none."""
    if checkpoint is None:
        return None
    if checkpoint.persistent_volume_claim is not None:
        return {"persistentVolumeClaim": {"claimName": checkpoint.persistent_volume_claim.claim_name}}
    if checkpoint.host_path is not None:
        # Made by hand on purpose: one that kubelet makes would be root's, and empty.
        return {"hostPath": {"path": checkpoint.host_path.path, "type": "Directory"}}
    return None


def has_own_image(trainer: TrainerSpec, defaults: PodDefaults) -> bool:
    """Whether the job brings an image that has no agent."""
    return trainer.image not in {None, defaults.image}


def _program(trainer: TrainerSpec, defaults: PodDefaults) -> dict[str, Any]:
    """Image and command of the agent's container, and what it may do."""
    if not has_own_image(trainer, defaults):
        return {
            "image": defaults.image,
            "imagePullPolicy": defaults.image_pull_policy,
            "command": ["python3", "-m", "relight_agent"],
            "securityContext": _confined(read_only=True),
        }
    return {
        "image": trainer.image,  # pulled by the policy that its tag implies
        "command": [trainer.python or "python3", "-m", "relight_agent"],
        "securityContext": _confined(read_only=False),  # who knows where it writes
    }


def _install(trainer: TrainerSpec, defaults: PodDefaults) -> dict[str, Any]:
    """The init container that gives agent and client to an image of the user's own."""
    return {
        "name": "install-agent",
        "command": ["python3", "-m", "relight_agent.install", INSTALLED],
        **_prepares(trainer, defaults),
        "volumeMounts": [{"name": "agent", "mountPath": INSTALLED}],
    }


def _fetch(git: GitSource, member: CreateMember, trainer: TrainerSpec, defaults: PodDefaults) -> dict[str, Any]:
    """The init container that checks out the job's code. The Secret's files are in it alone, and nowhere else."""
    flags = [] if git.submodules else ["--no-submodules"]
    mounts: list[dict[str, Any]] = [{"name": "code", "mountPath": names.CODE}, {"name": "tmp", "mountPath": "/tmp"}]  # noqa: S108  # in the pod
    if git.secret_ref is not None:
        flags += ["--secret", names.CODE_SECRET]
        mounts.append({"name": "code-secret", "mountPath": names.CODE_SECRET, "readOnly": True})
    program = ["python3", "-m", "relight_trainer.code_source", f"--patience={FETCH_SECONDS}", *flags, "--"]
    return {
        "name": "fetch-code",
        "command": [*program, git.url, member.commit or git.ref, names.CODE_DIR],
        **_prepares(trainer, defaults),
        "volumeMounts": mounts,
    }


def _prepares(trainer: TrainerSpec, defaults: PodDefaults) -> dict[str, Any]:
    """What our init containers have in common."""
    resources = {
        kind: own
        for kind, amounts in _resources(trainer, defaults).items()
        # Quotas want to be told of every container; devices are for who trains.
        if (own := {name: amount for name, amount in amounts.items() if name in OWN_RESOURCES})
    }
    return {
        "image": defaults.image,
        "imagePullPolicy": defaults.image_pull_policy,
        "resources": resources,
        "securityContext": _confined(read_only=True),
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }


def _code_volumes(git: GitSource) -> list[dict[str, Any]]:
    volumes: list[dict[str, Any]] = [{"name": "code", "emptyDir": {"sizeLimit": CODE_SIZE}}]
    if git.secret_ref is not None:
        volumes.append({"name": "code-secret", "secret": {"secretName": git.secret_ref.name, "defaultMode": 0o440}})
    return volumes


def _confined(*, read_only: bool) -> dict[str, Any]:
    return {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": read_only,
    }


def _resources(trainer: TrainerSpec, defaults: PodDefaults) -> dict[str, Any]:
    """The job's own, whole, else the installation's."""
    if trainer.resources is None:
        return dict(defaults.resources)
    both = {"limits": trainer.resources.limits, "requests": trainer.resources.requests}
    return {kind: dict(amounts) for kind, amounts in both.items() if amounts}


def _pull_secrets(trainer: TrainerSpec, defaults: PodDefaults) -> list[dict[str, str]]:
    """The installation's too: its image is pulled where a job has one of its own."""
    own = (s.name for s in trainer.image_pull_secrets)
    return [{"name": n} for n in dict.fromkeys((*defaults.image_pull_secrets, *own))]


def _sources(config_map: str) -> list[dict[str, Any]]:
    annotation = f"metadata.annotations['{names.CA_ANNOTATION}']"
    token = {"audience": names.TOKEN_AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": "token"}
    return [
        {"configMap": {"name": config_map, "items": [{"key": names.JOB_FILE_KEY, "path": names.JOB_FILE_KEY}]}},
        {"downwardAPI": {"items": [{"path": "ca.crt", "fieldRef": {"fieldPath": annotation}}]}},
        {"serviceAccountToken": token},
    ]


def _environment(
    member: CreateMember, trainer: TrainerSpec, defaults: PodDefaults, coordinator: Coordinator
) -> list[dict[str, Any]]:
    fixed = {
        "RELIGHT_JOB_FILE": f"{names.MOUNT}/{names.JOB_FILE_KEY}",
        "RELIGHT_SLOT": str(member.slot),
        "RELIGHT_INCARNATION": str(member.incarnation),
        "RELIGHT_RUN_DIR": "/dev/shm/relight",  # noqa: S108  # the pod's own
        "RELIGHT_COORDINATOR_URL": coordinator.url,
        "RELIGHT_CA_FILE": f"{names.MOUNT}/ca.crt",
        "RELIGHT_TOKEN_FILE": f"{names.MOUNT}/token",
        "RELIGHT_METRICS_PORT": str(names.METRICS_PORT),
        "PYTHONHASHSEED": "0",  # before any interpreter starts: forked workers could not set it
        # A number without a name in /etc/passwd: libraries that ask for their user or home would fail.
        "HOME": "/tmp",  # noqa: S108
        "USER": "relight",
    }
    if has_own_image(trainer, defaults):
        fixed |= {"PYTHONPATH": INSTALLED, "PYTHONUNBUFFERED": "1"}
    if trainer.env_from:  # of what an agent reads no name may be left to a key of theirs
        fixed |= {"RELIGHT_TERMINATION_LOG": "/dev/termination-log", "RELIGHT_CHAOS_FILE": ""}
    fields = {"RELIGHT_UID": "metadata.uid", "RELIGHT_ADDRESS": "status.podIP"}
    # What the kubelet reads: it stands in the pod as a reference. Values that stand in the job are in the job file.
    theirs = {e.name: native(e.value_from) for e in trainer.env if e.value_from is not None}
    return [
        *({"name": name, "value": value} for name, value in fixed.items() if name not in theirs),
        *({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()),
        *({"name": name, "valueFrom": source} for name, source in theirs.items()),
    ]


def _env_from(spec: JobSpec) -> dict[str, Any]:
    """The kubelet lets what stands in `env` win, so that nothing of Relight's can be replaced."""
    sources = [native(source) for source in spec.trainer.env_from or ()]
    checkpoint = spec.checkpoint
    if checkpoint is not None and checkpoint.secret_ref is not None:
        sources.append({"prefix": STORAGE, "secretRef": {"name": checkpoint.secret_ref.name}})
    return {"envFrom": sources} if sources else {}
