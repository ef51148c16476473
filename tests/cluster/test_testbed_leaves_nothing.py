"""A testbed that has ended, however it ended, cannot be told from one that never was. These tests start testbeds of their own."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from tests.testbed import Cluster, TestbedError, TestbedUnavailableError
from tests.testbed.building import base_image
from tests.testbed.cluster import bring_down, prepare
from tests.testbed.footprint import footprint
from tests.testbed.seed import seed
from tests.testbed.waiting import wait_for

pytestmark = pytest.mark.timeout(400)

REPOSITORY = Path(__file__).parents[2]

Footprint = dict[str, list[str]]
Runner = tuple[Footprint, subprocess.Popen[str]]

# A runner as a test session is one: starts the testbed, puts a pod on each machine, says so, and waits.
RUNNER = """
import json, signal, sys
from tests.testbed import Cluster
from tests.testbed.images import Image
from tests.testbed.waiting import wait_for
from pathlib import Path
reference, archive = sys.argv[1:]
cluster = Cluster.up(Image(reference, Path(archive)))
script = {"command": ["python3", "-c", "import signal; signal.pause()"], "image": reference, "name": "main"}
shm = {"name": "shm", "emptyDir": {"medium": "Memory"}}
for node in ("node-1", "node-2", "node-3"):
    container = script | {"volumeMounts": [{"name": "shm", "mountPath": "/dev/shm"}]}
    spec = {"nodeName": node, "containers": [container], "volumes": [shm]}
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": node}, "spec": spec}
    cluster.kubectl("apply", "-f-", stdin=json.dumps(pod))
def running():
    return [pod["status"]["phase"] for pod in cluster.get("pods")["items"]] == ["Running"] * 3
wait_for(running, 120, "three pods", 0.3)
print("running", flush=True)
signal.pause()
"""


@pytest.fixture
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    """(the footprint before, a runner whose testbed carries pods)."""
    if request.config.getoption("--cluster") != "testbed":
        pytest.skip("starts a testbed of its own: with --cluster=testbed only")
    if Cluster.running() is not None:
        pytest.skip("a testbed is running on this computer, and there can be one only: make cluster-down")
    try:
        prepare()
    except TestbedUnavailableError as reason:
        if os.environ.get("CI") == "true":
            raise
        pytest.skip(str(reason))
    seed(request.getfixturevalue("images"))  # who builds them beside these tests is not this one's either
    image = base_image()
    bring_down()  # what an earlier one left behind is not this one's
    before = footprint()
    command = [sys.executable, "-c", RUNNER, image.reference, str(image.archive)]
    with subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "running\n"
            during = footprint()
            assert {kind for kind in before if before[kind] != during[kind]} >= {
                "links",
                "namespaces",
                "cgroups",
                "processes",
            }
            yield before, process
        finally:
            process.kill()
            process.wait()
            wait_for(lambda: Cluster.running() is None, 60, "the end of the testbed")
            bring_down()


def supervisor_of(process: subprocess.Popen[str]) -> int:
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return next(
        int(pid) for pid in children if b"tests.testbed.supervisor" in Path(f"/proc/{pid}/cmdline").read_bytes()
    )


def differences(before: Footprint) -> dict[str, set[str]]:
    after = footprint()
    return {kind: set(before[kind]) ^ set(after[kind]) for kind in before if before[kind] != after[kind]}


def ends_with_nothing_left(before: Footprint, *, but: frozenset[str] = frozenset(), seconds: float = 60) -> None:
    with suppress(TestbedError):
        wait_for(lambda: differences(before).keys() <= but, seconds, "nothing left behind", 0.5)
    assert {kind: what for kind, what in differences(before).items() if kind not in but} == {}


def test_after_its_runner_was_killed(runner: Runner) -> None:
    before, process = runner
    process.kill()
    process.wait()
    ends_with_nothing_left(before)


def test_after_its_supervisor_was_killed_and_down_was_called(runner: Runner) -> None:
    before, process = runner
    os.kill(supervisor_of(process), signal.SIGKILL)
    # The kernel ends every process; it keeps the cgroups, and the link for as long as closed connections are tried to be told to peers.
    ends_with_nothing_left(before, but=frozenset({"cgroups", "links", "addresses", "routes"}))
    bring_down()
    ends_with_nothing_left(before)


def test_after_down(runner: Runner) -> None:
    before, _ = runner
    bring_down()
    ends_with_nothing_left(before)
