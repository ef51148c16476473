"""Relight in a cluster, as tests see it: installed by its chart, its jobs by kubectl."""

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from tests.testbed import ExistingCluster, TestbedError

CHART = Path(__file__).parents[2] / "charts/relight"
SYSTEM = "relight-system"
RELEASE = "relight"
POLL_SECONDS = 0.25

T = TypeVar("T")


def waited_for(what: str, found: Callable[[], T], seconds: float = 120) -> T:
    """What `found` returns as soon as that is true. Fails with `what` after `seconds`."""
    until = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < until, f"{what}: not within {seconds:.0f} s"
        time.sleep(POLL_SECONDS)
    return value


def items(cluster: ExistingCluster, *words: str) -> list[dict[str, Any]]:
    """The objects that `kubectl get WORDS` lists."""
    found = cluster.get(*words)
    return list(found["items"]) if found else []


@dataclass(frozen=True)
class Operator:
    """The release in `SYSTEM`."""

    cluster: ExistingCluster

    def leader(self) -> str:
        """The name of the pod that leads."""

        def holder() -> str:
            lease = self.cluster.get("lease", RELEASE, f"-n={SYSTEM}")
            return str((lease or {}).get("spec", {}).get("holderIdentity") or "").rpartition("_")[0]

        return waited_for("a leader", holder)

    def scale(self, replicas: int) -> None:
        self.cluster.kubectl("scale", f"deployment/{RELEASE}", f"--replicas={replicas}", f"-n={SYSTEM}")
        if replicas == 0:
            pods = ("pods", f"-n={SYSTEM}", f"-l=app.kubernetes.io/instance={RELEASE}")
            waited_for("the operator's end", lambda: not items(self.cluster, *pods))
        else:
            self.cluster.kubectl("rollout", "status", f"deployment/{RELEASE}", f"-n={SYSTEM}", "--timeout=120s")


@dataclass(frozen=True)
class Job:
    """One TrainingJob."""

    cluster: ExistingCluster
    namespace: str
    name: str

    def apply(self, spec: dict[str, Any]) -> None:
        body = {
            "apiVersion": "relight.dev/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {"name": self.name, "namespace": self.namespace},
            "spec": spec,
        }
        self.cluster.kubectl("apply", "--validate=false", "-f-", stdin=json.dumps(body))

    def status(self) -> dict[str, Any]:
        found = self.cluster.get("trainingjob", self.name, f"-n={self.namespace}") or {}
        status: dict[str, Any] = found.get("status") or {}
        return status

    def pod(self, slot: int) -> str:
        """The name of the slot's present pod."""
        found = next(s for s in self.status()["slots"] if s["slot"] == slot)
        return f"{self.name}-{slot}-{found['incarnation']}"

    def uids(self) -> dict[int, str]:
        return {s["slot"]: s.get("uid", "") for s in self.status()["slots"]}

    def step(self) -> int:
        return int(self.status().get("progress", {}).get("step", 0))

    def kubectl(self, *words: str) -> str:
        return self.cluster.kubectl(f"-n={self.namespace}", *words)

    def until_training(self, generation: int = 1, seconds: float = 180) -> dict[str, Any]:
        """The status once this generation, or a later one, does new steps."""

        def trains() -> dict[str, Any] | None:
            status = self.status()
            assert status.get("phase") != "Failed", status
            world = status.get("world") or {}
            good = world.get("generation", 0) >= generation and world.get("recovered") and not status.get("recovery")
            return status if good else None

        return waited_for(f"{self.name}: generation {generation} at work", trains, seconds)

    def until_phase(self, phase: str, seconds: float = 240) -> dict[str, Any]:
        def there() -> dict[str, Any] | None:
            status = self.status()
            return status if status.get("phase") == phase else None

        return waited_for(f"{self.name}: {phase}", there, seconds)

    def events(self) -> set[str]:
        selected = ("events", f"-n={self.namespace}", f"--field-selector=involvedObject.name={self.name}")
        return {e["reason"] for e in items(self.cluster, *selected)}

    def logs(self) -> list[str]:
        """What each member's containers have said, the leaving ones' too."""

        def read() -> list[str] | None:
            try:
                return [self.kubectl("logs", p["metadata"]["name"], "--all-containers") for p in self.pods()]
            except TestbedError:
                return None  # one has gone meanwhile, or just ends: the kubelet then has no log of it

        return waited_for(f"{self.name}: every member's log", read)

    def pods(self) -> list[dict[str, Any]]:
        return items(self.cluster, "pods", f"-n={self.namespace}", f"-l=relight.dev/job={self.name}")
