"""What a member's own code says is text: no terminal obeys it, whoever reads it."""

import json
from io import StringIO
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from relight_agent.files import clip, plain
from relight_operator.api.status import JobStatus
from relight_operator.cli.explain import show
from relight_operator.coordinator.wire import Report, view
from relight_operator.explain import tell

pytestmark = pytest.mark.timeout(30)

EVIL = "a\x1b[2Jb\x07c\rd\u202ee\x9bf\u200bg\x00h"
GOOD = "a[2Jbcdefgh"
# ESC, BEL, CR and the like; marks that turn the direction of what follows; the one-byte CSI.
WRONG = {"\x1b", "\x07", "\r", "\u202e", "\x9b", "\u200b", "\x00"}


def texts(value: Any) -> list[str]:
    if isinstance(value, str):
        return [value]
    inner = list(value.items()) if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else []
    return [text for item in inner for text in texts(item)]


def report() -> dict[str, Any]:
    """A report with bad letters in each text that may hold any."""
    metrics = {EVIL: EVIL}
    return {
        "protocol": 1, "job": "ml/digits", "jobUid": EVIL, "slot": 0, "incarnation": 0, "uid": EVIL, "bootId": EVIL, "seq": 1,
        "state": "Running", "address": EVIL, "configHash": EVIL, "torch": EVIL, "python": EVIL, "notices": [EVIL], "after": EVIL,
        "acknowledged": EVIL, "timings": {EVIL: 1.0},
        "progress": {"generation": 1, "step": 1, "epoch": EVIL, "resumedKind": EVIL, "metrics": metrics, "notices": [EVIL]},
        "outcome": {"generation": 1, "kind": "failed", "message": EVIL, "metrics": metrics, "fingerprint": EVIL, "manner": EVIL},
        "stall": {"generation": 1, "rank": 0, "section": EVIL},
        "stacks": {"id": EVIL, "ranks": [{"rank": 0, "section": EVIL, "state": "\x1b", "doing": EVIL, "frames": [EVIL]}]},
    }  # fmt: skip


def test_a_report_brings_none_of_them_in() -> None:
    read = Report.model_validate(report())
    said = texts(read.model_dump())
    assert GOOD in said
    assert [text for text in said if WRONG & set(text)] == []
    assert WRONG.isdisjoint(repr(view(read, heard_at=0.0)).encode().decode("unicode_escape"))


def test_a_status_that_holds_some_is_shown_without_them() -> None:
    status = JobStatus.model_validate(
        {
            "phase": "Failed",
            "conditions": [{"type": "Failed", "status": "True", "reason": EVIL, "message": EVIL}],
            "startTime": 1.0,
            "completionTime": 9.0,
            "lastFailure": {"time": 2.0, "cause": EVIL, "machine": EVIL, "member": EVIL, "message": EVIL},
            "history": [{"generation": 1, "since": 2.0, "cause": EVIL, "detail": EVIL, "member": EVIL}],
        }
    )
    out = StringIO()
    show(tell(EVIL, status, 10.0), Console(file=out, force_terminal=False, width=400))
    assert GOOD in out.getvalue()
    assert WRONG.isdisjoint(out.getvalue())
    assert WRONG.isdisjoint(json.dumps(tell(EVIL, status, 10.0).dump()))


@given(st.text())
def test_plain_text_can_be_written_anywhere(text: str) -> None:
    assert all(c == "\n" or c.isprintable() for c in plain(text))
    assert plain(plain(text)) == plain(text)
    assert len(clip(text, 16).encode()) <= 16
