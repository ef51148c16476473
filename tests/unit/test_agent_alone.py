"""An agent with nobody to obey: no coordinator, one that refuses it, one that comes late."""

import http.server
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.cgroups import Group, group

from relight_agent.exits import ExitCode
from relight_agent.files import JobFile
from relight_agent.processes import is_alive

pytestmark = pytest.mark.timeout(60)

UNREACHABLE = "http://127.0.0.1:9"


def start_agent(
    folder: Path, url: str, *, argv: list[str] | None = None, orphan_seconds: float = 1800.0, checkpoint_dir: str = ""
) -> subprocess.Popen[bytes]:
    JobFile(
        namespace="default", name="alone", uid="job", created=0.0, nodes=1, proc_per_node=1,
        entry={"kind": "command", "argv": argv or ["true"]}, config_hash="h", orphan_seconds=orphan_seconds, grace_seconds=5.0,
        checkpoint_dir=checkpoint_dir,
    ).write(folder / "job.json")  # fmt: skip
    env = {
        **os.environ,
        "RELIGHT_JOB_FILE": str(folder / "job.json"),
        "RELIGHT_SLOT": "0",
        "RELIGHT_INCARNATION": "0",
        "RELIGHT_UID": "me",
        "RELIGHT_RUN_DIR": str(folder / "run"),
        "RELIGHT_ADDRESS": "127.0.0.1",
        "RELIGHT_COORDINATOR_URL": url,
        "RELIGHT_TERMINATION_LOG": str(folder / "end.json"),
    }
    return subprocess.Popen([sys.executable, "-m", "relight_agent"], env=env)


def end_of(folder: Path) -> dict[str, Any]:
    value = json.loads((folder / "end.json").read_text())
    assert isinstance(value, dict)
    return value


