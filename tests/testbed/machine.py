"""PID 1 of a machine of the testbed: `unshare --mount --net --uts --ipc --pid ... python machine.py CONFIG`.

The namespaces are what makes it a machine, and what cleans up: with PID 1 the kernel ends everything that ran here, and its mounts,
links and iptables rules go with it. Standard library only, so that the file runs by its path.
"""

from __future__ import annotations

import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

# The kubelet writes these for the whole computer; the machine gets copies of its own to write to.
KERNEL_SETTINGS = (
    "vm/overcommit_memory",
    "vm/panic_on_oom",
    "kernel/panic",
    "kernel/panic_on_oops",
    "kernel/keys/root_maxkeys",
    "kernel/keys/root_maxbytes",
)


def mount(*words: str | Path) -> None:
    subprocess.run(["mount", *map(str, words)], check=True)


def own_folders(config: dict[str, Any]) -> None:
    """Gives the machine a /run, /var/lib and /var/log of its own."""
    folder = Path(config["folder"])
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", "/run")
    for path in ("/run/lock", "/run/netns", "/run/containerd"):
        Path(path).mkdir(parents=True)
    for path in ("/var/lib", "/var/log"):
        own = folder / path.removeprefix("/").replace("/", "-")
        own.mkdir(exist_ok=True)
        mount("--bind", own, path)


def own_kernel_settings(config: dict[str, Any]) -> None:
    """Covers settings and identities that are the whole computer's with copies in the machine's folder."""
    copies = Path(config["folder"]) / "kernel"
    copies.mkdir(exist_ok=True)
    identities = {
        Path("/proc/sys/kernel/random/boot_id"): config["boot_id"],
        Path("/etc/machine-id"): config["machine_id"],
    }
    settings = [Path("/proc/sys") / name for name in KERNEL_SETTINGS]
    for original in (*identities, *settings):
        if not original.exists():
            continue
        copy = copies / "-".join(original.parts[1:])
        copy.write_text(f"{identities[original]}\n" if original in identities else original.read_text())
        mount("--bind", copy, original)


class Daemons:
    """Starts the machine's programs and starts them again when they end."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config
        self.running: dict[int, dict[str, Any]] = {}
        self.due: list[tuple[float, dict[str, Any]]] = []
        for daemon in config["daemons"]:
            self.start(daemon)

    def start(self, daemon: dict[str, Any]) -> None:
        log = Path(self.config["logs"]) / f"{self.config['hostname']}-{daemon['name']}.log"
        with log.open("ab") as file:
            process = subprocess.Popen(
                daemon["argv"],
                env=self.config["env"],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.running[process.pid] = daemon
        process.returncode = 0  # reap() waits for it, not Popen

    def reap(self) -> None:
        while True:
            try:
                pid, _ = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            if pid in self.running:
                self.due.append((time.monotonic() + 0.5, self.running.pop(pid)))

    def start_due(self) -> None:
        now = time.monotonic()
        ready = [daemon for when, daemon in self.due if when <= now]
        self.due = [(when, daemon) for when, daemon in self.due if when > now]
        for daemon in ready:
            self.start(daemon)


def main() -> None:
    config = json.loads(Path(sys.argv[1]).read_text())
    socket.sethostname(config["hostname"])
    own_folders(config)
    own_kernel_settings(config)
    # The supervisor lays the network meanwhile and says so with a line. End of file: it has died, so this machine ends too.
    if not sys.stdin.buffer.readline():
        return
    wake, signalled = socket.socketpair()
    for end in (wake, signalled):
        end.setblocking(False)
    signal.set_wakeup_fd(signalled.fileno())
    signal.signal(signal.SIGCHLD, lambda *_: None)
    daemons = Daemons(config)
    while True:
        readable, _, _ = select.select([sys.stdin, wake], [], [], 0.5 if daemons.due else None)
        if sys.stdin in readable and not sys.stdin.buffer.readline():
            return
        if wake in readable:
            wake.recv(4096)
        daemons.reap()
        daemons.start_due()


if __name__ == "__main__":
    main()
