"""What can be seen of a testbed on the computer that carries it: taken before and after, the two must be equal."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tests.testbed.layout import CGROUP, HOST_LINK, INSTANCE
from tests.testbed.machine import KERNEL_SETTINGS
from tests.testbed.shell import sh

if TYPE_CHECKING:
    from collections.abc import Iterable

# where the daemons, or the programs they call, would leave folders by default
FOLDERS = ("/etc", "/opt", "/run", "/usr/libexec", "/var/lib", "/var/log")


def footprint() -> dict[str, list[str]]:
    """Mounts, links, addresses, routes, namespaces, cgroups, packet filter rules, kernel settings, folders and processes.

    Other testbeds that this computer carries are left out.
    """
    others = _other_testbeds()
    return {
        "mounts": sorted(
            mount for mount in _mounts() if not mount.startswith("/var/lib/containers/")
        ),  # podman's and buildah's
        "links": _own(path.name for path in Path("/sys/class/net").iterdir()),
        "addresses": _own(sh("ip", "-o", "-4", "address").splitlines()),
        "routes": _own(sh("ip", "route", "show", "table", "all").splitlines()),
        "namespaces": _namespaces(others),
        "cgroups": sorted(str(path) for path in Path("/sys/fs/cgroup").glob(f"*/{CGROUP}")),
        "rules": [*_rules("iptables-save"), *_rules("ip6tables-save")],
        "settings": [f"{name}={_read(Path('/proc/sys') / name)}" for name in (*KERNEL_SETTINGS, "net/ipv4/ip_forward")],
        "folders": sorted(str(path) for folder in FOLDERS for path in Path(folder).iterdir()),
        "processes": _processes(others),
    }


def _mounts() -> list[str]:
    return [line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]


def _own(lines: Iterable[str]) -> list[str]:
    """`lines` without those about another testbed's link."""
    return sorted(line for line in lines if all(link == HOST_LINK for link in re.findall(r"relight-tb[-0-9]*", line)))


def _command(pid: str) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")


def _pids() -> list[str]:
    return [path.name for path in Path("/proc").glob("[0-9]*")]


def _other_testbeds() -> set[str]:
    """The processes of supervisors of other instances, and of all that descends from them."""
    parents, found = {}, set()
    for pid in _pids():
        with suppress(OSError):
            parents[pid] = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]
            if "tests.testbed.supervisor" in _command(pid):
                instance = re.search(
                    rb"(?:^|\0)RELIGHT_TESTBED_INSTANCE=(\d+)", Path(f"/proc/{pid}/environ").read_bytes()
                )
                if int(instance[1] if instance else 0) != INSTANCE:
                    found.add(pid)
    while more := {pid for pid, parent in parents.items() if parent in found and pid not in found}:
        found |= more
    return found


def _namespaces(others: set[str]) -> list[str]:
    """Network namespaces in which processes live."""
    found = set()
    for pid in _pids():
        with suppress(OSError):
            if pid not in others:
                found.add(str(Path(f"/proc/{pid}/ns/net").readlink()))
    return sorted(found)


def _rules(program: str) -> list[str]:
    """Rules and chains of somebody's making: counters and built-in chains come into being when one looks."""
    lines = sh(program).splitlines()
    return [line for line in lines if line.startswith("-") or (line.startswith(":") and " - " in line)]


def _processes(others: set[str]) -> list[str]:
    """Supervisors, and processes in pid namespaces other than this one's, as all processes of a machine are."""
    here = Path("/proc/self/ns/pid").readlink()
    mine = []
    for pid in _pids():
        with suppress(OSError):
            elsewhere = Path(f"/proc/{pid}/ns/pid").readlink() != here
            if pid not in others and (elsewhere or "tests.testbed.supervisor" in _command(pid)):
                mine.append(f"{pid} {_command(pid)}")
    return sorted(mine)


def _read(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""
