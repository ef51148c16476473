"""How workers end: what they say, and what runs before they are gone."""

import itertools

import pytest
from launching import Member, free_port, noted, outcome

from relight_agent.exits import ExitCode

pytestmark = pytest.mark.timeout(120)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """run(argv) -> (folder, stderr) of a generation of one worker that has ended."""
    generations = itertools.count(1)
    with Member(tmp_path_factory.mktemp("run"), 0, []) as member:

        def go(argv, *, kind="script"):
            said = len(member.stderr.read_text())
            member.enter(argv, kind=kind)
            folder = member.run(next(generations), rank=0, nodes=1, port=free_port(), host_store=True)
            member.started()
            member.expect("ended")
            return folder, member.stderr.read_text()[said:]

        yield go


def test_a_returning_script_completes_and_its_exit_handlers_run(run):
    folder, stderr = run(["reduce.py", "return"])
    assert outcome(folder).kind == "completed"
    assert noted(folder, "atexit", timeout=1) == "ran"
    assert folder.pid(0) == noted(folder, "formed")["pid"]
    assert stderr == ""


def test_sys_exit_0_completes(run):
    folder, _ = run(["reduce.py", "exit", "0"])
    assert outcome(folder).kind == "completed"


def test_sys_exit_with_another_code_is_an_exception(run):
    folder, _ = run(["reduce.py", "exit", "3"])
    end = outcome(folder)
    assert (end.kind, end.exit_code) == ("failed", ExitCode.EXCEPTION)
    assert end.message.startswith("SystemExit: 3 (")
    assert noted(folder, "atexit", timeout=1) == "ran"


def test_an_exception_is_told_by_its_last_line_and_place_and_one_traceback(run):
    folder, stderr = run(["reduce.py", "raise", "no such digit"])
    end = outcome(folder)
    assert (end.kind, end.exit_code) == ("failed", ExitCode.EXCEPTION)
    assert end.message.startswith("ValueError: no such digit (")
    assert "reduce.py:" in end.message
    assert stderr.count("Traceback") == 1
    assert "runpy" not in stderr
    assert "worker.py" not in stderr


def test_an_exception_with_an_exit_code_of_its_own(run):
    folder, _ = run(["ends.py", "storage"])
    assert outcome(folder).exit_code == ExitCode.STORAGE_FAILED


def test_a_script_that_is_not_there_is_bad_configuration(run):
    folder, stderr = run(["nowhere.py"])
    end = outcome(folder)
    assert end.exit_code == ExitCode.BAD_CONFIG
    assert "nowhere.py" in end.message
    assert "Traceback" not in stderr


def test_a_module_that_is_not_there_is_bad_configuration(run):
    folder, _ = run(["nowhere.train"], kind="module")
    assert outcome(folder).exit_code == ExitCode.BAD_CONFIG


def test_a_module_runs_as_main_with_its_arguments(run):
    folder, _ = run(["reduce", "return"], kind="module")
    assert outcome(folder).kind == "completed"
    assert noted(folder, "formed")["argv"][1:] == ["return"]


@pytest.mark.parametrize("how", [["signal", "SIGKILL"], ["signal", "SIGSEGV"], ["unfinished"]])
def test_a_worker_that_dies_without_a_word_leaves_no_outcome_and_the_generation_ends(run, how):
    folder, _ = run(["ends.py", *how])
    assert list(folder.outcomes(1)) == []
    assert folder.pid(0) is not None


def test_a_crash_in_native_code_leaves_its_stack_on_stderr(run):
    _, stderr = run(["ends.py", "signal", "SIGSEGV"])
    assert "ends.py" in stderr


def test_sigterm_and_sigint_do_not_end_a_worker_but_its_programs(run):
    folder, _ = run(["ends.py", "terminated"])
    end = outcome(folder)
    assert end.kind == "completed", end.message


def test_loader_processes_work_by_fork_and_by_spawn_with_a_relative_script_path(run):
    folder, _ = run(["./loaders.py"])
    end = outcome(folder)
    assert end.kind == "completed", end.message
    total = 2 * sum(i * i for i in range(16))
    assert noted(folder, "sums") == {"fork": total, "spawn": total}


@pytest.mark.parametrize("how", ["thread", "slow exit"])
def test_a_good_end_is_said_when_nothing_is_left_to_do(tmp_path, how):
    with Member(tmp_path, 0, ["ends.py", how]) as member:
        folder = member.run(1, rank=0, nodes=1, port=free_port(), host_store=True)
        member.started()
        assert outcome(folder).kind == "completed"
        member.kill_session()  # as the agent does
        assert (folder.path / "thread").read_text() == "done"
