"""What a test may rely on in the testbed, each proved on it."""

import json
from collections.abc import Callable
from typing import Any

import pytest
from tests.testbed import Cluster, ExistingCluster, TestbedError
from tests.testbed.layout import GPUS_PER_NODE, NODES
from tests.testbed.waiting import wait_for

pytestmark = pytest.mark.timeout(300)

WEB = "import http.server as h, socketserver; h.SimpleHTTPRequestHandler.protocol_version='HTTP/1.0'; h.test(h.SimpleHTTPRequestHandler, port=8000)"
SLEEP = "import signal as s; s.pthread_sigmask(s.SIG_BLOCK, [s.SIGTERM]); s.sigwait([s.SIGTERM])"


def pod(name: str, image: str, program: str, **spec: Any) -> dict[str, Any]:
    container = {
        "name": "main",
        "image": image,
        "command": ["python3", "-uc", program],
        "imagePullPolicy": "IfNotPresent",
    }
    container |= spec.pop("container", {})
    labels = {"app": spec.pop("app", name)}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels},
        "spec": {"restartPolicy": "Never", "containers": [container], **spec},
    }


class Pods:
    """kubectl in the test's own namespace."""

    def __init__(self, cluster: ExistingCluster, namespace: str) -> None:
        self.cluster = cluster
        self.flag = f"--namespace={namespace}"
        self.namespace = namespace

    def apply(self, *objects: dict[str, Any]) -> None:
        self.cluster.kubectl(
            "apply", self.flag, "-f-", stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects})
        )

    def get(self, *words: str) -> Any:
        return self.cluster.get(self.flag, *words)

    def phase(self, name: str) -> str | None:
        found = self.get(f"pod/{name}")
        return found["status"].get("phase") if found else None

    def wait(self, name: str, phase: str, seconds: float = 60) -> dict[str, Any]:
        wait_for(lambda: self.phase(name) == phase, seconds, f"pod {name}: {phase}, is {self.phase(name)}", 0.2)
        found: dict[str, Any] = self.get(f"pod/{name}")
        return found

    def python(self, name: str, program: str) -> str:
        return self.cluster.kubectl("exec", self.flag, name, "--", "python3", "-c", program).strip()

    def status_of(self, name: str, url: str) -> str:
        return self.python(name, f"import urllib.request as u; print(u.urlopen('{url}', timeout=5).status)")


@pytest.fixture
def pods(cluster: ExistingCluster, namespace: str) -> Pods:
    return Pods(cluster, namespace)


def node_ready(cluster: ExistingCluster, name: str) -> str:
    conditions = cluster.get(f"node/{name}")["status"]["conditions"]
    return str(next(condition["status"] for condition in conditions if condition["type"] == "Ready"))


def becomes(cluster: ExistingCluster, name: str, *ready: str) -> Callable[[], bool]:
    return lambda: node_ready(cluster, name) in ready


def test_the_versions_are_those_of_kubernetes_1_20(testbed: Cluster) -> None:
    server = json.loads(testbed.kubectl("get", "--raw=/version"))
    assert (server["gitVersion"], server["major"], server["minor"]) == ("v1.20.2", "1", "20")
    machines = testbed.get("nodes")["items"]
    assert {
        machine["metadata"]["name"]: machine["status"]["nodeInfo"]["kubeletVersion"] for machine in machines
    } == dict.fromkeys(NODES, "v1.20.2")
    assert {machine["status"]["allocatable"]["nvidia.com/gpu"] for machine in machines} == {str(GPUS_PER_NODE)}


def test_pods_on_three_machines_reach_each_other_services_and_names(
    testbed: Cluster, pods: Pods, python_image: str
) -> None:
    names = [f"web-{node}" for node in NODES]
    pods.apply(
        *(
            pod(name, python_image, WEB, app="web", nodeName=node, hostname=name, subdomain="members")
            for name, node in zip(names, NODES, strict=True)
        ),
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "members"},
            "spec": {"clusterIP": "None", "selector": {"app": "web"}, "ports": [{"port": 8000}]},
        },
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": "web"},
            "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8000}]},
        },
    )
    running = {name: pods.wait(name, "Running") for name in names}
    addresses = {name: found["status"]["podIP"] for name, found in running.items()}
    assert [found["spec"]["nodeName"] for found in running.values()] == list(NODES)
    assert len(set(addresses.values())) == 3
    wait_for(lambda: "Serving HTTP" in testbed.kubectl("logs", pods.flag, names[2]), 30, "kubectl logs", 0.2)

    def endpoints() -> int:
        subsets = (pods.get("endpoints/members") or {}).get("subsets") or [{}]
        return len(subsets[0].get("addresses", []))

    wait_for(lambda: endpoints() == 3, 30, "endpoints of the Service", 0.2)
    for name in names:
        for address in addresses.values():
            assert pods.status_of(name, f"http://{address}:8000/") == "200"
    first = names[0]
    wait_for(lambda: "200" in testbed.kubectl(
        *("exec", pods.flag, first, "--", "python3", "-c"),
        "import urllib.request as u; print(u.urlopen('http://web/', timeout=2).status)", check=False,
    ), 30, "the Service by name")  # fmt: skip
    resolved = pods.python(
        first, "import socket; print(sorted(i[4][0] for i in socket.getaddrinfo('members', 0, type=1)))"
    )
    assert resolved == str(sorted(addresses.values()))
    one = pods.python(first, f"import socket; print(socket.gethostbyname('{names[1]}.members'))")
    assert one == addresses[names[1]]
    unknown = pods.python(
        first, "import socket\ntry: socket.gethostbyname('nobody.members')\nexcept OSError as e: print(e.errno)"
    )
    assert unknown == "-2"


