"""The agent's look at real processes: busy, waiting, stopped, deaf."""

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from relight_agent.files import SECTIONS, GenerationFolder, Heartbeat
from relight_agent.processes import is_alive
from relight_agent.stacks import KEPT_GENERATIONS, SIGNAL, RankStack, collect, keep, process_state

pytestmark = pytest.mark.timeout(60)

# A worker as far as stacks go: argv is the folder, its local rank, and what it does.
WORKER = """
import faulthandler, os, sys, threading
from pathlib import Path
from relight_agent.files import GenerationFolder
folder, rank, what = GenerationFolder(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

def loops():
    import re
    print(flush=True)
    re.match("(a+)+$", "a" * 80 + "b")

def waits():
    print(flush=True)
    threading.Event().wait()

def has_a_loader():
    if os.fork() == 0:
        waits()
    waits()

if what != "is_deaf":
    faulthandler.register(@SIGNAL@, file=open(folder.stack_path(rank), "ab", buffering=0), all_threads=True)
folder.write_pid(rank)
threading.Thread(target=threading.Event().wait, daemon=True).start()
{"loops": loops, "waits": waits, "is_deaf": waits, "has_a_loader": has_a_loader}[what]()
""".replace("@SIGNAL@", str(int(SIGNAL)))


@contextlib.contextmanager
def workers(folder: GenerationFolder, *what: str) -> Iterator[list[int]]:
    """One process each, once it is at that."""
    started = []
    try:
        for rank, each in enumerate(what):
            argv = [sys.executable, "-c", WORKER, str(folder.path), str(rank), each]
            started.append(subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True))
        for process in started:
            assert process.stdout is not None
            for _ in range(2 if "has_a_loader" in process.args else 1):  # type: ignore[operator]
                process.stdout.readline()
        yield [p.pid for p in started]
    finally:
        for process in started:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def brief(found: list[RankStack]) -> list[tuple[int, str, str, list[str]]]:
    return [(r.rank, r.state, r.doing, [f.rpartition(" in ")[2] for f in r.frames]) for r in found]


def test_each_worker_is_told_by_its_main_thread_or_by_the_kernel(tmp_path: Path) -> None:
    folder = GenerationFolder.create(tmp_path, 3)
    with workers(folder, "loops", "waits", "waits", "is_deaf") as pids:
        os.kill(pids[2], signal.SIGSTOP)
        deadline = time.monotonic() + 10
        while not process_state(pids[2]).startswith("T"):
            assert time.monotonic() < deadline
        deadline = time.monotonic() + 60  # they say that they are about to, and are a moment later
        while [r[3][:1] for r in brief(collect(folder, 8, 2, time.monotonic())[0])] != [["match"], ["wait"]]:
            assert time.monotonic() < deadline
        Heartbeat(folder.heartbeat_path(0)).beat(SECTIONS.index("data"), 7)
        began = time.monotonic()
        found, texts = collect(folder, 8, 5, time.monotonic() + 1.0)
        assert time.monotonic() - began < 10, "whoever does not answer is not waited for"
        assert all(is_alive(pid) for pid in pids), "who has no handler would die of the signal"

    assert [r[:1] + r[2:] for r in brief(found)] == [
        (8, "code", ["match", "loops", "<module>"]),
        (9, "code", ["wait", "wait", "waits", "<module>"]),
        (10, "", []),
        (11, "", []),
    ]
    assert [r.state for r in found[2:]] == ["T", "S"]
    assert (found[0].section, found[0].step) == ("data", 7)
    assert found[0].silent >= 1.0
    assert sorted(texts) == [8, 9, 10, 11]
    assert "in data after step 7" in texts[8]
    assert "T (stopped)" in texts[10]
    assert "It did not write its stacks." in texts[10]


def test_a_second_look_shows_what_is_now_and_loader_processes_are_seen(tmp_path: Path) -> None:
    folder = GenerationFolder.create(tmp_path, 1)
    with workers(folder, "has_a_loader"):
        deadline = time.monotonic() + 60  # until it waits
        while brief(first := collect(folder, 0, 1, time.monotonic())[0])[0][3][:1] != ["wait"]:
            assert time.monotonic() < deadline
        again, texts = collect(folder, 0, 1, time.monotonic())
    assert brief(first) == brief(again)
    worker, _, loader = texts[0].partition("below it")
    assert worker.count("in has_a_loader") == 1
    assert loader.count("in has_a_loader") == 1


def test_a_worker_that_is_gone_is_no_error(tmp_path: Path) -> None:
    folder = GenerationFolder.create(tmp_path, 1)
    with workers(folder, "waits"):
        pass
    found, texts = collect(folder, 0, 2, time.monotonic())
    assert brief(found) == [(0, "", "", [])]
    assert ": gone, in start" in texts[0]


def test_only_the_newest_generations_are_kept(tmp_path: Path) -> None:
    for generation in range(1, KEPT_GENERATIONS + 4):
        keep(str(tmp_path), generation, {0: "zero", 3: "three"})
    kept = sorted(int(p.name.removeprefix("generation-")) for p in (tmp_path / "stacks").iterdir())
    assert kept == list(range(4, KEPT_GENERATIONS + 4))
    assert (tmp_path / "stacks" / f"generation-{kept[-1]}" / "rank-3.txt").read_text() == "three"
    (tmp_path / "flight-0").write_bytes(b"record")
    keep(str(tmp_path), kept[-1], {}, [tmp_path / "flight-0"])
    assert (tmp_path / "stacks" / f"generation-{kept[-1]}" / "flight-0").read_bytes() == b"record"
