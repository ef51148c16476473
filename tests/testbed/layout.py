"""Names and addresses of the testbed's machines: a private network 10.201.0.0/24 behind one link of this computer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.testbed.cache import cache_root

if TYPE_CHECKING:
    from pathlib import Path

NODES = ("node-1", "node-2", "node-3")
CONTROL = "control"
HOST_LINK = "relight-tb"
HOST_ADDRESS = "10.201.0.254"
CONTROL_ADDRESS = "10.201.0.1"
API_PORT = 6443
API_URL = f"https://{CONTROL_ADDRESS}:{API_PORT}"
POD_RANGE = "10.200.0.0/16"
SERVICE_RANGE = "10.202.0.0/16"
API_SERVICE_ADDRESS = "10.202.0.1"
CLUSTER_DOMAIN = "cluster.local"
GPUS_PER_NODE = 8
CGROUP = "relight-testbed"
PAUSE_IMAGE = "relight.dev/testbed/pause:1"
SOCKET = "\0relight-testbed"  # abstract: it ends with its process, and is the lock that keeps the testbed single


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
        Node(name, f"10.201.0.{10 + number}", f"10.200.{number}.0/24") for number, name in enumerate(NODES, start=1)
    )


def run_folder() -> Path:
    """What a running cluster writes; gone when it is."""
    return cache_root() / "run"


def log_folder() -> Path:
    """Logs of the last cluster; kept until the next one starts."""
    return cache_root() / "logs"


def kubeconfig_path() -> Path:
    return run_folder() / "kubeconfig"