def test_a_restricted_pod_runs_with_memory_for_shm_and_no_rights(
    cluster: ExistingCluster, pods: Pods, python_image: str
) -> None:
    program = "import os,pathlib; pathlib.Path('/dev/shm/x').write_text('1'); print(os.getuid(), os.path.exists('/var/run/secrets'))"
    pods.apply(
        pod(
            "restricted",
            python_image,
            program,
            automountServiceAccountToken=False,
            securityContext={"runAsNonRoot": True, "runAsUser": 10001, "fsGroup": 10001, "seccompProfile": {"type": "RuntimeDefault"}},
            volumes=[{"name": "shm", "emptyDir": {"medium": "Memory"}}],
            container={
                "securityContext": {
                    "allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]},
                },
                "volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}],
            },
        )
    )  # fmt: skip
    pods.wait("restricted", "Succeeded")
    assert cluster.kubectl("logs", pods.flag, "restricted").split() == ["10001", "False"]


def test_a_pod_reaches_the_api_server_with_its_service_account(
    cluster: ExistingCluster, pods: Pods, python_image: str
) -> None:
    folder = "/var/run/secrets/kubernetes.io/serviceaccount"
    program = f"""
import ssl, urllib.request as u
request = u.Request("https://kubernetes.default.svc/api", headers={{"Authorization": "Bearer " + open("{folder}/token").read()}})
print(u.urlopen(request, timeout=5, context=ssl.create_default_context(cafile="{folder}/ca.crt")).status)
"""
    pods.apply(pod("client", python_image, program))
    pods.wait("client", "Succeeded")
    assert cluster.kubectl("logs", pods.flag, "client").strip() == "200"


def test_a_projected_token_is_known_by_token_review(cluster: ExistingCluster, pods: Pods, python_image: str) -> None:
    audience = "relight.dev/coordinator"
    projected = {
        "sources": [{"serviceAccountToken": {"audience": audience, "path": "token", "expirationSeconds": 600}}]
    }
    pods.apply(
        pod(
            "agent",
            python_image,
            "print(open('/token/token').read())",
            volumes=[{"name": "token", "projected": projected}],
            container={"volumeMounts": [{"name": "token", "mountPath": "/token"}]},
        )
    )
    uid = pods.wait("agent", "Succeeded")["metadata"]["uid"]
    token = cluster.kubectl("logs", pods.flag, "agent").strip()

    def review(audiences: list[str]) -> dict[str, Any]:
        question = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenReview",
            "spec": {"token": token, "audiences": audiences},
        }
        answer = json.loads(cluster.kubectl("create", "-f-", "-o=json", stdin=json.dumps(question)))
        status: dict[str, Any] = answer["status"]
        return status

    status = review([audience])
    assert status["authenticated"] is True
    assert status["audiences"] == [audience]
    assert status["user"]["extra"]["authentication.kubernetes.io/pod-name"] == ["agent"]
    assert status["user"]["extra"]["authentication.kubernetes.io/pod-uid"] == [uid]
    assert not review(["somebody.else"]).get("authenticated")


def test_the_scheduler_preempts_by_priority_when_gpus_are_taken(
    testbed: Cluster, pods: Pods, python_image: str
) -> None:
    low, high = f"low-{pods.namespace}", f"high-{pods.namespace}"
    gpus = {"resources": {"limits": {"nvidia.com/gpu": str(GPUS_PER_NODE)}}}
    for name, value in ((low, 10), (high, 1000)):
        testbed.kubectl("create", "priorityclass", name, f"--value={value}")
    try:
        pods.apply(*(pod(f"low-{i}", python_image, SLEEP, container=gpus, priorityClassName=low) for i in range(3)))
        placed = {pods.wait(f"low-{i}", "Running")["spec"]["nodeName"] for i in range(3)}
        assert placed == set(NODES)
        pods.apply(pod("high", python_image, SLEEP, container=gpus, priorityClassName=high))
        pods.wait("high", "Running")
        left = [name for i in range(3) if pods.phase(name := f"low-{i}") == "Running"]
        assert len(left) == 2
        events = pods.get("events")["items"]
        assert [event["source"]["component"] for event in events if event["reason"] == "Preempted"] == [
            "default-scheduler"
        ]
    finally:
        testbed.kubectl("delete", "priorityclass", low, high)


