"""A raw pod -> what the core wants to know of it. Pure; tested on pods as servers from 1.20 on show them.

The agent's own word about an end (its termination message) comes first; only where it says "stopped", or nothing, does
the cluster say why. The condition `DisruptionTarget` is there from 1.26 on: without it the same ends are told apart by
`status.reason` and by hints, and where a server leaves neither (eviction on 1.20), the cause is `Deleted`.
"""

import datetime as dt
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from relight_agent.exits import CAUSE_CLASS, Cause, Class, ExitCode, exit_of
from relight_agent.files import clip
from relight_operator.api.template import OWN_INIT_CONTAINERS
from relight_operator.core.observed import AgentView, MemberEnd, SlotView
from relight_operator.kube import names

Pod = Mapping[str, Any]

KILLED = (137, 143)
_STOPPED = (ExitCode.STOPPED_SAVED, ExitCode.STOPPED_UNSAVED)

# The reason of the condition DisruptionTarget.
_DISRUPTIONS = {
    "PreemptionByScheduler": Cause.PREEMPTED,
    "PreemptionByKubeScheduler": Cause.PREEMPTED,  # 1.25's alpha spelling
    "EvictionByEvictionAPI": Cause.EVICTED,
    "DeletionByTaintManager": Cause.EVICTED,
    "DeletionByPodGC": Cause.MACHINE_LOST,
    "TerminationByKubelet": Cause.MACHINE_SHUTDOWN,  # unless status.reason says more
}
# `status.reason` of a failed pod, as kubelet and the node controllers write it.
_REASONS = {
    "Evicted": Cause.MACHINE_PRESSURE,
    "Terminated": Cause.MACHINE_SHUTDOWN,
    "Shutdown": Cause.MACHINE_SHUTDOWN,  # 1.20 and 1.21
    "NodeShutdown": Cause.MACHINE_SHUTDOWN,
    "Preempting": Cause.PREEMPTED,
    "NodeLost": Cause.MACHINE_LOST,
    "UnexpectedAdmissionError": Cause.REJECTED,
    "NodeAffinity": Cause.REJECTED,
    "TopologyAffinityError": Cause.REJECTED,
}
_REJECTED_PREFIX = "OutOf"  # OutOfcpu, OutOfnvidia.com/gpu ...
# The cluster's events about a deleted pod: they refine the cause and decide nothing.
_HINTS = {"Preempted": Cause.PREEMPTED, "TaintManagerEviction": Cause.EVICTED}
# Kubelet's, as it ends the containers of a pod that was deleted.
_KILLING = "Killing"
# An eviction for the pod's own limits says so in words only.
_OWN_LIMIT = ("exceeds the limit", "exceeds the total limit", "exceeded its local ephemeral storage limit")
_NO_START = ("ContainerCannotRun", "StartError")
_NOT_FOUND = ("executable file not found", "no such file or directory")

WAITING_FOR_A_PERSON = frozenset(
    {
        "ImagePullBackOff",
        "ErrImagePull",
        "ErrImageNeverPull",
        "InvalidImageName",
        "CreateContainerConfigError",
        "CreateContainerError",
        "CrashLoopBackOff",  # of a job's own sidecar: ours are started once
    }
)


@dataclass(frozen=True)
class PendingReason:
    """Why a pod that has not ended does not start either."""

    reason: str
    message: str


def slot_view(
    pod: Pod, *, gone: bool, first_sign: float, agent: AgentView | None = None, hints: frozenset[str] = frozenset(),
    machine_ready: bool = True, machine_leaving: bool = False,
) -> SlotView | None:  # fmt: skip
    """The member that `pod` is; None for one that is not named as ours. See `member_end` for the arguments.

    `machine_leaving`: its machine is announced to go. Names cannot be edited, labels can.
    """
    metadata = pod["metadata"]
    _, slot, incarnation = ["", "", *metadata["name"].rsplit("-", 2)][-3:]
    if not (slot.isdigit() and incarnation.isdigit()):
        return None
    told = _disruption(pod, gone=gone, hints=hints, machine_ready=machine_ready) if is_deleting(pod) else None
    leaving = told[0] if told is not None else Cause.MACHINE_LEAVING if machine_leaving else None
    address = pod.get("status", {}).get("podIP") or ""
    end = member_end(pod, gone=gone, first_sign=first_sign, hints=hints, machine_ready=machine_ready)
    if not address and end is None and not is_deleting(pod):
        agent = None  # heard before its pod's address was: nobody could meet it there
    return SlotView(
        slot=int(slot),
        incarnation=int(incarnation),
        uid=metadata["uid"],
        machine=pod.get("spec", {}).get("nodeName") or "",
        address=address,
        deleting=is_deleting(pod),
        leaving=leaving,
        gone_by=_gone_by(pod),
        end=end,
        agent=agent,
        unplaced_since=_unplaced_since(pod),
        avoids=_avoids(pod),
    )


def _gone_by(pod: Pod) -> float | None:
    """The end of its grace period, in unix seconds; None as long as nobody has deleted it."""
    told = pod["metadata"].get("deletionTimestamp")
    return dt.datetime.fromisoformat(told).timestamp() if told else None


