"""Members that live and do not answer."""

from dataclasses import replace

import pytest
from sim_views import NOW, after, agent, busy, deleted, fresh, member, outcome, recovering, running, seen, wakeup

from relight_operator.api.status import JobStatus
from relight_operator.core.observed import SlotView
from relight_operator.core.plan import plan
from relight_operator.core.silence import GIVE_UP_SECONDS, SILENT_SECONDS

LONG_AGO = NOW - SILENT_SECONDS - 1
PATIENCE = GIVE_UP_SECONDS  # unreachableFor is 30 s
MUTE = member(0, agent=agent("Running", 1, heard_at=LONG_AGO))
HEARD = member(1, "u9", 1, agent=agent(heard_at=NOW))


def muted(status: JobStatus, since: float) -> JobStatus:
    status.slots[0].silent_since = since
    return status


def test_silence_is_written_down_and_then_given_time() -> None:
    observed = seen(recovering(), MUTE, HEARD)
    status = after(observed)
    assert [s.silent_since for s in status.slots] == [NOW, None]
    assert wakeup(plan(replace(observed, status=status), NOW)) == pytest.approx(SILENT_SECONDS)
    still = after(replace(observed, status=status), NOW + PATIENCE - 1)
    assert still.slots[0].uid == "u0"


def test_a_member_that_a_recovery_waits_for_is_given_up_and_its_machine_is_to_blame() -> None:
    observed = seen(muted(recovering(judged=False), NOW - PATIENCE), MUTE, HEARD)
    status = after(observed)
    slot = status.slots[0]
    assert (slot.uid, slot.incarnation, slot.silent_since) == (None, 1, None)
    assert slot.exit is not None
    assert (slot.exit.cause, slot.exit.message) == ("MachineUnhealthy", "its agent has not answered for 90 s")
    assert (status.restarts.by_cause, status.restarts.counted) == ({"MachineUnhealthy": 1}, 0)
    assert [m.name for m in status.blamed_machines] == ["m"]
    assert deleted(plan(seen(status, MUTE, HEARD), NOW)) == ["u0"]


@pytest.mark.parametrize(
    ("status", "view"),
    [
        pytest.param(recovering(), replace(MUTE, agent=agent("Running", 1, heard_at=NOW - 1)), id="heard again"),
        pytest.param(running(), member(0, agent=busy(heard_at=LONG_AGO)), id="training needs no agent"),
        pytest.param(fresh(), member(0, agent=None), id="it may be starting"),
        pytest.param(fresh(), member(0, agent=None, machine=""), id="it has no machine yet"),
    ],
)
def test_others_are_not_given_up(status: JobStatus, view: SlotView) -> None:
    other = member(1, status.slots[1].uid, status.slots[1].incarnation, agent=busy(heard_at=NOW))
    assert after(seen(muted(status, NOW - 2 * PATIENCE), view, other)).slots[0].uid == "u0"


@pytest.mark.parametrize(
    ("status", "view", "seconds"),
    [
        pytest.param(recovering(), member(0, agent=None), PATIENCE, id="unheard since the operator started"),
        pytest.param(fresh(), member(0, agent=None), 1800, id="it has never spoken: health.startup"),
        pytest.param(running(), member(0, agent=busy(heard_at=LONG_AGO)), 1800, id="health.noProgress"),
    ],
)
def test_each_kind_of_silence_has_its_time(status: JobStatus, view: SlotView, seconds: float) -> None:
    other = member(1, status.slots[1].uid, status.slots[1].incarnation, agent=busy(heard_at=NOW))
    assert after(seen(muted(status, NOW - seconds + 1), view, other)).slots[0].uid == "u0"
    assert after(seen(muted(status, NOW - seconds), view, other)).slots[0].uid is None


def test_who_does_not_say_that_its_part_is_done_is_waited_for_no_longer_than_in_a_recovery() -> None:
    status = muted(running(), NOW - PATIENCE)
    status.slots[1].completed = 1
    done = member(1, agent=outcome("completed", heard_at=NOW))
    assert after(seen(status, member(0, agent=busy(heard_at=LONG_AGO)), done)).slots[0].uid is None
