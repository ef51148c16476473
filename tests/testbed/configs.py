"""The configuration of every daemon, as pure functions: folders and addresses in, text and command lines out."""

from __future__ import annotations

import base64
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tests.testbed.layout import (
    API_PORT,
    API_SERVICE_ADDRESS,
    API_URL,
    CGROUP,
    CLUSTER_DOMAIN,
    CONTROL_ADDRESS,
    PAUSE_IMAGE,
    POD_RANGE,
    SERVICE_RANGE,
    Node,
)

if TYPE_CHECKING:
    from pathlib import Path

ISSUER = f"https://kubernetes.default.svc.{CLUSTER_DOMAIN}"
CONTAINERD_ADDRESS = "/run/containerd/containerd.sock"  # in the machine's own /run


@dataclass(frozen=True)
class Daemon:
    """A program of a machine: started again when it ends, as an init system would."""

    name: str
    argv: list[str]


@dataclass(frozen=True)
class User:
    """One who may speak to the API server, known by a token."""

    name: str
    token: str
    groups: tuple[str, ...] = ()


def token_file(users: list[User]) -> str:
    return "".join(f'{user.token},{user.name},{user.name},"{",".join(user.groups)}"\n' for user in users)


def kubeconfig(user: User, ca: bytes) -> str:
    """JSON is YAML: a kubeconfig with the CA and the token in it."""
    return json.dumps(
        {
            "apiVersion": "v1",
            "kind": "Config",
            "current-context": "relight-testbed",
            "clusters": [
                {
                    "name": "relight-testbed",
                    "cluster": {"server": API_URL, "certificate-authority-data": base64.b64encode(ca).decode()},
                }
            ],
            "users": [{"name": user.name, "user": {"token": user.token}}],
            "contexts": [
                {"name": "relight-testbed", "context": {"cluster": "relight-testbed", "user": user.name}},
            ],
        },
        indent=1,
    )


def audit_policy() -> str:
    return json.dumps(
        {
            "apiVersion": "audit.k8s.io/v1",
            "kind": "Policy",
            "omitStages": ["RequestReceived"],
            "rules": [{"level": "Metadata"}],
        }
    )


def control_daemons(folder: Path, logs: Path, secrets: Path, dns: list[str]) -> list[Daemon]:
    """etcd, the API server, the two controllers that make a cluster of it, and DNS. `secrets` holds keys, tokens, kubeconfigs."""
    api_server = {
        "etcd-servers": "http://127.0.0.1:2379",
        "advertise-address": CONTROL_ADDRESS,
        "secure-port": API_PORT,
        "tls-cert-file": secrets / "apiserver.crt",
        "tls-private-key-file": secrets / "apiserver.key",
        "client-ca-file": secrets / "ca.crt",
        "token-auth-file": secrets / "tokens.csv",
        "authorization-mode": "Node,RBAC",
        "enable-admission-plugins": "NodeRestriction",
        "service-account-issuer": ISSUER,
        "service-account-key-file": secrets / "service-accounts.pub",
        "service-account-signing-key-file": secrets / "service-accounts.key",
        "api-audiences": ISSUER,
        "service-cluster-ip-range": SERVICE_RANGE,
        "allow-privileged": "true",
        "kubelet-client-certificate": secrets / "kubelet-client.crt",
        "kubelet-client-key": secrets / "kubelet-client.key",
        # otherwise `kubectl logs` asks DNS for the machines' names
        "kubelet-preferred-address-types": "InternalIP",
        "audit-policy-file": secrets / "audit-policy.json",
        "audit-log-path": logs / "audit.log",
        "profiling": "false",
    }
    controllers = {
        "kubeconfig": secrets / "kube-controller-manager.kubeconfig",
        "use-service-account-credentials": "true",
        "service-account-private-key-file": secrets / "service-accounts.key",
        "root-ca-file": secrets / "ca.crt",
        "leader-elect": "false",
        # the default lies under /usr of this computer, and is made when it is not there
        "flex-volume-plugin-dir": folder / "volume-plugins",
        # a lost machine is noticed in 8 s instead of 40: see the kubelets' lease
        "node-monitor-grace-period": "8s",
        "node-monitor-period": "1s",
    }
    scheduler = {"kubeconfig": secrets / "kube-scheduler.kubeconfig", "leader-elect": "false"}
    etcd = {
        "data-dir": folder / "etcd",
        "listen-client-urls": "http://127.0.0.1:2379",
        "advertise-client-urls": "http://127.0.0.1:2379",
        "listen-peer-urls": "http://127.0.0.1:2380",
        "log-level": "warn",
        "logger": "zap",
    }
    return [
        Daemon("etcd", ["etcd", *flags(etcd)]),
        Daemon("kube-apiserver", ["kube-apiserver", *flags(api_server)]),
        Daemon("kube-controller-manager", ["kube-controller-manager", *flags(controllers)]),
        Daemon("kube-scheduler", ["kube-scheduler", *flags(scheduler)]),
        Daemon("dns", dns),
    ]


