"""The process that owns a running cluster: starts it, kills and revives its machines when asked, and takes it all back at its end.

It ends on SIGTERM, which is what `down` sends, and when the process that wanted the cluster has ended, however that came about. Should the supervisor itself be
killed, the kernel ends the machines with it; the empty cgroups, the link and the files that are left then go with the next `up` or `down`.
"""

from __future__ import annotations

import argparse
import json
import os
import secrets
import select
import shutil
import signal
import socket
import struct
import sys
import traceback
import uuid
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.testbed import configs, host
from tests.testbed.binaries import Binaries, binaries
from tests.testbed.errors import TestbedError
from tests.testbed.layout import (
    CONTROL,
    CONTROL_ADDRESS,
    GPUS_PER_NODE,
    Node,
    kubeconfig_path,
    log_folder,
    nodes,
    run_folder,
)
from tests.testbed.pki import make_keys
from tests.testbed.seed import sow
from tests.testbed.shell import sh
from tests.testbed.waiting import wait_for

if TYPE_CHECKING:
    from collections.abc import Callable

    from tests.testbed.host import Machine

HERE = Path(__file__).parent


class Supervisor:
    """The machines, and what can be done to them."""

    def __init__(self, programs: Binaries, seed: Path, say: Callable[[str], None]) -> None:
        self.programs = programs
        self.seed = seed
        self.say = say
        self.nodes = {node.name: node for node in nodes()}
        self.machines: dict[str, Machine] = {}
        self.boots: dict[str, str] = {}
        self.secrets = run_folder() / "secrets"

    # --- up ---

    def up(self) -> None:
        host.hierarchies()
        host.remove_leftovers()
        shutil.rmtree(log_folder(), ignore_errors=True)
        for folder in (log_folder(), self.secrets):
            folder.mkdir(parents=True)
        run_folder().chmod(0o700)
        self.say("keys and configuration")
        self._write_secrets()
        self.say("machines")
        self._start_control()
        for node in self.nodes.values():
            node.folder.mkdir()
            sow(self.seed, node.folder / "containerd")
            self._start_node(node)
        self.say("API server")
        self._wait_for_api()
        self.say("nodes")
        for node in self.nodes.values():
            self._wait_for_node(node)
        wait_for(self._default_account, 30, "the default service account")

    def _write_secrets(self) -> None:
        make_keys(self.secrets)
        users = [
            configs.User("admin", secrets.token_hex(), ("system:masters",)),
            configs.User("system:kube-controller-manager", secrets.token_hex()),
            configs.User("system:kube-scheduler", secrets.token_hex()),
            configs.User("system:kube-proxy", secrets.token_hex()),
            # the name that Kubernetes' own role binding for DNS is made out to
            configs.User("system:serviceaccount:kube-system:kube-dns", secrets.token_hex()),
            *(configs.User(f"system:node:{name}", secrets.token_hex(), ("system:nodes",)) for name in self.nodes),
        ]
        (self.secrets / "tokens.csv").write_text(configs.token_file(users))
        (self.secrets / "audit-policy.json").write_text(configs.audit_policy())
        ca = (self.secrets / "ca.crt").read_bytes()
        for user in users:
            (self.secrets / f"{user.name.split(':')[-1]}.kubeconfig").write_text(configs.kubeconfig(user, ca))
        shutil.copy(self.secrets / "admin.kubeconfig", kubeconfig_path())

    def _start_control(self) -> None:
        folder = run_folder() / CONTROL
        folder.mkdir()
        dns = [sys.executable, str(HERE / "dns.py"), str(self.secrets / "kube-dns.kubeconfig"), CONTROL_ADDRESS]
        machine = self._start(CONTROL, folder, configs.control_daemons(folder, log_folder(), self.secrets, dns))
        host.lay_control_network(machine)
        self._go(machine)

    def _start_node(self, node: Node) -> None:
        (node.folder / "cni").mkdir(exist_ok=True)
        (node.folder / "cni/10-pods.conflist").write_text(configs.cni_config(node))
        (node.folder / "resolv.conf").write_text(f"nameserver {CONTROL_ADDRESS}\n")
        (node.folder / "kubelet.json").write_text(configs.kubelet_config(node, self.secrets))
        (node.folder / "containerd.toml").write_text(configs.containerd_config(node, self.programs.cni))
        host.make_cgroups(node.name)
        machine = self._start(node.name, node.folder, configs.node_daemons(node, self.secrets))
        others = [other for other in self.nodes.values() if other is not node]
        host.lay_node_network(self.machines[CONTROL], machine, node, others)
        self._go(machine)

    def _start(self, name: str, folder: Path, daemons: list[configs.Daemon]) -> Machine:
        self.boots[name] = str(uuid.uuid4())
        config = folder / "machine.json"
        config.write_text(
            json.dumps(
                {
                    "hostname": name,
                    "folder": str(folder),
                    "logs": str(log_folder()),
                    "boot_id": self.boots[name],
                    "machine_id": uuid.uuid5(uuid.NAMESPACE_DNS, name).hex,
                    "daemons": [asdict(daemon) for daemon in daemons],
                    "env": {"PATH": self.programs.path, "HOME": str(folder), "TMPDIR": "/tmp"},
                },
                indent=1,
            )
        )
        program = [sys.executable, str(HERE / "machine.py"), str(config)]
        self.machines[name] = host.start_machine(name, program, log_folder() / f"{name}.log")
        return self.machines[name]

    @staticmethod
    def _go(machine: Machine) -> None:
        assert machine.launcher.stdin is not None
        machine.launcher.stdin.write(b"go\n")
        machine.launcher.stdin.flush()

    def kubectl(self, *words: str, check: bool = True) -> str:
        program = self.programs.clients / "kubectl"
        return sh(program, f"--kubeconfig={kubeconfig_path()}", *words, check=check, timeout=60)

    def _wait_for_api(self) -> None:
        wait_for(lambda: self.kubectl("get", "--raw=/readyz", check=False) == "ok", 60, "the API server", 0.3)

    def _default_account(self) -> bool:
        return bool(
            self.kubectl("-n=default", "get", "serviceaccount/default", "--ignore-not-found", "-o=jsonpath={.secrets}")
        )

    def _wait_for_node(self, node: Node) -> None:
        """Waits until the node is Ready since its last boot and has its GPUs."""
        gpu = "nvidia.com~1gpu"
        patch = [
            {"op": "add", "path": f"/status/{kind}/{gpu}", "value": str(GPUS_PER_NODE)}
            for kind in ("capacity", "allocatable")
        ]

        def complete() -> bool:
            found = self.kubectl("get", f"node/{node.name}", "--ignore-not-found", "-o=json")
            status = json.loads(found)["status"] if found else {}
            if status.get("nodeInfo", {}).get("bootID") != self.boots[node.name]:
                return False
            ready = {condition["type"]: condition["status"] for condition in status.get("conditions", [])}.get("Ready")
            if status.get("allocatable", {}).get("nvidia.com/gpu") == str(GPUS_PER_NODE):
                return ready == "True"
            # A kubelet that starts sets to nought what it does not know; it keeps what is written after that.
            if ready == "True":
                self.kubectl(
                    "patch", f"node/{node.name}", "--subresource=status", "--type=json", f"--patch={json.dumps(patch)}"
                )
            return False

        wait_for(complete, 90, f"{node.name}: Ready", 0.3)

    # --- what a client may ask ---

    def status(self) -> dict[str, Any]:
        return {
            "kubeconfig": str(kubeconfig_path()),
            "path": self.programs.path,
            "machines": {name: machine.pid if machine.alive else None for name, machine in self.machines.items()},
        }

    def kill(self, name: str) -> None:
        self._machine(name).kill()

    def revive(self, name: str) -> None:
        if self._machine(name).alive:
            raise TestbedError(f"{name} is running")
        self._start_node(self.nodes[name])
        self._wait_for_node(self.nodes[name])

    def partition(self, name: str) -> None:
        self._machine(name)
        host.plug(self.machines[CONTROL], self.nodes[name], connected=False)

    def heal(self, name: str) -> None:
        self._machine(name)
        host.plug(self.machines[CONTROL], self.nodes[name], connected=True)

    def _machine(self, name: str) -> Machine:
        if name not in self.nodes:
            raise TestbedError(f"no machine {name!r}; there are {', '.join(self.nodes)}")
        return self.machines[name]

    def down(self) -> None:
        for machine in self.machines.values():
            machine.kill()
        host.remove_leftovers()

    def answer(self, request: dict[str, Any]) -> Any:
        if request["do"] == "status":
            return self.status()
        actions = {"kill": self.kill, "revive": self.revive, "partition": self.partition, "heal": self.heal}
        if request["do"] not in actions:
            raise TestbedError(f"cannot {request['do']!r}")
        actions[request["do"]](request["machine"])
        return None


