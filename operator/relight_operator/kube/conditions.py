"""What the cluster's backend adds to a status: why a member cannot be made, does not start, or an edit is ignored. Pure."""

from collections.abc import Iterable
from dataclasses import dataclass

from relight_agent.files import clip
from relight_operator.api.job import JobSpec
from relight_operator.api.status import TERMINAL, Condition, JobStatus
from relight_operator.core.actions import EmitEvent
from relight_operator.kube import status as wire
from relight_operator.kube.classifier import Pod, pending_reason
from relight_operator.kube.missing import REASON
from relight_operator.kube.missing import in_words as missing_in_words

# Each is taken back when creating goes well again.
HINDRANCES = (
    "QuotaExceeded", "PodSecurity", "NameConflict", "WaitingForOldPods", "CreateForbidden", "PodRefused", "NamespaceTerminating",
    "FrozenSpecRefused",
)  # fmt: skip


@dataclass(frozen=True)
class Hindrance:
    """Why something could not be made; `condition` is one of HINDRANCES. `retry`: seconds until it is tried again."""

    condition: str
    message: str
    retry: float
    quiet: bool = False  # it passes when the member that is leaving has gone: nothing that people should hear of


class Annotated:
    """A status and the conditions that are put to it; `events` tells of those that have become true."""

    def __init__(self, status: JobStatus, now: float) -> None:
        self.status = status
        self.events: list[EmitEvent] = []
        self._now = now

    def hindrances(self, found: Iterable[Hindrance]) -> None:
        messages = {h.condition: h.message for h in found if not h.quiet}
        for kind in HINDRANCES:
            self.warn(kind, (kind, messages[kind]) if kind in messages else None)

    def late_edits(self, paths: list[str], problems: str) -> None:
        """`paths` of frozen fields that were edited, or `problems` that make the whole edit void."""
        if problems:
            self.warn("SpecChangeIgnored", ("Invalid", problems))
            return
        message = f"frozen since the first start: {', '.join(paths)}; give the job another name to run it so"
        self.warn("SpecChangeIgnored", ("Frozen", clip(message)) if paths else None)

    def readiness(self, pods: Iterable[Pod | None], spec: JobSpec, namespace: str) -> None:
        """`pods`: each slot's present pod, None where there is none. `spec`: what they were made of."""
        if self.status.phase in TERMINAL or self.status.phase == "Suspended":
            self.warn("ReferenceMissing", None)
            return
        current = list(pods)
        reason = next((r for p in current if p is not None and (r := pending_reason(p)) is not None), None)
        missing = missing_in_words(reason.message, spec, namespace) if reason and reason.reason == REASON else None
        self.warn("ReferenceMissing", ("NotFound", clip(missing)) if missing else None)
        if reason is not None:
            self._put("PodsReady", "False", reason.reason, clip(missing or reason.message))
        elif all(p is not None and p["status"].get("phase") == "Running" for p in current):
            self._put("PodsReady", "True", "AllRunning", "")
        else:
            self._put("PodsReady", "False", "Waiting", "")

    def warn(self, kind: str, said: tuple[str, str] | None) -> None:
        """`kind` is true for (reason, message), false for None; one that was never true is not mentioned."""
        was_true = any(c.type == kind and c.status == "True" for c in self.status.conditions)
        if said is not None:
            if not was_true:
                self.events.append(EmitEvent(kind, said[1], warning=True))
            self._put(kind, "True", *said)
        elif was_true:
            self._put(kind, "False", "Resolved", "")

    def _put(self, kind: str, value: str, reason: str, message: str) -> None:
        condition = Condition(type=kind, status=value, reason=reason, message=message, last_transition_time=self._now)
        self.status = wire.with_condition(self.status, condition)
