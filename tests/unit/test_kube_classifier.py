"""Ends of pods, as dicts that API servers and kubelets from 1.20 to 1.37 leave behind."""

import json
from typing import Any

import pytest
from through_store import member_end, pending_reason, slot_view

from relight_agent.exits import Cause, Class
from relight_operator.kube import pods

AT = 1_700_000_000.0


def pod(
    *,
    phase: str = "Running",
    reason: str = "",
    message: str = "",
    target: str = "",
    deleting: bool = False,
    code: int | None = None,
    why: str = "Error",
    said: dict[str, Any] | str | None = None,
) -> dict[str, Any]:
    metadata: dict[str, Any] = {
        "name": "digits-1-2",
        "uid": "u",
        "labels": {"relight.dev/job": "digits", "relight.dev/slot": "1", "relight.dev/incarnation": "2"},
    }
    if deleting:
        metadata |= {"deletionTimestamp": "2023-11-14T22:15:20Z", "deletionGracePeriodSeconds": 120}
    status: dict[str, Any] = {"phase": phase}
    if reason:
        status["reason"] = reason
    if message:
        status["message"] = message
    if target:
        status["conditions"] = [{"type": "DisruptionTarget", "status": "True", "reason": target, "message": "w"}]
    if code is not None:
        terminated: dict[str, Any] = {"exitCode": code, "reason": why}
        if said is not None:
            terminated["message"] = said if isinstance(said, str) else json.dumps(said)
        status["containerStatuses"] = [{"name": "agent", "state": {"terminated": terminated}}]
    return {"metadata": metadata, "spec": {"nodeName": "n1"}, "status": status}


SAVED = {"exitCode": 75, "cause": "Stopped", "message": "stopped at step 7, saved"}
FREE = Class.DISRUPTION


def unprepared(
    code: int, message: str = "", *, why: str = "Error", name: str = "install-agent", **more: Any
) -> dict[str, Any]:
    """A pod whose init container ended with `code`: the agent's never began. A proxy ran beside it, and was then ended."""
    made = pod(phase="Failed", **more)
    terminated = {"exitCode": code, "reason": why, "message": message}
    made["spec"]["initContainers"] = [{"name": "proxy", "restartPolicy": "Always"}, {"name": name}]
    made["status"] |= {
        "initContainerStatuses": [
            {"name": "proxy", "state": {"terminated": {"exitCode": 1, "reason": "Error"}}},
            {"name": name, "state": {"terminated": terminated}},
        ],
        "containerStatuses": [{"name": "agent", "state": {"waiting": {"reason": "PodInitializing"}}}],
    }
    return made


