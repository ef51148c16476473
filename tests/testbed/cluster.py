"""The cluster as a test sees it."""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import struct
import subprocess
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from tests.testbed.binaries import binaries
from tests.testbed.cache import cache_root
from tests.testbed.errors import TestbedError, TestbedUnavailableError
from tests.testbed.host import enter, hierarchies, remove_leftovers, the_only_one
from tests.testbed.images import pause_image
from tests.testbed.layout import NODES, SOCKET, log_folder
from tests.testbed.packages import install_packages
from tests.testbed.seed import seed
from tests.testbed.shell import sh

if TYPE_CHECKING:
    from collections.abc import Iterator

    from tests.testbed.images import Image

REPOSITORY = Path(__file__).parents[2]


class ExistingCluster:
    """Any cluster that a kubeconfig names: what can be done to it with kubectl and Helm."""

    def __init__(self, kubeconfig: Path, path: str | None = None) -> None:
        self.kubeconfig = kubeconfig
        self._env = os.environ | {"KUBECONFIG": str(kubeconfig)} | ({"PATH": path} if path else {})

    def kubectl(self, *words: str | Path, stdin: str | None = None, check: bool = True, timeout: float = 120) -> str:
        """Runs kubectl and returns its stdout. Raises TestbedError with what it said when it fails and `check` is set."""
        return sh("kubectl", *words, env=self._env, stdin=stdin, check=check, timeout=timeout)

    def helm(self, *words: str | Path, check: bool = True, timeout: float = 300) -> str:
        """Runs Helm and returns its stdout. Raises TestbedError with what it said when it fails and `check` is set."""
        return sh("helm", *words, env=self._env, check=check, timeout=timeout)

    def get(self, *words: str) -> Any:
        """The JSON object that `kubectl get WORDS -o json` prints, or None when there is no such object."""
        found = self.kubectl("get", *words, "--ignore-not-found", "-o=json")
        return json.loads(found) if found else None

    def drain(self, name: str) -> None:
        """Evicts what runs on the machine and lets nothing new on it."""
        self.kubectl("drain", name, "--ignore-daemonsets", "--delete-emptydir-data", "--force", timeout=300)


