"""What becomes of the state at an agreed stop."""

import pytest

from relight_agent.files import Command
from relight_trainer.leaving import Decision, MemberState, SaveTime, decide

STAYS = MemberState(snapshot=True)
LEAVES = MemberState(snapshot=True, leaves=True, left=100.0)
STOPS = MemberState(snapshot=True, leaves=True, all_leave=True, left=100.0)
WITHOUT = {"snapshot": False}


@pytest.mark.parametrize(
    ("members", "seconds", "decision"),
    [
        pytest.param([LEAVES, STAYS], None, Decision(checkpoint=False, kept=True), id="a peer stays"),
        pytest.param([LEAVES, LEAVES], 10.0, Decision(checkpoint=True, kept=False), id="all were told to leave"),
        pytest.param([STOPS, STAYS], 10.0, Decision(checkpoint=True, kept=False), id="the job stops: all will leave"),
        pytest.param([LEAVES], 10.0, Decision(checkpoint=True, kept=False), id="it is alone"),
        pytest.param([LEAVES], None, Decision(checkpoint=True, kept=False), id="nobody knows how long it takes"),
        pytest.param([LEAVES], 79.9, Decision(checkpoint=True, kept=False), id="it just fits"),
        pytest.param([LEAVES], 81.0, Decision(checkpoint=False, kept=False, short=True), id="it will not fit"),
        pytest.param(
            [MemberState(False, leaves=True, left=1.0)], 9.0, Decision(checkpoint=True, kept=False),
            id="it will not fit, and there is nothing to flush",
        ),
        pytest.param([LEAVES, MemberState(False)], 1.0, Decision(checkpoint=True, kept=False), id="a peer without one"),
    ],
)  # fmt: skip
def test_what_is_saved(members, seconds, decision):
    assert decide(members, seconds) == decision


@pytest.mark.parametrize(
    ("command", "state"),
    [
        (None, MemberState(True)),
        (Command("SIGTERM", "save", deadline=30.0, leaves=True), MemberState(True, leaves=True, left=20.0)),
        (Command("save:3", "save", deadline=30.0), MemberState(True, left=20.0)),
        (Command("stop", "stop"), MemberState(True, leaves=True, all_leave=True)),
    ],
)
def test_what_a_members_agent_has_asked_for(command, state):
    assert MemberState.of(command, snapshot=True, now=10.0) == state


def test_what_a_save_takes_is_known_to_the_next_generation(tmp_path):
    assert SaveTime(tmp_path).seconds is None
    first = SaveTime(tmp_path)
    first.begin()
    first.end()
    assert first.seconds is not None
    assert SaveTime(tmp_path).seconds == first.seconds
