"""What tests tell the table of faults: as a pytest plugin (`-p tests.faults.telling`) one JSON line an event, to `$RELIGHT_FAULTS_FD`."""

import json
import os
from collections.abc import Callable, Mapping
from typing import IO, Any

import pytest

FD = "RELIGHT_FAULTS_FD"
RECOVERY = "recovery seconds"
LOST = "lost steps"


def tell_costs(record_property: Callable[[str, object], None], status: Mapping[str, Any]) -> None:
    """What the job of this status paid for what happened to it, for the table."""
    goodput = status.get("goodput") or {}
    if goodput.get("lastRecoverySeconds") is not None:
        record_property(RECOVERY, float(goodput["lastRecoverySeconds"]))
    if status.get("restarts", {}).get("total"):
        record_property(LOST, int(goodput.get("lostSteps", 0)))


class _Telling:
    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream

    def _tell(self, **event: object) -> None:
        self._stream.write(json.dumps(event) + "\n")
        self._stream.flush()

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        self._tell(event="collected", tests=[item.nodeid for item in session.items])

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.failed:
            self._tell(event="broken", test=report.nodeid, why=report.longreprtext)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        properties = dict(report.user_properties) if report.when == "teardown" else {}
        self._tell(
            event="phase", test=report.nodeid, when=report.when, outcome=report.outcome, seconds=report.duration,
            properties=properties, why="" if report.passed else report.longreprtext,
        )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    if number := os.environ.pop(FD, ""):
        os.set_inheritable(int(number), False)  # what the tests start must not hold the table up
        config.pluginmanager.register(_Telling(os.fdopen(int(number), "w")), "relight-telling")
