"""The ledger: every second since it began is of one kind, and a reader sees it even when its writer has been killed."""

import os
import signal
import time
from pathlib import Path

import pytest

from relight_agent.ledger import CHECKPOINT, EVALUATION, KINDS, PRODUCTIVE, REPLAYED, RESTORE, Ledger, Spent


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> dict[str, float]:
    """CLOCK_MONOTONIC, as the test says."""
    at = {"now": 100.0}
    monkeypatch.setattr(time, "monotonic", lambda: at["now"])
    return at


def seconds_of(path: Path) -> dict[str, float]:
    spent = Ledger.read(path)
    assert spent is not None
    return {kind: s for kind, s in spent.seconds.items() if s}


def test_each_second_is_of_one_kind(tmp_path: Path, clock: dict[str, float]) -> None:
    path = tmp_path / "ledger"
    assert Ledger.read(path) is None
    ledger = Ledger(path)
    clock["now"] = 103.0
    ledger.turn_to(REPLAYED)
    ledger.step(REPLAYED, ended=105.0, saved=105.5, waited=0.75)
    ledger.step(PRODUCTIVE, ended=108.0, saved=108.0, waited=0.75)
    clock["now"] = 108.5
    ledger.turn_to(EVALUATION)
    clock["now"] = 110.5
    ledger.turn_to(CHECKPOINT)
    clock["now"] = 111.0
    ledger.turn_to(PRODUCTIVE)
    seconds = seconds_of(path)
    assert seconds == {
        "restore": 3.0, "replayed": 1.25, "data": 0.75, "checkpoint": 1.0, "productive": 3.0, "evaluation": 2.0,
    }  # fmt: skip
    assert sum(seconds.values()) == clock["now"] - 100.0


def test_waiting_for_data_is_never_more_than_the_step_took(tmp_path: Path, clock: dict[str, float]) -> None:
    ledger = Ledger(tmp_path / "ledger")
    clock["now"] = 101.0
    ledger.turn_to(PRODUCTIVE)
    ledger.step(PRODUCTIVE, ended=102.0, saved=102.0, waited=50.0)
    assert seconds_of(tmp_path / "ledger") == {"restore": 1.0, "data": 1.0}


@pytest.mark.parametrize(
    ("kind", "counts"), [(RESTORE, True), (EVALUATION, True), (PRODUCTIVE, False), (REPLAYED, False)]
)
def test_a_step_counts_once_it_has_ended_and_all_else_as_it_goes_on(kind: int, counts: bool) -> None:
    spent = Spent(10.0, kind, dict.fromkeys(KINDS, 1.0)).at(14.0)
    assert (spent.until, spent.seconds[KINDS[kind]]) == ((14.0, 5.0) if counts else (10.0, 1.0))


def test_it_is_read_to_the_last_step_after_a_kill(tmp_path: Path) -> None:
    ready, told = os.pipe()
    child = os.fork()
    if child == 0:
        ledger = Ledger(tmp_path / "ledger")
        now = time.monotonic()
        ledger.step(PRODUCTIVE, ended=now, saved=now, waited=0.0)
        os.write(told, b"x")
        signal.pause()
        os._exit(1)
    os.read(ready, 1)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    os.close(ready)
    os.close(told)
    spent = Ledger.read(tmp_path / "ledger")
    assert spent is not None
    assert (spent.kind, spent.seconds["productive"] > 0) == (PRODUCTIVE, True)


def test_who_nobody_reads_writes_nothing(tmp_path: Path) -> None:
    Ledger(None).turn_to(PRODUCTIVE)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("data", [b"", b"half", b"\0" * 72, b"\xff" * 72])
def test_what_is_no_ledger_is_none(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "ledger").write_bytes(data)
    assert Ledger.read(tmp_path / "ledger") is None
