"""The table of faults is whole, and what it names is there."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest
from tests.faults.__main__ import Board, Sayer, end
from tests.faults.registry import COUNT, OPEN, SCENARIOS, Made, Scenario

TESTS = Path(__file__).parents[1]


@cache
def functions(file: Path) -> set[str]:
    return {
        node.name
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_scenario_is_there_once() -> None:
    numbers = [s.number for s in SCENARIOS]
    assert numbers == sorted(numbers)
    assert sorted([*numbers, *OPEN]) == list(range(1, COUNT + 1))


def test_few_are_made_by_writing_a_status() -> None:
    assert sum(s.made is Made.WRITTEN for s in SCENARIOS) <= 5


@pytest.mark.parametrize("scenario", SCENARIOS, ids=lambda s: str(s.number))
def test_each_test_that_is_named_exists(scenario: Scenario) -> None:
    assert scenario.tests
    for test in scenario.tests:
        file, _, name = test.partition("::")
        assert re.sub(r"\[.*\]$", "", name) in functions(TESTS / file), test


SCENARIO = Scenario(9, "a fault", ("local/test_x.py::test_a", "local/test_x.py::test_b[1]"))
A, B = "tests/local/test_x.py::test_a[0]", "tests/local/test_x.py::test_b[1]"


def board(*events: dict[str, object]) -> Board:
    made = Board([SCENARIO], Sayer())
    for event in ({"event": "collected", "tests": [A, B, "tests/local/test_x.py::test_b[2]"]}, *events):
        made.take(event)
    return made


def phase(test: str, when: str = "teardown", outcome: str = "passed", **properties: float) -> dict[str, object]:
    return {
        "event": "phase",
        "test": test,
        "when": when,
        "outcome": outcome,
        "properties": properties,
        "why": "because",
    }


def test_a_scenario_is_as_expected_when_all_its_tests_have_passed(capsys: pytest.CaptureFixture[str]) -> None:
    some = board(phase(A))
    assert end(some, [9], Sayer()) == 1
    assert capsys.readouterr().out.endswith("0 of 1 as expected\n")
    every = board(phase(A, **{"lost steps": 1, "recovery seconds": 2.0}), phase(B, **{"lost steps": 3}))
    assert end(every, [9], Sayer()) == 0
    assert capsys.readouterr().out.endswith("1 of 1 as expected\n")
    assert every.seen[9].row() == ("9", "a fault", "really happened", "as expected", "2.0", "3")


@pytest.mark.parametrize("outcome", ["failed", "skipped"])
@pytest.mark.parametrize("when", ["setup", "call", "teardown"])
def test_one_test_that_has_not_passed_spoils_its_scenario(
    outcome: str, when: str, capsys: pytest.CaptureFixture[str]
) -> None:
    spoilt = board(phase(A), phase(B, when, outcome), *([] if when == "teardown" else [phase(B)]))
    assert not spoilt.seen[9].as_expected()
    assert f"test_b[1] {outcome}" in spoilt.seen[9].row()[3]
    assert end(spoilt, [9], Sayer()) == 1
    assert "because" in capsys.readouterr().out


def test_what_is_left_out_is_said_and_does_not_count(capsys: pytest.CaptureFixture[str]) -> None:
    without = Board([SCENARIO], Sayer())
    without.seen[9].left_out = "needs root"
    assert end(without, [], Sayer()) == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-2:] == ["left out: 9 (needs root)", f"0 of {COUNT} as expected"]
