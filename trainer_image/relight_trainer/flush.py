"""`python -m relight_trainer.flush`: write this member's newest snapshot to the checkpoint folder.

Run by the agent when a member must go while its workers are not running (in a recovery, or without a coordinator), so
that what only its memory holds is not lost. Exit status 0: that state, or a newer one, is in the checkpoint folder.
"""

import os
import sys
from pathlib import Path

from relight_agent.files import JobFile
from relight_trainer.checkpoint import CheckpointError, CheckpointFolder, NoUsableCheckpoint, Snapshots, unpack


def flush(job: JobFile, run_dir: Path) -> str | None:
    """What has been saved, in words; None where there is no snapshot. Raises CheckpointError."""
    snapshots = Snapshots(run_dir / "snapshots", job_uid=job.uid, config_hash=job.config_hash)
    position = snapshots.newest()
    if position is None:
        return None
    folder = CheckpointFolder(
        Path(job.checkpoint_dir),
        job_uid=job.uid,
        created=job.created,
        config_hash=job.config_hash,
        keep=job.checkpoint_keep,
    )
    try:
        stored = folder.newest()
    except NoUsableCheckpoint:
        stored = None
    if stored is not None and (stored.created, stored.position) >= (job.created, position):
        return f"a checkpoint of step {stored.position.step} is there already"
    state = unpack(snapshots.read())
    folder.save(
        state,
        generation=position.generation,
        step=position.step,
        cursor=state["loop"],
        final=False,
        rank=0,
        world=1,
        exchange=_Alone(),
    )
    return f"the snapshot of step {position.step} is saved"


class _Alone:
    """The exchange of a world of one: nobody to hear from."""

    def put(self, key: str, value: bytes) -> None: ...

    def get(self, key: str, timeout: float) -> bytes:  # noqa: ARG002  # Exchange's signature
        raise LookupError(key)


def main() -> int:
    try:
        said = flush(JobFile.load(os.environ["RELIGHT_JOB_FILE"]), Path(os.environ["RELIGHT_RUN_DIR"]))
    except (CheckpointError, OSError, KeyError, ValueError) as error:
        print(f"relight: the snapshot could not be saved: {type(error).__name__}: {error}", flush=True)
        return 1
    print(f"relight: {said or 'there is no snapshot to save'}", flush=True)
    return 0 if said is not None else 1


if __name__ == "__main__":
    sys.exit(main())
