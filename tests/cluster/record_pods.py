"""`python -m tests.cluster.record_pods`: brings pods to their end in every way the testbed knows, and writes down what its API
server said of them last, into tests/unit/golden/pods/. `unit/test_kube_recorded_pods.py` reads that.

The containers play agents: Python that ends as an agent does. Needs a testbed that runs (`make cluster`).
"""

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from tests.cluster import faults
from tests.cluster.relight import Job, waited_for
from tests.testbed import Cluster
from tests.testbed.building import base_image

FOLDER = Path(__file__).parents[1] / "unit/golden/pods"
NAMESPACE = "recorded"
SAVED = {"exitCode": 75, "cause": "Stopped", "message": "stopped at step 7, saved"}
FAILED = {"exitCode": 70, "cause": "Exception", "message": "told to exit", "workerMessage": "ValueError: x", "rank": 3}
DONE = {"exitCode": 0, "cause": "Completed", "message": "told to exit"}

IDLE = "import signal; signal.signal(15, lambda *_: 0)\nwhile True: signal.pause()"
STOPS = f"""
import signal, sys
def stop(*_):
    open("/dev/termination-log", "w").write({json.dumps(SAVED)!r}); sys.exit(75)
signal.signal(15, stop)
while True: signal.pause()
"""


def ends(code: int, said: dict[str, Any] | None) -> str:
    word = f"open('/dev/termination-log', 'w').write({json.dumps(said)!r})" if said else ""
    return f"import sys\n{word}\nsys.exit({code})"


class Case(NamedTuple):
    program: str | list[str] = STOPS
    act: Callable[[Job, str], None] | None = None  # once it runs
    undo: Callable[[Job, str], None] | None = None  # is given the machine
    spec: Mapping[str, Any] = MappingProxyType({})
    container: Mapping[str, Any] = MappingProxyType({})
    pending: bool = False  # it never runs: what it waits for is what counts


def limits(**amounts: str) -> dict[str, Any]:
    return {"resources": {"limits": {name.replace("_", "-"): amount for name, amount in amounts.items()}}}


def revive(job: Job, node: str) -> None:
    job.cluster.revive_machine(node)  # type: ignore[attr-defined]  # the testbed


def kill(job: Job, pod: str) -> None:
    uid = faults.manifest(job, pod)["metadata"]["uid"]
    os.kill(faults.first_process(f"RELIGHT_UID={uid}", "python3"), signal.SIGKILL)


def lose_machine(job: Job, pod: str) -> None:
    """The cluster marks the pod, and nobody is there to end it: the operator removes its object."""
    faults.kill_machine(job, pod)
    waited_for("the deletion", lambda: "deletionTimestamp" in faults.manifest(job, pod)["metadata"], 180)
    faults.delete_by_force(job, pod)


def uncordon(job: Job, node: str) -> None:
    job.cluster.kubectl("uncordon", node)


GPUS = {"resources": {"limits": {"nvidia.com/gpu": 8}}}
SOON = [
    {"key": f"node.kubernetes.io/{key}", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1}
    for key in ("not-ready", "unreachable")
]
FULL = "open('/full/file', 'wb').write(b'0' * 3000000); " + IDLE

CASES = {
    "completed": Case(ends(0, DONE)),
    "exception": Case(ends(70, FAILED)),
    "no-word": Case(ends(1, None)),
    "out-of-memory": Case("x = b'0' * 200_000_000", container=limits(memory="48Mi")),
    "no-such-program": Case(["no-such-program"]),
    "init-failed": Case(spec={"initContainers": [{"name": "install-agent", "command": ["sh", "-c", "echo no space; exit 3"], "terminationMessagePolicy": "FallbackToLogsOnError"}]}),
    "killed": Case(act=kill),
    "deleted-saved": Case(act=faults.delete),
    "deleted-deaf": Case(IDLE, act=faults.delete),
    "deleted-by-force": Case(act=faults.delete_by_force),
    "evicted-by-api": Case(act=faults.evict),
    "drained": Case(act=faults.drain, undo=uncordon),
    "preempted": Case(act=faults.preempt, container=GPUS),
    "machine-killed": Case(act=lose_machine, undo=revive, spec={"tolerations": SOON}),
    "own-limit": Case(FULL, spec={"volumes": [{"name": "full", "emptyDir": {"sizeLimit": "1Mi"}}]}, container={"volumeMounts": [{"name": "full", "mountPath": "/full"}]}),
    "rejected-gpus": Case(spec={"nodeName": "node-1"}, container={"resources": {"limits": {"nvidia.com/gpu": 9}}}),
    "rejected-affinity": Case(spec={"nodeName": "node-1", "nodeSelector": {"no": "such"}}),
    "image-missing": Case(container={"image": "relight.dev/no/such:1"}, pending=True),
    "image-name-wrong": Case(container={"image": "No Such"}, pending=True),
    "secret-missing": Case(container={"env": [{"name": "X", "valueFrom": {"secretKeyRef": {"name": "no-such", "key": "x"}}}]}, pending=True),
    "unschedulable": Case(container={"resources": {"limits": {"nvidia.com/gpu": 9}}}, pending=True),
}  # fmt: skip


