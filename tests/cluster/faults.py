"""What takes a member of a job away: each fault as a person, the cluster or the machine brings it about."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

from tests.cluster.relight import Job
from tests.testbed import Cluster

PRIORITY = "relight-test-high"


def delete(job: Job, pod: str) -> None:
    job.kubectl("delete", "pod", pod, "--wait=false")


def delete_by_force(job: Job, pod: str) -> None:
    job.kubectl("delete", "pod", pod, "--wait=false", "--force", "--grace-period=0")


def evict(job: Job, pod: str) -> None:
    metadata = {"name": pod, "namespace": job.namespace}
    # Servers from 1.22 on know policy/v1, older ones its beta only.
    served = job.cluster.kubectl("api-versions").split()
    version = "policy/v1" if "policy/v1" in served else "policy/v1beta1"
    body = json.dumps({"apiVersion": version, "kind": "Eviction", "metadata": metadata})
    path = f"/api/v1/namespaces/{job.namespace}/pods/{pod}/eviction"
    job.cluster.kubectl("create", "--raw", path, "-f", "-", stdin=body)


def preempt(job: Job, pod: str) -> None:
    """A pod of a higher priority wants the machine: the scheduler takes it from the member."""
    body = manifest(job, pod)
    priority = {
        "apiVersion": "scheduling.k8s.io/v1",
        "kind": "PriorityClass",
        "metadata": {"name": PRIORITY},
        "value": 1000,
    }
    container = {
        "name": "c",
        "image": body["spec"]["containers"][0]["image"],
        "command": ["sleep", "5"],
        "resources": {"limits": {"nvidia.com/gpu": 8}},
    }
    spec = {
        "priorityClassName": PRIORITY,
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 1,
        "nodeSelector": {"kubernetes.io/hostname": body["spec"]["nodeName"]},
        "containers": [container],
    }
    metadata = {"generateName": "high-", "namespace": job.namespace}
    job.cluster.kubectl("apply", "-f-", stdin=json.dumps(priority))
    high = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
    job.cluster.kubectl("create", "-f-", stdin=json.dumps(high))


def drain(job: Job, pod: str) -> None:
    """Everything on the member's machine is evicted, and nothing new goes there: `uncordon` it afterwards."""
    job.cluster.drain(node_of(job, pod))


def kill_process(job: Job, pod: str) -> None:
    """SIGKILL for the container's PID 1."""
    os.kill(agent_of(manifest(job, pod)["metadata"]["uid"]), signal.SIGKILL)


def kill_machine(job: Job, pod: str) -> None:
    assert isinstance(job.cluster, Cluster)
    job.cluster.kill_machine(node_of(job, pod))


def manifest(job: Job, pod: str) -> dict[str, Any]:
    body: dict[str, Any] | None = job.cluster.get("pod", pod, f"-n={job.namespace}")
    assert body is not None, f"no pod {pod}"
    return body


def node_of(job: Job, pod: str) -> str:
    return str(manifest(job, pod)["spec"]["nodeName"])


def agent_of(uid: str) -> int:
    """The pid, on this computer, of the PID 1 of a training pod on one of the testbed's machines.

    Raises ProcessLookupError where it does not run.
    """
    return first_process(f"RELIGHT_UID={uid}", "relight_agent")


def operator_of(pod: str) -> int:
    """The same of one of the operator's pods."""
    return first_process(f"POD_NAME={pod}", "relight_operator")


def first_process(variable: str, module: str) -> int:
    """The PID 1 of the container whose environment has `variable` and which runs `module`, as this computer numbers it."""
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            environment = (entry / "environ").read_bytes().split(b"\0")
            if variable.encode() not in environment or module.encode() not in (entry / "cmdline").read_bytes():
                continue
            inside = next(x for x in (entry / "status").read_text().splitlines() if x.startswith("NSpid:"))
        except OSError:
            continue
        if inside.split()[-1] == "1":
            return int(entry.name)
    raise ProcessLookupError(f"no {module} with {variable}")


def started_at(pid: int) -> float:
    """The CLOCK_MONOTONIC second at which the kernel started the process, to 10 ms."""
    line = Path(f"/proc/{pid}/stat").read_text()
    ticks = int(line[line.rindex(")") + 2 :].split()[19])
    since_boot = time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")
    return time.monotonic() - since_boot