@pytest.mark.timeout(400)
def test_a_killed_machine_is_not_ready_and_comes_back(testbed: Cluster, pods: Pods, python_image: str) -> None:
    name = NODES[2]
    pods.apply(pod("victim", python_image, SLEEP, nodeName=name), pod("other", python_image, SLEEP, nodeName=NODES[0]))
    victim, other = pods.wait("victim", "Running"), pods.wait("other", "Running")
    old_boot = testbed.get(f"node/{name}")["status"]["nodeInfo"]["bootID"]
    testbed.kill_machine(name)
    assert testbed.machines()[name] is None
    wait_for(becomes(testbed, name, "Unknown", "False"), 60, f"{name}: not Ready", 0.2)
    taints = {taint["key"] for taint in testbed.get(f"node/{name}")["spec"].get("taints", [])}
    assert "node.kubernetes.io/unreachable" in taints
    address = victim["status"]["podIP"]
    reached = pods.python(
        "other", f"import socket\ntry: socket.create_connection(('{address}', 1), 2)\nexcept OSError as e: print(e)"
    )
    assert "refused" not in reached  # there is nobody to refuse
    testbed.revive_machine(name)
    assert node_ready(testbed, name) == "True"
    found = testbed.get(f"node/{name}")["status"]
    assert found["allocatable"]["nvidia.com/gpu"] == str(GPUS_PER_NODE)
    assert found["nodeInfo"]["bootID"] != old_boot
    wait_for(lambda: pods.phase("victim") != "Running", 60, "the pod of the killed machine: not Running", 0.2)
    assert pods.get("pod/other")["metadata"]["uid"] == other["metadata"]["uid"]
    pods.apply(pod("new", python_image, "print('hello')", nodeName=name))
    pods.wait("new", "Succeeded")


@pytest.mark.timeout(400)
def test_a_partitioned_machine_goes_on_and_reaches_nobody(testbed: Cluster, pods: Pods, python_image: str) -> None:
    name = NODES[1]
    pods.apply(
        pod("cut", python_image, WEB, nodeName=name),
        pod("peer", python_image, SLEEP, nodeName=NODES[0]),
    )
    address = pods.wait("cut", "Running")["status"]["podIP"]
    pods.wait("peer", "Running")
    wait_for(lambda: "Serving" in testbed.kubectl("logs", pods.flag, "cut"), 30, "the server", 0.2)
    assert pods.status_of("peer", f"http://{address}:8000/") == "200"
    testbed.partition(name)
    try:
        with pytest.raises(TestbedError, match=r"timed out|No route|Errno"):
            pods.status_of("peer", f"http://{address}:8000/")
        wait_for(becomes(testbed, name, "Unknown"), 60, f"{name}: unreachable", 0.2)
        assert "http.server" in testbed.run_on(name, "ps", "-A", "-o", "args")
    finally:
        testbed.heal(name)
    wait_for(becomes(testbed, name, "True"), 60, f"{name}: Ready again", 0.2)
    wait_for(lambda: testbed.kubectl("exec", pods.flag, "cut", "--", "true", check=False) == "", 30, "kubectl exec")
    assert pods.status_of("peer", f"http://{address}:8000/") == "200"
    assert pods.get("pod/cut")["status"]["containerStatuses"][0]["restartCount"] == 0


@pytest.mark.timeout(200)
def test_a_drained_machine_is_empty_and_takes_nothing_new(testbed: Cluster, pods: Pods, python_image: str) -> None:
    name = NODES[0]
    pods.apply(pod("leaves", python_image, SLEEP, nodeName=name))
    pods.wait("leaves", "Running")
    try:
        testbed.drain(name)
        assert pods.get("pod/leaves") is None
        pods.apply(pod("next", python_image, SLEEP))
        assert pods.wait("next", "Running")["spec"]["nodeName"] != name
    finally:
        testbed.kubectl("uncordon", name)
    evictions = [
        event
        for event in testbed.audit_log()
        if event.get("objectRef", {}).get("subresource") == "eviction" and event["objectRef"].get("name") == "leaves"
    ]
    assert {(event["verb"], event["user"]["username"]) for event in evictions} == {("create", "admin")}


def test_helm_installs_and_removes(cluster: ExistingCluster, namespace: str, tmp_path: Any) -> None:
    chart = tmp_path / "chart"
    (chart / "templates").mkdir(parents=True)
    (chart / "Chart.yaml").write_text("apiVersion: v2\nname: probe\nversion: 0.1.0\n")
    (chart / "templates/map.yaml").write_text(
        "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: probe}\ndata: {a: b}\n"
    )
    cluster.helm("install", "probe", str(chart), f"--namespace={namespace}")
    assert cluster.get(f"--namespace={namespace}", "configmap/probe")["data"] == {"a": "b"}
    cluster.helm("uninstall", "probe", f"--namespace={namespace}")
    assert cluster.get(f"--namespace={namespace}", "configmap/probe") is None
