"""`make faults`: brings the faults about, one after the other, and says of each what came of it."""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rich.console import Console
from rich.table import Table
from tests.faults.registry import COUNT, OPEN, SCENARIOS, Scenario
from tests.faults.telling import FD, LOST, RECOVERY

ROOT = Path(__file__).parents[2]
COLUMNS = ("#", "scenario", "made", "outcome", "recovery s", "lost steps")
AS_EXPECTED = "as expected"
LINES = 20  # of a failure


@dataclass
class Seen:
    """What is known of one scenario's tests."""

    scenario: Scenario
    waited_for: set[str] = field(default_factory=set)
    passed: int = 0
    wrong: list[str] = field(default_factory=list)
    left_out: str = ""
    costs: dict[str, float] = field(default_factory=dict)

    def row(self) -> tuple[str, ...]:
        recovery, lost = self.costs.get(RECOVERY), self.costs.get(LOST)
        return (
            str(self.scenario.number),
            self.scenario.title,
            "-" if self.left_out else self.scenario.made.value,
            self.outcome(),
            "-" if recovery is None else f"{recovery:.1f}",
            "-" if lost is None else f"{lost:.0f}",
        )

    def as_expected(self) -> bool:
        return self.outcome() == AS_EXPECTED

    def outcome(self) -> str:
        if self.left_out:
            return f"left out: {self.left_out}"
        if self.wrong:
            return f"NOT as expected: {', '.join(self.wrong)}"
        return AS_EXPECTED if self.passed and not self.waited_for else "did not run"


class Board:
    """Takes what the tests tell, and says each scenario as soon as its last test has ended."""

    def __init__(self, scenarios: Iterable[Scenario], say: "Sayer") -> None:
        self.seen = {s.number: Seen(s) for s in scenarios}
        self._say = say
        self._told: dict[str, str] = {}

    def mine(self, test: str) -> list[Seen]:
        return [seen for seen in self.seen.values() if any(_is(test, wanted) for wanted in seen.scenario.tests)]

    def take(self, event: dict[str, Any]) -> None:
        if event["event"] == "collected":
            for test in event["tests"]:
                for seen in self.mine(test):
                    seen.waited_for.add(test)
        elif event["event"] == "broken":
            self._say.line(f"cannot be collected: {event['test']}\n{event['why']}")
        else:
            self._phase(event)

    def _phase(self, event: dict[str, Any]) -> None:
        test = event["test"]
        if event["outcome"] != "passed":
            self._told[test] = "skipped" if event["outcome"] == "skipped" else "failed"
            why = "\n".join(event["why"].splitlines()[-LINES:])  # all of it is in the log
            self._say.line(f"--- {test}, {event['when']}: {event['outcome']}\n{why}")
        if event["when"] != "teardown":
            return
        for seen in self.mine(test):
            seen.waited_for.discard(test)
            if test in self._told:
                seen.wrong.append(f"{test.removeprefix('tests/')} {self._told[test]}")
            else:
                seen.passed += 1
            for name, value in event["properties"].items():
                seen.costs[name] = max(value, seen.costs.get(name, value))
            if not seen.waited_for:
                self._say.row(seen.row())


