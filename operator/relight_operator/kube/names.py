"""Every label, annotation and path that the cluster's backend and its pods agree on."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from relight_operator.api import template
from relight_operator.api.job import API_VERSION, GROUP, KIND

JOB_LABEL = f"{GROUP}/job"
SLOT_LABEL = f"{GROUP}/slot"
INCARNATION_LABEL = f"{GROUP}/incarnation"
LEADER_LABEL = f"{GROUP}/leader"
CA_ANNOTATION = f"{GROUP}/coordinator-ca"
PROFILE_ANNOTATION = f"{GROUP}/profile"  # on a TrainingJob, by a person: the id of a trace that is wanted
MAX_PROFILE_ID = 63
TOKEN_AUDIENCE = f"{GROUP}/coordinator"
COMPONENT = "relight-operator"  # who posts events and owns field writes

CONTAINER = template.CONTAINER
METRICS_PORT = template.METRICS_PORT
MOUNT = "/var/run/relight"  # the job file, the coordinator's CA and the member's token
JOB_FILE_KEY = "job.json"
CHECKPOINTS = "/checkpoints"
CODE = "/opt/relight-code"  # the volume of `spec.code`
CODE_DIR = f"{CODE}/source"
CODE_SECRET = "/var/run/relight-code"  # noqa: S105  # where the Secret's files are, for the init container alone


@dataclass(frozen=True)
class Owner:
    """The TrainingJob that owns what is created for it."""

    namespace: str
    name: str
    uid: str

    @property
    def key(self) -> str:
        return f"{self.namespace}/{self.name}"

    def reference(self) -> dict[str, Any]:
        """As controller, and blocking the owner's foreground deletion: RBAC needs `update` on its finalizers."""
        return {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": self.name,
            "uid": self.uid,
            "controller": True,
            "blockOwnerDeletion": True,
        }


def profile_of(job: Mapping[str, Any]) -> str:
    """The id of the trace that a job's annotation asks for, "" for none. What people type is cut and cleaned."""
    annotations = job["metadata"].get("annotations")
    text = str(annotations.get(PROFILE_ANNOTATION) or "") if isinstance(annotations, Mapping) else ""
    return "".join(c for c in text if c.isascii() and (c.isalnum() or c in "-_.:"))[:MAX_PROFILE_ID]


def pod_name(job: str, slot: int, incarnation: int) -> str:
    return f"{job}-{slot}-{incarnation}"


def controller_of(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The owner reference of the controlling owner, empty where there is none."""
    references = body.get("metadata", {}).get("ownerReferences")
    found = references if isinstance(references, list) else ()
    return next((r for r in found if isinstance(r, Mapping) and r.get("controller") is True), {})
