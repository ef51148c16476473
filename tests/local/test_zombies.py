"""A member of an old generation that wakes up: it commits nothing, joins nothing, and ends."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from builders import SCRIPTS, Home, Job, script

from relight_agent.processes import is_alive

pytestmark = pytest.mark.timeout(420)


def until(condition: Callable[[], Any], what: str, timeout: float = 150.0) -> Any:
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if value := condition():
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout} s: {what}")


def is_stopped(pid: int) -> bool:
    line = Path(f"/proc/{pid}/stat").read_text()
    return line[line.rindex(")") + 2] == "T"


def test_who_wakes_up_after_its_generation_commits_nothing_and_ends(home: Home) -> None:
    """Of a world of one: nobody else's end could have stopped it, and its agent sleeps on."""
    home.path.mkdir(parents=True)
    job = Job(trainer=script("zombie.py", home.path), nodes=1, every=5)
    running = home.start(job, program=str(SCRIPTS / "partitioned.py"))
    frozen = json.loads(until(lambda: _read(home.path / "frozen.json"), "the member is frozen"))
    tree = [frozen["agent"], *frozen["others"], frozen["worker"]]
    until(lambda: all(map(is_stopped, tree)), "all its processes are stopped")
    (home.state / "lost-small-0-0").touch()
    running.until(
        lambda s: s.get("progress", {}).get("step", 0) >= 20 and s["world"]["generation"] == 2,
        "generation 2",
        timeout=150,
    )

    # Without its agent, which would end it: it is free to do what it was doing.
    log = home.state / "members" / "small-0-0" / "log"
    for pid in (*frozen["others"], frozen["worker"]):
        os.kill(pid, signal.SIGCONT)
    until(lambda: "generation 1 may no longer use" in log.read_text(), "the zombie has tried to commit")
    until(lambda: not is_alive(frozen["worker"]), "the zombie's worker has ended")
    os.kill(frozen["agent"], signal.SIGCONT)
    until(lambda: not any(map(is_alive, tree)), "the zombie has ended")
    (home.path / "attempted").touch()

    result = running.wait(150)
    assert result.code == 0, result.said
    assert result.restarts["byCause"] == {"MachineLost": 1}
    assert [(s["slot"], s["incarnation"]) for s in result.final["slots"]] == [(0, 1)]
    names = [p.name for p in home.checkpoints()]
    assert not [n for n in names if n.endswith(".g1") and n > "step-000000016"], names
    plain = subprocess.run(
        [sys.executable, str(SCRIPTS / "zombie.py"), str(home.path)],
        env={k: v for k, v in os.environ.items() if not k.startswith("RELIGHT_")} | {"OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=150, check=True,
    )  # fmt: skip
    assert result.digest == plain.stdout.strip()


def _read(path: Path) -> str:
    return path.read_text() if path.exists() else ""
