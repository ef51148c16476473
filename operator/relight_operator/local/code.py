"""The job's own code without a cluster: checked out into the state folder once, at the job's first start."""

import shutil
from collections.abc import Mapping
from pathlib import Path

from relight_operator.api.job import TrainingJob
from relight_operator.api.status import CodeStatus
from relight_operator.errors import InvalidUsage
from relight_operator.local.state import StateFolder, StoredJob
from relight_trainer.code_source import fetch

FOLDER = "code"  # in the state folder


def code_folder(job: TrainingJob, state: Path) -> Path | None:
    return state / FOLDER if job.spec.code is not None else None


def ensure(folder: StateFolder, stored: StoredJob, secrets: Mapping[str, Path]) -> StoredJob:
    """The job's code is there, of the commit that its first start fixed. Raises InvalidUsage, WrongSource, Unreachable."""
    source, path = stored.job.spec.code, folder.path / FOLDER
    if source is None or (stored.status.code is not None and path.exists()):
        return stored
    git, known = source.git, stored.status.code
    secret = None
    if git.secret_ref is not None:
        secret = secrets.get(git.secret_ref.name)
        if secret is None or not secret.is_dir():
            raise InvalidUsage(
                f"spec.code.git.secretRef: without a cluster there are no Secrets: say --secret {git.secret_ref.name}=FOLDER, a "
                "folder with token, or username and password, or ssh-privatekey and known_hosts"
            )
    unfinished = path.with_name(f"{FOLDER}.part")
    for old in (unfinished, path):  # of a run that was cut before it had said which commit it is
        shutil.rmtree(old, ignore_errors=True)
    unfinished.mkdir(mode=0o700)  # the code may be nobody else's to read, whatever folder --state-dir is
    ref = known.commit if known is not None else git.ref
    fetched = fetch(git.url, ref, unfinished, secret=secret, submodules=git.submodules)
    unfinished.rename(path)
    if known is not None:
        return stored
    status = stored.status.model_copy(update={"code": CodeStatus(commit=fetched.commit)})
    folder.write_status(status, stored.version)
    return folder.load() or stored
