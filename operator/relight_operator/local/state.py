"""The local runner's API server: one file with compare-and-swap on a resource version."""

import contextlib
import datetime as dt
import os
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from relight_agent.files import read_json, write_json
from relight_operator.api.job import TrainingJob
from relight_operator.api.status import JobStatus
from relight_operator.errors import Conflict, InvalidUsage, StateError
from relight_operator.local.locks import lock
from relight_operator.local.private import check_state_folder


class AlreadyRunning(StateError):
    """Another `relight run` holds this state folder."""


@dataclass(frozen=True)
class StoredJob:
    job: TrainingJob
    status: JobStatus
    version: int
    uid: str
    created: float  # unix seconds


class StateFolder:
    """One job's folder: `job.json` (spec, status, version), its members' folders, its volumes.

    job.json is replaced by rename under a lock, so a reader sees one whole version and of two writers with the same
    base exactly one succeeds.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.file = path / "job.json"

    @contextlib.contextmanager
    def exclusively(self) -> Iterator[None]:
        """Hold the folder for one runner. Raises AlreadyRunning."""
        self.path.mkdir(parents=True, exist_ok=True, mode=0o700)
        check_state_folder(self.path)
        with (self.path / "runner.lock").open("a+", encoding="ascii") as file:
            try:
                lock(file)
            except BlockingIOError:
                file.seek(0)
                holder = file.read().strip() or "unknown"
                raise AlreadyRunning(
                    f"another `relight run` (pid {holder}) is at work in {self.path}: wait for it, stop it with Ctrl-C, "
                    "or name another folder with --state-dir"
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def load(self) -> StoredJob | None:
        """What is stored, or None. Raises StateError for a file that is not ours."""
        if not self.file.exists():
            return None
        value = read_json(self.file)
        try:
            return _parse(value)
        except (TypeError, KeyError, ValueError) as error:
            raise StateError(f"{self.file} cannot be read ({error}): remove it, or start anew with --fresh") from error

    def create(self, job: TrainingJob, status: JobStatus) -> StoredJob:
        """Store a new job: it gets its uid and its creation time here."""
        now = dt.datetime.now(dt.UTC)
        metadata = job.metadata.model_copy(update={"uid": str(uuid.uuid4()), "creation_timestamp": now.isoformat()})
        self._write(job.model_copy(update={"metadata": metadata}), status, version=1)
        stored = self.load()
        assert stored is not None
        return stored

    def write_spec(self, job: TrainingJob, expected: int) -> int:
        """Replace the spec of the job; its identity stays."""
        with self._locked():
            stored = self._expect(expected)
            self._write(job.model_copy(update={"metadata": stored.job.metadata}), stored.status, expected + 1)
        return expected + 1

    def write_status(self, status: JobStatus, expected: int) -> int:
        """Replace the status if the stored version is still `expected`; the new version. Raises Conflict."""
        with self._locked():
            stored = self._expect(expected)
            self._write(stored.job, status, expected + 1)
        return expected + 1

    def _expect(self, version: int) -> StoredJob:
        stored = self.load()
        if stored is None:
            raise Conflict(f"{self.file} is gone: somebody removed it while the job was running")
        if stored.version != version:
            raise Conflict(f"{self.file}: version {stored.version}, expected {version}: somebody else wrote it")
        return stored

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with (self.path / "job.lock").open("a", encoding="ascii") as file:
            lock(file, wait=True)
            yield

    def _write(self, job: TrainingJob, status: JobStatus, version: int) -> None:
        value: dict[str, Any] = job.dump()
        value["metadata"]["resourceVersion"] = str(version)
        value["status"] = status.dump()
        write_json(self.file, value, durable=True, private=True)


def _parse(value: Any) -> StoredJob:
    metadata = value["metadata"]
    created = dt.datetime.fromisoformat(metadata["creationTimestamp"]).timestamp()
    status = JobStatus.model_validate(value.get("status") or {})
    job = TrainingJob.model_validate({k: v for k, v in value.items() if k != "status"})
    return StoredJob(job, status, int(metadata["resourceVersion"]), str(metadata["uid"]), created)


def default_state_dir(namespace: str, name: str) -> Path:
    """`$XDG_STATE_HOME/relight/<namespace>/<name>`, by default below ~/.local/state. Raises InvalidUsage."""
    base = Path(os.environ.get("XDG_STATE_HOME") or "")
    if not base.is_absolute():  # as its specification wants it
        try:
            base = Path.home() / ".local" / "state"
        except RuntimeError:
            raise InvalidUsage(
                "this user has no home folder: say with --state-dir where the state is to live"
            ) from None
    return base / "relight" / namespace / name