ENDS = [
    # servers that mark disruptions
    ("scheduler preemption, saved", pod(phase="Failed", target="PreemptionByScheduler", deleting=True, code=75, said=SAVED), {}, Cause.PREEMPTED, FREE),
    ("scheduler preemption, killed", pod(phase="Failed", target="PreemptionByScheduler", deleting=True, code=137), {}, Cause.PREEMPTED, FREE),
    ("eviction API", pod(phase="Failed", target="EvictionByEvictionAPI", deleting=True, code=75, said=SAVED), {}, Cause.EVICTED, FREE),
    ("taint manager, machine well", pod(target="DeletionByTaintManager", deleting=True, code=143), {}, Cause.EVICTED, FREE),
    ("taint manager, machine silent", pod(target="DeletionByTaintManager", deleting=True), {"gone": True, "machine_ready": False}, Cause.MACHINE_LOST, FREE),
    ("machine object gone", pod(phase="Failed", target="DeletionByPodGC", deleting=True), {}, Cause.MACHINE_LOST, FREE),
    ("machine shutdown", pod(phase="Failed", reason="Terminated", message="Pod was terminated in response to imminent node shutdown.", target="TerminationByKubelet", code=75, said=SAVED), {}, Cause.MACHINE_SHUTDOWN, FREE),
    ("machine pressure", pod(phase="Failed", reason="Evicted", message="The node was low on resource: memory.", target="TerminationByKubelet", code=137), {}, Cause.MACHINE_PRESSURE, FREE),
    ("kubelet's preemption for a critical pod", pod(phase="Failed", reason="Preempting", target="TerminationByKubelet"), {}, Cause.PREEMPTED, FREE),
    ("disruption announced, then an end of its own", pod(phase="Failed", target="PreemptionByScheduler", code=70, said={"exitCode": 70, "message": "told to exit", "workerMessage": "RuntimeError: x", "rank": 3}), {}, Cause.EXCEPTION, Class.COUNTED),
    # servers that do not
    ("1.20 preemption, with the scheduler's event", pod(deleting=True, code=75, said=SAVED), {"hints": frozenset({"Preempted"})}, Cause.PREEMPTED, FREE),
    ("1.20 taint manager, with its event", pod(deleting=True, code=143), {"hints": frozenset({"TaintManagerEviction"})}, Cause.EVICTED, FREE),
    ("1.20 taint manager, machine silent", pod(deleting=True), {"hints": frozenset({"TaintManagerEviction"}), "gone": True, "machine_ready": False}, Cause.MACHINE_LOST, FREE),
    ("1.20 eviction, drain or somebody's delete", pod(deleting=True, code=75, said=SAVED), {}, Cause.DELETED, FREE),
    ("1.20 machine shutdown", pod(phase="Failed", reason="Shutdown", message="Node is shutting, evicting pods"), {}, Cause.MACHINE_SHUTDOWN, FREE),
    ("1.20 machine lost", pod(phase="Failed", reason="NodeLost", message="Node n1 which was running pod is unresponsive"), {}, Cause.MACHINE_LOST, FREE),
    ("1.20 machine pressure", pod(phase="Failed", reason="Evicted", message="The node was low on resource: ephemeral-storage."), {}, Cause.MACHINE_PRESSURE, FREE),
    # deleted
    ("137 while being deleted", pod(deleting=True, code=137), {}, Cause.DELETED, FREE),
    ("143 while being deleted", pod(deleting=True, code=143), {}, Cause.DELETED, FREE),
    ("deleted by force: gone while running", pod(deleting=True), {"gone": True}, Cause.DELETED, FREE),
    ("gone without any notice", pod(), {"gone": True}, Cause.VANISHED, FREE),
    ("gone after it had ended", pod(phase="Failed", code=70, said={"exitCode": 70, "message": "x"}), {"gone": True}, Cause.EXCEPTION, Class.COUNTED),
    # killed from outside without a deletion
    ("137 out of nowhere", pod(phase="Failed", code=137), {}, Cause.MACHINE_UNHEALTHY, Class.MACHINE),
    ("143 out of nowhere", pod(phase="Failed", code=143), {}, Cause.MACHINE_UNHEALTHY, Class.MACHINE),
    ("SIGTERM from outside, saved", pod(phase="Failed", code=75, said=SAVED), {}, Cause.STOPPED, FREE),
    ("init container failed", unprepared(1, "no space left"), {}, Cause.BAD_CONFIG, Class.FINAL),
    ("the server of the code did not answer", unprepared(74, "git fetch: timed out"), {}, Cause.STORAGE_FAILED, Class.STORAGE),
    ("init container failed and left no word", unprepared(2), {}, Cause.BAD_CONFIG, Class.FINAL),
    ("deleted while the init container ran", unprepared(137, deleting=True), {}, Cause.DELETED, FREE),
    ("an init container of the job's own failed", unprepared(3, name="download"), {}, Cause.EXCEPTION, Class.COUNTED),
    ("preempted while one of the job's own failed", unprepared(3, name="download", target="PreemptionByScheduler", deleting=True), {}, Cause.PREEMPTED, FREE),
    ("preempted, and its init container obeyed", unprepared(143, name="download", target="PreemptionByScheduler", deleting=True), {}, Cause.PREEMPTED, FREE),
    ("an init container of the job's own was killed for memory", unprepared(137, why="OOMKilled", name="download"), {}, Cause.OUT_OF_MEMORY, Class.COUNTED),
    ("lost sight of the container", pod(phase="Failed", code=137, why="ContainerStatusUnknown", said="The container could not be located when the pod was terminated"), {}, Cause.MACHINE_LOST, FREE),
    # the pod's own limits
    ("killed for memory", pod(phase="Failed", code=137, why="OOMKilled"), {}, Cause.OUT_OF_MEMORY, Class.COUNTED),
    ("own emptyDir limit", pod(phase="Failed", reason="Evicted", message='Usage of EmptyDir volume "shm" exceeds the limit "1Gi".'), {}, Cause.LIMIT_EXCEEDED, Class.COUNTED),
    ("own storage limit", pod(phase="Failed", reason="Evicted", message="Pod ephemeral local storage usage exceeds the total limit of containers 1Gi.", code=137), {}, Cause.LIMIT_EXCEEDED, Class.COUNTED),
    # refused by kubelet
    ("admission: devices", pod(phase="Failed", reason="UnexpectedAdmissionError", message="Allocate failed"), {}, Cause.REJECTED, FREE),
    ("admission: no room", pod(phase="Failed", reason="OutOfnvidia.com/gpu", message="Node didn't have enough resource"), {}, Cause.REJECTED, FREE),
    ("admission: labels changed", pod(phase="Failed", reason="NodeAffinity"), {}, Cause.REJECTED, FREE),
    ("admission: shutting down", pod(phase="Failed", reason="NodeShutdown"), {}, Cause.MACHINE_SHUTDOWN, FREE),
    # the agent's own word
    ("completed", pod(phase="Succeeded", code=0, why="Completed", said={"exitCode": 0, "message": "told to exit"}), {}, Cause.COMPLETED, Class.COMPLETED),
    ("bad configuration", pod(phase="Failed", code=64, said={"exitCode": 64, "message": "m"}), {}, Cause.BAD_CONFIG, Class.FINAL),
    ("peer lost", pod(phase="Failed", code=72, said={"exitCode": 72}), {}, Cause.PEER_LOST, Class.COLLATERAL),
    ("storage", pod(phase="Failed", code=74, said={"exitCode": 74}), {}, Cause.STORAGE_FAILED, Class.STORAGE),
    ("ended, the phase not yet set", pod(code=70, said={"exitCode": 70}), {}, Cause.EXCEPTION, Class.COUNTED),
    # no agent
    ("no python3 in the image", pod(phase="Failed", code=128, why="StartError", said='exec: "python3": executable file not found in $PATH'), {}, Cause.BAD_CONFIG, Class.FINAL),
    ("the runtime fails", pod(phase="Failed", code=128, why="StartError", said="failed to create shim task"), {}, Cause.MACHINE_UNHEALTHY, Class.MACHINE),
    ("our code without our message", pod(phase="Failed", code=65), {}, Cause.BAD_DATA, Class.FINAL),
    ("a stranger's code", pod(phase="Failed", code=1), {}, Cause.EXCEPTION, Class.COUNTED),
    ("a message that is not ours", pod(phase="Failed", code=1, said="[1, 2]"), {}, Cause.EXCEPTION, Class.COUNTED),
]  # fmt: skip


