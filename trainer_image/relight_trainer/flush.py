"""`python -m relight_trainer.flush`: write this member's newest snapshot to the checkpoint folder.

Run by the agent when a member must go while its workers are not running (in a recovery, or without a coordinator), so
that what only its memory holds is not lost. Exit status 0: that state, or a newer one, is in the checkpoint folder.
"""

import os
import sys
from pathlib import Path

from relight_agent.files import FLUSHED, JobFile, write_json
from relight_trainer.checkpoint import CheckpointError, CheckpointFolder, NoUsableCheckpoint, Snapshots, unpack


def flush(job: JobFile, run_dir: Path) -> int | None:
    """The step that is saved now; None where there is no snapshot. Raises CheckpointError."""
    snapshots = Snapshots(run_dir / "snapshots", job_uid=job.uid, config_hash=job.config_hash)
    position = snapshots.newest()
    if position is None:
        return None
    folder = CheckpointFolder.of_job(job)
    try:
        stored = folder.newest()
    except NoUsableCheckpoint:
        stored = None
    if stored is not None and (stored.created, stored.position) >= (job.created, position):
        return stored.position.step
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
    return position.step


class _Alone:
    """The exchange of a world of one: nobody to hear from."""

    def put(self, key: str, value: bytes) -> None: ...

    def get(self, key: str, timeout: float) -> bytes:  # noqa: ARG002  # Exchange's signature
        raise LookupError(key)


def main() -> int:
    try:
        run_dir = Path(os.environ["RELIGHT_RUN_DIR"])
        step = flush(JobFile.load(os.environ["RELIGHT_JOB_FILE"]), run_dir)
    except (CheckpointError, OSError, KeyError, ValueError) as error:
        print(f"relight: the snapshot could not be saved: {type(error).__name__}: {error}", flush=True)
        return 1
    if step is None:
        print("relight: there is no snapshot to save", flush=True)
        return 1
    write_json(run_dir / FLUSHED, step)
    print(f"relight: the state of step {step} is in the checkpoint folder", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
