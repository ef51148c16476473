"""What the programs on a cluster share: the testbed, Relight installed there, jobs, and what a watch of them shows.

All instants are CLOCK_MONOTONIC seconds of this computer, which carries all machines of the testbed: one clock.
"""

import argparse
import json
import re
import secrets
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import _runs
from relight_agent.files import GenerationFolder, Progress

sys.path.append(str(_runs.ROOT))  # the testbed is the tests' own

from tests.cluster import faults
from tests.cluster.relight import CHART, RELEASE, SYSTEM, Job, Operator, items, waited_for
from tests.testbed import Cluster, ExistingCluster
from tests.testbed.building import TARGETS, base_image, relight_image

__all__ = ["RELEASE", "SYSTEM", "Job", "Operator", "faults", "items", "waited_for"]

JOBS = "/apis/relight.dev/v1alpha1/namespaces/{}/trainingjobs"
PODS = "/api/v1/namespaces/{}/pods"
Counters = dict[tuple[str, str], float]
GPUS = "trainer.resources.limits.nvidia\\.com/gpu=8"


def arguments(about: str | None, *, times: int, what: str, draws: str) -> argparse.ArgumentParser:
    """What every program on a cluster can be told."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=times, help=f"{what} (default {times})")
    parser.add_argument("--seed", type=int, default=0, help=f"draws {draws} (default 0)")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE",
        help="for Helm; with the images' names, those are used and not built from this checkout",
    )  # fmt: skip
    parser.add_argument(
        "--results", type=Path, default=_runs.RESULTS, help="folder for the result (default: %(default)s)"
    )
    return parser


def spec_of(steps: int) -> dict[str, Any]:
    """A job of two members, each of which fills a machine, without storage: what is not in memory is lost."""
    config = {
        "model": {"type": "digits_cnn", "width": 16},
        "data": {"type": "digits"},
        "train": {"duration": f"{steps}st", "global_batch": 64, "seed": 0, "threads": 1, "device": "cpu"},
    }
    return {"nodes": 2, "procPerNode": 1, "trainer": {"config": config}, "disruption": {"gracePeriod": "20s"}}


@contextmanager
def installed(settings: Sequence[str]) -> Iterator[Operator]:
    """Relight on the testbed that runs, or on one that is started for it; `settings` are Helm's KEY=VALUE.

    Its images are built from this checkout unless `settings` name others.
    """
    images = {} if any("image." in s for s in settings) else {target: relight_image(target) for target in TARGETS}
    found = Cluster.running()
    cluster = found or Cluster.up(base_image(), *images.values())
    try:
        words = [word for setting in (GPUS, *settings) for word in ("--set", setting)]
        for target, where in (("operator", "image"), ("trainer", "trainer.image")):
            if target in images:
                cluster.load_image(images[target])
                repository, _, tag = images[target].reference.rpartition(":")
                words.append(f"--set-string={where}.repository={repository},{where}.tag={tag}")
        cluster.helm("upgrade", "--install", RELEASE, CHART, f"-n={SYSTEM}", "--create-namespace", "--wait", *words)
        yield Operator(cluster)
    finally:
        if found is None:
            cluster.down()


@contextmanager
def watched(operator: Operator, name: str) -> Iterator["WatchedJob"]:
    """A namespace for a job of that name, and watches of what happens there; all of it ends with this."""
    namespace = f"relight-bench-{secrets.token_hex(4)}"
    operator.cluster.kubectl("create", "namespace", namespace)
    try:
        with (
            Watch(operator.cluster, JOBS.format(namespace)).open() as jobs,
            Watch(operator.cluster, PODS.format(namespace)).open() as pods,
        ):
            yield WatchedJob(operator.cluster, namespace, name, jobs, pods)
    finally:
        operator.cluster.kubectl("delete", "namespace", namespace, "--timeout=60s", check=False)


@contextmanager
def applied(operator: Operator, spec: dict[str, Any]) -> Iterator["WatchedJob"]:
    with watched(operator, "digits") as job:
        job.apply(spec)
        yield job


class Sight(NamedTuple):
    """One event of a watch."""

    at: float
    kind: str  # ADDED | MODIFIED | DELETED
    body: dict[str, Any]


@dataclass
class Watch:
    """Everything that the server says of the objects at `path`, each with the instant at which it came."""

    cluster: ExistingCluster
    path: str
    sights: list[Sight] = field(default_factory=list)

    @contextmanager
    def open(self) -> Iterator["Watch"]:
        command = ["kubectl", f"--kubeconfig={self.cluster.kubeconfig}", "get", "--raw", f"{self.path}?watch=true"]
        environment = self.cluster._env  # noqa: SLF001  # where its kubectl is
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            reader = threading.Thread(target=self._read, args=[process], daemon=True)
            reader.start()
            try:
                yield self
            finally:
                process.terminate()
                reader.join()

    def _read(self, process: "subprocess.Popen[str]") -> None:
        assert process.stdout is not None
        for line in process.stdout:
            event = json.loads(line)
            self.sights.append(Sight(time.monotonic(), event["type"], event["object"]))

    def first(self, matches: Callable[[Sight], object], after: float = 0.0) -> float | None:
        """When the first event that `matches` came."""
        return next((s.at for s in list(self.sights) if s.at >= after and matches(s)), None)


@dataclass(frozen=True)
class WatchedJob(Job):
    """Its status comes from a watch: asking for it over and over would take from the training what is measured."""

    jobs: Watch
    sighted: Watch  # its pods

    def status(self) -> dict[str, Any]:
        seen = self.jobs.sights
        status: dict[str, Any] = (seen[-1].body.get("status") or {}) if seen else {}
        return status

    def until_ended(self, seconds: float = 600) -> dict[str, Any]:
        """The status once the job has succeeded, or failed."""
        waited_for("the end", lambda: self.status().get("phase") in {"Succeeded", "Failed"}, seconds)
        return self.status()


def agent_of(uid: str) -> int | None:
    """The pod's PID 1 as this computer numbers it, None where it does not run."""
    try:
        return faults.agent_of(uid)
    except ProcessLookupError:
        return None


