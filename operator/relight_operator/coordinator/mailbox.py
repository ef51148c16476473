"""The newest report of every agent, and the last acknowledged status of every job. It decides nothing."""

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from relight_operator.api.status import JobStatus
from relight_operator.coordinator.wire import Report, view
from relight_operator.core.commands import AgentCommand, command_for
from relight_operator.core.observed import AgentView


@dataclass
class _Heard:
    report: Report
    at: float  # unix seconds
    view: AgentView


@dataclass
class _Job:
    since: float  # unix seconds
    status: JobStatus | None = None
    heard: dict[str, _Heard] = field(default_factory=dict)  # by member uid
    waits: dict[str, int] = field(default_factory=dict)  # the sequence number of each one's newest wait
    changed: asyncio.Condition = field(default_factory=asyncio.Condition)


class Mailbox:
    """`clock` gives unix seconds. `on_report(job)` is called whenever something new about a job has come in."""

    def __init__(self, clock: Callable[[], float], on_report: Callable[[str], None]) -> None:
        self._clock = clock
        self._on_report = on_report
        self._jobs: dict[str, _Job] = {}

    async def publish(self, job: str, status: JobStatus) -> None:
        """An acknowledged status: from now on commands come from it. Wakes every agent that waits."""
        entry = self._entry(job)
        async with entry.changed:
            entry.status = status
            entry.changed.notify_all()

    def _entry(self, job: str) -> _Job:
        return self._jobs.get(job) or self._jobs.setdefault(job, _Job(self._clock()))

    def listening_since(self, job: str) -> float:
        """When the first word came in about the job, or from it: who is silent has been so since then at most."""
        return self._entry(job).since

    def knows(self, job: str) -> bool:
        return job in self._jobs and self._jobs[job].status is not None

    def post(self, report: Report) -> bool:
        """Take a report in; False for one that is older than what is known of this agent."""
        entry = self._entry(report.job)
        last = entry.heard.get(report.uid)
        if last is not None and last.report.boot_id == report.boot_id and report.seq <= last.report.seq:
            return False
        now = self._clock()
        entry.heard[report.uid] = _Heard(report, now, view(report, heard_at=now))
        if last is None or last.view.hung_up_at is not None or _matters(last.report, report):
            self._on_report(report.job)
        return True

    def heard(self, job: str, uid: str) -> AgentView | None:
        entry = self._jobs.get(job)
        heard = entry.heard.get(uid) if entry is not None else None
        return heard.view if heard is not None else None

    def report(self, job: str, uid: str) -> Report | None:
        entry = self._jobs.get(job)
        heard = entry.heard.get(uid) if entry is not None else None
        return heard.report if heard is not None else None

    def forget(self, job: str, keep: set[str]) -> None:
        """Drop the reports of members that no longer matter."""
        entry = self._jobs.get(job)
        if entry is not None:
            entry.heard = {uid: h for uid, h in entry.heard.items() if uid in keep}
            entry.waits = {uid: seq for uid, seq in entry.waits.items() if uid in keep}

    def command(self, report: Report) -> AgentCommand | None:
        entry = self._jobs.get(report.job)
        if entry is None or entry.status is None:
            return None
        return command_for(entry.status, slot=report.slot, incarnation=report.incarnation, uid=report.uid)

    async def wait(self, report: Report, hold: float) -> AgentCommand | None:
        """The agent's command as soon as it differs from `report.after`, or whatever it is after `hold` seconds."""
        entry = self._entry(report.job)
        entry.waits[report.uid] = report.seq

        def fresh() -> bool:
            command = self.command(report)
            return command is not None and command.id != report.after

        try:
            async with asyncio.timeout(hold), entry.changed:
                await entry.changed.wait_for(fresh)
        except TimeoutError:
            pass
        return self.command(report)

    def hang_up(self, report: Report) -> None:
        """The connection of the wait that carried `report` has broken off: its agent may have ended."""
        entry = self._entry(report.job)
        heard = entry.heard.get(report.uid)
        if heard is not None and heard.report.boot_id == report.boot_id and entry.waits.get(report.uid) == report.seq:
            heard.view = replace(heard.view, hung_up_at=self._clock())
            self._on_report(report.job)


def _matters(old: Report, new: Report) -> bool:
    """Whether `new` says anything but that time has passed."""
    passing = {"seq", "after", "timings", "pace"}
    ages = {
        "progress": {"first_step_age"},
        "outcome": {"age"},
        "terminating_age": True,
        "stopping_age": True,
        "stall": {"age"},
    }
    exclude: dict[str, object] = {**dict.fromkeys(passing, True), **ages}
    return old.model_dump(exclude=exclude) != new.model_dump(exclude=exclude)  # type: ignore[arg-type]  # pydantic's IncEx
