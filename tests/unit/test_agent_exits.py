"""The table of exits, and how the end of a member is told and read."""

import json
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from relight_agent.agent import MAX_TERMINATION_BYTES, grace_margin, read_termination_message, write_termination_message
from relight_agent.exits import CAUSE_CLASS, CLASS_ORDER, EXITS, Cause, Class, ExitCode, exit_of
from relight_agent.files import Outcome
from relight_agent.generation import last_exception, summarise
from relight_operator.local.members import classify


def test_every_exit_code_has_one_meaning_and_every_cause_one_class() -> None:
    assert set(EXITS) == set(ExitCode)
    assert len({*ExitCode}) == len(ExitCode.__members__)
    assert set(CAUSE_CLASS) == set(Cause)
    assert len({c.value for c in Cause}) == len(Cause.__members__)
    assert sorted(CLASS_ORDER) == sorted(Class)
    assert all(CAUSE_CLASS[e.cause] is e.klass for e in EXITS.values())
    assert all(e.meaning for e in EXITS.values())
    # Beside 75 and 76, which differ in what was saved, no two codes share a cause.
    assert len({e.cause for e in EXITS.values()}) == len(EXITS) - 1


def test_codes_stay_clear_of_shells_signals_and_torchrun() -> None:
    assert all(code == 0 or 64 <= code <= 79 for code in ExitCode)


@pytest.mark.parametrize("code", [None, 1, 2, 3, 127, 137, -9, 10**6])
def test_a_code_that_is_not_ours_is_an_exceptions(code: int | None) -> None:
    assert exit_of(code) is EXITS[ExitCode.EXCEPTION]