def node_daemons(node: Node, secrets: Path) -> list[Daemon]:
    kubelet = {
        "config": node.folder / "kubelet.json",
        "kubeconfig": secrets / f"{node.name}.kubeconfig",
        "hostname-override": node.name,
        "node-ip": node.address,
        "root-dir": node.folder / "kubelet",
        "cert-dir": node.folder / "kubelet-pki",
        "container-runtime": "remote",
        "container-runtime-endpoint": f"unix://{CONTAINERD_ADDRESS}",
    }
    proxy = {
        "kubeconfig": secrets / "kube-proxy.kubeconfig",
        "hostname-override": node.name,
        "proxy-mode": "iptables",
        "cluster-cidr": POD_RANGE,
        # these settings belong to the whole computer, not to the machine's network
        "conntrack-max-per-core": "0",
        "conntrack-tcp-timeout-established": "0s",
        "conntrack-tcp-timeout-close-wait": "0s",
    }
    return [
        Daemon("containerd", ["containerd", "--config", str(node.folder / "containerd.toml")]),
        Daemon("kubelet", ["kubelet", *flags(kubelet)]),
        Daemon("kube-proxy", ["kube-proxy", *flags(proxy)]),
    ]


def flags(values: dict[str, Any]) -> list[str]:
    return [f"--{name}={value}" for name, value in values.items()]


def kubelet_config(node: Node, secrets: Path) -> str:
    return json.dumps(
        {
            "apiVersion": "kubelet.config.k8s.io/v1beta1",
            "kind": "KubeletConfiguration",
            "address": node.address,
            "readOnlyPort": 0,
            "authentication": {
                "anonymous": {"enabled": False},
                "webhook": {"enabled": True},
                "x509": {"clientCAFile": str(secrets / "ca.crt")},
            },
            "authorization": {"mode": "Webhook"},
            "cgroupDriver": "cgroupfs",
            "cgroupRoot": f"/{CGROUP}/{node.name}",
            "failSwapOn": False,
            "clusterDNS": [CONTROL_ADDRESS],
            "clusterDomain": CLUSTER_DOMAIN,
            "resolvConf": str(node.folder / "resolv.conf"),
            "volumePluginDir": str(node.folder / "volume-plugins"),
            # three machines share one disk: none may start to evict because of what another stores
            "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
            "imageGCHighThresholdPercent": 100,
            "imageGCLowThresholdPercent": 99,
            "nodeStatusUpdateFrequency": "2s",
            "nodeLeaseDurationSeconds": 8,
        },
        indent=1,
    )


def containerd_config(node: Node, cni_programs: Path) -> str:
    cri = 'plugins."io.containerd.grpc.v1.cri"'
    return f"""version = 2
root = "{node.folder}/containerd"
state = "/run/containerd"
# `opt` would make /opt/containerd on this computer; the others are snapshotters that nobody uses here
disabled_plugins = [
  "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
address = "{CONTAINERD_ADDRESS}"
[{cri}]
sandbox_image = "{PAUSE_IMAGE}"
# without CAP_SYS_RESOURCE every sandbox would die with "can't get final child's PID from pipe: EOF"
restrict_oom_score_adj = true
stream_server_port = "0"
[{cri}.containerd]
snapshotter = "overlayfs"
default_runtime_name = "runc"
[{cri}.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[{cri}.cni]
bin_dir = "{cni_programs}"
conf_dir = "{node.folder}/cni"
"""


def cni_config(node: Node) -> str:
    return json.dumps(
        {
            "cniVersion": "0.4.0",
            "name": "pods",
            "plugins": [
                {
                    "type": "bridge",
                    "bridge": "cni0",
                    "isGateway": True,
                    "hairpinMode": True,
                    "ipam": {
                        "type": "host-local",
                        "ranges": [[{"subnet": node.pods}]],
                        "routes": [{"dst": "0.0.0.0/0"}],
                    },
                },
            ],
        }
    )


def certificate_names() -> str:
    """The API server's subjectAltName."""
    names = ["localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc", ISSUER.removeprefix("https://")]
    addresses = ["127.0.0.1", CONTROL_ADDRESS, API_SERVICE_ADDRESS]
    return ",".join([*(f"DNS:{name}" for name in names), *(f"IP:{address}" for address in addresses)])