def serve(supervisor: Supervisor, listener: socket.socket, owner: int | None) -> None:
    """Answers clients, one at a time, until the owner has ended."""
    watched: list[Any] = [listener, *([owner] if owner is not None else [])]
    while True:
        readable, _, _ = select.select(watched, [], [])
        if owner in readable:
            return
        connection, _ = listener.accept()
        with suppress(OSError), connection, connection.makefile("rwb") as stream:
            connection.settimeout(10)
            if peer_uid(connection) != os.geteuid():
                continue
            line = stream.readline()
            try:
                reply: dict[str, Any] = {"ok": supervisor.answer(json.loads(line))}
            except (TestbedError, OSError, KeyError, TypeError, ValueError) as error:
                reply = {"error": f"{type(error).__name__}: {error}"}
            stream.write(json.dumps(reply).encode() + b"\n")


class StoppedError(BaseException):
    """A signal asked this process to end."""


def peer_uid(connection: socket.socket) -> int:
    """An abstract socket has no file permissions: whoever connects is asked for by the kernel's word."""
    _, uid, _ = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(uid)


def main() -> int:
    arguments = argparse.ArgumentParser()
    arguments.add_argument("--owner", type=int, help="end when this process has ended")
    arguments.add_argument(
        "--seed", type=Path, required=True, help="the containerd folder that every machine starts from"
    )
    chosen = arguments.parse_args()
    try:
        with host.the_only_one() as listener:
            own(chosen, listener)
    except StoppedError:
        return 0
    except (TestbedError, OSError) as error:
        with suppress(OSError):
            traceback.print_exc()
            print(f"error: {error}", flush=True)
        return 1
    return 0


def own(chosen: argparse.Namespace, listener: socket.socket) -> None:
    """One cluster, from its start to its end."""
    owner = os.pidfd_open(chosen.owner) if chosen.owner else None
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    supervisor = Supervisor(binaries(), chosen.seed, lambda line: print(line, flush=True))
    try:
        supervisor.up()
        print("ready", flush=True)
        log = os.open(log_folder() / "supervisor.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        serve(supervisor, listener, owner)
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        supervisor.down()


def stop(*_: object) -> None:
    raise StoppedError


if __name__ == "__main__":
    sys.exit(main())
