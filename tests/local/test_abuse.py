"""`relight run` treated badly: what is closed, removed, full or another's, and signals that come twice."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from builders import Home, Job

from relight_agent.processes import is_alive
from relight_operator.errors import InvalidUsage
from relight_operator.local.state import default_state_dir

pytestmark = pytest.mark.timeout(60)


def shell(text: str, **more: Any) -> Job:
    """A plain command of one member: it starts in a moment."""
    return Job(name="abused", nodes=1, trainer={"command": ["sh", "-c", text]}, spec=more)


def relight(home: Home, job: Job, *arguments: str, prefix: str = "", env: dict[str, str] | None = None) -> Any:
    """`relight run` from a shell, for what only a shell can do; the completed process with its words."""
    home.path.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-m", "relight_operator.cli", "run", str(job.write(home.path)), *arguments]
    return subprocess.run(
        ["sh", "-c", prefix or '"$@"', "sh", *argv],
        env={**os.environ, **(env or {})}, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=50, check=False,
    )  # fmt: skip


def running(run: Any) -> None:
    run.until(lambda s: s.get("world"), "a generation")


def test_a_reader_that_goes_away_stops_the_job_and_leaves_nobody_behind(home: Home) -> None:
    prefix = '{ "$@" ; echo $? > "$0.code"; } | head -n 1'.replace("$0", str(home.path / "pipe"))
    done = relight(home, shell("sleep 100"), "--state-dir", str(home.state), prefix=prefix)
    assert done.stdout.count("\n") == 1
    assert "Traceback" not in done.stderr
    assert "BrokenPipe" not in done.stderr
    assert (home.path / "pipe.code").read_text() == "130\n"
    assert home.status()["phase"] == "Suspended"


def test_a_closed_terminal_saves_and_ends(home: Home) -> None:
    run = home.start(shell("sleep 100"))
    running(run)
    run.process.send_signal(signal.SIGHUP)
    run.process.send_signal(signal.SIGHUP)
    assert run.wait().code == 130
    assert home.status()["phase"] == "Suspended"


def test_nohup_is_respected(home: Home) -> None:
    run = home.start(
        shell(f"while [ ! -e {home.path}/on ]; do sleep 0.05; done"),
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    running(run)
    run.process.send_signal(signal.SIGHUP)
    (home.path / "on").touch()
    assert run.wait().code == 0


def test_one_ctrl_c_that_comes_twice_is_one_wish(home: Home) -> None:
    """A terminal, and what stands between it and the runner, may both pass it on."""
    run = home.start(shell("trap 'sleep 0.2; exit 0' TERM; sleep 100 & wait"), output="text")  # a stop, no completion
    running(run)
    run.interrupt()
    run.process.send_signal(signal.SIGTERM)
    result = run.wait()
    assert result.code == 130
    assert "killing" not in result.said


@pytest.mark.parametrize("closed", ["<&-", ">&-", "<&- >&- 2>&-"])
def test_closed_standard_streams_do_no_harm(home: Home, closed: str) -> None:
    done = relight(home, shell("true"), "--state-dir", str(home.state), prefix=f'"$@" {closed}')
    assert done.returncode == 0, done.stderr
    assert home.status()["phase"] == "Succeeded"


def test_a_terminal_that_cannot_spell_a_path(home: Home) -> None:
    state = home.path / "st äte"
    done = relight(home, shell("true"), "--state-dir", str(state), env={"PYTHONIOENCODING": "ascii"})
    assert done.returncode == 0, done.stderr
    assert json.loads((state / "job.json").read_text())["status"]["phase"] == "Succeeded"


def test_a_state_that_is_removed_ends_the_run_and_its_members(home: Home) -> None:
    run = home.start(shell("sleep 100"))
    running(run)
    until = time.monotonic() + 1.0
    while time.monotonic() < until:  # a write that had begun puts it back
        (home.state / "job.json").unlink(missing_ok=True)
        time.sleep(0.02)
    run.interrupt()
    result = run.wait()
    assert result.code == 74
    assert f"{home.state / 'job.json'} is gone" in result.said
    assert "Traceback" not in result.said


def test_a_state_that_cannot_be_written_for_a_while_is_tried_again(home: Home) -> None:
    home.path.mkdir(parents=True)
    go = home.path / "go"
    run = home.start(shell(f"while [ ! -e {go} ]; do sleep 0.05; done"))
    running(run)
    lock = home.state / "job.lock"
    lock.unlink()
    lock.mkdir()  # as good as a full disk, also for root
    go.touch()
    while "TryingAgain" not in run.said():
        assert run.process.poll() is None
    lock.rmdir()
    assert run.wait().code == 0


def test_who_wants_to_stop_waits_for_a_disk_as_long_as_the_grace_period(home: Home) -> None:
    run = home.start(shell("sleep 100", disruption={"gracePeriod": "1s"}))
    running(run)
    lock = home.state / "job.lock"
    lock.unlink()
    lock.mkdir()
    run.interrupt()
    result = run.wait()
    assert result.code == 74
    assert "job.lock" in result.said
    assert "TryingAgain" in result.said
    lock.rmdir()


def test_the_coordinators_address_comes_back_when_it_is_removed(home: Home) -> None:
    home.path.mkdir(parents=True)
    go = home.path / "go"
    run = home.start(shell(f"while [ ! -e {go} ]; do sleep 0.05; done"))
    running(run)
    (home.state / "coordinator.url").unlink()
    go.touch()
    assert run.wait(30).code == 0


def test_another_jobs_state_is_not_touched(home: Home) -> None:
    assert home.run(shell("true")).code == 0
    before = (home.state / "job.json").read_bytes()
    other = replace(shell("true"), name="other")
    for arguments in ([], ["--fresh"]):
        result = home.run(other, *arguments)
        assert result.code == 64
        assert "holds the state of job default/abused, not of default/other" in result.said
    assert (home.state / "job.json").read_bytes() == before


def test_a_suspended_job_says_so_and_ends(home: Home) -> None:
    result = home.run(shell("true", suspend=True), output="text")
    assert result.code == 130
    assert "spec.suspend is true" in result.said


def test_the_way_on_is_a_line_that_can_be_typed(home: Home) -> None:
    run = home.start(shell("sleep 100"), output="text")
    running(run)
    run.interrupt()
    assert f"relight run {home.path / 'abused.yaml'} --state-dir {home.state}" in run.wait().said


def test_a_user_without_a_home_is_asked_for_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    def nowhere() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_STATE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", nowhere)
    with pytest.raises(InvalidUsage, match="--state-dir"):
        default_state_dir("default", "abused")


def test_users_modules_named_as_the_librarys_are_left_alone(home: Home) -> None:
    """The job's folder is the working folder of the agent's user and of the workers: `queue.py` there is the user's."""
    home.path.mkdir(parents=True)
    for name in ("queue", "json", "signal", "socket"):
        (home.path / f"{name}.py").write_text("raise RuntimeError('the user module was imported')")
    (home.path / "train.py").write_text("print('trained')")
    job = Job(name="abused", nodes=1, trainer={"script": ["train.py"]})
    run = home.start(job, cwd=home.path)
    result = run.wait()
    assert result.code == 0, result.said


