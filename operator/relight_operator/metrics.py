"""The operator's metrics. Counters move when the server has taken a status; per-job series are made at scrape time.

So a series ends with its job, and nothing is counted twice when a write is repeated.
"""

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from relight_agent.exits import CAUSE_CLASS, Cause, Class
from relight_agent.files import clip
from relight_operator.api.status import BUCKETS, PHASES, TERMINAL, JobStatus
from relight_operator.coordinator.limits import Reason

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.25, 0.5, 1, 2, 3, 5, 8, 13, 20, 30, 60, 120, 300, 600)

_FREE = {str(c) for c, klass in CAUSE_CLASS.items() if klass in {Class.DISRUPTION, Class.MACHINE, Class.COLLATERAL}}

Jobs = Callable[[], Mapping[str, Mapping[str, Any]]]


class Metrics:
    """`jobs()` gives the jobs' objects by key, for the series that are made at scrape time.

    `lost` counts what could not be read, by resource; what cannot be shown is added to it.
    """

    def __init__(self, jobs: Jobs, lost: Tally[str] | None = None) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.reconciles = Counter(
            "relight_reconciles", "Rounds of reconciling, by how they ended.", ["result"], registry=r
        )
        self.reconcile_seconds = Histogram("relight_reconcile_seconds", "Duration of a round.", registry=r)
        self.queue_depth = Gauge("relight_queue_depth", "Jobs that wait for a reconciler.", registry=r)
        self.leading = Gauge("relight_leading", "1 while this replica leads.", registry=r)
        self.disruptions = Counter(
            "relight_disruptions", "Members lost through no fault of the job.", ["cause"], registry=r
        )
        self.failures = Counter("relight_failures", "Failures of the jobs' own processes.", ["cause"], registry=r)
        self.lost_steps = Counter("relight_lost_steps", "Optimizer steps undone by a loss and done again.", registry=r)
        self.connections = Gauge(
            "relight_coordinator_connections",
            "Connections to the coordinator: on which a valid token has been shown (known), and others (unknown).",
            ["token"],
            registry=r,
        )
        self.refused = Counter(
            "relight_coordinator_refused",
            "Connections that the coordinator has closed and requests that it has refused, by reason.",
            ["reason"],
            registry=r,
        )
        for reason in Reason:  # each is there from the start, so that its rate is known
            self.refused.labels(reason)
        self.recovery_seconds = Histogram(
            "relight_recovery_seconds",
            "From the first sign of a loss to the first new step.",
            ["cause"],
            buckets=_SECONDS,
            registry=r,
        )
        self.registry.register(JobCollector(jobs, lost if lost is not None else Tally()))

    def on_refusal(self, reason: Reason) -> None:
        self.refused.labels(reason).inc()

    def on_write(self, _: object, old: JobStatus, new: JobStatus) -> None:
        """The server has taken `new` in place of `old`."""
        for named, count in (Tally(new.restarts.by_cause) - Tally(old.restarts.by_cause)).items():
            cause = _known(named)
            (self.disruptions if cause in _FREE else self.failures).labels(cause).inc(count)
        self.lost_steps.inc(max(0, new.goodput.lost_steps - old.goodput.lost_steps))
        if new.goodput.recoveries > old.goodput.recoveries and new.goodput.last_recovery_seconds is not None:
            cause = _known(new.history[-1].cause) if new.history else "Unknown"
            self.recovery_seconds.labels(cause).observe(float(new.goodput.last_recovery_seconds))

    def exposition(self) -> bytes:
        return generate_latest(self.registry)


