"""What the operator keeps of jobs and pods, in bytes: `python benchmarks/operator_memory.py [--jobs N] [--members M]`.

Objects are as a server of Kubernetes 1.36 sends them, managed fields and all; what stays of them is what lists and
watches put into the store, and what a round keeps of a job's spec. The chart's memory limit follows from the figures.
"""

import argparse
import copy
import gc
import json
import resource
import tracemalloc
from typing import Any

from relight_operator.api.validate import parse_job
from relight_operator.coordinator.mailbox import Mailbox
from relight_operator.kube import app, decode, slim, status  # app: all that the operator imports
from relight_operator.kube.names import Owner
from relight_operator.kube.pods import PodDefaults
from relight_operator.kube.spec import freeze
from relight_operator.kube.store import Store

assert app

CONFIG = {
    "model": {"type": "digits_cnn"},
    "data": {"type": "digits"},
    "train": {"duration": "15ep", "global_batch": 1024},
}


def job(number: int, members: int) -> dict[str, Any]:
    slots = [
        {"slot": i, "incarnation": 3, "uid": f"0f7c1a52-{number:04d}-4c1f-9d0e-{i:012d}", "machine": f"gpu-{number}-{i}", "state": "Running",
         "lastIncarnation": 3, "exit": {"incarnation": 2, "cause": "Preempted", "exitCode": 75, "message": "stopped", "time": 1.7e9}}
        for i in range(members)
    ]  # fmt: skip
    ranks = [
        {
            "rank": i,
            "slot": i,
            "uid": s["uid"],
            "address": f"10.1.{number % 250}.{i % 250}",
            "machine": s["machine"],
            "since": 1,
        }
        for i, s in enumerate(slots)
    ]
    told = {
        "phase": "Running", "slots": slots, "observedGeneration": 1, "readyNodes": members,
        "spec": {"hash": "a" * 64, "configMap": f"job-{number}-spec-aaaaaaaaaa"},
        "world": {"generation": 3, "runId": "r", "masterSlot": 0, "masterAddress": "10.1.1.1", "masterPort": 4000, "members": ranks},
        "progress": {"step": 1, "metrics": {"loss": "0.2"}},
        "conditions": [{"type": "PodsReady", "status": "True", "reason": "AllRunning", "lastTransitionTime": "2026-01-02T03:04:05Z"}],
    }  # fmt: skip
    return {
        "apiVersion": "relight.dev/v1alpha1", "kind": "TrainingJob",
        "metadata": {"name": f"job-{number}", "namespace": "ml", "uid": f"uid-{number}", "resourceVersion": "1", "generation": 1,
                     "creationTimestamp": "2026-01-02T03:04:05Z", "managedFields": [{"fieldsV1": {f"f:{i}": {} for i in range(80)}}]},
        "spec": {"nodes": members, "trainer": {"config": CONFIG}, "checkpoint": {"persistentVolumeClaim": {"claimName": "c"}}},
        "status": told,
    }  # fmt: skip


def pod(number: int, slot: int) -> dict[str, Any]:
    conditions = [
        {"type": t, "status": "True", "lastProbeTime": None, "lastTransitionTime": "2026-01-02T03:04:05Z"}
        for t in ("PodReadyToStartContainers", "Initialized", "Ready", "ContainersReady", "PodScheduled")
    ]
    container = {"name": "agent", "image": "trainer:1", "imageID": "sha256:" + "a" * 64, "containerID": "containerd://" + "b" * 64,
                 "ready": True, "started": True, "restartCount": 0, "state": {"running": {"startedAt": "2026-01-02T03:04:05Z"}}}  # fmt: skip
    return {
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": f"job-{number}-{slot}-3", "namespace": "ml", "uid": f"0f7c1a52-{number:04d}-4c1f-9d0e-{slot:012d}", "resourceVersion": "9",
            "labels": {"relight.dev/job": f"job-{number}", "relight.dev/slot": str(slot), "relight.dev/incarnation": "3"},
            "annotations": {"relight.dev/coordinator-ca": "CA" * 500}, "creationTimestamp": "2026-01-02T03:04:05Z",
            "ownerReferences": [Owner("ml", f"job-{number}", f"uid-{number}").reference()],
            "managedFields": [{"fieldsV1": {f"f:{i}": {"a": {}} for i in range(80)}}],
        },
        "spec": {"nodeName": f"gpu-{number}-{slot}", "containers": [{"name": "agent", "env": [{"name": f"E{i}", "value": "x"} for i in range(15)]}]},
        "status": {"phase": "Running", "podIP": "10.1.1.1", "hostIP": "10.0.0.1", "conditions": conditions, "containerStatuses": [container]},
    }  # fmt: skip


def read(body: dict[str, Any], keep: decode.Keep) -> Any:
    """As a list brings it in."""
    return decode.read(json.dumps({"items": [body]}).encode(), keep)["items"][0]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--jobs", type=int, default=200)
    parser.add_argument("--members", type=int, default=10)
    given = parser.parse_args()
    jobs, members = given.jobs, given.members
    print(f"the process alone: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB resident")
    store, kept = Store(), list[Any]()
    tracemalloc.start()

    def grown(what: str, count: int, before: int) -> None:
        gc.collect()
        print(f"{what}: {(tracemalloc.get_traced_memory()[0] - before) / count / 1024:.1f} KiB")

    gc.collect()
    before = tracemalloc.get_traced_memory()[0]
    for number in range(jobs):
        store.put_job(read(job(number, members), slim.job))
    grown(f"a job of {members} members in the store", jobs, before)
    before = tracemalloc.get_traced_memory()[0]
    for number in range(jobs):
        for slot in range(members):
            store.put_pod(read(pod(number, slot), slim.pod), 1.7e9)
    grown("a pod in the store", jobs * members, before)
    before = tracemalloc.get_traced_memory()[0]
    mailbox = Mailbox(lambda: 0.0, lambda _: None)
    for key, body in store.jobs().items():
        mailbox.publish(key, body["metadata"]["uid"], status.parse(body["status"]))
    grown("the status from which a job's agents are answered", jobs, before)
    before = tracemalloc.get_traced_memory()[0]
    for number in range(jobs):
        body = copy.deepcopy(job(number, members))
        del body["status"]
        parsed = parse_job(body)
        kept.append(
            (parsed, freeze(parsed, Owner("ml", f"job-{number}", f"uid-{number}"), PodDefaults(image="trainer:1")))
        )
    grown("a job's spec and its frozen one in the caches (bounded together)", jobs, before)


if __name__ == "__main__":
    main()
