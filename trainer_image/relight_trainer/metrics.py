"""Metrics of one worker for Prometheus, read from its session at scrape time, in threads that training never waits for.

Each member's local rank 0 serves them: what is the member's own with its node rank, what is the job's on rank 0 alone.
They are in prometheus_client's default registry, so what a script of one's own puts there is served as well.
"""

import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from socketserver import ThreadingTCPServer
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, SummaryMetricFamily
from prometheus_client.exposition import MetricsHandler
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from relight_agent.cgroup import Cgroup
from relight_trainer.observe.gpu import Gpus, own_uuids

if TYPE_CHECKING:
    from relight_trainer.session import Session

# A worker of the generation before may be about to die, its port with it.
PATIENCE_SECONDS = 10.0
_RETRY_SECONDS = 0.2


class SessionCollector(Collector):
    """The series of one session; those of the whole job where `job_wide`."""

    def __init__(self, session: "Session", *, node_rank: int, job_wide: bool) -> None:
        self._session = session
        self.node_rank = node_rank
        self._job_wide = job_wide

    def collect(self) -> Iterator[Metric]:
        yield from self._of_member()
        if self._job_wide:
            yield from self._of_job()

    def _of_member(self) -> Iterator[Metric]:
        progress, pace = self._session.progress, self._session.pace
        labels = [str(self.node_rank)]
        generation = GaugeMetricFamily(
            "relight_train_generation", "The generation that this member trains in.", labels=["node_rank"]
        )
        generation.add_metric(labels, progress.generation)
        yield generation
        duration = SummaryMetricFamily(
            "relight_train_step_duration_seconds",
            "Optimizer steps of this generation, snapshots included, evaluation and checkpoints not.",
            labels=["node_rank"],
        )
        duration.add_metric(labels, pace.steps, pace.seconds)
        yield duration
        if progress.snapshot is not None:
            snapshot = GaugeMetricFamily(
                "relight_snapshot_last_step",
                "The step of the newest state in this member's memory.",
                labels=["node_rank"],
            )
            snapshot.add_metric(labels, progress.snapshot)
            yield snapshot

    def _of_job(self) -> Iterator[Metric]:
        session = self._session
        cursor = session.cursor
        yield GaugeMetricFamily("relight_train_step", "Optimizer steps done.", cursor.step)
        if session.total_steps:
            yield GaugeMetricFamily(
                "relight_train_total_steps", "Optimizer steps that the job is to do.", session.total_steps
            )
        if cursor.samples or not cursor.step:  # else not known: a script's loader need not tell its batch size
            # Not the cursor's number: that one falls when steps are lost, and a counter that falls has begun at 0 again.
            yield CounterMetricFamily(
                "relight_train_samples", "Samples that this generation has trained on.", session.pace.samples
            )
        loss = _number(cursor.metrics.get("loss"))
        if loss is not None:
            yield GaugeMetricFamily("relight_train_loss", "The training loss that was logged last.", loss)
        if session.checkpoint_step is not None:
            yield GaugeMetricFamily(
                "relight_checkpoint_last_step", "The step of the newest committed checkpoint.", session.checkpoint_step
            )
        if session.checkpoint_time is not None:
            yield GaugeMetricFamily(
                "relight_checkpoint_last_success_timestamp_seconds",
                "When this generation committed its newest checkpoint, in unix time.",
                session.checkpoint_time,
            )


class PhaseCollector(Collector):
    """The time of this worker's training by phase."""

    def __init__(self, seconds: Callable[[], Mapping[str, float]], *, node_rank: int) -> None:
        self._seconds = seconds
        self._node_rank = str(node_rank)

    def collect(self) -> Iterator[Metric]:
        family = CounterMetricFamily(
            "relight_train_phase_seconds",
            "Time of this generation by what it went to; communication is what nothing else hides.",
            labels=["node_rank", "phase"],
        )
        for phase, seconds in self._seconds().items():
            family.add_metric([self._node_rank, phase], seconds)
        yield family


