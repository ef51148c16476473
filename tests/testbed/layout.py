"""Names and addresses of the testbed's machines: private networks behind one link of this computer."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.testbed.cache import cache_root
from tests.testbed.errors import TestbedError

if TYPE_CHECKING:
    from pathlib import Path

# A computer can carry several testbeds, told apart by this number: each has addresses, names and a folder of its own.
INSTANCE = int(os.environ.get("RELIGHT_TESTBED_INSTANCE", "0"))
if not 0 <= INSTANCE <= 9:
    raise TestbedError(f"RELIGHT_TESTBED_INSTANCE={INSTANCE}: from 0 to 9")
SUFFIX = f"-{INSTANCE}" if INSTANCE else ""
PODS, MACHINES, SERVICES = (f"10.{200 + 3 * INSTANCE + i}" for i in range(3))

NODES = ("node-1", "node-2", "node-3")
CONTROL = "control"
HOST_LINK = f"relight-tb{SUFFIX}"
HOST_ADDRESS = f"{MACHINES}.0.254"
CONTROL_ADDRESS = f"{MACHINES}.0.1"
API_PORT = 6443
API_URL = f"https://{CONTROL_ADDRESS}:{API_PORT}"
POD_RANGE = f"{PODS}.0.0/16"
SERVICE_RANGE = f"{SERVICES}.0.0/16"
API_SERVICE_ADDRESS = f"{SERVICES}.0.1"
CLUSTER_DOMAIN = "cluster.local"
GPUS_PER_NODE = 8
CGROUP = f"relight-testbed{SUFFIX}"
PAUSE_IMAGE = "relight.dev/testbed/pause:1"
SOCKET = (
    f"\0relight-testbed{SUFFIX}"  # abstract: it ends with its process, and is the lock that keeps an instance single
)


@dataclass(frozen=True)
class Node:
    """One machine that carries pods."""

    name: str
    address: str
    pods: str

    @property
    def folder(self) -> Path:
        """Its disk: containerd's and the kubelet's folders, and what they expect under /var."""
        return run_folder() / self.name


def nodes() -> tuple[Node, ...]:
    return tuple(
        Node(name, f"{MACHINES}.0.{10 + number}", f"{PODS}.{number}.0/24") for number, name in enumerate(NODES, start=1)
    )


def run_folder() -> Path:
    """What a running cluster writes; gone when it is."""
    return cache_root() / f"run{SUFFIX}"


def log_folder() -> Path:
    """Logs of the last cluster; kept until the next one starts."""
    return cache_root() / f"logs{SUFFIX}"


def kubeconfig_path() -> Path:
    return run_folder() / "kubeconfig"