@contextmanager
def coordinator(answer: tuple[int, dict[str, Any]]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Says the same to everyone; gives its address and what it has been told."""
    told: list[dict[str, Any]] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            body = json.dumps(answer[1]).encode()
            self.send_response(answer[0])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", told
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_without_a_coordinator_an_idle_agent_goes_after_the_orphan_time_out(tmp_path: Path) -> None:
    agent = start_agent(tmp_path, UNREACHABLE, orphan_seconds=1.0)

    assert agent.wait(20) == 76
    assert "no coordinator" in end_of(tmp_path)["message"]
    assert not (tmp_path / "run").exists()


def test_an_agent_that_is_refused_for_good_ends(tmp_path: Path) -> None:
    with coordinator((403, {})) as (url, told):
        agent = start_agent(tmp_path, url)

        assert agent.wait(20) == 76
    assert "refuses" in end_of(tmp_path)["message"]
    assert told[0]["uid"] == "me"


def test_a_coordinator_that_cannot_answer_is_asked_again(tmp_path: Path) -> None:
    with coordinator((503, {})) as (url, told):
        agent = start_agent(tmp_path, url)
        while len(told) < 6:
            assert agent.poll() is None
            time.sleep(0.01)
        agent.send_signal(signal.SIGTERM)

        assert agent.wait(20) == 76


def test_exit_ends_a_running_command_and_everything_below_it(tmp_path: Path) -> None:
    """The command starts a process in a session of its own, which nobody but the agent can find."""
    pids = tmp_path / "pids"
    script = f"setsid sleep 1000 & echo $! > {pids}.tmp; mv {pids}.tmp {pids}; wait"
    world = {
        "generation": 1, "runId": "r", "masterSlot": 0, "masterAddress": "127.0.0.1", "masterPort": 1,
        "members": [{"rank": 0, "slot": 0, "uid": "me", "address": "127.0.0.1"}],
    }  # fmt: skip
    answer: dict[str, Any] = {"command": {"id": "run:1", "op": "run", "generation": 1, "world": world}}
    with coordinator((200, answer)) as (url, _):
        agent = start_agent(tmp_path, url, argv=["sh", "-c", script])
        while not pids.exists():
            assert agent.poll() is None
            time.sleep(0.01)
        below = int(pids.read_text())
        assert is_alive(below)
        answer["command"] = {"id": "exit:Failed", "op": "exit", "code": 70}

        assert agent.wait(20) == 70
    assert not is_alive(below)


def run_command(tmp_path: Path, argv: list[str], *, limited: Group | None = None, **more: Any) -> dict[str, Any]:
    """The outcome that the agent reports of a command."""
    world = {
        "generation": 1, "runId": "r", "masterSlot": 0, "masterAddress": "127.0.0.1", "masterPort": 1,
        "members": [{"rank": 0, "slot": 0, "uid": "me", "address": "127.0.0.1"}],
    }  # fmt: skip
    answer: dict[str, Any] = {"command": {"id": "run:1", "op": "run", "generation": 1, "world": world}}
    with coordinator((200, answer)) as (url, told):
        agent = start_agent(tmp_path, url, argv=argv, **more)
        if limited is not None:
            limited.add(agent.pid)
        while not told or not told[-1]["outcome"]:
            assert agent.poll() is None
            time.sleep(0.01)
        outcome = told[-1]["outcome"]
        answer["command"] = {"id": "exit:Failed", "op": "exit", "code": 70}
        assert agent.wait(20) == 70
    assert isinstance(outcome, dict)
    return outcome


def test_a_commands_own_75_is_a_failure_and_no_disruption(tmp_path: Path) -> None:
    """Many programs end with it, "try again": free of charge, that would be for ever."""
    outcome = run_command(tmp_path, ["sh", "-c", "exit 75"])
    assert (outcome["kind"], outcome["exitCode"]) == ("failed", 70)
    assert "exit code 75" in outcome["message"]


def test_a_progress_bar_without_line_ends_does_not_hide_the_exception(tmp_path: Path) -> None:
    text = "import sys; sys.stderr.write('\\r50%' * 3_000_000 + '\\rValueError: eleven'); sys.exit(3)"
    outcome = run_command(tmp_path, [sys.executable, "-c", text])
    assert outcome["message"] == "ValueError: eleven (exit code 3)"


def test_a_command_of_which_the_kernel_kills_a_process_for_its_memory_is_out_of_memory(tmp_path: Path) -> None:
    hungry = "held = []\nwhile True: held.append(bytearray(1 << 22))"
    with group(memory=96 << 20) as limited:
        # The shell outlives it, and says nothing but a number.
        outcome = run_command(tmp_path, ["sh", "-c", f"{sys.executable} -c '{hungry}'; exit $?"], limited=limited)
    assert (outcome["kind"], outcome["exitCode"]) == ("failed", ExitCode.OUT_OF_MEMORY)
    assert "its container's limit of 96 MiB is used up" in outcome["message"]


def test_a_nul_in_an_argument_is_a_wrong_configuration(tmp_path: Path) -> None:
    outcome = run_command(tmp_path, ["true", "a\0b"])
    assert (outcome["kind"], outcome["exitCode"]) == ("failed", 64)


def test_a_command_that_ends_well_when_told_to_end_has_not_completed(tmp_path: Path) -> None:
    world = {
        "generation": 1, "runId": "r", "masterSlot": 0, "masterAddress": "127.0.0.1", "masterPort": 1,
        "members": [{"rank": 0, "slot": 0, "uid": "me", "address": "127.0.0.1"}],
    }  # fmt: skip
    answer: dict[str, Any] = {"command": {"id": "run:1", "op": "run", "generation": 1, "world": world}}
    started = tmp_path / "started"
    with coordinator((200, answer)) as (url, _):
        agent = start_agent(tmp_path, url, argv=["sh", "-c", f"trap 'exit 0' TERM; touch {started}; sleep 1000 & wait"])
        while not started.exists():
            assert agent.poll() is None
            time.sleep(0.01)
        agent.send_signal(signal.SIGTERM)
        assert agent.wait(20) == 76
    assert end_of(tmp_path)["outcome"] == "stopped"


def test_an_agent_that_cannot_go_on_says_so(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("in the way of the run folder")
    agent = start_agent(tmp_path, UNREACHABLE)
    assert agent.wait(20) == 73
    assert "FileExistsError" in end_of(tmp_path)["message"]


def test_a_missing_variable_is_named(tmp_path: Path) -> None:
    env = {"PATH": os.environ["PATH"], "RELIGHT_TERMINATION_LOG": str(tmp_path / "end.json")}

    done = subprocess.run(
        [sys.executable, "-m", "relight_agent"], env=env, capture_output=True, text=True, timeout=20, check=False
    )

    assert done.returncode == 64
    assert "RELIGHT_JOB_FILE" in done.stderr
    assert "Traceback" not in done.stderr
    assert end_of(tmp_path)["cause"] == "BadConfig"
