"""What a worker knows of its place in the job, read from its environment. Imports no torch."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from relight_agent.files import GenerationFolder, JobFile


@dataclass(frozen=True)
class WorkerContext:
    """One worker's place in one generation of one job.

    `slot` is where the member stands in the job; `node_rank`, `rank` and `local_rank` where it stands in this
    generation. `committed_step` is the step of the newest checkpoint that the job's status knows of, None for none;
    steps up to `furthest_step` have been done before, by an earlier generation.
    """

    job: JobFile
    folder: GenerationFolder
    run_dir: Path
    generation: int
    slot: int
    rank: int
    local_rank: int
    world_size: int
    local_world_size: int
    node_rank: int
    uid: str = ""
    committed_step: int | None = None
    furthest_step: int = 0
    agent_pid: int | None = None
    chaos_file: Path | None = None
    new_member: bool = False  # this member has been in no generation before

    @property
    def snapshots(self) -> Path:
        """Where this member's snapshots live; the folder outlives the workers."""
        return self.run_dir / "snapshots"

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> "WorkerContext | None":
        """The context of this process; None outside a job.

        Raises KeyError or ValueError where the environment is half a job's: a variable missing or not a number.
        """
        env = os.environ if environ is None else environ
        if "RELIGHT_JOB_FILE" not in env or "RELIGHT_GENERATION_DIR" not in env:
            return None
        committed = env.get("RELIGHT_COMMITTED_STEP", "")
        agent_pid = env.get("RELIGHT_AGENT_PID", "")
        chaos_file = env.get("RELIGHT_CHAOS_FILE", "")
        return cls(
            job=JobFile.load(env["RELIGHT_JOB_FILE"]),
            folder=GenerationFolder(env["RELIGHT_GENERATION_DIR"]),
            run_dir=Path(env["RELIGHT_RUN_DIR"]),
            generation=int(env["RELIGHT_GENERATION"]),
            slot=int(env["RELIGHT_SLOT"]),
            rank=int(env["RANK"]),
            local_rank=int(env["LOCAL_RANK"]),
            world_size=int(env["WORLD_SIZE"]),
            local_world_size=int(env["LOCAL_WORLD_SIZE"]),
            node_rank=int(env["GROUP_RANK"]),
            uid=env.get("RELIGHT_UID", ""),
            committed_step=int(committed) if committed else None,
            furthest_step=int(env.get("RELIGHT_FURTHEST_STEP") or 0),
            agent_pid=int(agent_pid) if agent_pid else None,
            chaos_file=Path(chaos_file) if chaos_file else None,
            new_member=env.get("RELIGHT_NEW_MEMBER") == "1",
        )
