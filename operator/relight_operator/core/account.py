"""What every second of every slot goes to: each to one bucket, counted once, in a write that is made anyway.

`goodput.countedUntil` is the instant up to which all slots have been counted, by what the status of the write before
says of them; from when a slot is first wanted to the end of the job, except while the job is stopped.

The members of a running world are counted by their workers' ledgers instead, which agents report. They step together,
so one account serves all of them: `world.seconds` is what has been counted for each since the world was formed. It
follows the reports, a second or so behind, and is closed for a member when all is known of its part in the world: its
own ledger then decides, and what no ledger explains was spent in a step that never ended.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple

from relight_operator.api.status import TERMINAL, JobStatus, SlotStatus, WorldStatus
from relight_operator.core.draft import Draft, outcome_in
from relight_operator.core.observed import SlotView

Seconds = Mapping[str, float]


def settle(draft: Draft) -> None:
    """Count everything up to now. The status is going to be written."""
    before, goodput = draft.seen.status, draft.status.goodput
    since = goodput.counted_until if goodput.counted_until is not None else draft.now
    now = max(draft.now, since)  # a clock set back takes nothing back
    after = {s.slot: s for s in draft.status.slots}
    in_account, opened = _in_account(before), []
    for slot in (_Slot(draft, s, after.get(s.slot), now) for s in before.slots):
        if (
            heir := slot.before.successor
        ) is not None:  # a member beside the present one, until it takes over or is let go
            _add(draft, {"start" if heir.uid is not None and heir.machine else "pending": now - since})
        if slot.before.uid in in_account:
            opened.append(slot)
        elif (bucket := _bucket(before, slot.before)) is not None:
            slot.count(since, bucket)
    if before.world is not None and opened:
        _count_world(draft, before.world, opened, now)
    if draft.status.world is not None and draft.status.world.formed_at is None:
        draft.status.world.formed_at = now  # formed by an operator that did not count
    goodput.counted_until = now
    goodput.buckets = {name: round(seconds, 6) for name, seconds in goodput.buckets.items()}
    goodput.productive_seconds = round(goodput.buckets.get("productive", 0.0), 3)
    goodput.ratio = ratio(goodput.buckets)


def ratio(buckets: Seconds) -> str | None:
    """Productive seconds in all those for which there was a machine; None where it cannot be told.

    >>> ratio({"productive": 6.0, "start": 2.0, "pending": 100.0})
    '0.750'
    """
    allocated = sum(buckets.values()) - buckets.get("pending", 0.0)
    productive = buckets.get("productive", 0.0)
    untold = not productive and buckets.get("untold")
    return f"{productive / allocated:.3f}" if allocated > 0 and not untold else None


def _bucket(status: JobStatus, slot: SlotStatus) -> str | None:
    """What a slot spends its time on, where its member trains in no world; None: it is not counted."""
    stopped = status.stop is not None or status.phase == "Suspended"
    gone = slot.uid is None or slot.state == "Ended"
    if status.phase in TERMINAL or (gone and (stopped or slot.completed is not None)):
        return None
    if gone or not slot.machine:
        return "pending"
    if slot.state in {"Pending", "Starting"}:
        return "start"
    return "drain" if stopped or slot.state in {"Running", "Stopping"} else "idle"


def _in_account(status: JobStatus) -> frozenset[str]:
    """The uids of those whose seconds the account of the world tells."""
    world = status.world
    if world is None or world.formed_at is None or status.phase in TERMINAL:
        return frozenset()
    closed = set(world.closed)
    return frozenset(m.uid for m in world.members if m.slot not in closed)


@dataclass(frozen=True)
class _Slot:
    """One slot in one write: as it was, and as it will be; None where it is given up."""

    draft: Draft
    before: SlotStatus
    after: SlotStatus | None
    now: float

    @property
    def member(self) -> SlotView | None:
        if self.before.uid is not None:
            return self.draft.member(self.before)
        # It may have come and gone since the write before.
        key = (self.before.slot, self.before.incarnation)
        return next((m for m in self.draft.seen.members if (m.slot, m.incarnation) == key), None)

    def ended_at(self) -> float | None:
        """When its member ended, or it was given up; None while it goes on."""
        if self.member is not None and self.member.end is not None:
            return self.member.end.at
        gone = self.member is None and self.before.uid is not None
        replaced = self.after is None or self.after.incarnation != self.before.incarnation
        return self.now if gone or replaced or self.draft.status.phase in TERMINAL else None

    def left_at(self, world: WorldStatus) -> float | None:
        """When its member's part in `world` was over, as far as that is known by now."""
        outcome = outcome_in(self.member, world)
        if outcome is not None:
            return outcome.at
        ended, agent = self.ended_at(), self.member.agent if self.member is not None else None
        if ended is not None or agent is None:
            return ended
        never_ran = agent.generation < world.generation and agent.acknowledged == f"wait:{world.generation}"
        return self.now if never_ran else None

    def count(self, since: float, bucket: str) -> None:
        """From `since` to now: `bucket`, draining once it was told to go, and what comes after its member's end."""
        ended = self.ended_at() if self.before.state != "Ended" else None
        end = _within(ended, since, self.now) if ended is not None else self.now
        told = self.member.agent.terminating_at if self.member is not None and self.member.agent is not None else None
        drain = _within(told, since, end) if told is not None and bucket != "pending" else end
        _add(self.draft, {bucket: drain - since})
        _add(self.draft, {"drain": end - drain})
        then = _bucket(self.draft.status, self.after) if self.after is not None else None
        if then is not None:
            _add(self.draft, {then: self.now - end})


