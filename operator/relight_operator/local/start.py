"""How a run begins: a new job, one that goes on, one that is over, or one that may not go on as it is."""

import datetime as dt
import shutil
from pathlib import Path

from relight_agent.files import read_json
from relight_operator.api.job import TrainingJob
from relight_operator.api.status import TERMINAL, JobStatus, RecoveryStatus, Restarts
from relight_operator.errors import InvalidUsage
from relight_operator.frozen import frozen_changes
from relight_operator.local.members import kill_leftovers
from relight_operator.local.runner import checkpoint_folder, run_root
from relight_operator.local.state import StateFolder, StoredJob


def begin(folder: StateFolder, job: TrainingJob, *, fresh: bool) -> tuple[StoredJob, list[str]]:
    """The stored job to run, and what a person should know about it. Raises InvalidUsage."""
    said: list[str] = []
    check_owner(folder, job)
    if fresh:
        said += clear(folder, job)
    stored = folder.load()
    if stored is None:
        return folder.create(job, JobStatus()), said
    changed = frozen_changes(stored.job.spec, job.spec)
    if changed:
        raise InvalidUsage(
            f"{', '.join(changed)}: changed since the job's first start, and frozen since then (state in {folder.path}). "
            "Undo the change, give the job another metadata.name, or start anew with --fresh"
        )
    stored = _with(folder, stored, job)
    if stored.status.phase == "Failed":
        said.append("it had failed: it goes on from its last checkpoint, with a new retry budget (--fresh starts anew)")
        folder.write_status(revived(stored.status), stored.version)
        stored = folder.load() or stored
    elif stored.status.world is not None and stored.status.phase not in TERMINAL:
        said.append("going on where the last run stopped (--fresh starts anew)")
    return stored, said


def check_owner(folder: StateFolder, job: TrainingJob) -> None:
    """Raises InvalidUsage where another job lives in the folder: --fresh would delete that one's checkpoints."""
    value = read_json(folder.file)
    metadata = value.get("metadata") if isinstance(value, dict) else None
    if not isinstance(metadata, dict):
        return
    theirs = f"{metadata.get('namespace')}/{metadata.get('name')}"
    ours = f"{job.metadata.namespace}/{job.metadata.name}"
    if theirs != ours:
        raise InvalidUsage(f"{folder.path} holds the state of job {theirs}, not of {ours}: name another --state-dir")


def _with(folder: StateFolder, stored: StoredJob, job: TrainingJob) -> StoredJob:
    if job.spec == stored.job.spec:
        return stored
    folder.write_spec(job, stored.version)
    return folder.load() or stored


def revived(status: JobStatus) -> JobStatus:
    """A failed job's status, ready to be tried again: generations and incarnations go on, budgets begin anew."""
    after = status.model_copy(deep=True)
    after.phase = "Pending"
    after.completion_time = None
    after.restarts = Restarts()
    after.conditions = [c for c in after.conditions if c.type != "Failed"]
    after.active_seconds, after.active_since = 0.0, None
    after.stop = None
    if after.world is not None:
        after.recovery = RecoveryStatus(generation=after.world.generation, since=0.0, cause="Suspended", judged=True)
    for slot in after.slots:
        slot.incarnation = slot.last_incarnation = max(slot.incarnation, slot.last_incarnation) + 1
        slot.uid, slot.completed, slot.failed_starts, slot.state, slot.machine = None, None, 0, "Pending", ""
    return after


def clear(folder: StateFolder, job: TrainingJob) -> list[str]:
    """Forget the job. Checkpoints outside the state folder are the user's: moved aside, not deleted."""
    said = []
    leftovers = kill_leftovers(folder.path / "members")
    if leftovers:
        said.append(f"--fresh: {leftovers} members of an earlier run were still alive and have been ended")
    location = checkpoint_folder(job, folder.path)
    if isinstance(location, str):
        raise InvalidUsage(
            f"--fresh cannot move what is in {location} aside: give the job another uri, or delete it there"
        )
    inside = location is not None and location.is_relative_to(folder.path)
    if location is not None and location.exists() and not inside:
        stamp = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%S%f")
        aside = location.with_name(f"{location.name}.before-{stamp}")
        location.rename(aside)
        said.append(f"--fresh: the earlier checkpoints are kept in {aside}")
    shutil.rmtree(run_root(folder.path), ignore_errors=True)
    for child in _ours(folder.path):
        if child.is_dir():
            shutil.rmtree(child)
        else:
            child.unlink()
    return said


def _ours(path: Path) -> list[Path]:
    """Only what Relight put there: somebody may have named a folder of theirs, which has a `members` too."""
    if not (path / "job.json").exists() and not (path / "job-file.json").exists():
        return []
    names = [
        "members",
        "volumes",
        "code",
        "code.part",
        "job.json",
        "job.lock",
        "job-file.json",
        "secret",
        "coordinator.url",
        "chaos.json",
    ]
    return [p for n in names if (p := path / n).exists()] + sorted(path.glob("chaos.json.*.fired"))
