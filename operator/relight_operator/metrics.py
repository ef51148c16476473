"""The operator's metrics. Counters move when the server has taken a status; per-job series are made at scrape time.

So a series ends with its job, and nothing is counted twice when a write is repeated.
"""

from collections import Counter as Tally
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest
from prometheus_client.registry import Collector

from relight_agent.exits import CAUSE_CLASS, Class
from relight_operator.api.status import BUCKETS, PHASES, TERMINAL, JobStatus

CONTENT_TYPE = CONTENT_TYPE_LATEST
_SECONDS = (0.25, 0.5, 1, 2, 3, 5, 8, 13, 20, 30, 60, 120, 300, 600)

_FREE = {str(c) for c, klass in CAUSE_CLASS.items() if klass in {Class.DISRUPTION, Class.MACHINE, Class.COLLATERAL}}

Jobs = Callable[[], Mapping[str, Mapping[str, Any]]]


class Metrics:
    """`jobs()` gives the jobs' objects by key, for the series that are made at scrape time."""

    def __init__(self, jobs: Jobs) -> None:
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
        self.recovery_seconds = Histogram(
            "relight_recovery_seconds",
            "From the first sign of a loss to the first new step.",
            ["cause"],
            buckets=_SECONDS,
            registry=r,
        )
        self.registry.register(JobCollector(jobs))

    def on_write(self, _: object, old: JobStatus, new: JobStatus) -> None:
        """The server has taken `new` in place of `old`."""
        for cause, count in (Tally(new.restarts.by_cause) - Tally(old.restarts.by_cause)).items():
            (self.disruptions if cause in _FREE else self.failures).labels(cause).inc(count)
        self.lost_steps.inc(max(0, new.goodput.lost_steps - old.goodput.lost_steps))
        if new.goodput.recoveries > old.goodput.recoveries and new.goodput.last_recovery_seconds is not None:
            cause = new.history[-1].cause if new.history else "Unknown"
            self.recovery_seconds.labels(cause).observe(float(new.goodput.last_recovery_seconds))

    def exposition(self) -> bytes:
        return generate_latest(self.registry)


class JobCollector(Collector):
    def __init__(self, jobs: Jobs) -> None:
        self._jobs = jobs

    def collect(self) -> Iterator[Metric]:
        jobs = self._jobs()
        yield self._phases(jobs.values())
        yield self._stragglers(jobs)
        yield self._seconds(jobs)
        labels = ["namespace", "name"]
        for metric, text, value in _PER_JOB:
            family = GaugeMetricFamily(metric, text, labels=labels)
            for key, body in jobs.items():
                number = value(body.get("status") or {})
                if number is not None:
                    family.add_metric(key.split("/"), number)
            yield family

    @staticmethod
    def _stragglers(jobs: Mapping[str, Mapping[str, Any]]) -> GaugeMetricFamily:
        family = GaugeMetricFamily(
            "relight_straggler_share",
            "The share of each step that a job waits for a slow member.",
            labels=["namespace", "name", "node_rank", "node"],
        )
        for key, body in jobs.items():
            status = body.get("status") or {}
            for found in (status.get("stragglers") or ()) if status.get("phase") not in TERMINAL else ():
                labels = [*key.split("/"), str(found.get("nodeRank", "")), str(found.get("machine", ""))]
                family.add_metric(labels, float(found.get("share") or 0.0))
        return family

    @staticmethod
    def _seconds(jobs: Mapping[str, Mapping[str, Any]]) -> CounterMetricFamily:
        text = "Seconds of a job's members, by what they went to."
        family = CounterMetricFamily("relight_job_seconds", text, labels=["namespace", "name", "bucket"])
        for key, body in jobs.items():
            seconds = _inside(body.get("status") or {}, "goodput", "buckets")
            for bucket in BUCKETS:
                if isinstance(seconds, Mapping) and bucket in seconds:
                    family.add_metric([*key.split("/"), bucket], float(seconds[bucket]))
        return family

    @staticmethod
    def _phases(bodies: Iterable[Mapping[str, Any]]) -> GaugeMetricFamily:
        family = GaugeMetricFamily("relight_jobs", "Jobs in each phase.", labels=["phase"])
        tally = Tally((b.get("status") or {}).get("phase") or "Pending" for b in bodies)
        for phase in PHASES:
            family.add_metric([phase], tally[phase])
        return family


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