class MachineCollector(Collector):
    """What this member's container and GPUs use, from the cgroup and NVML; what they do not tell is left out."""

    def __init__(self, *, node_rank: int) -> None:
        self._labels = [str(node_rank)]
        self._cgroup = Cgroup()
        self._gpus: Gpus | None = None

    def collect(self) -> Iterator[Metric]:
        usage = self._cgroup.read()
        for name, family, text, value in (
            ("cpu_seconds", CounterMetricFamily, "CPU time of the container.", usage.cpu_seconds),
            ("cpu_limit_cores", GaugeMetricFamily, "Its limit; absent where there is none.", usage.cpu_limit),
            (
                "cpu_throttled_seconds",
                CounterMetricFamily,
                "Time for which its threads were made to wait for that limit.",
                usage.throttled_seconds,
            ),
            ("memory_bytes", GaugeMetricFamily, "Its memory, less the page cache that can go.", usage.memory_bytes),
            ("memory_limit_bytes", GaugeMetricFamily, "Its limit; absent where there is none.", usage.memory_limit),
            ("oom_kills", CounterMetricFamily, "Processes killed for want of memory.", usage.oom_kills),
            ("io_read_bytes", CounterMetricFamily, "Read from block devices.", usage.read_bytes),
            ("io_written_bytes", CounterMetricFamily, "Written to block devices.", usage.written_bytes),
        ):
            if value is not None:
                series = family(f"relight_member_{name}", text, labels=["node_rank"])
                series.add_metric(self._labels, value)
                yield series
        yield from self._of_gpus()

    def _of_gpus(self) -> Iterator[Metric]:
        if self._gpus is None and (uuids := own_uuids()):
            self._gpus = Gpus(uuids)
        readings = self._gpus.read() if self._gpus is not None else []
        for name, text, values in (
            ("busy_ratio", "Share of the time in which a kernel ran.", [g.busy for g in readings]),
            ("memory_bytes", "In use, by all processes.", [g.memory_bytes for g in readings]),
            ("memory_limit_bytes", "What the GPU has.", [g.memory_limit for g in readings]),
            ("power_watts", "Power draw.", [g.power_watts for g in readings]),
            ("temperature_celsius", "Temperature.", [g.temperature_celsius for g in readings]),
            ("uncorrected_errors", "ECC errors since the driver was loaded.", [g.uncorrected_errors for g in readings]),
            ("slowed", "1 where heat or power holds the clock down.", [g.slowed for g in readings]),
        ):
            told = [(i, value) for i, value in enumerate(values) if value is not None]
            if told:
                series = GaugeMetricFamily(f"relight_gpu_{name}", text, labels=["node_rank", "gpu"])
                for i, value in told:
                    series.add_metric([*self._labels, str(i)], float(value))
                yield series


_phases: list["PhaseCollector"] = []


def publish_phases(seconds: Callable[[], Mapping[str, float]], *, node_rank: int) -> None:
    """Let `seconds()`, read at scrape time, be served where this worker serves metrics.

    It takes the place of what an earlier training in this process has published.
    """
    while _phases:
        REGISTRY.unregister(_phases.pop())
    _phases.append(PhaseCollector(seconds, node_rank=node_rank))
    REGISTRY.register(_phases[0])


def serve(port: int, collector: SessionCollector, say: Callable[[str], None]) -> None:
    """Serve `collector` on `port` from a thread, as soon as the port is free; `say`, once, where that takes long."""
    threading.Thread(target=_serve, args=(port, collector, say), name="metrics", daemon=True).start()


def _serve(port: int, collector: SessionCollector, say: Callable[[str], None]) -> None:
    REGISTRY.register(collector)
    REGISTRY.register(MachineCollector(node_rank=collector.node_rank))
    with _bound(port, say) as server:
        server.serve_forever()


def _bound(port: int, say: Callable[[str], None]) -> "_Server":
    began, said = time.monotonic(), False
    while True:
        try:
            return _Server(("", port), _Handler)
        except OSError as error:
            if not said and time.monotonic() - began >= PATIENCE_SECONDS:
                said = True
                say(f"metrics: port {port} cannot be used ({error.strerror}); training goes on without them")
            time.sleep(_RETRY_SECONDS)


class _Handler(MetricsHandler):
    timeout = 10.0  # seconds; a client that says nothing does not keep a thread


class _Server(ThreadingTCPServer):
    address_family = socket.AF_INET6 if socket.has_dualstack_ipv6() else socket.AF_INET
    allow_reuse_address = True  # connections of the generation before linger
    daemon_threads = True

    def server_bind(self) -> None:
        if self.address_family == socket.AF_INET6:
            self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


def _number(text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:  # a script may log any text
        return None
