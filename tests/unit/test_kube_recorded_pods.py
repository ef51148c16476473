"""Pods as the testbed's Kubernetes 1.20 really left them (`python -m tests.cluster.record_pods` writes them anew)."""

import json
from pathlib import Path
from typing import Any

import pytest
from through_store import member_end, pending_reason

from relight_agent.exits import Cause, Class

PODS = Path(__file__).parent / "golden/pods"
FREE = Class.DISRUPTION

ENDS = {
    "completed": (Cause.COMPLETED, Class.COMPLETED),
    "exception": (Cause.EXCEPTION, Class.COUNTED),
    "no-word": (Cause.EXCEPTION, Class.COUNTED),
    "out-of-memory": (Cause.OUT_OF_MEMORY, Class.COUNTED),
    "own-limit": (Cause.LIMIT_EXCEEDED, Class.COUNTED),
    "no-such-program": (Cause.BAD_CONFIG, Class.FINAL),
    "init-failed": (Cause.BAD_CONFIG, Class.FINAL),
    "killed": (Cause.MACHINE_UNHEALTHY, Class.MACHINE),
    "deleted-saved": (Cause.DELETED, FREE),
    "deleted-deaf": (Cause.DELETED, FREE),
    "deleted-by-force": (Cause.DELETED, FREE),
    # nothing in 1.20 tells these two from a deletion
    "evicted-by-api": (Cause.DELETED, FREE),
    "drained": (Cause.DELETED, FREE),
    "preempted": (Cause.PREEMPTED, FREE),
    "machine-killed": (Cause.MACHINE_LOST, FREE),
    "rejected-gpus": (Cause.REJECTED, FREE),
    "rejected-affinity": (Cause.REJECTED, FREE),
}
WAITS = {
    "image-missing": ("ImagePullBackOff", "no/such:1"),
    "image-name-wrong": ("InvalidImageName", "No Such"),
    "secret-missing": ("CreateContainerConfigError", "no-such"),
    "unschedulable": ("Unschedulable", "Insufficient nvidia.com/gpu"),
}


def recorded(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((PODS / f"{name}.json").read_text())
    return found


def test_every_recording_is_judged() -> None:
    assert {path.stem for path in PODS.iterdir()} == {*ENDS, *WAITS}


@pytest.mark.parametrize("name", ENDS)
def test_an_end_that_happened_has_its_cause(name: str) -> None:
    seen = recorded(name)
    end = member_end(
        seen["pod"],
        gone=seen["gone"],
        first_sign=1.0,
        hints=frozenset(seen["events"]),
        machine_ready=name != "machine-killed",
    )
    assert end is not None
    assert (end.cause, end.klass) == ENDS[name]


@pytest.mark.parametrize("name", WAITS)
def test_a_pod_that_cannot_start_says_why(name: str) -> None:
    pod = recorded(name)["pod"]
    assert member_end(pod, gone=False, first_sign=1.0) is None
    reason = pending_reason(pod)
    assert reason is not None
    assert reason.reason == WAITS[name][0]
    assert WAITS[name][1] in reason.message