class Sayer:
    """Plain lines; on a terminal, a table at the end."""

    def __init__(self) -> None:
        self.console = Console(highlight=False)

    def line(self, text: str) -> None:
        print(text, flush=True)

    def row(self, row: Sequence[str]) -> None:
        number, title, made, outcome, recovery, lost = row
        self.line(f"{time.strftime('%H:%M:%S')} {number:>2} {title}: {outcome} ({made}; {recovery} s, {lost} lost)")

    def table(self, rows: Sequence[Sequence[str]]) -> None:
        if self.console.is_terminal:
            table = Table(*COLUMNS)
            for row in rows:
                table.add_row(*row, style="red" if row[3].startswith("NOT") else "")
            self.console.print(table)
            return
        widths = [max(len(row[i]) for row in [COLUMNS, *rows]) for i in range(len(COLUMNS))]
        for row in [COLUMNS, *rows]:
            self.line("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _is(test: str, wanted: str) -> bool:
    test = test.removeprefix("tests/")
    return test == wanted or test.startswith(f"{wanted}[")


def run(tests: Sequence[str], cluster: str | None, log: IO[str]) -> Iterator[dict[str, Any]]:
    """What pytest tells of these tests; what it says besides goes to `log`."""
    reading, writing = os.pipe()
    command = [
        sys.executable, "-m", "pytest", "-p", "tests.faults.telling", "--long",
        *([f"--cluster={cluster}"] if cluster else []), *(f"tests/{test}" for test in tests),
    ]  # fmt: skip
    environment = {**os.environ, FD: str(writing)}
    with subprocess.Popen(
        command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment,
        pass_fds=[writing],
    ) as process:  # fmt: skip
        os.close(writing)
        try:
            with os.fdopen(reading) as stream:
                yield from map(json.loads, stream)
        except KeyboardInterrupt:
            process.wait()  # it was interrupted too, and cleans up
            raise


def cluster_of(wanted: str | None) -> tuple[str | None, str]:
    """The cluster for the tests that need one; without one, why."""
    if wanted == "none":
        return None, "needs a Kubernetes cluster"
    if wanted is not None:
        return wanted, ""
    if sys.platform != "linux" or os.geteuid() != 0:
        return None, "needs root to build a Kubernetes cluster here, or CLUSTER=existing"
    return "testbed", ""


def chosen(numbers: Sequence[int]) -> tuple[Scenario, ...]:
    return tuple(s for s in SCENARIOS if not numbers or s.number in numbers)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.faults", description=__doc__)
    parser.add_argument("numbers", nargs="*", type=int, metavar="N", help=f"scenarios, 1 to {COUNT} (default: all)")
    parser.add_argument("--cluster", choices=("testbed", "existing", "none"), help="default: the testbed, for root")
    parser.add_argument("--list", action="store_true", help="say what there is, and run nothing")
    arguments = parser.parse_args()
    if unknown := [n for n in arguments.numbers if not 1 <= n <= COUNT]:
        parser.error(f"no scenario {unknown[0]}; allowed: 1 to {COUNT}")
    say = Sayer()
    scenarios = chosen(arguments.numbers)
    if arguments.list:
        for scenario in scenarios:
            say.line(f"{scenario.number:>2} {scenario.title} ({scenario.place}; {scenario.made})")
            for test in scenario.tests:
                say.line(f"     tests/{test}")
        return 0
    cluster, why_not = cluster_of(arguments.cluster)
    board = Board(scenarios, say)
    for seen in board.seen.values():
        if cluster is None and seen.scenario.place == "cluster":
            seen.left_out = why_not
    tests = dict.fromkeys(t for seen in board.seen.values() if not seen.left_out for t in seen.scenario.tests)
    if tests:
        with tempfile.NamedTemporaryFile("w+", prefix="relight-faults-", suffix=".log", delete=False) as log:
            say.line(f"what pytest says: {log.name}")
            for event in run(list(tests), cluster, log):
                board.take(event)
    return end(board, arguments.numbers, say)


def end(board: Board, numbers: Sequence[int], say: Sayer) -> int:
    """The table and the sum; 1 where a scenario that could run was not as expected."""
    say.table([seen.row() for seen in board.seen.values()])
    for number, why in OPEN.items():
        if not numbers or number in numbers:
            say.line(f"{number:>2} open: {why}")
    if left_out := [str(n) for n, seen in board.seen.items() if seen.left_out]:
        reason = next(seen.left_out for seen in board.seen.values() if seen.left_out)
        say.line(f"left out: {' '.join(left_out)} ({reason})")
    good = sum(seen.as_expected() for seen in board.seen.values())
    total = len(set(numbers)) if numbers else COUNT
    say.line(f"{good} of {total} as expected")
    return 1 if any(not seen.as_expected() and not seen.left_out for seen in board.seen.values()) else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