def is_deleting(pod: Pod) -> bool:
    return pod["metadata"].get("deletionTimestamp") is not None


def has_ended(pod: Pod) -> bool:
    """No container of it runs any more, as its kubelet says (restartPolicy is Never)."""
    status = pod.get("status") or {}
    return status.get("phase") in {"Succeeded", "Failed"} or bool(_terminated(pod))


def member_end(
    pod: Pod, *, gone: bool, first_sign: float, hints: frozenset[str] = frozenset(), machine_ready: bool = True
) -> MemberEnd | None:
    """How the pod ended, None while it lives.

    `gone`: the object has been removed, and `pod` is what was last seen of it. `first_sign`: the unix second at which
    its end, or the deletion that led to it, was first seen. `hints`: reasons of events about it. `machine_ready`: its
    machine answers.
    """
    if not gone and not has_ended(pod):
        return None
    terminated = _terminated(pod)
    code = terminated.get("exitCode")
    said = _message(terminated)
    if said is not None:
        meaning, text = exit_of(said["exitCode"]), clip(str(said.get("message", "")))
        if said["exitCode"] in _STOPPED:
            outside = _disruption(pod, gone=gone, hints=hints, machine_ready=machine_ready)
            cause = outside[0] if outside else Cause.STOPPED
            return MemberEnd(cause, CAUSE_CLASS[cause], first_sign, said["exitCode"], text)
        rank = said.get("rank")
        worker = clip(str(said.get("workerMessage") or text))
        return MemberEnd(
            meaning.cause, meaning.klass, first_sign, said["exitCode"], worker, rank if isinstance(rank, int) else None
        )
    cause, klass, text = _without_a_word(pod, terminated, gone=gone, hints=hints, machine_ready=machine_ready)
    return MemberEnd(cause, klass, first_sign, code, clip(text))


def tells_why(hints: frozenset[str]) -> bool:
    """Whether these reasons of events name who ordered a pod's deletion."""
    return not hints.isdisjoint(_HINTS)


def unseen_end(hints: frozenset[str], now: float) -> MemberEnd | None:
    """How a pod ended that is gone and of which this operator has never seen more than its uid: what the cluster's
    events about it tell. None where they tell nothing.
    """
    for hint, cause in (*_HINTS.items(), (_KILLING, Cause.DELETED)):
        if hint in hints:
            return MemberEnd(cause, CAUSE_CLASS[cause], now, message="it went while no operator looked")
    return None


def pending_reason(pod: Pod) -> PendingReason | None:
    """Why the pod does not start, in the cluster's words, None where nothing is wrong with it."""
    status = pod.get("status") or {}
    if status.get("phase") != "Pending":
        return None
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") in WAITING_FOR_A_PERSON:
            return PendingReason(waiting["reason"], clip(str(waiting.get("message", ""))))
    for condition in status.get("conditions") or ():
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return PendingReason(condition.get("reason") or "Unschedulable", clip(str(condition.get("message", ""))))
    return None


def _avoids(pod: Pod) -> bool:
    """Whether it was made to stay away from machines by their names (kube/pods.py)."""
    node = ((pod.get("spec") or {}).get("affinity") or {}).get("nodeAffinity") or {}
    terms = (node.get("requiredDuringSchedulingIgnoredDuringExecution") or {}).get("nodeSelectorTerms") or ()
    return any(f.get("operator") == "NotIn" for term in terms for f in term.get("matchFields") or ())


def _unplaced_since(pod: Pod) -> float | None:
    """Since when the scheduler has found no machine for it, in unix seconds; None where it has one, or was not asked yet."""
    for condition in (pod.get("status") or {}).get("conditions") or ():
        if (condition.get("type"), condition.get("status")) == ("PodScheduled", "False"):
            told = condition.get("reason") == "Unschedulable" and condition.get("lastTransitionTime")
            return dt.datetime.fromisoformat(told).timestamp() if told else None
    return None


def _without_a_word(
    pod: Pod, terminated: Pod, *, gone: bool, hints: frozenset[str], machine_ready: bool
) -> tuple[Cause, Class, str]:
    """The cause where the agent left no message: it was killed, or never ran."""
    status = pod.get("status") or {}
    words = str(status.get("message") or "")
    preparing = None if terminated else _failed_init(pod)
    outside = _disruption(pod, gone=gone, hints=hints, machine_ready=machine_ready)
    if preparing is not None and preparing["name"] in OWN_INIT_CONTAINERS:
        if preparing["state"]["terminated"]["exitCode"] not in KILLED:
            return _not_prepared(preparing)
    elif preparing is not None and outside is None and (end := _not_prepared_by_itself(preparing)):
        return end
    code, why = terminated.get("exitCode"), terminated.get("reason") or ""
    if status.get("reason") == "Evicted" and any(w in words for w in _OWN_LIMIT):
        return _with_class(Cause.LIMIT_EXCEEDED, words)
    if why == "OOMKilled":
        return _with_class(Cause.OUT_OF_MEMORY, "killed for memory with all its processes: the container's limit")
    if code is not None and code not in KILLED:
        return _ended_by_itself(int(code), why, str(terminated.get("message") or ""))
    if outside is not None:
        return _with_class(outside[0], outside[1])
    if why == "ContainerStatusUnknown" or not terminated:
        return _with_class(Cause.MACHINE_LOST, words or "its machine lost sight of it")
    return _with_class(Cause.MACHINE_UNHEALTHY, f"killed from outside ({code}), and left no word")