def manifest(name: str, case: Case, image: str) -> dict[str, Any]:
    command = case.program if isinstance(case.program, list) else ["python3", "-c", case.program]
    uid = {"name": "RELIGHT_UID", "valueFrom": {"fieldRef": {"fieldPath": "metadata.uid"}}}
    own = {**case.container, "env": [uid, *case.container.get("env", ())]}
    spec = {"restartPolicy": "Never", "terminationGracePeriodSeconds": 2, **case.spec}
    for container in spec.get("initContainers", ()):
        container["image"] = image
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {**spec, "containers": [{"name": "agent", "image": image, "command": command, **own}]},
    }


class Sighted(NamedTuple):
    kind: str  # ADDED | MODIFIED | DELETED
    body: dict[str, Any]


@contextmanager
def watch(cluster: Cluster) -> Iterator[list[Sighted]]:
    """Everything the server says of the pods, as it comes."""
    path = f"/api/v1/namespaces/{NAMESPACE}/pods?watch=true"
    command = ["kubectl", f"--kubeconfig={cluster.kubeconfig}", "get", "--raw", path]
    seen: list[Sighted] = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=cluster._env) as process:
        assert process.stdout is not None

        def read() -> None:
            for line in process.stdout or ():
                event = json.loads(line)
                seen.append(Sighted(event["type"], event["object"]))

        reader = threading.Thread(target=read, daemon=True)
        reader.start()
        try:
            yield seen
        finally:
            process.terminate()
            reader.join()


def record(cluster: Cluster, name: str, case: Case, image: str, seen: list[Sighted]) -> dict[str, Any]:
    """What the server said last of this pod before its object went, and by which events it explains that."""
    job = Job(cluster, NAMESPACE, name)
    pod = f"{name}-0-0"

    def last() -> Sighted | None:
        return next((s for s in reversed(seen) if s.body["metadata"]["name"] == pod), None)

    def status() -> dict[str, Any]:
        found = last()
        return found.body.get("status", {}) if found else {}

    def over() -> bool:
        found = last()
        return found is not None and (found.kind == "DELETED" or status().get("phase") in {"Failed", "Succeeded"})

    def waits() -> bool:
        reasons = [
            c.get("state", {}).get("waiting", {}).get("reason", "") for c in status().get("containerStatuses", ())
        ]
        return any(
            c["status"] == "False" for c in status().get("conditions", ()) if c["type"] == "PodScheduled"
        ) or any(r not in {"", "ContainerCreating", "ErrImagePull"} for r in reasons)

    cluster.kubectl(
        "create", f"-n={NAMESPACE}", "--validate=false", "-f-", stdin=json.dumps(manifest(pod, case, image))
    )
    if case.pending:
        waited_for(f"{name}: a reason", waits, 60)
    elif case.act is None:
        waited_for(f"{name}: its end", over, 120)
    else:
        waited_for(f"{name}: running", lambda: status().get("phase") == "Running", 60)
        time.sleep(1)  # the program has begun, and handles signals
        node = faults.node_of(job, pod)
        try:
            case.act(job, pod)
            deletes = case.act is not kill
            waited_for(f"{name}: its end", lambda: (s := last()) and s.kind == "DELETED" if deletes else over(), 120)
        finally:
            if case.undo:
                case.undo(job, node)
    found = last()
    assert found is not None
    selected = ("events", f"-n={NAMESPACE}", f"--field-selector=involvedObject.name={pod}")
    events = (cluster.get(*selected) or {"items": []})["items"]
    return {"gone": found.kind == "DELETED", "events": sorted({e["reason"] for e in events}), "pod": clean(found.body)}


def clean(pod: dict[str, Any]) -> dict[str, Any]:
    """Without what says nothing about the end."""
    metadata = {k: v for k, v in pod["metadata"].items() if k in {
        "name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "deletionGracePeriodSeconds",
    }}  # fmt: skip
    spec = {k: v for k, v in pod["spec"].items() if k in {"nodeName", "restartPolicy", "terminationGracePeriodSeconds"}}
    return {"metadata": metadata, "spec": spec, "status": pod.get("status", {})}


def main() -> int:
    cluster = Cluster.running()
    if cluster is None:
        print("no testbed runs: make cluster", file=sys.stderr)
        return 1
    image = base_image()
    cluster.load_image(image)
    chosen = sys.argv[1:] or list(CASES)
    FOLDER.mkdir(parents=True, exist_ok=True)
    cluster.kubectl("create", "namespace", NAMESPACE)
    try:
        for name in chosen:
            with watch(cluster) as seen:
                found = record(cluster, name, CASES[name], image.reference, seen)
            (FOLDER / f"{name}.json").write_text(json.dumps(found, indent=1, sort_keys=True) + "\n")
            print(f"{name}: {found['pod']['status'].get('phase')}{', gone' if found['gone'] else ''}", flush=True)
    finally:
        cluster.kubectl("delete", "namespace", NAMESPACE, "--timeout=120s", check=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
