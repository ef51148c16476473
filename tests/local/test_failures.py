"""Failures of the user's own code: retried, counted, named, and ended when trying again is of no use."""

import sys
from typing import Any

import pytest
from builders import SCRIPTS, Home, Job, command, script
from tests.cgroups import group

pytestmark = pytest.mark.timeout(120)


def job(*arguments: object, nodes: int = 1, env: dict[str, object] | None = None, **retry: Any) -> Job:
    retry = {"backoff": {"initial": "200ms"}, **retry}
    return Job(trainer=script("failing.py", *arguments, env=env), nodes=nodes, spec={"retry": retry})


def test_an_exception_is_retried_with_a_growing_wait_until_the_budget_is_spent(home: Home) -> None:
    result = home.run(job("outage:2", nodes=2, failures=2, noProgressLimit=9))
    assert result.code == 70, result.said
    assert result.final["phase"] == "Failed"
    assert result.reason == "RetriesExhausted"
    assert result.restarts["failures"] == result.restarts["counted"] == 3
    assert result.restarts["byCause"] == {"Exception": 3}
    assert result.restarts["disruptions"] == 0
    assert result.final["world"]["generation"] == 3
    failure = result.final["lastFailure"]
    assert failure["cause"] == "Exception"
    assert failure["exitCode"] == 70
    words = f"ConnectionResetError: by the object store, on rank 1 ({SCRIPTS / 'failing.py'}:"
    assert failure["message"].startswith(words)
    assert failure["message"] in result.said
    assert not result.final.get("blamedMachines")
    # Both members live on; only their workers are started again.
    assert [s["incarnation"] for s in result.final["slots"]] == [0, 0]
    said_at = {
        e: _hundredths(result.said, e) for e in ("failure 1 of 2", "failure 2 of 2", "generation 2:", "generation 3:")
    }
    rounding = 1
    assert said_at["generation 2:"] - said_at["failure 1 of 2"] >= 20 - rounding
    assert said_at["generation 3:"] - said_at["failure 2 of 2"] >= 40 - rounding


def _hundredths(said: str, text: str) -> int:
    """When the first line with `text` was said, in hundredths of a second from the start."""
    line = next(line for line in said.splitlines() if text in line)
    return round(100 * float(line.split("s ", 1)[0]))


def test_the_same_exception_at_the_same_step_twice_is_given_up(home: Home) -> None:
    """On whichever rank, and with whatever address and process number in its words."""
    result = home.run(job("forward:7", nodes=2, failures=9, env={"VOLATILE": 1}))
    assert result.code == 70, result.said
    assert result.reason == "DeterministicFailure"
    assert "the same exception as the last time at the same step, 6" in result.said
    assert result.restarts["failures"] == 2
    failure = result.final["lastFailure"]
    assert failure["message"].startswith("NoSuchDigit: eleven, on rank 1")
    assert failure["step"] == 6
    assert failure["collateral"] == ["small-0-0"]


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("raise", "NoSuchDigit: eleven, on rank 0"),
        ("missing", "FileNotFoundError: [Errno 2] No such file: '/data/cafe.jpg'"),
        ("text", "SystemExit: error: --data-dir is required"),
        ("broken", "Broken: <its __str__ raised RuntimeError>"),
        ("import", "ModuleNotFoundError: No module named 'no_such_module_anywhere'"),
    ],
)
def test_an_exception_before_the_first_step_is_told_once_and_not_tried_again(home: Home, how: str, words: str) -> None:
    result = home.run(job(how, failures=9), output="text")
    assert result.code == 70, result.said
    status = home.status()
    assert status["restarts"]["failures"] == 1
    assert not status.get("blamedMachines")
    assert status["lastFailure"]["message"].startswith(f"{words} ({SCRIPTS / 'failing.py'}:")
    assert result.said.count(status["lastFailure"]["message"]) == 1
    if how != "text":
        assert "    Traceback (most recent call last):" in result.said
    assert f"{home.state}/members/small-0-0/log" in result.said


