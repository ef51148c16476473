"""What became of a job's time, in words: what was lost, when and why. Pure; `relight explain` shows it."""

import datetime as dt
from dataclasses import asdict, dataclass
from typing import Any

from relight_agent.exits import CAUSE_CLASS, Cause, Class
from relight_operator.api.status import BUCKETS, TERMINAL, JobStatus, RecoveryRecord, RecoveryStatus
from relight_operator.core.account import ratio

# Below so many seconds: (seconds of the small unit, the big unit, how many make one, the small unit).
_UNITS: tuple[tuple[float, int, str, int, str], ...] = (
    (3600, 1, "min", 60, "s"),
    (86400, 60, "h", 60, "min"),
    (float("inf"), 3600, "d", 24, "h"),
)
QUIET_SECONDS = 60.0  # a status that nobody has written for longer may be nobody's


@dataclass(frozen=True)
class Share:
    """One bucket of the members' time."""

    bucket: str
    seconds: float
    share: float  # of all
    meaning: str


@dataclass(frozen=True)
class Moment:
    """Something that happened; `at` in seconds from the job's start, None where that is not known."""

    at: float | None
    time: str  # RFC 3339, UTC
    text: str
    more: tuple[str, ...] = ()
    bad: bool = False  # the job's own fault


@dataclass(frozen=True)
class Story:
    job: str
    phase: str
    summary: tuple[str, ...]
    ratio: str | None
    lost_steps: int
    shares: tuple[Share, ...]
    timeline: tuple[Moment, ...]
    advice: tuple[str, ...] = ()

    def dump(self) -> dict[str, Any]:
        """For `-o json`: camelCase, as in the status."""
        return {
            "job": self.job,
            "phase": self.phase,
            "summary": " ".join(self.summary),
            "goodput": self.ratio,
            "lostSteps": self.lost_steps,
            "buckets": [asdict(s) for s in self.shares],
            "timeline": [{k: v for k, v in asdict(m).items() if k != "more" or v} for m in self.timeline],
            "advice": list(self.advice),
        }


def tell(job: str, status: JobStatus, now: float) -> Story:
    """`now`: unix seconds."""
    goodput = status.goodput
    return Story(
        job=job,
        phase=status.phase,
        summary=tuple(_summary(job, status, now)),
        ratio=goodput.ratio,
        lost_steps=goodput.lost_steps,
        shares=tuple(_shares(goodput.buckets)),
        timeline=tuple(_timeline(status, now)),
        advice=tuple(_advice(status, now)),
    )


def duration(seconds: float) -> str:
    """In the two units that matter.

    >>> duration(0.25), duration(75), duration(7260), duration(200_000)
    ('0.25 s', '1 min 15 s', '2 h 1 min', '2 d 8 h')
    """
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    _, unit, big, per, small = next(u for u in _UNITS if seconds < u[0])
    whole, rest = divmod(round(seconds / unit), per)
    return f"{whole} {big} {rest} {small}" if rest else f"{whole} {big}"


def _summary(job: str, status: JobStatus, now: float) -> list[str]:
    goodput, restarts = status.goodput, status.restarts
    said = [f"{job}: {status.phase}{_place(status)}{_took(status, now)}."]
    if goodput.ratio is not None:
        said.append(
            f"Of the time for which its members had a machine, {_percent(float(goodput.ratio))} went to new steps."
        )
    elif goodput.buckets.get("untold"):
        said.append("Its own command does not say what it does with its time.")
    if restarts.total:
        events = [_count(restarts.disruptions, "disruption"), _count(restarts.failures, "failure")]
        lost = (
            f"{_count(goodput.lost_steps, 'step')} had to be done again" if goodput.lost_steps else "no step was lost"
        )
        said.append(f"{' and '.join(e for e in events if e)}: {lost}.")
    elif status.start_time is not None:
        said.append("Nothing has happened to it.")
    return said


def _place(status: JobStatus) -> str:
    progress = status.progress
    if progress is None or status.phase == "Succeeded":
        return ""
    return f" at step {progress.step}" + (f" of {progress.total_steps}" if progress.total_steps else "")


def _took(status: JobStatus, now: float) -> str:
    if status.start_time is None:
        return ", not started yet"
    end = status.completion_time if status.completion_time is not None else now
    word = "in" if status.phase == "Succeeded" else "after"
    return f" {word} {duration(max(0.0, end - status.start_time))}"


def _shares(buckets: dict[str, float]) -> list[Share]:
    whole = sum(buckets.values())
    if whole <= 0:
        return []
    found = [(seconds, name) for name, seconds in buckets.items() if seconds > 0]
    return [
        Share(name, round(seconds, 3), round(seconds / whole, 4), BUCKETS.get(name, ""))
        for seconds, name in sorted(found, key=lambda f: -f[0])
    ]


