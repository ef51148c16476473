"""One operator's reconciler on a fake client, with agents that report into the mailbox."""

import asyncio
import itertools
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from kube_fake import FakeClient

from relight_operator.api.status import JobStatus
from relight_operator.coordinator.mailbox import Mailbox
from relight_operator.coordinator.wire import Report
from relight_operator.kube import status as wire
from relight_operator.kube.backend import Backend
from relight_operator.kube.client import JOBS
from relight_operator.kube.names import Owner
from relight_operator.kube.pods import Coordinator, PodDefaults
from relight_operator.kube.reconciler import Reconciler
from relight_operator.kube.spec import load

KEY = "ml/digits"
SPEC: dict[str, Any] = {"nodes": 2, "trainer": {"module": ["train"]}, "retry": {"failures": 1}}


class World:
    """One operator, one fake server, agents by hand."""

    def __init__(self) -> None:
        self.now = 1_700_000_000.0
        self.client = FakeClient()
        self.written: list[tuple[JobStatus, JobStatus]] = []
        self.bundle = "CA 1"
        self.seq = itertools.count(1)
        self.start()

    def start(self) -> None:
        """A new operator, which remembers nothing."""
        self.backend = Backend(
            client=self.client,
            mailbox=Mailbox(lambda: self.now, lambda _: None),
            defaults=PodDefaults(image="trainer:1"),
            coordinator=lambda: Coordinator("https://c", self.bundle),
            clock=lambda: self.now,
        )
        self.reconciler = Reconciler(self.backend, lambda _, old, new: self.written.append((old, new)))

    async def apply(self, spec: dict[str, Any] | None = None) -> None:
        body = {"apiVersion": "relight.dev/v1alpha1", "kind": "TrainingJob", "spec": spec or SPEC}
        await self.client.create(JOBS, "ml", {**body, "metadata": {"name": "digits", "namespace": "ml"}})

    async def settle(self, rounds: int = 20) -> None:
        """Watches deliver, and rounds follow until nothing is to be done at once."""
        for _ in range(rounds):
            for job in self.client.all("trainingjobs"):
                self.backend.store.put_job(job)
            for pod in self.client.all("pods"):
                self.backend.store.put_pod(pod, self.now)
            again = await self.reconciler.reconcile(KEY)
            if again != 0.0:
                return
        pytest.fail("it does not come to rest")

    @property
    def status(self) -> JobStatus:
        return wire.parse(self.client.named("trainingjobs", "digits").get("status"))

    def pods(self) -> list[str]:
        return sorted(p["metadata"]["name"] for p in self.client.all("pods"))

    def reason(self, condition: str) -> str | None:
        return next((c.reason for c in self.status.conditions if c.type == condition and c.status == "True"), None)

    def run(self, name: str) -> None:
        """The kubelet starts the pod, its agent reports ready."""
        slot = int(name.split("-")[1])
        status = {"phase": "Running", "podIP": f"10.0.0.{slot + 1}"}
        self.client.edit("pods", name, {"status": status, "spec": {"nodeName": f"n{slot}"}})
        self.report(name, state="Ready", port=4000 + slot)

    def report(self, name: str, **said: Any) -> None:
        _, slot, incarnation = name.split("-")
        job = self.client.named("trainingjobs", "digits")
        kept, metadata = job["status"]["spec"], job["metadata"]
        owner = Owner(metadata["namespace"], metadata["name"], metadata["uid"])
        frozen = load(self.client.named("configmaps", kept["configMap"]), owner, kept["hash"])
        report = {
            "protocol": 1, "job": KEY, "job_uid": job["metadata"]["uid"], "slot": int(slot),
            "incarnation": int(incarnation), "uid": self.client.named("pods", name)["metadata"]["uid"], "boot_id": "b",
            "seq": next(self.seq), "config_hash": frozen.job_file.config_hash, **said,
        }  # fmt: skip
        self.backend.mailbox.post(Report.model_validate(report))

    def end(self, name: str, code: int, message: str = "") -> None:
        terminated = {"exitCode": code, "reason": "Error", "message": message}
        statuses = [{"name": "agent", "state": {"terminated": terminated}}]
        self.client.edit("pods", name, {"status": {"phase": "Failed", "containerStatuses": statuses}})

    async def formed(self, spec: dict[str, Any] | None = None) -> None:
        await self.apply(spec)
        await self.settle()
        for name in self.pods():
            self.run(name)
        await self.settle()
        assert self.status.world is not None


def scenario(body: Callable[[World], Coroutine[Any, Any, None]]) -> Callable[[], None]:
    def test() -> None:
        asyncio.run(body(World()))

    test.__name__, test.__doc__ = body.__name__, body.__doc__
    return test


def refuse(error: Exception, verb: str, plural: str, times: int = 10**6) -> Callable[[str, str, str], None]:
    left = itertools.count(times, -1)

    def before(v: str, p: str, _: str) -> None:
        if (v, p) == (verb, plural) and next(left) > 0:
            raise error

    return before
