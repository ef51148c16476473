"""`relight run`: the same plan(), coordinator, agents and trainer as in a cluster; members are processes."""

import asyncio
import hmac
import os
import random
import secrets
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import assert_never

from relight_agent.exits import Cause
from relight_agent.files import LEAVING, write_json
from relight_agent.processes import become_subreaper
from relight_operator.api.durations import seconds
from relight_operator.api.job import TrainingJob
from relight_operator.api.status import TERMINAL, JobStatus
from relight_operator.coordinator.endpoint import Endpoint
from relight_operator.coordinator.limits import Limits, Reason
from relight_operator.coordinator.mailbox import Mailbox
from relight_operator.coordinator.server import create_app
from relight_operator.coordinator.wire import Report
from relight_operator.core.actions import Action, CreateMember, DeleteMember, EmitEvent, RequeueAfter, WriteStatus
from relight_operator.core.observed import AgentView, Observed, SlotView
from relight_operator.core.plan import plan
from relight_operator.frozen import config_hash, job_file
from relight_operator.local import private
from relight_operator.local.chaos import Fault, away_until
from relight_operator.local.code import code_folder
from relight_operator.local.environment import Values
from relight_operator.local.members import ADDRESS, Member, ProcessMembers, token_of
from relight_operator.local.state import StateFolder, StoredJob

PROGRESS_SECONDS = 1.0
RESYNC_SECONDS = 5.0
RETRY_SECONDS = 1.0
CHAOS_FILE = "chaos.json"
# Every member has the same address here, and a job may have a thousand.
LIMITS = Limits(strangers_of_one_peer=Limits.strangers, opened_at_once=4096, opened_per_second=1024.0)


@dataclass
class Listener:
    """Who shows the run to a person, or measures it."""

    on_event: Callable[[EmitEvent], None] = lambda _: None
    on_status: Callable[[JobStatus], None] = lambda _: None
    on_report: Callable[[Report], None] = lambda _: None


