"""What can be seen of a testbed on the computer that carries it: taken before and after, the two must be equal."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from tests.testbed.cache import cache_root
from tests.testbed.layout import CGROUP
from tests.testbed.machine import KERNEL_SETTINGS
from tests.testbed.shell import sh

# where the daemons, or the programs they call, would leave folders by default
FOLDERS = ("/etc", "/opt", "/run", "/usr/libexec", "/var/lib", "/var/log")


def footprint() -> dict[str, list[str]]:
    """Mounts, links, addresses, routes, namespaces, cgroups, packet filter rules, kernel settings, folders and processes."""
    return {
        "mounts": sorted(line.split(" ")[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()),
        "links": sorted(path.name for path in Path("/sys/class/net").iterdir()),
        "addresses": sorted(sh("ip", "-o", "-4", "address").splitlines()),
        "routes": sorted(sh("ip", "route", "show", "table", "all").splitlines()),
        "namespaces": _namespaces(),
        "cgroups": sorted(str(path) for path in Path("/sys/fs/cgroup").glob(f"*/{CGROUP}")),
        "rules": [*_rules("iptables-save"), *_rules("ip6tables-save")],
        "settings": [f"{name}={_read(Path('/proc/sys') / name)}" for name in (*KERNEL_SETTINGS, "net/ipv4/ip_forward")],
        "folders": sorted(str(path) for folder in FOLDERS for path in Path(folder).iterdir()),
        "processes": _processes(),
    }


def _namespaces() -> list[str]:
    """Network namespaces in which processes live."""
    found = set()
    for process in Path("/proc").glob("[0-9]*/ns/net"):
        with suppress(OSError):
            found.add(str(process.readlink()))
    return sorted(found)


def _rules(program: str) -> list[str]:
    """Rules and chains of somebody's making: counters and built-in chains come into being when one looks."""
    lines = sh(program).splitlines()
    return [line for line in lines if line.startswith("-") or (line.startswith(":") and " - " in line)]


def _processes() -> list[str]:
    """Processes whose program comes from the cache, or whose command line names the testbed's own."""
    mine = []
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if "tests.testbed.supervisor" in command or str((process / "exe").readlink()).startswith(
                str(cache_root() / "")
            ):
                mine.append(f"{process.name} {command}")
    return sorted(mine)


def _read(path: Path) -> str:
    return path.read_text().strip() if path.exists() else ""
