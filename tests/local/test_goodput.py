"""Every second of every member is in one bucket, and `relight explain` tells what became of the job."""

import json
import os
import select
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from builders import Finished, Home, Job, command_line, kill, preempt

from relight_agent.files import read_json

pytestmark = pytest.mark.timeout(400)

JOB = Job()
SLACK_SECONDS = 1.0  # of a member's: from its start until its uid is recorded, from its end until that is seen


class Lifetimes(threading.Thread):
    """When each agent was started and when it ended, as this process sees it; instants are CLOCK_MONOTONIC."""

    def __init__(self, home: Home) -> None:
        super().__init__(daemon=True)
        self._home = home
        self._over = threading.Event()
        self._poll = select.poll()
        self._watched: dict[int, str] = {}  # pidfd -> uid
        self.began: dict[str, float] = {}  # by uid
        self.ended: dict[str, float] = {}

    def run(self) -> None:

        while not self._over.wait(0.02):
            for fd, _ in self._poll.poll(0):
                self.ended[self._watched[fd]] = time.monotonic()
                self._poll.unregister(fd)
                os.close(fd)
            uids = {v["uid"] for p in self._home.state.glob("members/*/member.json") if (v := read_json(p))}
            if uids - self.began.keys():
                for pid, environment in self._home.processes().items():
                    uid = environment.get("RELIGHT_UID", "")
                    if uid not in self.began and command_line(pid).endswith("-m relight_agent"):
                        fd = os.pidfd_open(pid)
                        self._watched[fd] = uid
                        self._poll.register(fd, select.POLLIN)
                        self.began[uid] = time.monotonic() - age_of(pid)

    def stop(self) -> None:
        self._over.set()
        self.join()

    def seconds(self, until: float) -> float:
        """Of all members together, up to `until`."""
        return sum(min(self.ended.get(uid, until), until) - at for uid, at in self.began.items())


def age_of(pid: int) -> float:

    stat = Path(f"/proc/{pid}/stat").read_text()
    ticks = int(stat[stat.rindex(")") + 2 :].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - ticks / os.sysconf("SC_CLK_TCK")


@pytest.fixture
def lifetimes(home: Home) -> Iterator[Lifetimes]:
    watcher = Lifetimes(home)
    watcher.start()
    yield watcher
    watcher.stop()


def explained(home: Home, *arguments: str) -> str:
    argv = [sys.executable, "-m", "relight_operator.cli", "explain", str(home.state), *arguments]
    return subprocess.run(argv, capture_output=True, text=True, check=True, timeout=60).stdout


def test_a_job_that_lost_nothing_replayed_nothing(finished: Finished) -> None:
    final = finished.result.final
    buckets = final["goodput"]["buckets"]
    assert sum(buckets.values()) == pytest.approx(JOB.nodes * (final["completionTime"] - final["startTime"]), abs=1e-3)
    assert buckets["productive"] > 0
    assert not buckets.keys() & {"replayed", "drain", "untold"}
    assert "Nothing has happened to it." in explained(finished.home)


def test_a_job_that_lost_members_accounts_for_every_second(home: Home, lifetimes: Lifetimes) -> None:
    # Reports come each second, and what nobody lives to tell is in none: the steps after a checkpoint take longer than that.
    job = home.slow_from(JOB, 30, later=0.15)
    result = home.start(job, preempt(1, at=30), kill(0, at=73), kill(1, at=73)).wait(timeout=300)
    assert result.code == 0, result.said
    final, goodput = result.final, result.final["goodput"]
    buckets = goodput["buckets"]
    wall = final["completionTime"] - final["startTime"]
    # A successor that is made ready beside a leaving member is a member too.
    assert sum(buckets.values()) > JOB.nodes * wall - 1e-3
    assert len(lifetimes.began) == 5
    lived = lifetimes.seconds(final["completionTime"] - time.time() + time.monotonic())
    assert sum(buckets.values()) - buckets["pending"] == pytest.approx(lived, abs=SLACK_SECONDS * len(lifetimes.began))
    # All were lost at once: what had been done since the last checkpoint was done again.
    assert goodput["lostSteps"] > 0
    assert 0 < buckets["replayed"] < buckets["productive"]
    assert {"start", "rendezvous", "restore", "drain", "idle", "checkpoint"} <= buckets.keys()
    ratio = buckets["productive"] / (sum(buckets.values()) - buckets["pending"])
    assert float(goodput["ratio"]) == pytest.approx(ratio, abs=6e-4)
    preempted = final["history"][0]["cause"]
    assert preempted in {"Preempted", "Stopped"}  # it had ended, or its successor took over before it had
    assert [r["cause"] for r in final["history"]] == [preempted, "MachineLost"]
    assert [r["lostSteps"] for r in final["history"]] == [0, goodput["lostSteps"]]

    text = explained(home)
    assert "\x1b" not in text, "colours where there is no terminal"
    happened = text[text.index("What happened") :]
    assert happened.index(f" on slot-1: {preempted}") < happened.index("MachineLost") < happened.index("Succeeded")
    assert "2 nodes" in happened
    lost = goodput["lostSteps"]
    assert f"{lost} step{'s' * (lost != 1)} lost" in happened
    told = json.loads(explained(home, "-o", "json"))
    assert told["goodput"] == goodput["ratio"]
    assert {b["bucket"]: b["seconds"] for b in told["buckets"]} == {k: round(s, 3) for k, s in buckets.items() if s}