@dataclass
class LocalRunner:
    """Runs one stored job until it has ended, or until it has been stopped and saved.

    `alone`: this process has no children of its own, so that all that come to it are orphans of members.
    """

    folder: StateFolder
    stored: StoredJob
    workdir: Path
    listener: Listener
    faults: tuple[Fault, ...] = ()
    stop: str | None = None
    alone: bool = False
    values: Values = field(default_factory=Values)
    _wake: asyncio.Event = field(default_factory=asyncio.Event)
    _address: tuple[str, int] = ("", 0)
    _announced: bool = False
    _stop_by: float = 0.0

    def __post_init__(self) -> None:
        self.status = self.stored.status
        self._version = self.stored.version
        metadata = self.stored.job.metadata
        self._name = metadata.name
        self._key = f"{metadata.namespace}/{metadata.name}"
        self._secret = _secret(self.folder.path / "secret")
        self._epoch = time.time() - time.monotonic()
        self._mailbox = Mailbox(self._now, lambda _: self._wake.set())
        self._run_root = private.choose(self.folder.path)
        self._job_file = self._write_job_file()
        self._members = ProcessMembers(
            self.folder.path / "members",
            self._run_root,
            self._environment(),
            self._secret,
            self._wake.set,
            clock=self._now,
            alone=self.alone,
            values=self.values,
        )

    def request_stop(self) -> None:
        """Every member saves and ends. Asked for again, nobody is waited for any more."""
        if self.stop is None:
            self.stop = f"interrupt-{secrets.token_hex(4)}"
            self._stop_by = time.monotonic() + seconds(self.stored.job.spec.disruption.grace_period)
        else:
            self._stop_by = 0.0
            self._members.kill_all()
        self._wake.set()

    def ask_for_traces(self) -> None:
        """Every worker traces its next steps."""
        members = self._members.all()
        self._members.ask_for_traces({m.uid for m in members if self._mailbox.heard(self._key, m.uid) is not None})

    async def run(self) -> JobStatus:
        """The final status: Succeeded, Failed, or Suspended after a stop.

        Raises StateError or OSError where the state cannot be kept; by then every member has saved and ended.
        """
        if self.alone:
            become_subreaper()
        private.make(self.folder.path, self._run_root)
        self._members.adopt(self._name)
        self._mailbox.publish(self._key, self.stored.uid, self.status)
        app = create_app(self._mailbox, self._authenticate, lambda: True, limits=LIMITS)
        coordinator = Endpoint(app, shutdown_timeout=0.2)
        await coordinator.start(ADDRESS)
        self._address = coordinator.address
        try:
            await self._reconcile()
        except BaseException as error:
            # Nobody would be left to look after them.
            self.listener.on_event(EmitEvent("Stopping", f"{error}: every member saves and ends", warning=True))
            await self._members.end_all(seconds(self.stored.job.spec.disruption.grace_period))
            shutil.rmtree(self._run_root, ignore_errors=True)
            raise
        finally:
            self._members.close()
            await coordinator.stop()
        shutil.rmtree(self._run_root, ignore_errors=True)
        return self.status

    def _now(self) -> float:
        """Unix seconds that a clock set back or forward in mid-run does not move."""
        return self._epoch + time.monotonic()

    async def _reconcile(self) -> None:
        trouble = ""
        while True:
            self._wake.clear()
            version = self._version
            try:
                self._announce()
                delay = await self._apply(plan(self._observe(), self._now()))
            except OSError as error:
                # A full disk, no process to be had: what runs goes on meanwhile, and may yet be saved.
                if self.stop is not None and time.monotonic() >= self._stop_by:
                    raise
                if str(error) != trouble:
                    trouble = str(error)
                    text = f"{trouble} (state in {self.folder.path}); training goes on meanwhile"
                    self.listener.on_event(EmitEvent("TryingAgain", text, warning=True))
                delay = RETRY_SECONDS
            else:
                trouble = ""
            if self._version != version:
                continue
            if self._over():
                return
            try:
                async with asyncio.timeout(delay):
                    await self._wake.wait()
            except TimeoutError:
                pass

    async def _apply(self, actions: tuple[Action, ...]) -> float:
        """The seconds after which to look again, if nothing happens."""
        delay = RESYNC_SECONDS
        for action in actions:
            if isinstance(action, CreateMember):
                away = away_until(self.faults, self.folder.path / CHAOS_FILE, action.slot) - self._now()
                if away > 0:
                    delay = min(delay, away)
                    continue
                self._members.create(self._name, action.slot, action.incarnation)
                self._wake.set()
            elif isinstance(action, DeleteMember):
                self._members.delete(f"{self._name}-{action.slot}-{action.incarnation}", action.uid, action.grace)
            elif isinstance(action, WriteStatus):
                self._version = self.folder.write_status(action.status, self._version)
                self.status = action.status
                self._mailbox.publish(self._key, self.stored.uid, self.status)
                self.listener.on_status(self.status)
            elif isinstance(action, EmitEvent):
                self.listener.on_event(action)
            elif isinstance(action, RequeueAfter):
                delay = min(delay, action.seconds)
            else:
                assert_never(action)
        return delay

    def _over(self) -> bool:
        suspended = self.stop is not None or self.stored.job.spec.suspend
        ended = self.status.phase in TERMINAL or (self.status.phase == "Suspended" and suspended)
        return ended and all(m.end is not None for m in self._members.all())

    def _observe(self) -> Observed:
        return Observed(
            name=self._name,
            spec=self.stored.job.spec,
            status=self.status,
            members=tuple(self._view(m) for m in self._members.all()),
            config_hash=config_hash(self.stored.job.spec),
            listening_since=self._mailbox.listening_since(self._key, self.stored.uid),
            jitter=random.random(),  # noqa: S311  # no secret
            local=True,
            stop=self.stop,
            progress_interval=PROGRESS_SECONDS,
        )

    def _view(self, member: Member) -> SlotView:
        heard = self._mailbox.heard(self._key, member.uid)
        return SlotView(
            slot=member.slot,
            incarnation=member.incarnation,
            uid=member.uid,
            machine=member.machine,
            address=ADDRESS,
            deleting=member.deleting,
            leaving=self._leaving(member, heard),
            end=member.end,
            agent=heard,
        )

    def _leaving(self, member: Member, heard: AgentView | None) -> Cause | None:
        if member.deleting or (heard is not None and heard.terminating_at is not None):
            return Cause.PREEMPTED
        return Cause.MACHINE_LEAVING if (self._run_root / member.name / LEAVING).exists() else None

    async def _authenticate(self, token: str, report: Report, _: str) -> Reason | None:
        mine = report.job == self._key and hmac.compare_digest(
            token.encode("utf-8", "replace"), token_of(self._secret, report.uid).encode()
        )
        if mine:
            self.listener.on_report(report)
        return None if mine else Reason.NOT_THE_MEMBERS

    def _announce(self) -> None:
        """Say where the coordinator is, and again where somebody removed the file: agents look it up every time."""
        host, port = self._address
        file = self.folder.path / "coordinator.url"
        if self._announced and file.exists():
            return
        self._announced = True
        temporary = file.with_suffix(".tmp")
        temporary.write_text(f"http://{host}:{port}\n", encoding="ascii")
        temporary.replace(file)

    def _environment(self) -> dict[str, str]:
        environment = {
            "RELIGHT_JOB_FILE": str(self._job_file),
            "RELIGHT_COORDINATOR_URL": f"file://{self.folder.path / 'coordinator.url'}",
        }
        if self.faults:
            chaos = self.folder.path / CHAOS_FILE
            write_json(chaos, [f.dump() for f in self.faults])
            environment["RELIGHT_CHAOS_FILE"] = str(chaos)
        return environment

    def _write_job_file(self) -> Path:
        path = self.folder.path / "job-file.json"
        location = checkpoint_folder(self.stored.job, self.folder.path)
        file = job_file(
            self.stored.job,
            uid=self.stored.uid,
            created=self.stored.created,
            workdir=str(self.workdir),
            checkpoint_dir=str(location or ""),
            code_dir=str(code_folder(self.stored.job, self.folder.path) or ""),
        )
        replace(file, gpus=0).write(path)  # resources are a pod's: here members take what the computer has
        return path


def checkpoint_folder(job: TrainingJob, state: Path) -> Path | str | None:
    """The job's own folder of durable state, or its URL. Without a cluster, a claim is a folder in the state folder."""
    checkpoint = job.spec.checkpoint
    if checkpoint is None:
        return None
    if checkpoint.host_path is not None:
        location = Path(checkpoint.host_path.path)
    elif checkpoint.uri is not None and not checkpoint.uri.startswith("file:"):
        return f"{checkpoint.uri.rstrip('/')}/{job.metadata.namespace}/{job.metadata.name}"
    elif checkpoint.uri is not None:
        location = Path(checkpoint.uri.removeprefix("file://"))
    else:
        assert checkpoint.persistent_volume_claim is not None
        location = state / "volumes" / checkpoint.persistent_volume_claim.claim_name
    return location / job.metadata.namespace / job.metadata.name


def _secret(path: Path) -> bytes:
    if not path.exists():
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        temporary = path.with_suffix(f".{os.getpid()}")
        temporary.touch(mode=0o600)
        temporary.write_bytes(secrets.token_bytes(32))
        temporary.replace(path)
    return path.read_bytes()
