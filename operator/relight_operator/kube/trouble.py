"""A round that failed, told on the job that it was about: a person who looks at the job need not read the operator's log."""

import logging
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from relight_agent.files import clip
from relight_operator.core.actions import EmitEvent
from relight_operator.kube import apply
from relight_operator.kube.backend import Backend
from relight_operator.kube.client import JOBS
from relight_operator.kube.errors import Conflict, KubeError, Retryable
from relight_operator.kube.leading import NotLeading
from relight_operator.kube.names import Owner
from relight_operator.kube.status import rfc3339

CONDITION = "ReconcileFailed"
MAX_CONDITIONS = 100

_log = logging.getLogger(__name__)


async def tell(backend: Backend, key: str, error: Exception) -> None:
    """Make `error` a condition of the job. What passes by itself is not told, and nothing is raised.

    Nothing is taken for granted of the status that is there: it may be what failed.
    """
    if isinstance(error, (Conflict, NotLeading, Retryable)):
        return
    body = backend.store.job(key)
    if body is None:
        return
    reason, message = describe(error)
    metadata, status = body["metadata"], body.get("status") or {}
    conditions = [c for c in _list(status.get("conditions")) if _is_condition(c)][-MAX_CONDITIONS:]
    old: Mapping[str, Any] = next((c for c in conditions if c["type"] == CONDITION), {})
    said = {"type": CONDITION, "status": "True", "reason": reason, "message": message}
    if said.items() <= old.items():
        return
    now = backend.clock()
    since = old["lastTransitionTime"] if old.get("status") == "True" and old.get("lastTransitionTime") else rfc3339(now)
    conditions = [*(c for c in conditions if c["type"] != CONDITION), {**said, "lastTransitionTime": since}]
    patch: dict[str, Any] = {"conditions": conditions}
    if not status.get("phase"):
        patch["phase"] = "Pending"
    owner = Owner(metadata["namespace"], metadata["name"], metadata["uid"])
    version = {"resourceVersion": metadata.get("resourceVersion")}
    try:
        answer = await backend.client.patch(
            JOBS, owner.namespace, owner.name, {"metadata": version, "status": patch}, status=True
        )
        backend.store.put_job(answer)
        await apply.emit(backend.client, owner, EmitEvent(CONDITION, message, warning=True), now)
    except KubeError as other:
        _log.warning("%s: that its round failed could not be told: %s", key, other)
    except Exception:  # the first error is the one that counts
        _log.exception("%s: that its round failed could not be told", key)


def describe(error: Exception) -> tuple[str, str]:
    """Reason and message. Of an error that nobody foresaw only its kind and place: its words may hold anything."""
    if isinstance(error, KubeError):
        return type(error).__name__, clip(str(error) or type(error).__name__)
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {Path(frames[-1].filename).name}:{frames[-1].lineno}" if frames else ""
    return "Unexpected", f"{type(error).__name__}{place}: a fault of the operator, whose log says more; it tries again"


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _is_condition(value: Any) -> bool:
    return isinstance(value, Mapping) and all(isinstance(value.get(k), str) for k in ("type", "status"))
