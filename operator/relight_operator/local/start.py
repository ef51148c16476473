"""How a run begins: a new job, one that goes on, one that is over, or one that may not go on as it is."""

import datetime as dt
import shlex
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import assert_never

from relight_agent.files import read_json
from relight_operator.again import Again, Way, judge, revived
from relight_operator.api.job import TrainingJob
from relight_operator.api.status import TERMINAL, JobStatus
from relight_operator.errors import InvalidUsage
from relight_operator.local import private
from relight_operator.local.members import kill_leftovers
from relight_operator.local.runner import checkpoint_folder
from relight_operator.local.state import StateFolder, StoredJob


def begin(
    folder: StateFolder, job: TrainingJob, *, fresh: bool, again: Sequence[str] = ("relight", "run", "FILE")
) -> tuple[StoredJob, list[str]]:
    """The stored job to run, and what a person should know about it. `again`: the command. Raises InvalidUsage."""
    said: list[str] = []
    check_owner(folder, job)
    if fresh:
        said += clear(folder, job)
    stored = folder.load()
    if stored is None:
        return folder.create(job, JobStatus()), said
    verdict = judge(stored.job.spec, job.spec, stored.status)
    match verdict.way:
        case Way.REFUSED:
            raise InvalidUsage(_refusal(verdict, folder, again))
        case Way.ANEW:
            said.append(f"the job has done no step yet, so all changes are accepted: {', '.join(verdict.changed)}")
            return _anew(folder, job), said
        case Way.ON:
            said.append(f"changed since the last run: {', '.join(verdict.changed)}")
        case Way.AS_BEFORE:
            pass
        case never:
            assert_never(never)
    ended = stored.status.phase
    if ended == "Succeeded" and verdict.trains and stored.job.spec.checkpoint is None:
        raise InvalidUsage(
            f"spec.checkpoint: the completed job has saved no checkpoint to continue from (state in {folder.path}): "
            "start from the beginning with --fresh"
        )
    stored = _with(folder, stored, job)
    if ended == "Succeeded" and verdict.trains:
        said.append("the job had completed: it continues from its final state with the changed configuration")
        stored = _revive(folder, stored)
    elif ended == "Failed":
        said.append("it had failed: it goes on from its last checkpoint, with a new retry budget (--fresh starts anew)")
        stored = _revive(folder, stored)
    elif stored.status.world is not None and ended not in TERMINAL:
        said.append("going on where the last run stopped (--fresh starts anew)")
    return stored, said


def _refusal(verdict: Again, folder: StateFolder, again: Sequence[str]) -> str:
    ways = [
        "undo the change",
        "give the job another metadata.name",
        "start from the beginning with --fresh (it moves the old checkpoints and state to another folder)",
    ]
    if verdict.allow:
        allow = f"resume.allow=[{','.join(verdict.allow)}]"
        ways.insert(
            0, f"continue from the last state with the changed configuration: {shlex.join([*again, '--set', allow])}"
        )
    return (
        f"{', '.join(verdict.refused)}: changed since the job's first step (state in {folder.path}). What you can do: "
        + "; ".join(ways)
    )


def _anew(folder: StateFolder, job: TrainingJob) -> StoredJob:
    """The job as if it had never been started: its first attempt's members go, its volumes stay."""
    kill_leftovers(folder.path / "members")
    private.discard(folder.path)
    for child in _ours(folder.path):
        if child.name not in {"volumes", "job.lock"}:
            shutil.rmtree(child) if child.is_dir() else child.unlink()
    return folder.create(job, JobStatus())


def _revive(folder: StateFolder, stored: StoredJob) -> StoredJob:
    folder.write_status(revived(stored.status), stored.version)
    return folder.load() or stored


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


def clear(folder: StateFolder, job: TrainingJob) -> list[str]:
    """Move the state and checkpoints of an earlier run to another folder. Only snapshots in memory are deleted."""
    said = []
    leftovers = kill_leftovers(folder.path / "members")
    if leftovers:
        said.append(f"--fresh: {leftovers} members of an earlier run were still alive and have been ended")
    location = checkpoint_folder(job, folder.path)
    if isinstance(location, str):
        raise InvalidUsage(
            f"--fresh cannot move the checkpoints in {location}: give the job another uri, or delete them there"
        )
    stamp = dt.datetime.now(dt.UTC).strftime("%Y%m%dT%H%M%S%f")
    inside = location is not None and location.is_relative_to(folder.path)
    if location is not None and location.exists() and not inside:
        aside = location.with_name(f"{location.name}.before-{stamp}")
        location.rename(aside)
        said.append(f"--fresh: the earlier checkpoints are kept in {aside}")
    private.discard(folder.path)
    old = [child for child in _ours(folder.path) if child.name != "job.lock"]
    if old:
        aside = folder.path / f"before-{stamp}"
        aside.mkdir(mode=0o700)
        for child in old:
            child.rename(aside / child.name)
        what = "checkpoints and state" if (aside / "volumes").exists() else "state"
        said.append(f"--fresh: the earlier {what} are kept in {aside}; delete this folder when you do not need it")
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
        private.RECORD,
        "coordinator.url",
        "chaos.json",
    ]
    return [p for n in names if (p := path / n).exists()] + sorted(path.glob("chaos.json.*.fired"))