def test_what_a_wrong_configuration_says_is_said_once(home: Home) -> None:
    config = Job().config(train={"duration": "3st", "global_batch": 32, "device": "cuda"})
    result = home.run(Job(nodes=1, trainer={"config": config}), output="text")
    assert result.code == 64, result.said
    message = home.status()["lastFailure"]["message"]
    assert result.said.count(message) == 1
    assert "BadConfig: BadConfig" not in result.said


def test_a_failure_before_anything_is_done_is_given_up_once_it_has_come_often_enough(home: Home) -> None:
    rule = {"match": {"cause": "Exception"}, "action": "Retry"}
    result = home.run(job("raise", failures=9, noProgressLimit=2, rules=[rule]))
    assert result.code == 70, result.said
    assert result.reason == "NoProgress"
    assert result.restarts["failures"] == 2
    assert result.final["lastFailure"]["message"].startswith("NoSuchDigit: eleven, on rank 0")


def test_a_rank_that_ends_with_0_before_the_others_has_failed_and_a_rule_may_end_the_job_for_it(home: Home) -> None:
    rule = {"match": {"cause": "Exception"}, "action": "Fail", "after": 2}
    result = home.run(job("early", nodes=2, failures=0, rules=[rule]))
    assert result.code == 70, result.said
    assert result.reason == "RetryRule"
    assert "retry.rules[0]: cause Exception, 2 times within 1h" in result.said
    failure = result.final["lastFailure"]
    assert failure["message"].startswith("rank 1 ended with exit code 0 before the others were done")
    assert (failure["member"], failure["collateral"]) == ("small-1-0", ["small-0-0"])


def test_a_rank_that_leaves_its_loop_while_others_need_it_is_named_at_once(home: Home) -> None:
    result = home.run(job("leave:7", nodes=2, failures=5))
    assert result.code == 64, result.said
    failure = result.final["lastFailure"]
    assert failure["message"].startswith("the script left its training loop in step 7 of 40")
    assert (failure["rank"], failure["member"], failure["collateral"]) == (1, "small-1-0", ["small-0-0"])


def test_a_rule_knows_the_exit_code_of_a_users_own_program(home: Home) -> None:
    rule = {"match": {"exitCodes": [9]}, "action": "Fail"}
    trainer = {"command": [sys.executable, "-c", "import sys; sys.exit(9)"]}
    result = home.run(Job(trainer=trainer, nodes=1, spec={"retry": {"failures": 5, "rules": [rule]}}))
    assert result.code == 70, result.said
    assert result.reason == "RetryRule"
    assert result.restarts["failures"] == 1


def test_a_failed_job_goes_on_when_it_is_run_again(home: Home) -> None:
    mended = home.path / "mended"
    once = job("step:27", mended, nodes=2, failures=0)
    result = home.run(once)
    assert result.code == 70, result.said
    assert result.reason == "RetriesExhausted"
    assert result.final["lastFailure"]["rank"] == 1

    mended.touch()
    again = home.run(once)
    assert again.code == 0, again.said
    assert "it had failed: it goes on from its last checkpoint" in again.said
    # Its members saved what their memory held before they went: the last checkpoint was of step 20.
    assert again.final["checkpoint"]["resumedFromStep"] in (26, 27)  # rank 0 may have been one step ahead
    assert again.final["goodput"]["lostSteps"] == 0
    assert again.final["executedSteps"] == 40 + again.final["goodput"]["lostSteps"]
    assert again.restarts["failures"] == 0


def test_a_worker_killed_by_a_signal_is_a_failure_of_the_job(home: Home) -> None:
    result = home.run(job("signal", home.path / "killed.once", nodes=2))
    assert result.code == 0, result.said
    assert result.restarts["byCause"] == {"Exception": 1}
    assert result.restarts["failures"] == 1
    assert "a worker died without a word (killed, or a crash in native code)" in result.final["lastFailure"]["message"]
    assert result.final["world"]["generation"] == 2