class Cluster(ExistingCluster):
    """The testbed: three machines with kubelets and a control machine, on this computer."""

    @classmethod
    def up(cls, *images: Image, keep: bool = False) -> Self:
        """Starts the testbed and waits until its machines are ready; they have `images` from the start.

        It ends with `down()`, and with this process unless `keep` is set.
        Raises TestbedUnavailableError where this computer cannot carry it, TestbedError when it does not start.
        """
        prepare()
        command = [sys.executable, "-m", "tests.testbed.supervisor", f"--seed={seed(images)}"]
        if not keep:
            command.append(f"--owner={os.getpid()}")
        with subprocess.Popen(
            command, cwd=REPOSITORY, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True, text=True,
        ) as supervisor:  # fmt: skip
            assert supervisor.stdout is not None
            said = []
            for line in supervisor.stdout:
                said.append(line)
                if line == "ready\n":
                    break
            supervisor.stdout.close()
            if said[-1:] != ["ready\n"]:
                supervisor.wait()
                raise TestbedError(f"the testbed did not start (logs: {log_folder()}):\n{''.join(said)}")
            supervisor.returncode = 0  # it goes on without us: nothing to wait for here
        running = cls.running()
        assert running is not None
        return running

    @classmethod
    def running(cls) -> Self | None:
        """The testbed that runs on this computer, if one does; one that is starting is waited for."""
        try:
            status = _ask({"do": "status"})
        except ConnectionError:
            return None
        return cls(Path(status["kubeconfig"]), status["path"])

    def down(self) -> None:
        """Ends the testbed and takes back everything it did to this computer."""
        bring_down()

    def machines(self) -> dict[str, int | None]:
        """Each machine with the pid of its PID 1 on this computer, None when it is dead."""
        found: dict[str, int | None] = _ask({"do": "status"})["machines"]
        return found

    def kill_machine(self, name: str) -> None:
        """Kubelet, containerd and every container of the machine end at once; its disk stays."""
        _ask({"do": "kill", "machine": name})

    def revive_machine(self, name: str) -> None:
        """Starts a killed machine again and waits until it is Ready."""
        _ask({"do": "revive", "machine": name})

    def partition(self, name: str) -> None:
        """Cuts the machine off: everything on it goes on running, and reaches nobody."""
        _ask({"do": "partition", "machine": name})

    def heal(self, name: str) -> None:
        """Ends a partition."""
        _ask({"do": "heal", "machine": name})

    def load_image(self, image: Image) -> None:
        """Imports an image into every machine that is up and does not have it yet.

        Each machine unpacks it: minutes for gigabytes. What is known before goes to `up`, where it is unpacked once.
        """
        imports = []
        for name, pid in self.machines().items():
            if name not in NODES or pid is None:
                continue
            ctr = [*enter(pid), "ctr", "-n=k8s.io", "images"]
            if image.reference not in sh(*ctr, "list", "-q", env=self._env).split():
                imports.append(
                    subprocess.Popen(
                        [*ctr, "import", str(image.archive)],
                        env=self._env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                    )
                )  # fmt: skip
        ends = [(process.communicate()[0], process.returncode) for process in imports]
        for said, status in ends:
            if status != 0:
                raise TestbedError(f"importing {image.archive}: {said[-2000:]}")

    def run_on(self, name: str, *words: str | Path) -> str:
        """Runs a program on a machine, `control` included, and returns its stdout."""
        pid = self.machines()[name]
        if pid is None:
            raise TestbedError(f"{name} is dead")
        return sh(*enter(pid), *words, env=self._env)

    def audit_log(self) -> list[dict[str, Any]]:
        """The API server's audit events (audit.k8s.io/v1, level Metadata) so far, oldest first."""
        # full ones are put away as audit-<when>.log, which sorts before audit.log
        lines = [line for log in sorted(log_folder().glob("audit*.log")) for line in log.read_text().splitlines()]
        events = []
        for line in lines:
            with suppress(ValueError):  # the last line may be half written
                events.append(json.loads(line))
        return events


def prepare() -> None:
    """Installs and builds what is missing. Raises TestbedUnavailableError where this computer cannot carry the testbed."""
    if sys.platform != "linux":
        raise TestbedUnavailableError("the testbed runs on Linux only; use --cluster=existing with a cluster of yours")
    if os.geteuid() != 0:
        raise TestbedUnavailableError("the testbed needs root; use --cluster=existing with a cluster of yours")
    taken = [folder for folder in ("/run", "/var/lib", "/var/log") if cache_root().resolve().is_relative_to(folder)]
    if taken:
        raise TestbedUnavailableError(f"RELIGHT_TESTBED_CACHE={cache_root()}: machines have a {taken[0]} of their own")
    hierarchies()
    install_packages()
    binaries()
    pause_image()


def bring_down() -> None:
    """Ends the testbed, if one runs or is starting, and removes what one that was killed left behind."""
    try:
        with _connection() as connection:
            pid, _, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            supervisor = os.pidfd_open(pid)
    except ConnectionRefusedError:
        with the_only_one():
            remove_leftovers()
        return
    try:
        signal.pidfd_send_signal(supervisor, signal.SIGTERM)
        ended, _, _ = select.select([supervisor], [], [], 120)
    finally:
        os.close(supervisor)
    if not ended:
        raise TestbedError(f"the testbed's supervisor (pid {pid}) does not end; see {log_folder()}/supervisor.log")


@contextmanager
def _connection() -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.connect(SOCKET)
        yield connection


def _ask(request: dict[str, Any]) -> Any:
    with _connection() as connection, connection.makefile("rwb") as stream:
        stream.write(json.dumps(request).encode() + b"\n")
        stream.flush()
        reply = json.loads(stream.readline() or b'{"error": "the supervisor has ended"}')
    if "error" in reply:
        raise TestbedError(reply["error"])
    return reply["ok"]