def progress_of(uid: str, generation: int) -> Progress | None:
    """What the pod's worker says of this generation, read from the pod's memory."""
    folder = _folder(uid, generation)
    return folder.progress() if folder else None


def _folder(uid: str, generation: int) -> GenerationFolder | None:
    pid = agent_of(uid)
    if pid is None:
        return None
    return GenerationFolder(f"/proc/{pid}/root/dev/shm/relight/gen-{generation}")


def train_until(job: WatchedJob, step: int) -> dict[str, Any]:
    """The status once the job has done `step` steps, to the step."""
    status = job.until_training()
    folder = _folder(job.uids()[0], status["world"]["generation"])
    assert folder is not None
    waited_for(f"step {step}", lambda: folder.furthest_step(1) >= step, 300)
    return job.status()


def counters(operator: Operator, name: str) -> Counters:
    """A counter of the operator by replica and by the value of its one label."""
    found: Counters = {}
    for pod in items(operator.cluster, "pods", f"-n={SYSTEM}", f"-l=app.kubernetes.io/instance={RELEASE}"):
        address = pod["status"].get("podIP")
        try:
            with urllib.request.urlopen(f"http://{address}:8080/metrics", timeout=5) as answer:
                text = answer.read().decode()
        except OSError:
            continue  # it ends, or its machine is dead
        for label, value in re.findall(rf'^{name}{{\w+="([^"]*)"}} (\S+)$', text, re.MULTILINE):
            found[pod["metadata"]["uid"], label] = float(value)
    return found


def increase(before: Counters, after: Counters) -> dict[str, float]:
    """By label, as Prometheus' own increase(): a replica that began anew counts from nothing."""
    total: dict[str, float] = {}
    for (replica, label), value in after.items():
        old = before.get((replica, label), 0.0)
        total[label] = total.get(label, 0.0) + (value - old if value >= old else value)
    return total