def test_a_worker_that_the_kernel_kills_for_its_memory_is_out_of_memory(home: Home) -> None:
    with group(memory=2 << 30) as limited:
        run = home.start(job("starve", home.path / "killed.once"))
        limited.add(run.process.pid)
        result = run.wait()
    assert result.code == 0, result.said
    assert result.restarts["byCause"] == {"OutOfMemory": 1}
    assert "its container's limit of 2048 MiB is used up" in result.final["lastFailure"]["message"]


@pytest.mark.parametrize(
    ("status", "code", "reason", "failures"),
    [
        pytest.param(0, 0, "Completed", 0, marks=pytest.mark.slow),
        (3, 70, "DeterministicFailure", 1),
        (64, 64, "BadConfig", 1),
        pytest.param(65, 65, "BadData", 1, marks=pytest.mark.slow),
    ],
)
def test_what_a_script_exits_with_decides(home: Home, status: int, code: int, reason: str, failures: int) -> None:
    result = home.run(job(f"exit:{status}", failures=1))
    assert result.code == code, result.said
    assert result.reason == reason
    assert result.restarts["failures"] == failures
    if failures:
        assert str(status) in result.final["lastFailure"]["message"]


def test_a_script_that_is_not_there_is_a_wrong_configuration_at_once(home: Home) -> None:
    result = home.run(Job(trainer=script("no_such_script.py"), nodes=1))
    assert result.code == 64, result.said
    assert "no_such_script.py" in result.said


def test_a_plain_command_runs_under_torchrun_variables_and_is_retried(home: Home) -> None:
    trainer = command("-m", "torch.distributed.run", SCRIPTS / "plain.py", home.path / "started")
    result = home.run(Job(trainer=trainer, spec={"retry": {"backoff": {"initial": "100ms"}}}))
    assert result.code == 0, result.said
    assert result.restarts["failures"] == 1
    assert result.restarts["byCause"] == {"Exception": 1}
    assert result.restarts["disruptions"] == 0
    assert "ValueError: no such digit on rank 1" in result.final["lastFailure"]["message"]
    logs = "".join((home.state / "members" / f"small-{slot}-0" / "log").read_text() for slot in (0, 1))
    assert "rank 0 of 2" in logs
    assert "rank 1 of 2" in logs


def test_a_command_that_cannot_be_started_is_a_wrong_configuration(home: Home) -> None:
    result = home.run(Job(trainer={"command": ["no-such-program"]}, nodes=1))
    assert result.code == 64, result.said
    assert result.reason == "BadConfig"
    assert "no-such-program" in result.final["lastFailure"]["message"]


def test_the_budget_of_a_command_ends_and_its_exit_code_is_told(home: Home) -> None:
    trainer = {"command": [sys.executable, "-c", "import sys; sys.exit(9)"]}
    result = home.run(Job(trainer=trainer, nodes=1, spec={"retry": {"failures": 1, "backoff": {"initial": "0s"}}}))
    assert result.code == 70, result.said
    assert result.reason == "RetriesExhausted"
    assert "exit code 9" in result.final["lastFailure"]["message"]


def test_a_place_where_no_checkpoint_can_be_written_is_said_before_anything_is_trained(home: Home) -> None:
    home.path.mkdir(parents=True)
    (home.path / "file").touch()
    result = home.run(Job(nodes=1, spec={"checkpoint": {"hostPath": {"path": str(home.path / "file")}}}))
    assert result.code == 64, result.said
    assert result.reason == "BadConfig"
    message = result.final["lastFailure"]["message"]
    assert message.startswith(
        f"checkpoints cannot be written to {home.path}/file/default/small: Not a directory (as user"
    )
    assert result.final.get("world") is None
