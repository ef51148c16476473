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
    uid: str
    since: float  # unix seconds
    status: JobStatus | None = None
    heard: dict[str, _Heard] = field(default_factory=dict)  # by member uid
    waits: dict[str, int] = field(default_factory=dict)  # the sequence number of each one's newest wait
    changed: asyncio.Event = field(default_factory=asyncio.Event)  # set once; a new one waits for the next change

    def tell(self) -> None:
        """Wake everyone who waits for a change."""
        self.changed.set()
        self.changed = asyncio.Event()


class Mailbox:
    """`clock` gives unix seconds. `on_report(job)` is called whenever something new about a job has come in.

    Jobs are named by `namespace/name` and known by their uid: nothing is kept for a job that is gone, and one of the
    same name that was made since begins with nothing.
    """

    def __init__(self, clock: Callable[[], float], on_report: Callable[[str], None]) -> None:
        self._clock = clock
        self._on_report = on_report
        self._jobs: dict[str, _Job] = {}

    def __len__(self) -> int:
        """How many jobs something is kept for."""
        return len(self._jobs)

    def publish(self, job: str, uid: str, status: JobStatus) -> None:
        """An acknowledged status: from now on commands come from it. Wakes every agent that waits."""
        entry = self._entry(job, uid)
        entry.status = status
        entry.tell()

    def _entry(self, job: str, uid: str) -> _Job:
        entry = self._jobs.get(job)
        if entry is None or entry.uid != uid:
            self.drop(job)
            entry = self._jobs[job] = _Job(uid, self._clock())
        return entry

    def drop(self, job: str) -> None:
        """The job is gone, and so is all that was kept for it. Its agents that wait are told that nothing is known."""
        entry = self._jobs.pop(job, None)
        if entry is not None:
            entry.tell()

    def listening_since(self, job: str, uid: str) -> float:
        """When the first word came in about the job, or from it: who is silent has been so since then at most."""
        return self._entry(job, uid).since

    def knows(self, job: str) -> bool:
        return job in self._jobs and self._jobs[job].status is not None

    def post(self, report: Report) -> bool:
        """Take a report in; False for one that is older than what is known of this agent."""
        entry = self._entry(report.job, report.job_uid)
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
        """None where nothing is known of the report's job, or no more."""
        entry = self._of(report)
        if entry is None or entry.status is None:
            return None
        return command_for(entry.status, slot=report.slot, incarnation=report.incarnation, uid=report.uid)

    def _of(self, report: Report) -> _Job | None:
        entry = self._jobs.get(report.job)
        return entry if entry is not None and entry.uid == report.job_uid else None

    async def wait(self, report: Report, hold: float) -> AgentCommand | None:
        """The agent's command as soon as it differs from `report.after`, or whatever it is after `hold` seconds."""
        self._entry(report.job, report.job_uid).waits[report.uid] = report.seq
        try:
            async with asyncio.timeout(hold):
                while (entry := self._of(report)) is not None:
                    command = self.command(report)
                    if command is not None and command.id != report.after:
                        return command
                    await entry.changed.wait()
        except TimeoutError:
            pass
        return self.command(report)

    def hang_up(self, report: Report) -> None:
        """The connection of the wait that carried `report` has broken off: its agent may have ended."""
        entry = self._of(report)
        heard = entry.heard.get(report.uid) if entry is not None else None
        if entry is None or heard is None or heard.report.boot_id != report.boot_id:
            return
        if entry.waits.get(report.uid) == report.seq:
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
