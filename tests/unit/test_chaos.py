"""The grammar of `--chaos`, and for how long there is no machine for a slot that was lost."""

import os
from pathlib import Path

import pytest

from relight_operator.errors import InvalidUsage
from relight_operator.local.chaos import FOR_EVER, away_until, parse, unfired


@pytest.mark.parametrize(
    ("text", "action", "away"),
    [
        ("preempt-node:1@step:40", "preempt", 0.0),
        ("kill-node:0@step:80", "kill", 0.0),
        ("lose-node:1@step:40", "kill", FOR_EVER),
        ("lose-node:1@step:40,for:1m30s", "kill", 90.0),
    ],
)
def test_what_may_be_said(text: str, action: str, away: float) -> None:
    fault = parse(text, nodes=2, index=0)
    assert (str(fault), fault.dump()["action"], fault.away) == (text, action, away)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("kill-node:0", "allowed: preempt-node:1@step:40"),
        ("kill-node:2@step:1", "the job has no slot 2; allowed: 0 to 1"),
        ("kill-node:0@step:0", "allowed: 1 or more"),
        ("kill-node:0@step:1,for:3s", "only lose-node takes for:"),
        ("lose-node:0@step:1,for:3", "3 is no duration"),
    ],
)
def test_what_may_not(text: str, why: str) -> None:
    with pytest.raises(InvalidUsage, match=why):
        parse(text, nodes=2, index=0)


def test_a_lost_slot_has_no_machine_until_its_time_is_over_and_others_have(tmp_path: Path) -> None:
    chaos_file = tmp_path / "chaos.json"
    faults = [parse(t, nodes=3, index=i) for i, t in enumerate(["lose-node:1@step:4,for:30s", "kill-node:2@step:4"])]
    assert away_until(faults, chaos_file, 1) == 0.0
    assert unfired(faults, chaos_file) == faults
    for fault in faults:
        fired = Path(f"{chaos_file}.{fault.id}.fired")
        fired.touch()
        os.utime(fired, (1000.0, 1000.0))
    assert unfired(faults, chaos_file) == []
    assert [away_until(faults, chaos_file, slot) for slot in range(3)] == [0.0, 1030.0, 0.0]