@pytest.mark.parametrize(("body", "known", "cause", "klass"), [e[1:] for e in ENDS], ids=[e[0] for e in ENDS])
def test_the_end_has_its_cause_and_class(
    body: dict[str, Any], known: dict[str, Any], cause: Cause, klass: Class
) -> None:
    end = member_end(body, **{"gone": False, "first_sign": AT, **known})
    assert end is not None
    assert (end.cause, end.klass, end.at) == (cause, klass, AT)


@pytest.mark.parametrize(
    "body",
    [
        pod(),
        pod(deleting=True),
        pod(phase="Pending"),
        pod(target="PreemptionByScheduler"),
        pod(target="EvictionByEvictionAPI", deleting=True),
    ],
    ids=["running", "in its grace period", "pending", "announced only", "announced, in its grace period"],
)
def test_a_pod_whose_container_runs_has_not_ended(body: dict[str, Any]) -> None:
    assert member_end(body, gone=False, first_sign=AT) is None


def test_a_disruption_that_no_deletion_followed_says_nothing() -> None:
    end = member_end(pod(target="PreemptionByScheduler", code=137), gone=False, first_sign=AT)
    assert end is not None
    assert end.cause is Cause.MACHINE_UNHEALTHY


def test_the_workers_own_words_and_rank_are_the_message() -> None:
    said = {"exitCode": 70, "message": "told to exit", "workerMessage": "ValueError: no", "rank": 5}
    end = member_end(pod(code=70, said=said), gone=False, first_sign=AT)
    assert end is not None
    assert (end.message, end.rank, end.exit_code) == ("ValueError: no", 5, 70)