def _timeline(status: JobStatus, now: float) -> list[Moment]:
    start = status.start_time
    if start is None:
        return []
    nodes = len([s for s in status.slots if status.world is None or s.slot < len(status.world.members)])
    moments = [_moment(start, start, f"first seen, for {_count(nodes, 'node')}")]
    forgotten = (status.world.generation - 1 if status.world is not None else 0) - len(status.history)
    if forgotten > 0:
        moments.append(Moment(None, "", f"{_count(forgotten, 'earlier generation')}: no longer known why they ended"))
    mends = status.history and status.recovery is None and status.phase not in TERMINAL | {"Suspended"}
    under_way = status.history[-1] if mends else None
    moments += [
        _moment(start, r.since, _what(r), _how(r, under_way=r is under_way), bad=_is_bad(r.cause))
        for r in status.history
    ]
    recovery, failure = status.recovery, status.last_failure
    if status.stop is not None or status.phase == "Suspended":
        pass
    elif recovery is not None and recovery.since:
        moments.append(
            _moment(start, recovery.since, _what(recovery), _waits(status, recovery, now), bad=_is_bad(recovery.cause))
        )
    if status.phase == "Failed":
        more = (f"{failure.cause}: {failure.message}",) if failure is not None and failure.message else ()
        moments.append(_moment(start, status.completion_time or now, f"Failed: {_reason(status)}", more, bad=True))
    elif status.phase == "Succeeded":
        moments.append(_moment(start, status.completion_time or now, "Succeeded"))
    elif status.phase == "Suspended":
        since = next((c.last_transition_time for c in status.conditions if c.type == "Suspended"), now)
        moments.append(_moment(start, since, "suspended, everything saved"))
    return moments


def _moment(start: float, at: float, text: str, more: tuple[str, ...] = (), *, bad: bool = False) -> Moment:
    time = dt.datetime.fromtimestamp(at, dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Moment(round(at - start, 3), time, text, more, bad)


def _what(end: RecoveryRecord | RecoveryStatus) -> str:
    place = f" on {end.machine}" if end.machine else ""
    who = f"{end.member}{place}: " if end.member else ""
    others = f" (and {end.losses - 1} more lost with it)" if end.losses > 1 else ""
    detail = f": {end.detail.splitlines()[0]}" if end.detail else ""
    return f"{who}{end.cause}{detail}{others}"


def _how(record: RecoveryRecord, *, under_way: bool) -> tuple[str, ...]:
    if record.cause == Cause.SUSPENDED.value:
        return (_resumed(record),)
    legs = [
        (record.noticed, "until it was noticed"),
        (record.formed - record.noticed, "until all members were ready"),
    ]
    if record.restored is not None:
        legs.append((record.restored - record.formed, "to form the world and load the state"))
        if record.recovered is not None:
            again = f" ({_count(record.lost_steps, 'step')} done again)" if record.lost_steps else ""
            legs.append((record.recovered - record.restored, f"to the first new step{again}"))
    spent = ", ".join(f"{duration(max(0.0, s))} {what}" for s, what in legs)
    if record.recovered is not None:
        return (f"back after {duration(record.recovered)}: {spent}", _resumed(record))
    if under_way:
        return (f"on its way back: {spent}",) + ((_resumed(record),) if record.restored is not None else ())
    if record.restored is not None:
        return (f"had not got any further when the next thing happened: {spent}", _resumed(record))
    return (f"its successor ended before it had restored anything: {spent}",)


def _resumed(record: RecoveryRecord) -> str:
    if record.resumed_step is None:
        return f"training stood at step {record.step}"
    if record.resumed_kind == "scratch":
        lost = f"; {_count(record.lost_steps, 'step')} lost" if record.lost_steps else ""
        return f"began from scratch: nothing had been saved{lost}"
    lost = f"{_count(record.lost_steps, 'step')} lost" if record.lost_steps else "no step lost"
    return f"from the {record.resumed_kind} of step {record.resumed_step}: {lost}"


def _waits(status: JobStatus, recovery: RecoveryStatus, now: float) -> tuple[str, ...]:
    """What a recovery that is under way waits for."""
    waits = [f"slot {s.slot} is {s.state}" for s in status.slots if s.state != "Ready"]
    if recovery.not_before > now:
        waits.append(f"the back-off ends in {duration(recovery.not_before - now)}")
    since = f"recovering for {duration(max(0.0, now - recovery.since))}"
    return (f"{since}: {', '.join(waits) or 'the next generation is about to be formed'}",)


def _reason(status: JobStatus) -> str:
    failed = next((c for c in status.conditions if c.type == "Failed"), None)
    return f"{failed.reason}: {failed.message}" if failed is not None else "unknown"


def _advice(status: JobStatus, now: float) -> list[str]:
    said = []
    until = status.goodput.counted_until
    if status.phase not in TERMINAL | {"Suspended"} and until is not None and now - until > QUIET_SECONDS:
        said.append(f"This is as it was written {duration(now - until)} ago: is anybody at work on it?")
    failure = status.last_failure
    if status.phase == "Failed" and failure is not None and failure.member:
        said.append(f"Read the log of {failure.member}: that is where it happened.")
    buckets = status.goodput.buckets
    shares = {s.bucket: s.share for s in _shares({k: v for k, v in buckets.items() if k != "pending"})}
    hints = {
        "data": "batches do not come fast enough; more loader processes help, or a faster place for the data",
        "checkpoint": "checkpoints and snapshots hold training up; a longer checkpoint.interval makes them rarer",
        "idle": "members that were ready waited for a replacement, or for a back-off after failures",
        "replayed": "steps were done again; where all members are lost at once, a shorter checkpoint.interval saves more",
        "start": "members took long to start; an image that is on the machines already, and fewer imports, help",
    }
    if ratio(buckets) is not None:
        large = [b for b, share in shares.items() if b in hints and share >= 0.2 and buckets[b] >= 60.0]
        said += [f"{_percent(shares[b])} went to {b}: {hints[b]}." for b in large]
    return said


def _is_bad(cause: str) -> bool:
    return (
        CAUSE_CLASS.get(Cause(cause)) in {Class.COUNTED, Class.FINAL, Class.STORAGE} if cause in set(Cause) else False
    )


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}" if number else ""


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