def test_what_outlived_its_agent_and_its_runner_is_ended_by_fresh(home: Home) -> None:
    pids = home.path / "pids"
    home.path.mkdir(parents=True)
    run = home.start(shell(f"setsid sleep 1000 & echo $! > {pids}.tmp; mv {pids}.tmp {pids}; wait"))
    running(run)
    while not pids.exists():
        assert run.process.poll() is None
    below = int(pids.read_text())
    agents = [p for p, e in home.processes().items() if "RELIGHT_SLOT" in e and "PET_NNODES" not in e]
    run.die()
    for agent in agents:
        os.kill(agent, signal.SIGKILL)
    assert is_alive(below)
    assert home.run(shell("true"), "--fresh").code in {0, 64}
    assert not is_alive(below)


def test_a_daemon_that_hides_ends_with_its_member(home: Home) -> None:
    """In a session and with an environment of its own, and the agent that could find it is killed."""
    home.path.mkdir(parents=True)
    pids, go = home.path / "pids", home.path / "go"
    hide = f"env -i setsid sh -c 'echo $$ > {pids}.tmp; mv {pids}.tmp {pids}; exec sleep 1000' & wait"
    run = home.start(shell(f"[ -e {go} ] && exit 0; {hide}"))
    while not pids.exists():
        assert run.process.poll() is None
    below = int(pids.read_text())
    go.touch()
    agents = [p for p, e in home.processes().items() if "RELIGHT_SLOT" in e and "PET_NNODES" not in e]
    for agent in agents:
        os.kill(agent, signal.SIGKILL)
    assert run.wait().code == 0
    assert not is_alive(below)


def test_a_fault_that_did_not_happen_is_said(home: Home) -> None:
    result = home.run(shell("true"), "--chaos", "kill-node:0@step:5", output="text")
    assert result.code == 0
    assert "did not happen: kill-node:0@step:5" in result.said


def test_fresh_deletes_nothing_in_a_folder_that_was_not_relights(home: Home) -> None:
    mine = home.state / "members" / "list.txt"
    mine.parent.mkdir(parents=True)
    mine.touch()
    assert home.run(shell("true"), "--fresh").code == 0
    assert mine.exists()


def test_an_empty_state_dir_is_an_unset_variable(home: Home) -> None:
    done = relight(home, shell("true"), "--state-dir", "")
    assert done.returncode == 64
    assert "--state-dir" in done.stderr