class _Known(NamedTuple):
    """What a member's ledger says of its seconds in the world, from its forming to `until`."""

    until: float
    seconds: Seconds


def _count_world(draft: Draft, world: WorldStatus, opened: list[_Slot], now: float) -> None:
    assert world.formed_at is not None
    counted = world.formed_at + sum(world.seconds.values())
    known = {s.before.slot: k for s in opened if (k := _known(s.member, world)) is not None}
    present = draft.status.world
    replaced = present is None or present.generation != world.generation
    staying, closed = [], list(world.closed)
    for slot in opened:
        left = slot.left_at(world)
        if left is None and not replaced:
            staying.append(slot)
            continue
        closed.append(slot.before.slot)
        end = _within(left if left is not None else now, counted, now)
        part = _part(slot, world, known, end)
        _add(draft, _growth(part, world.seconds, end - counted))
        slot.count(end, "idle" if draft.seen.status.stop is None else "drain")
    if replaced or present is None:
        return
    present.closed = sorted(closed)
    told = [known[s.before.slot] for s in staying if s.before.slot in known]
    until, want = _common(told) if told else (now, _untold(draft, world, now))
    growth = _growth(want, world.seconds, min(now, until) - counted) if staying else {}
    _add(draft, {kind: seconds * len(staying) for kind, seconds in growth.items()})
    present.seconds = _sum(world.seconds, growth)


def _known(member: SlotView | None, world: WorldStatus) -> _Known | None:
    spent = member.agent.spent if member is not None and member.agent is not None else None
    if spent is None or spent.generation != world.generation or world.formed_at is None:
        return None
    begun = spent.until - sum(spent.seconds.values())
    return _Known(spent.until, _sum(spent.seconds, {"rendezvous": max(0.0, begun - world.formed_at)}))


def _common(told: list[_Known]) -> tuple[float, Seconds]:
    """What each member has spent by the newest report: what one rank did, all have done."""
    kinds = {kind for k in told for kind in k.seconds}
    return max(k.until for k in told), {i: sum(k.seconds.get(i, 0.0) for k in told) / len(told) for i in kinds}


def _untold(draft: Draft, world: WorldStatus, now: float) -> Seconds:
    """What each member has spent where no ledger tells: nothing yet, but for a command, which never will."""
    assert world.formed_at is not None
    return {"untold": max(0.0, now - world.formed_at)} if draft.seen.spec.trainer.command is not None else {}


def _part(slot: _Slot, world: WorldStatus, known: Mapping[int, _Known], end: float) -> Seconds:
    """A member's whole part in the world, from its forming to `end`."""
    assert world.formed_at is not None
    outcome, told = outcome_in(slot.member, world), known.get(slot.before.slot)
    if told is None and (known or world.seconds):  # nothing heard of it, but they step together
        told = _Known(world.formed_at + sum(world.seconds.values()), world.seconds)
    if told is None:
        silent = _is_silent(slot.draft) or (outcome is not None and outcome.kind == "completed")
        return {"untold" if silent else "rendezvous": end - world.formed_at}
    rest = "drain" if outcome is not None and outcome.kind == "stopped" else "hang"
    return _sum(told.seconds, {rest: max(0.0, end - told.until)})


def _is_silent(draft: Draft) -> bool:
    """Whether the job's code says nothing of its steps."""
    status = draft.seen.status
    return draft.seen.spec.trainer.command is not None or (status.progress is None and status.phase == "Running")


def _growth(want: Seconds, have: Seconds, total: float) -> Seconds:
    """What to add to `have` to come nearer to `want`, at most `total` in all: nothing is ever taken back."""
    more = {kind: s for kind, seconds in want.items() if (s := seconds - have.get(kind, 0.0)) > 0}
    whole = sum(more.values())
    if total <= 0:
        return {}
    scale = total / whole if whole > total else 1.0
    return {kind: seconds * scale for kind, seconds in more.items()}


def _within(at: float, since: float, until: float) -> float:
    return min(max(at, since), until)


def _sum(one: Seconds, other: Seconds) -> dict[str, float]:
    return {kind: one.get(kind, 0.0) + other.get(kind, 0.0) for kind in {**one, **other}}


def _add(draft: Draft, seconds: Seconds) -> None:
    buckets = draft.status.goodput.buckets
    for kind, more in seconds.items():
        if more > 0:
            buckets[kind] = buckets.get(kind, 0.0) + more
