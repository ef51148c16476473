"""`CreateMember` -> pod manifest, and the job's other objects. Pure: what is sent depends on the arguments alone.

Pods satisfy the restricted Pod Security Standard but for a hostPath that the job itself asks for.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from relight_agent.files import JobFile
from relight_operator.api.job import CheckpointSpec
from relight_operator.core.actions import CreateMember
from relight_operator.kube import names
from relight_operator.kube.names import Owner, pod_name

UNREACHABLE_SECONDS = 30  # after which the cluster itself deletes a pod of a machine that does not answer
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


def service(owner: Owner) -> dict[str, Any]:
    """The headless Service that gives pods their names; members themselves are addressed by IP."""
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {
            "name": owner.name,
            "namespace": owner.namespace,
            "labels": job_labels(owner),
            "ownerReferences": [owner.reference()],
        },
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
    checkpoint: CheckpointSpec | None,
    defaults: PodDefaults,
    config_map: str,
    coordinator: Coordinator,
) -> dict[str, Any]:
    """The pod of (slot, incarnation). `config_map` holds the frozen job file."""
    name = pod_name(owner.name, member.slot, member.incarnation)
    volumes = [
        {"name": "tmp", "emptyDir": {}},
        {"name": "shm", "emptyDir": {"medium": "Memory"}},
        {"name": "relight", "projected": {"sources": _sources(config_map)}},
    ]
    mounts: list[dict[str, Any]] = [
        {"name": "tmp", "mountPath": "/tmp"},  # noqa: S108  # in the pod
        {"name": "shm", "mountPath": "/dev/shm"},  # noqa: S108
        {"name": "relight", "mountPath": names.MOUNT, "readOnly": True},
    ]
    storage = checkpoint_volume(checkpoint)
    if storage is not None:
        volumes.append({"name": "checkpoints", **storage})
        mounts.append({"name": "checkpoints", "mountPath": names.CHECKPOINTS})
    return {
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
            **(
                {"imagePullSecrets": [{"name": n} for n in defaults.image_pull_secrets]}
                if defaults.image_pull_secrets
                else {}
            ),
            "tolerations": [
                {
                    "key": f"node.kubernetes.io/{key}",
                    "operator": "Exists",
                    "effect": "NoExecute",
                    "tolerationSeconds": UNREACHABLE_SECONDS,
                }
                for key in ("not-ready", "unreachable")
            ],
            # One lost machine should take as few members along as possible; a full cluster may still pack them.
            "topologySpreadConstraints": [
                {
                    "maxSkew": 1,
                    "topologyKey": "kubernetes.io/hostname",
                    "whenUnsatisfiable": "ScheduleAnyway",
                    "labelSelector": {"matchLabels": job_labels(owner)},
                }
            ],
            "containers": [
                {
                    "name": names.CONTAINER,
                    "image": defaults.image,
                    "imagePullPolicy": defaults.image_pull_policy,
                    "command": ["python3", "-m", "relight_agent"],
                    "env": _environment(member, coordinator),
                    "ports": [{"name": "metrics", "containerPort": names.METRICS_PORT}],
                    "resources": dict(defaults.resources),
                    "securityContext": {
                        "allowPrivilegeEscalation": False,
                        "capabilities": {"drop": ["ALL"]},
                        "readOnlyRootFilesystem": True,
                    },
                    "terminationMessagePolicy": "File",
                    "volumeMounts": mounts,
                }
            ],
            "volumes": volumes,
        },
    }


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


def _sources(config_map: str) -> list[dict[str, Any]]:
    annotation = f"metadata.annotations['{names.CA_ANNOTATION}']"
    token = {"audience": names.TOKEN_AUDIENCE, "expirationSeconds": TOKEN_SECONDS, "path": "token"}
    return [
        {"configMap": {"name": config_map, "items": [{"key": names.JOB_FILE_KEY, "path": names.JOB_FILE_KEY}]}},
        {"downwardAPI": {"items": [{"path": "ca.crt", "fieldRef": {"fieldPath": annotation}}]}},
        {"serviceAccountToken": token},
    ]


def _environment(member: CreateMember, coordinator: Coordinator) -> list[dict[str, Any]]:
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
    fields = {"RELIGHT_UID": "metadata.uid", "RELIGHT_ADDRESS": "status.podIP"}
    return [
        *({"name": name, "value": value} for name, value in fixed.items()),
        *({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}} for name, path in fields.items()),
    ]
