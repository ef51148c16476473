"""A launcher and the agent's side of its protocol, for tests."""

import contextlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

from relight_agent.files import GenerationFolder, JobFile, read_json
from relight_agent.processes import descendants, is_alive, processes

HELPERS = Path(__file__).parent / "helpers"
TIMEOUT = 60.0


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def wait_until(condition, *, timeout=TIMEOUT):
    """The first true value of `condition()`."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, f"waited {timeout} s for {condition}"
        time.sleep(0.002)
    return value


class Member:
    """One member's launcher, in a run folder of its own."""

    def __init__(
        self,
        folder,
        slot,
        argv,
        *,
        kind="script",
        proc_per_node=1,
        program=("-m", "relight_trainer.launcher"),
        env=None,
        base=None,
    ):
        """`base`: what the environment is in place of this process's, with one thread."""
        self.slot = slot
        self.proc_per_node = proc_per_node
        self.run_dir = Path(folder) / f"member-{slot}-{time.monotonic_ns()}"
        self.run_dir.mkdir(parents=True)
        self.enter(argv, kind=kind)
        self.stderr = self.run_dir / "stderr"
        ours, theirs = socket.socketpair()
        with theirs, self.stderr.open("wb") as stderr:
            self.process = subprocess.Popen(
                [sys.executable, *program],
                env={
                    **({**os.environ, "OMP_NUM_THREADS": "1"} if base is None else base),
                    "RELIGHT_JOB_FILE": str(self.run_dir / "job.json"),
                    "RELIGHT_RUN_DIR": str(self.run_dir),
                    "RELIGHT_SLOT": str(slot),
                    "RELIGHT_LAUNCHER_FD": str(theirs.fileno()),
                    **(env or {}),
                },
                cwd=HELPERS,
                stdin=subprocess.DEVNULL,
                stderr=stderr,
                pass_fds=[theirs.fileno()],
            )
        self.channel = ours
        self.received = b""
        self.events = []
        self.number = None
        self.generation = None
        self.store = None

    def enter(self, argv, *, kind="script"):
        """What the workers of the next generation run."""
        job = JobFile(
            "default", "t", "uid", 0.0, 2, self.proc_per_node, {"kind": kind, "argv": argv}, "hash", str(HELPERS)
        )
        job.write(self.run_dir / "job.json")

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.kill()

    def expect(self, event, *, timeout=TIMEOUT):
        """The next message of this kind about the last order; what came before it is kept in `events`."""
        deadline = time.monotonic() + timeout
        while True:
            while b"\n" in self.received:
                line, _, self.received = self.received.partition(b"\n")
                message = json.loads(line)
                self.events.append(message)
                if message["event"] == event and message.get("generation") in {None, self.number}:
                    return message
            ready, _, _ = select.select([self.channel], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"no {event!r} in {timeout} s, but {self.events}\n{self.stderr.read_text()}"
            try:
                data = self.channel.recv(65536)
            except ConnectionResetError:
                data = b""
            assert data, f"the launcher ended, {event!r} was expected\n{self.stderr.read_text()}"
            self.received += data

    def send(self, message):
        self.channel.sendall(json.dumps(message).encode() + b"\n")

    def run(self, generation, *, rank, nodes, port, host_store, cold=False, run_id=None):
        self.number = generation
        folder = GenerationFolder.create(self.run_dir, generation)
        self.send(
            {
                "op": "run",
                "generation": generation,
                "run_id": run_id or f"run-{generation}",
                "node_rank": rank,
                "nodes": nodes,
                "proc_per_node": self.proc_per_node,
                "master_address": "127.0.0.1",
                "master_port": port,
                "host_store": host_store,
                "env": {"RELIGHT_UID": f"uid-{self.slot}", "RELIGHT_COMMITTED_STEP": ""},
                "generation_dir": str(folder.path),
                "cold": cold,
            }
        )
        return folder

    def started(self):
        message = self.expect("started")
        self.generation, self.store = message["pid"], message["store_pid"]
        return message

    def below(self):
        """The living descendants of the launcher."""
        return [pid for pid in descendants(self.process.pid) if is_alive(pid)]

    def session(self):
        """The living processes of the generation's session."""
        return [p.pid for p in processes() if p.session == self.generation and p.state not in "ZX"]

    def kill_session(self):
        for pid in self.session():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def kill(self):
        """As if the machine had gone: launcher, store and workers."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        self.channel.close()
        pids = [pid for pid in (self.generation, self.store) if pid is not None]
        wait_until(lambda: not any(is_alive(pid) for pid in pids) and not (self.generation and self.session()))


def noted(folder, name, local_rank=0, *, timeout=TIMEOUT):
    """What a helper script wrote into the generation's folder, once it has."""
    return wait_until(lambda: read_json(folder.path / f"{name}-{local_rank}.json"), timeout=timeout)


def outcome(folder, local_rank=0, *, timeout=TIMEOUT):
    return wait_until(lambda: dict(folder.outcomes(local_rank + 1)).get(local_rank), timeout=timeout)
