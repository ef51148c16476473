"""One recovery in a cluster, instant by instant, as the API server, the kernel and the workers tell them.

All on one clock, CLOCK_MONOTONIC of the computer that carries the testbed's machines.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import _cluster
from _cluster import Job, Sight, WatchedJob, faults, waited_for
from relight_agent.files import Progress
from relight_agent.processes import processes

# What happens, in order; each is an instant.
MOMENTS = (
    "fault", "detected", "pod created", "scheduled", "agent up", "launcher up", "launcher ready", "generation formed",
    "process group formed", "restored", "first step",
)  # fmt: skip
STILL = "stands still"


class Fault(NamedTuple):
    slot: int
    act: Callable[[Job, str], None]
    causes: frozenset[str]  # that name it right; before Kubernetes 1.26 an eviction is a deletion
    undo: Callable[[Job, str], None] | None = None  # is given the machine
    through_api: bool = True
    may_lose_steps: bool = False


def follow(
    job: WatchedJob, before: dict[str, Any], fault: Fault, began: float
) -> tuple[dict[str, float], dict[str, Any]]:
    """The instants of the recovery from a fault that came at `began`, and the status after it."""
    jobs, pods = job.jobs, job.sighted
    generation = before["world"]["generation"]
    holder = next(s for s in before["slots"] if s["slot"] == fault.slot)
    survivor = next(m for m in before["world"]["members"] if m["slot"] != fault.slot)  # a spare may stay one
    old = f"{job.name}-{fault.slot}-{holder['incarnation']}"
    new = f"{job.name}-{fault.slot}-{holder['incarnation'] + 1}"

    def slot_now(status: Mapping[str, Any]) -> Mapping[str, Any]:
        return next((s for s in status.get("slots") or () if s["slot"] == fault.slot), {})

    def status(s: Sight) -> dict[str, Any]:
        return s.body.get("status") or {}

    def is_new(s: Sight) -> bool:
        return bool(s.body["metadata"]["name"] == new)

    formed = waited_for(
        "a new generation",
        lambda: jobs.first(lambda s: (status(s).get("world") or {}).get("generation", 0) > generation, began),
        240,
    )
    pid = waited_for("the replacement's agent", lambda: _cluster.agent_of(job.uids()[fault.slot]))
    assert pid is not None
    number = job.status()["world"]["generation"]
    progress = waited_for("a step", lambda: _first_step(survivor["uid"], number), 60)
    assert progress is not None
    assert progress.formed_at is not None
    assert progress.restored_at is not None
    assert progress.first_step_at is not None
    shown = pods.first(
        lambda s: (
            s.body["metadata"]["name"] == old and ("deletionTimestamp" in s.body["metadata"] or s.kind == "DELETED")
        ),
        began,
    )
    found: dict[str, float | None] = {
        "fault": shown if fault.through_api and shown is not None else began,
        "detected": jobs.first(
            lambda s: (
                status(s).get("recovery")
                or slot_now(status(s)).get("successor")
                or slot_now(status(s)).get("incarnation") != holder["incarnation"]
            ),
            began,
        ),
        "pod created": pods.first(is_new, began),
        "scheduled": pods.first(lambda s: is_new(s) and s.body["spec"].get("nodeName"), began),
        "agent up": faults.started_at(pid),
        "launcher up": _launcher_started_at(pid),
        "launcher ready": jobs.first(
            lambda s: (
                (
                    slot_now(status(s)).get("incarnation") == holder["incarnation"] + 1
                    and slot_now(status(s)).get("state") in {"Ready", "Running"}
                )
                or (slot_now(status(s)).get("successor") or {}).get("state") == "Ready"
            ),
            began,
        ),
        "generation formed": formed,
        "process group formed": progress.formed_at,
        "restored": progress.restored_at,
        "first step": progress.first_step_at,
    }
    after = job.until_training(generation + 1)
    assert formed is not None
    # A status that says two things at once was the first to say either.
    found["launcher ready"] = min(found["launcher ready"] or formed, formed)
    return {m: v for m, v in found.items() if v is not None}, after


def still(instants: Mapping[str, float], after: Mapping[str, Any]) -> float:
    """Seconds without a new step: who is told to leave trains on until its successor is ready.

    From when the old generation stopped, as status says, or from a fault that left it no time, to the first new step.
    """
    total = instants["first step"] - instants["fault"]
    return round(min(total, float(after["goodput"]["lastRecoverySeconds"])), 3)


def _first_step(uid: str, generation: int) -> Progress | None:
    progress = _cluster.progress_of(uid, generation)
    return progress if progress is not None and progress.first_step_at is not None else None


def _launcher_started_at(agent: int) -> float | None:
    """When the agent's oldest child, the interpreter that imports torch, was started."""
    starts = []
    for process in processes():
        if process.parent == agent:
            try:
                starts.append(faults.started_at(process.pid))
            except OSError:
                continue  # it has ended
    return min(starts, default=None)
