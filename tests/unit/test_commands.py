"""What an agent is told, for every status."""

from typing import Any

import pytest
from sim_views import fresh, recovering, running

from relight_agent.exits import ExitCode
from relight_operator.api.status import Failure, JobStatus, ProfileStatus, RecoveryStatus, StallStatus
from relight_operator.core.commands import command_for

ME = {"slot": 1, "incarnation": 0, "uid": "u1"}


def failed(code: int | None) -> JobStatus:
    return running(phase="Failed", last_failure=Failure(time=1.0, cause="Exception", exit_code=code))


def broken(**changes: Any) -> JobStatus:
    return running(recovery=RecoveryStatus(generation=1, since=1.0, cause="Exception"), **changes)


def stalled(**changes: Any) -> JobStatus:
    return running(stall=StallStatus(**{"generation": 1, "since": 1.0, "found": 2.0, **changes}))


def traced(generation: int) -> JobStatus:
    return running(profile=ProfileStatus(id="p1", generation=generation))


def without_uid() -> JobStatus:
    status = fresh()
    status.slots[1].uid = None
    return status


@pytest.mark.parametrize(
    ("status", "who", "command"),
    [
        pytest.param(fresh(), {}, "wait:0", id="no world yet"),
        pytest.param(without_uid(), {"uid": "new"}, "wait:0", id="created, and not recorded yet"),
        pytest.param(running(), {}, "run:1", id="in the world"),
        pytest.param(traced(1), {}, "run:1:profile:p1", id="a trace of this world is wanted"),
        pytest.param(traced(0), {}, "run:1", id="a trace of an older world was wanted"),
        pytest.param(broken(), {}, "wait:1", id="its world is over"),
        pytest.param(recovering(), {"incarnation": 1, "uid": "u9"}, "wait:1", id="the replacement waits"),
        pytest.param(recovering(), {"slot": 0, "uid": "u0"}, "wait:1", id="the survivor waits"),
        pytest.param(recovering(), {}, "exit:superseded", id="an older incarnation"),
        pytest.param(running(), {"uid": "other"}, "exit:superseded", id="the slot is another's"),
        pytest.param(running(), {"incarnation": 1, "uid": "new"}, "wait:1", id="newer than this status"),
        pytest.param(running(), {"slot": 5}, "exit:superseded", id="no such slot"),
        pytest.param(JobStatus(), {}, "exit:superseded", id="no slots at all"),
        pytest.param(stalled(), {}, "dump:1.1", id="stacks are wanted"),
        pytest.param(stalled(collecting=False), {}, "run:1", id="stacks have been collected"),
        pytest.param(stalled(generation=0), {}, "run:1", id="stacks of a world that is past"),
        pytest.param(stalled(), {"slot": 0, "uid": "other"}, "exit:superseded", id="stacks of who holds the slot"),
        pytest.param(broken(stall=stalled().stall), {}, "wait:1", id="its world is over, stacks or not"),
        pytest.param(running(stop="s1", stall=stalled().stall), {}, "stop:s1", id="a stop before stacks"),
        pytest.param(running(stop="s1"), {}, "stop:s1", id="a stop"),
        pytest.param(fresh(stop="s1"), {}, "stop:s1", id="a stop before there is a world"),
        pytest.param(running(phase="Suspended", stop="s1"), {}, "stop:s1", id="suspended: who comes late leaves too"),
        pytest.param(running(phase="Suspended", stop="s1"), {"uid": "x"}, "exit:superseded", id="superseded in a stop"),
        pytest.param(running(phase="Succeeded"), {}, "exit:Succeeded", id="succeeded"),
        pytest.param(running(phase="Succeeded", stop="s1"), {}, "exit:Succeeded", id="succeeded during a stop"),
        pytest.param(failed(70), {}, "exit:Failed", id="failed"),
    ],
)
def test_command(status: JobStatus, who: dict[str, Any], command: str) -> None:
    told = command_for(status, **{**ME, **who})
    assert told.id == command
    assert told.op == command.partition(":")[0]
    assert (told.world is not None) == (told.op == "run")


@pytest.mark.parametrize(
    ("status", "code"),
    [
        pytest.param(running(phase="Succeeded"), 0, id="succeeded"),
        pytest.param(failed(64), 64, id="the failure's code"),
        pytest.param(failed(3), ExitCode.EXCEPTION, id="not one of ours"),
        pytest.param(failed(-9), ExitCode.EXCEPTION, id="a signal"),
        pytest.param(failed(0), ExitCode.EXCEPTION, id="0 is not a failure's"),
        pytest.param(failed(None), ExitCode.EXCEPTION, id="none"),
        pytest.param(running(phase="Failed"), ExitCode.EXCEPTION, id="no failure recorded"),
    ],
)
def test_exit_code(status: JobStatus, code: int) -> None:
    assert command_for(status, **ME).code == code


def test_run_carries_the_world_and_the_newest_checkpoint() -> None:
    status = running()
    status.checkpoint.step = 8
    told = command_for(status, **ME)
    assert (told.world, told.generation, told.committed_step) == (status.world, 1, 8)
