"""What the testbed does to this computer: machines (processes in namespaces of their own), links, cgroups; and taking it back."""

from __future__ import annotations

import ctypes
import os
import shutil
import signal
import socket
import subprocess
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from tests.testbed.errors import TestbedError, TestbedUnavailableError
from tests.testbed.layout import CGROUP, CONTROL_ADDRESS, HOST_ADDRESS, HOST_LINK, POD_RANGE, SOCKET, Node, run_folder
from tests.testbed.shell import sh
from tests.testbed.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Iterator

CGROUPS = Path("/sys/fs/cgroup")
PR_SET_PDEATHSIG = 1
libc = ctypes.CDLL(None, use_errno=True)


@dataclass
class Machine:
    """A running machine. `pid` is that of its PID 1, seen from this computer."""

    name: str
    launcher: subprocess.Popen[bytes]
    pid: int

    def inside(self, *argv: str | Path, stdin: str | None = None) -> str:
        return sh(*enter(self.pid), *argv, stdin=stdin)

    def kill(self) -> None:
        """As a power cut: everything on the machine ends at once."""
        with suppress(ProcessLookupError):
            os.kill(self.pid, signal.SIGKILL)
        self.launcher.wait(timeout=30)

    @property
    def alive(self) -> bool:
        return self.launcher.poll() is None


def enter(pid: int) -> list[str]:
    """The words before a command that has to run on the machine whose PID 1 is `pid`."""
    return ["nsenter", f"--target={pid}", "--mount", "--net", "--uts", "--ipc", "--pid"]


def die_with_parent() -> None:
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def start_machine(name: str, program: list[str], log: Path) -> Machine:
    """Starts PID 1 of a machine in new namespaces. It ends when this process does. Call it in the main thread only."""
    words = ["unshare", "--mount", "--net", "--uts", "--ipc", "--pid", "--mount-proc", "--fork", "--kill-child", "--"]
    with log.open("ab") as file:
        launcher = subprocess.Popen(
            [*words, *program],
            stdin=subprocess.PIPE,
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=die_with_parent,  # noqa: PLW1509 (no other thread exists in the supervisor)
        )
    children = Path(f"/proc/{launcher.pid}/task/{launcher.pid}/children")
    wait_for(lambda: launcher.poll() is not None or children.read_text().split(), 10, f"{name}: PID 1")
    if launcher.poll() is not None:
        raise TestbedUnavailableError(f"unshare: this computer gives no namespaces: {log.read_text()[-500:]}")
    return Machine(name, launcher, int(children.read_text().split()[0]))


@contextmanager
def the_only_one() -> Iterator[socket.socket]:
    """Holds SOCKET, which one process of this computer can have; clients may connect and are heard later.

    Raises TestbedError while another has it.
    """
    with socket.socket(socket.AF_UNIX) as listener:
        try:
            listener.bind(SOCKET)
        except OSError as error:
            raise TestbedError("a testbed is running or starting already on this computer") from error
        listener.listen()
        yield listener


# --- network: a switch in the control machine, one port for each node and one for this computer ---


def lay_control_network(control: Machine) -> None:
    control.inside("ip", "link", "set", "lo", "up")
    control.inside("ip", "link", "add", "switch", "type", "bridge")
    control.inside("ip", "address", "add", f"{CONTROL_ADDRESS}/24", "dev", "switch")
    control.inside("ip", "link", "set", "switch", "up")
    control.inside("sysctl", "-qw", "net.ipv4.ip_forward=1")
    sh("ip", "link", "add", HOST_LINK, "type", "veth", "peer", "name", "host", "netns", str(control.pid))
    control.inside("ip", "link", "set", "host", "master", "switch", "up")
    sh("ip", "address", "add", f"{HOST_ADDRESS}/24", "dev", HOST_LINK)
    sh("ip", "link", "set", HOST_LINK, "up")
    sh("ip", "route", "add", POD_RANGE, "via", CONTROL_ADDRESS)


def lay_node_network(control: Machine, machine: Machine, node: Node, others: list[Node]) -> None:
    """Plugs the machine into the switch and tells it and the control machine who carries which pods."""
    sh(
        *("ip", "link", "add", "eth0", "netns", str(machine.pid), "type", "veth"),
        *("peer", "name", node.name, "netns", str(control.pid)),
    )
    commands = [
        "link set lo up",
        f"address add {node.address}/24 dev eth0",
        "link set eth0 up",
        f"route add default via {CONTROL_ADDRESS}",
        *(f"route add {other.pods} via {other.address}" for other in others),
    ]
    machine.inside("ip", "-batch", "-", stdin="\n".join(commands))
    machine.inside("sysctl", "-qw", "net.ipv4.ip_forward=1")
    control.inside("ip", "link", "set", node.name, "master", "switch", "up")
    control.inside("ip", "route", "replace", node.pods, "via", node.address)


def plug(control: Machine, node: Node, connected: bool) -> None:
    """Pulls the machine's network cable, or puts it back."""
    control.inside("ip", "link", "set", node.name, "up" if connected else "down")
    if connected:
        control.inside("ip", "route", "replace", node.pods, "via", node.address)


# --- cgroups ---


def hierarchies() -> list[Path]:
    """The cgroup v1 hierarchies. Raises TestbedUnavailableError where there are none."""
    found = [path for path in sorted(CGROUPS.iterdir()) if path.is_dir() and not path.is_symlink()]
    v1 = [path for path in found if (path / "cgroup.clone_children").exists()]
    if not any(path.name == "memory" for path in v1):
        raise TestbedUnavailableError(
            "the testbed's kubelets (Kubernetes 1.20) run on cgroup v1 only, and this computer has none; use --cluster=existing with a cluster of yours"
        )
    return v1


def make_cgroups(name: str) -> None:
    for hierarchy in hierarchies():
        for path in (hierarchy / CGROUP, hierarchy / CGROUP / name):
            path.mkdir(exist_ok=True)
            for setting in ("cpuset.cpus", "cpuset.mems"):
                if (path / setting).exists():
                    (path / setting).write_text((path.parent / setting).read_text())


def remove_cgroups() -> None:
    """Ends what still runs in the testbed's cgroups, and removes them."""
    roots = [path for path in CGROUPS.glob(f"*/{CGROUP}") if path.is_dir()]

    def gone() -> bool:
        for root in roots:
            for folder, _, _ in os.walk(root, topdown=False):
                with suppress(OSError):
                    for pid in (Path(folder) / "cgroup.procs").read_text().split():
                        os.kill(int(pid), signal.SIGKILL)
                with suppress(OSError):
                    Path(folder).rmdir()
        return not any(root.exists() for root in roots)

    wait_for(gone, 30, f"removing the cgroups {CGROUP}")


def remove_leftovers() -> None:
    """Takes back everything that is not gone with the machines themselves. Harmless when there is nothing."""
    remove_cgroups()
    sh("ip", "link", "delete", HOST_LINK, check=False)
    if run_folder().exists():
        shutil.rmtree(run_folder())