class JobCollector(Collector):
    """A status may hold anything: a job whose status is odd is left out, and counted, and the others are shown."""

    def __init__(self, jobs: Jobs, lost: Tally[str]) -> None:
        self._jobs = jobs
        self._lost = lost

    def collect(self) -> Iterator[Metric]:
        found: list[_Series] = []
        for key, body in self._jobs().items():
            try:
                found.append(_series(key, body.get("status") or {}))
            except (TypeError, ValueError, AttributeError, OverflowError):
                self._lost["trainingjobs"] += 1
                found.append(_Series(key.split("/"), "Pending"))
        yield self._phases(found)
        stragglers = GaugeMetricFamily(
            "relight_straggler_share",
            "The share of each step that a job waits for a slow member.",
            labels=["namespace", "name", "node_rank", "node"],
        )
        text = "Seconds of a job's members, by what they went to."
        seconds = CounterMetricFamily("relight_job_seconds", text, labels=["namespace", "name", "bucket"])
        families = [GaugeMetricFamily(metric, text, labels=["namespace", "name"]) for metric, text, _ in _PER_JOB]
        for job in found:
            for where, share in job.stragglers:
                stragglers.add_metric([*job.labels, *where], share)
            for bucket, value in job.seconds:
                seconds.add_metric([*job.labels, bucket], value)
            for family, number in zip(families, job.numbers, strict=False):
                if number is not None:
                    family.add_metric(job.labels, number)
        yield from (stragglers, seconds, *families)
        unread = CounterMetricFamily(
            "relight_unreadable_objects", "Objects, events and statuses that could not be read.", labels=["resource"]
        )
        for resource in sorted(self._lost):
            unread.add_metric([resource], self._lost[resource])
        yield unread

    @staticmethod
    def _phases(found: Iterable["_Series"]) -> GaugeMetricFamily:
        family = GaugeMetricFamily("relight_jobs", "Jobs in each phase.", labels=["phase"])
        tally = Tally(job.phase for job in found)
        for phase in PHASES:
            family.add_metric([phase], tally[phase])
        return family


@dataclass(frozen=True)
class _Series:
    """What one job adds to the metrics."""

    labels: list[str]
    phase: str
    stragglers: list[tuple[list[str], float]] = field(default_factory=list)
    seconds: list[tuple[str, float]] = field(default_factory=list)
    numbers: list[float | None] = field(default_factory=list)  # as in _PER_JOB


def _series(key: str, status: Mapping[str, Any]) -> _Series:
    """Raises TypeError, ValueError, AttributeError or OverflowError for a status that is not one of ours."""
    phase = status.get("phase") or "Pending"
    if phase not in PHASES:
        raise ValueError("not a phase")
    running = () if phase in TERMINAL else status.get("stragglers") or ()
    stragglers = [
        ([clip(str(one.get("nodeRank", ""))), clip(str(one.get("machine", "")))], float(one.get("share") or 0.0))
        for one in running
    ]
    buckets = _inside(status, "goodput", "buckets") or {}
    seconds = [(bucket, float(buckets[bucket])) for bucket in BUCKETS if bucket in buckets]
    return _Series(key.split("/"), phase, stragglers, seconds, [value(status) for _, _, value in _PER_JOB])


def _known(cause: str) -> str:
    """A status may name any cause, and each would be a series that stays."""
    return cause if cause in {str(c) for c in Cause} else "Unknown"


def _at(*path: str) -> Callable[[Mapping[str, Any]], float | None]:
    def value(status: Mapping[str, Any]) -> float | None:
        found = _inside(status, *path)
        return float(found) if isinstance(found, (int, float)) else None

    return value


def _inside(status: Mapping[str, Any], *path: str) -> Any:
    found: Any = status
    for key in path:
        found = found.get(key) if isinstance(found, Mapping) else None
    return found


def _ratio(status: Mapping[str, Any]) -> float | None:
    text = _inside(status, "goodput", "ratio")
    return float(text) if isinstance(text, str) else None


_PER_JOB = (
    ("relight_job_step", "Optimizer steps done.", _at("progress", "step")),
    ("relight_job_total_steps", "Optimizer steps that the job is to do.", _at("progress", "totalSteps")),
    ("relight_job_ready_nodes", "Members whose workers run.", _at("readyNodes")),
    ("relight_job_generation", "The number of the present generation.", _at("world", "generation")),
    ("relight_job_disruptions", "Members lost through no fault of the job.", _at("restarts", "disruptions")),
    ("relight_job_failures", "Failures of the job's own processes.", _at("restarts", "failures")),
    ("relight_job_lost_steps", "Optimizer steps undone and done again.", _at("goodput", "lostSteps")),
    ("relight_job_goodput_ratio", "Productive part of the seconds for which members had a machine.", _ratio),
    ("relight_job_checkpoint_step", "The step of the newest committed checkpoint.", _at("checkpoint", "step")),
)
