"""Processes as the agent sees and ends them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from relight_agent.processes import Reaper, descendants, is_alive, kill_all, processes

pytestmark = pytest.mark.timeout(30)

# Each process starts two more until `depth` is reached, one of them in a session of its own, and then a leaf sleeps.
BOMB = """
import os, sys, time
for generation in range(int(sys.argv[1])):
    for _ in range(2):
        if os.fork() == 0:
            break
    else:
        break
    if generation % 2:
        os.setsid()
time.sleep(60)
"""


@pytest.fixture
def bomb() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, "-c", BOMB, "4"])
    yield process
    for pid in [*descendants(process.pid), process.pid]:
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)
    process.wait()


def until(condition: object, what: str) -> None:
    deadline = time.monotonic() + 20.0
    assert callable(condition)
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.005)


def test_a_tree_that_grows_while_it_is_killed_is_killed_whole(bomb: subprocess.Popen[bytes]) -> None:
    until(lambda: len(descendants(bomb.pid)) >= 3, "the bomb did not go off")
    known: set[int] = set()

    def select(seen: list[object]) -> set[int]:
        # An orphan has another parent: who has once been seen below the bomb belongs to it.
        for root in (bomb.pid, *known):
            known.update(descendants(root))
        return known | {bomb.pid}

    kill_all(select)  # type: ignore[arg-type]  # what is seen is not looked at here
    assert known
    assert not [pid for pid in known if is_alive(pid)]
    assert not is_alive(bomb.pid)


def test_descendants_are_listed_parents_first_and_without_the_root() -> None:
    code = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    with subprocess.Popen([sys.executable, "-c", code]) as child:
        until(lambda: len(descendants(child.pid)) == 1, "no grandchild")
        (grandchild,) = descendants(child.pid)
        assert descendants(os.getpid())[:1] == [child.pid] or child.pid in descendants(os.getpid())
        below = descendants(os.getpid())
        assert below.index(child.pid) < below.index(grandchild)
        assert os.getpid() not in below
        os.kill(grandchild, signal.SIGKILL)


def test_a_zombie_is_not_alive() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    until(lambda: any(p.pid == process.pid and p.state == "Z" for p in processes()), "no zombie")
    assert not is_alive(process.pid)
    assert process.wait() == 0


def test_a_name_with_spaces_and_parentheses_does_not_confuse(tmp_path: object) -> None:
    with open("/proc/self/comm", encoding="ascii") as file:
        before = file.read().strip()
    try:
        with open("/proc/self/comm", "w", encoding="ascii") as file:
            file.write(") Z 1 (")
        me = next(p for p in processes() if p.pid == os.getpid())
        assert me.parent == os.getppid()
        assert me.state in "RS"
        assert is_alive(os.getpid())
    finally:
        with open("/proc/self/comm", "w", encoding="ascii") as file:
            file.write(before)


def test_killing_nobody_ends_at_once() -> None:
    kill_all(lambda _: set())
    kill_all(lambda _: {2**22 + 1})  # a pid that cannot be


def test_the_reaper_tells_each_end_once_and_keeps_nothing_of_orphans() -> None:
    code = """
import os, signal, subprocess, sys, time
sys.path[:0] = sys.argv[1:]
from relight_agent.processes import Reaper, become_subreaper
become_subreaper()
reaper = Reaper()
# The child leaves an orphan behind, which ends by a signal.
child = subprocess.Popen([sys.executable, "-c",
    "import os, signal, sys\\nif os.fork() == 0:\\n    os.kill(os.getpid(), signal.SIGTERM)\\nsys.exit(7)"])
reaper.watch(child.pid)
deadline = time.monotonic() + 10
while (status := reaper.status(child.pid)) is None and time.monotonic() < deadline:
    time.sleep(0.005)
assert status == 7, status
assert reaper.status(child.pid) is None
while True:
    reaper.reap()
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        break
    assert time.monotonic() < deadline
    time.sleep(0.005)
assert not reaper._ended, "nobody asks for the orphan, and its pid will be another's"
child.returncode = 7
"""
    subprocess.run([sys.executable, "-c", code, *sys.path], check=True, timeout=20)


def test_the_reaper_of_nobody_has_nothing_to_tell() -> None:
    assert Reaper().status(2**22 + 1) is None