@settings(deadline=None)  # the disk is shared
@given(st.text(max_size=3000), st.text(max_size=3000), st.integers(0, 2**31))
def test_a_termination_message_fits_whatever_was_raised(message: str, worker: str, rank: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "termination.json"
        write_termination_message(
            str(path), 70, message, Outcome("failed", rank, step=2**53, exit_code=70, message=worker)
        )
        assert path.stat().st_size <= MAX_TERMINATION_BYTES
        read = read_termination_message(str(path))
    assert read is not None
    assert (read["exitCode"], read["cause"], read["rank"]) == (70, "Exception", rank)


@pytest.mark.parametrize("character", ["x", "ä", "漢", "😀", '"', "\\", "\n", "\udc80"])
def test_a_termination_message_fits_in_every_script(tmp_path: Path, character: str) -> None:
    path = tmp_path / "termination.json"
    write_termination_message(str(path), 70, character * 4000, Outcome("failed", 1, message=character * 4000))
    assert path.stat().st_size <= MAX_TERMINATION_BYTES
    assert json.loads(path.read_bytes())["exitCode"] == 70


def test_a_termination_message_that_cannot_be_written_does_not_stop_the_end(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_termination_message(str(tmp_path / "none" / "log"), 0, "", None)
    assert "cannot write" in capfd.readouterr().out
    assert read_termination_message(str(tmp_path / "none" / "log")) is None


def failed(code: int, *, rank: int = 0, at: float = 0.0) -> Outcome:
    return Outcome("failed", rank, exit_code=code, at=at)


@pytest.mark.parametrize(
    ("outcomes", "chosen"),
    [
        # A lost peer is never the root while somebody has a reason of its own, however late it is told.
        ([failed(72, rank=0, at=1.0), failed(70, rank=1, at=2.0)], 1),
        ([failed(70, rank=0, at=2.0), failed(70, rank=1, at=1.0)], 1),
        ([failed(70, rank=1, at=1.0), failed(70, rank=0, at=1.0)], 1),
        ([failed(77, at=1.0), failed(64, rank=1, at=9.0)], 1),
        ([failed(74, at=1.0), failed(70, rank=1, at=9.0)], 1),
        ([failed(73, at=1.0), failed(74, rank=1, at=9.0)], 1),
        ([failed(72, at=1.0), failed(73, rank=1, at=9.0)], 1),
        ([Outcome("stopped", 0, step=5, saved=True), failed(72, rank=1)], 1),
        ([Outcome("completed", 0), failed(70, rank=1)], 1),
        ([Outcome("completed", 0), Outcome("stopped", 1, step=5, saved=True)], 1),
        ([Outcome("completed", 1), Outcome("completed", 0, result={"weightsDigest": "d"})], 1),
    ],
)
def test_a_members_outcome_is_that_of_the_worker_that_tells_most(outcomes: list[Outcome], chosen: int) -> None:
    assert summarise(outcomes) == outcomes[chosen]


def test_a_stopped_member_has_saved_only_if_all_its_workers_have() -> None:
    stopped = [Outcome("stopped", rank, step=7, saved=rank == 0) for rank in (1, 0)]
    assert summarise(stopped) == Outcome("stopped", 0, step=7, saved=False)


@pytest.mark.parametrize(
    ("lines", "found"),
    [
        ([], None),
        (["all is well", "  File 'x.py', line 1"], None),
        (["Traceback (most recent call last):", "ValueError: no such digit"], "ValueError: no such digit"),
        (["KeyError: 1", "During handling of the above ...", "RuntimeError: two"], "RuntimeError: two"),
        (["[rank3]: torch.OutOfMemoryError: CUDA out of memory."], "torch.OutOfMemoryError: CUDA out of memory."),
        (
            ["ValueError: mine", "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: "],
            "ValueError: mine",
        ),
        (["torch.distributed.elastic.multiprocessing.errors.ChildFailedError:"], None),
        (["KeyboardInterrupt"], "KeyboardInterrupt"),
        (["my.package.OddException"], "my.package.OddException"),
        (["an Error: in a sentence", "no Error"], None),
    ],
)
def test_the_last_exception_on_stderr_is_the_programs_own(lines: list[str], found: str | None) -> None:
    assert last_exception(lines) == found


@pytest.mark.parametrize(
    ("message", "status", "cause", "klass", "code"),
    [
        (None, -9, Cause.MACHINE_LOST, Class.DISRUPTION, -9),
        (None, None, Cause.MACHINE_LOST, Class.DISRUPTION, None),
        (None, 1, Cause.VANISHED, Class.DISRUPTION, 1),
        ({}, 0, Cause.MACHINE_LOST, Class.DISRUPTION, 0),
        ({"exitCode": 0}, 0, Cause.COMPLETED, Class.COMPLETED, 0),
        ({"exitCode": 64, "message": "m"}, 64, Cause.BAD_CONFIG, Class.FINAL, 64),
        ({"exitCode": 70, "rank": 3}, 70, Cause.EXCEPTION, Class.COUNTED, 70),
        ({"exitCode": 73}, 73, Cause.MACHINE_UNHEALTHY, Class.MACHINE, 73),
        ({"exitCode": 75, "message": "stopped at step 4, saved"}, 75, Cause.PREEMPTED, Class.DISRUPTION, 75),
        ({"exitCode": 76}, None, Cause.PREEMPTED, Class.DISRUPTION, 76),
        ({"exitCode": 200}, 200, Cause.EXCEPTION, Class.COUNTED, 200),
        ({"exitCode": "75"}, -15, Cause.MACHINE_LOST, Class.DISRUPTION, -15),
    ],
)
def test_how_a_member_ended(
    message: dict[str, object] | None, status: int | None, cause: Cause, klass: Class, code: int | None
) -> None:
    end = classify(message, status, "the log's last line", at=12.0)
    assert (end.cause, end.klass, end.exit_code, end.at) == (cause, klass, code, 12.0)
    if message and "rank" in message:
        assert end.rank == message["rank"]
    if status == 1:
        assert "the log's last line" in end.message


@given(st.floats(0.0, 1e5))
def test_a_margin_is_kept_of_the_grace_period(grace: float) -> None:
    assert 0.0 <= grace_margin(grace) <= min(5.0, grace)