def test_a_view_names_slot_incarnation_and_machine() -> None:
    view = slot_view(pod(deleting=True), gone=False, first_sign=AT)
    assert view is not None
    assert (view.slot, view.incarnation, view.uid, view.machine, view.deleting, view.alive) == (
        1,
        2,
        "u",
        "n1",
        True,
        True,
    )


@pytest.mark.parametrize("name", ["web", "web-x-1", "web-1", "web-1-"])
def test_a_pod_that_is_not_named_as_ours_is_nobody(name: str) -> None:
    stranger = pod()
    stranger["metadata"]["name"] = name
    assert slot_view(stranger, gone=False, first_sign=AT) is None


@pytest.mark.parametrize(
    "reason", ["ImagePullBackOff", "ErrImagePull", "InvalidImageName", "CreateContainerConfigError"]
)
def test_an_image_that_cannot_be_pulled_is_a_reason_and_no_end(reason: str) -> None:
    body = pod(phase="Pending")
    waiting = {"waiting": {"reason": reason, "message": "m"}}
    body["status"]["containerStatuses"] = [{"name": "agent", "state": waiting}]
    pending = pending_reason(body)
    assert pending is not None
    assert pending.reason == reason
    assert member_end(body, gone=False, first_sign=AT) is None


def test_what_the_scheduler_says_is_passed_on() -> None:
    body = pod(phase="Pending")
    body["status"]["conditions"] = [
        {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3 nodes are available"}
    ]
    pending = pending_reason(body)
    assert pending is not None
    assert (pending.reason, pending.message) == ("Unschedulable", "0/3 nodes are available")
    assert pending_reason(pod()) is None


def test_a_pod_for_which_there_is_no_machine_says_since_when_and_whether_it_avoids_some() -> None:
    condition = {
        "type": "PodScheduled",
        "status": "False",
        "reason": "Unschedulable",
        "message": "0/3 nodes are available",
    }
    body = pod(phase="Pending")
    body["status"]["conditions"] = [{**condition, "lastTransitionTime": "2023-11-14T22:13:20Z"}]
    view = slot_view(body, gone=False, first_sign=AT)
    assert view is not None
    assert (view.unplaced_since, view.avoids) == (AT, False)

    body["spec"]["affinity"] = pods.pod_affinity(["n1"])["affinity"]
    avoiding = slot_view(body, gone=False, first_sign=AT)
    assert avoiding is not None
    assert avoiding.avoids

    for change in ({"status": "True"}, {"reason": "SchedulingGated"}):
        body["status"]["conditions"] = [{**condition, "lastTransitionTime": "2023-11-14T22:13:20Z", **change}]
        view = slot_view(body, gone=False, first_sign=AT)
        assert view is not None
        assert view.unplaced_since is None
