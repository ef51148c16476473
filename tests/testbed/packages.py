"""Debian packages: what must be installed here, and what is only unpacked into the cache.

Daemons are unpacked, never installed: on somebody's own computer an installed etcd or containerd would start, and Debian's containerd
would push out another one. They come from Debian 12 by a private sources list, whatever else this computer's apt knows.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from tests.testbed.cache import cached, key_of
from tests.testbed.errors import TestbedUnavailableError
from tests.testbed.shell import sh

MIRROR = "http://deb.debian.org/debian"
SUITE = "bookworm"

# program -> the package that has it
TOOLS = {
    "make": "make",
    "rsync": "rsync",
    "jq": "jq",
    "patch": "patch",
    "xz": "xz-utils",
    "dpkg-source": "dpkg-dev",
    "openssl": "openssl",
    "ip": "iproute2",
    "iptables": "iptables",
    "mount": "mount",
    "unshare": "util-linux",
    "mmdebstrap": "mmdebstrap",
    "buildah": "buildah",
    "gcc": "gcc",
}

UNPACKED = (
    "golang-1.19-go",
    "golang-1.19-src",
    "golang-github-modern-go-reflect2-dev",
    "golang-github-json-iterator-go-dev",
    "etcd-server",
    "containerd",
    "runc",
    "containernetworking-plugins",
    "prometheus",
)


def missing_packages() -> list[str]:
    """The packages that have to be installed here before anything can be built or run."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    return sorted({package for program, package in TOOLS.items() if shutil.which(program, path=path) is None})


def install_packages() -> None:
    """Installs what is missing. Raises TestbedUnavailableError where that cannot be done."""
    missing = missing_packages()
    if not missing:
        return
    wanted = " ".join(missing)
    if os.geteuid() != 0:
        raise TestbedUnavailableError(
            f"the testbed needs packages that only root can install: apt-get install {wanted}"
        )
    if shutil.which("apt-get") is None:
        raise TestbedUnavailableError(
            f"the testbed installs its tools with apt-get, which is not here; it misses: {wanted}"
        )
    quiet = os.environ | {"DEBIAN_FRONTEND": "noninteractive"}
    sh("apt-get", "update", env=quiet)
    sh("apt-get", "install", "--yes", "--no-install-recommends", *missing, env=quiet)


def _private_apt(folder: Path) -> list[str]:
    """apt-get with lists and caches of its own in `folder`; what this computer has stays as it is."""
    keyring = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
    if not keyring.exists():
        raise TestbedUnavailableError(f"{keyring} is missing: apt-get install debian-archive-keyring")
    lists, archives, sources = folder / "lists", folder / "archives", folder / "sources.list"
    for path in (lists / "partial", archives / "partial"):
        path.mkdir(parents=True, exist_ok=True)
    sources.write_text(
        "".join(f"{kind} [signed-by={keyring}] {MIRROR} {SUITE} main\n" for kind in ("deb", "deb-src")),
    )
    options = {
        "Dir::Etc::SourceList": sources,
        "Dir::Etc::SourceParts": "/dev/null",
        "Dir::State::Lists": lists,
        "Dir::Cache": folder,
        "Dir::Cache::Archives": archives,
        "APT::Sandbox::User": "root",
    }
    apt = ["apt-get", *(word for name, value in options.items() for word in ("-o", f"{name}={value}"))]
    sh(*apt, "update")
    return apt


def download_source(package: str, version: str, folder: Path) -> Path:
    """Downloads a source package; returns its .dsc in `folder`, which must exist."""
    sh(*_private_apt(folder / "apt"), "source", "--download-only", f"{package}={version}", cwd=folder)
    (dsc,) = folder.glob("*.dsc")
    return dsc


def unpacked_packages() -> Path:
    """A folder that holds UNPACKED as they would lie under /."""

    def build(folder: Path) -> None:
        apt = folder / "apt"
        sh(*_private_apt(apt), "download", *UNPACKED, cwd=apt)
        for deb in sorted(apt.glob("*.deb")):
            sh("dpkg-deb", "--extract", deb, folder)
        shutil.rmtree(apt)

    return cached(f"debian-{SUITE}-{key_of(*UNPACKED)}", build)
