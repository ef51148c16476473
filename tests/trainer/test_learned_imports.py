"""What is learned of the workers' imports: installed libraries, and only what leaves a process that can be forked."""

import os
import subprocess
import sys
import sysconfig
import time
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from relight_agent.files import write_json
from relight_trainer import learned_imports

pytestmark = pytest.mark.timeout(60)


def in_a_child(run: Callable[[], int]) -> int:
    """What `run` returns in a fork, as the launcher has it run."""
    pid = os.fork()
    if pid == 0:
        status = 99
        try:
            status = run()
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str, str], str]:
    """library(name, code): a module that can be imported by that name."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def write(name: str, code: str) -> str:
        (tmp_path / f"{name}.py").write_text(code)
        return name

    return write


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("x = 1", 0),
        ("raise RuntimeError('not without a licence')", 0),
        ("raise SystemExit(3)", 0),
        ("import threading, time; threading.Thread(target=time.sleep, args=(60,), daemon=True).start()", 1),
    ],
)
def test_a_library_that_starts_a_thread_is_found_in_the_child(
    library: Callable[[str, str], str], code: str, status: int
) -> None:
    name = library("rehearsed", code)
    assert in_a_child(lambda: learned_imports.rehearse([name])) == status
    assert name not in sys.modules


def said(program: str, folder: Path) -> str:
    """What an interpreter with `learned_imports` prints that runs `program`, with the modules of `folder`."""
    run = [sys.executable, "-c", f"import atexit, sys\nfrom relight_trainer import learned_imports\n{program}"]
    environment = {**os.environ, "PYTHONPATH": str(folder)}
    done = subprocess.run(run, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=True)
    return done.stdout


def test_what_a_library_prints_and_what_it_does_at_exit_is_not_the_workers(tmp_path: Path) -> None:
    code = "import atexit, os\nprint('hello')\nos.system('echo hello')\natexit.register(print, 'goodbye')\n"
    (tmp_path / "talks.py").write_text(code)
    learned = "learned_imports.learn('talks')\nassert 'talks' in sys.modules\n"
    assert said(f"{learned}learned_imports.begin()", tmp_path) == ""
    assert said(learned, tmp_path) == "goodbye\n"


def test_a_library_that_logs_later_still_has_where_to(tmp_path: Path) -> None:
    (tmp_path / "logs.py").write_text(
        "import logging\nlogging.warning('now')\nlog = logging.StreamHandler().stream.write"
    )
    assert said("learned_imports.learn('logs')\nsys.modules['logs'].log('later')", tmp_path) == "later"


def test_an_open_device_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learned_imports.hygiene, "threads_of_this_process", lambda: 1)
    monkeypatch.setattr(learned_imports, "_DEVICES", (str(tmp_path / "nvidia-uvm"),))
    assert learned_imports.can_fork()
    with (tmp_path / "nvidia-uvm").open("w"):
        assert not learned_imports.can_fork()


def module(name: str, origin: str | None) -> ModuleType:
    made = ModuleType(name)
    made.__spec__ = ModuleSpec(name, None, origin=origin)
    return made


def test_installed_libraries_are_noted_and_nobodys_own_code_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    installed = sysconfig.get_paths()["purelib"]
    learned_imports.begin()
    names = [f"large.part{i}" for i in range(60)]
    new: dict[str, Any] = {name: module(name, f"{installed}/large/part.py") for name in names}
    new["mine"] = module("mine", str(tmp_path / "mine.py"))
    new["built_in"] = module("built_in", None)
    new["torch._made_up"] = module("torch._made_up", f"{installed}/torch/_made_up.py")
    new["odd name"] = module("odd name", f"{installed}/odd.py")
    new["none"] = None
    for name, made in new.items():
        monkeypatch.setitem(sys.modules, name, made)
    learned_imports.note(tmp_path)
    assert learned_imports.known(tmp_path) == names


def test_a_note_is_taken_while_another_thread_imports(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Meanwhile:
        """The launcher's modules; each look at them is a moment in which somebody else imports one."""

        def __contains__(self, name: object) -> bool:
            if not str(name).startswith("meanwhile"):
                monkeypatch.setitem(sys.modules, f"meanwhile_{name}", ModuleType("meanwhile"))
            return True

    monkeypatch.setattr(learned_imports, "_before", Meanwhile())
    learned_imports.note(tmp_path)
    assert any(name.startswith("meanwhile") for name in sys.modules)


def test_few_imports_are_not_worth_a_note(tmp_path: Path) -> None:
    learned_imports.begin()
    learned_imports.note(tmp_path)
    assert not (tmp_path / learned_imports.FILE).exists()


@pytest.mark.parametrize("content", [{}, "os", [1], ["a b"], ["../x"], ["a."], ["x"] * 10_001, ["a" * 101]])
def test_a_list_that_is_none_of_ours_is_nothing(tmp_path: Path, content: Any) -> None:
    write_json(tmp_path / learned_imports.FILE, content)
    assert learned_imports.known(tmp_path) == []


def test_what_was_published_is_found_within_a_time_and_storage_that_hangs_holds_nobody_up(tmp_path: Path) -> None:
    names = [f"a{i}.b" for i in range(9_000)]
    learned_imports.publish(tmp_path, names)
    assert learned_imports.known_within(tmp_path, 20) == names
    learned_imports.publish(tmp_path, ["a1.b", "later"])
    assert learned_imports.known_within(tmp_path, 20) == [*names, "later"]
    assert learned_imports.known_within(tmp_path / "nowhere", 20) == []

    (tmp_path / learned_imports.FILE).unlink()
    os.mkfifo(tmp_path / learned_imports.FILE)
    began = time.monotonic()
    assert learned_imports.known_within(tmp_path, 0.2) == []
    assert time.monotonic() - began < 10
    os.waitpid(-1, 0)