def _ended_by_itself(code: int, why: str, words: str) -> tuple[Cause, Class, str]:
    if why in _NO_START:
        if any(w in words for w in _NOT_FOUND):
            return _with_class(Cause.BAD_CONFIG, f"the container cannot start: {words}")
        return _with_class(Cause.MACHINE_UNHEALTHY, f"the container cannot start: {words}")
    meaning = exit_of(code)
    return meaning.cause, meaning.klass, words or f"ended with {code} and left no word; see its log"


def _not_prepared(container: Pod) -> tuple[Cause, Class, str]:
    """By an init container of ours."""
    # A server of code that did not answer may answer the next one.
    code = container["state"]["terminated"]["exitCode"]
    cause = Cause.STORAGE_FAILED if code == ExitCode.STORAGE_FAILED else Cause.BAD_CONFIG
    return _with_class(cause, _said_by_init(container))


def _not_prepared_by_itself(container: Pod) -> tuple[Cause, Class, str] | None:
    """By an init container of the job's own: what it does may go right the next time. None where it was killed."""
    terminated = container["state"]["terminated"]
    if terminated.get("reason") == "OOMKilled":
        return _with_class(Cause.OUT_OF_MEMORY, f"init container {container['name']}: killed for memory, its limit")
    if terminated["exitCode"] in KILLED:
        return None
    return _with_class(Cause.EXCEPTION, _said_by_init(container))


def _said_by_init(container: Pod) -> str:
    terminated = container["state"]["terminated"]
    words = str(terminated.get("message") or "").strip() or f"ended with {terminated['exitCode']}; see its log"
    return f"init container {container['name']}: {words}"


def _disruption(pod: Pod, *, gone: bool, hints: frozenset[str], machine_ready: bool) -> tuple[Cause, str] | None:
    """Who took the pod away, and the words for it; None where nobody did."""
    status = pod.get("status") or {}
    reason, words = status.get("reason") or "", str(status.get("message") or "")
    if reason in _REASONS:
        return _REASONS[reason], words
    if reason.startswith(_REJECTED_PREFIX):
        return Cause.REJECTED, words
    deleting = is_deleting(pod)
    for condition in status.get("conditions") or ():
        # One that no deletion followed is taken back by the cluster, and means nothing.
        counts = deleting or gone or status.get("phase") == "Failed"
        if condition.get("type") == "DisruptionTarget" and condition.get("status") == "True" and counts:
            cause = _DISRUPTIONS.get(condition.get("reason", ""), Cause.DELETED)
            if condition.get("reason") == "DeletionByTaintManager" and not machine_ready:
                cause = Cause.MACHINE_LOST
            return cause, str(condition.get("message") or "")
    if deleting:
        for hint, cause in _HINTS.items():
            if hint in hints:
                return (Cause.MACHINE_LOST if cause is Cause.EVICTED and not machine_ready else cause), ""
        return (Cause.DELETED, "") if machine_ready else (Cause.MACHINE_LOST, "its machine does not answer")
    if gone:
        return Cause.VANISHED, "it is gone and left no word"
    return None


def _with_class(cause: Cause, text: str) -> tuple[Cause, Class, str]:
    return cause, CAUSE_CLASS[cause], text


def _terminated(pod: Pod) -> Pod:
    """The agent's container as it ended, empty while it has not."""
    for container in (pod.get("status") or {}).get("containerStatuses") or ():
        if container.get("name") == names.CONTAINER:
            terminated: Pod = (container.get("state") or {}).get("terminated") or {}
            return terminated
    return {}


def _failed_init(pod: Pod) -> Pod | None:
    """The init container that ended wrongly, for which the agent's was never started; one by itself before one killed."""
    wanted = (pod.get("spec") or {}).get("initContainers") or ()
    sidecars = {c.get("name") for c in wanted if c.get("restartPolicy") == "Always"}
    failed: list[Pod] = [
        container
        for container in (pod.get("status") or {}).get("initContainerStatuses") or ()
        if ((container.get("state") or {}).get("terminated") or {}).get("exitCode")
        and container.get("name") not in sidecars
    ]
    return min(failed, key=lambda c: c["state"]["terminated"]["exitCode"] in KILLED, default=None)


def _message(terminated: Pod) -> dict[str, Any] | None:
    """The agent's termination message; None for none, or for the words of somebody else."""
    try:
        value = json.loads(terminated.get("message") or "")
    except ValueError:
        return None
    if isinstance(value, dict) and isinstance(value.get("exitCode"), int):
        return value
    return None
