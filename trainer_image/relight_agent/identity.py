"""Who this agent is: from the environment that the backend gave it."""

import os
from dataclasses import dataclass, field
from typing import Mapping

from relight_agent.files import JobFile


@dataclass(frozen=True)
class Identity:
    job: JobFile
    job_file: str
    slot: int
    incarnation: int
    uid: str
    run_dir: str
    address: str
    coordinator_url: str
    token_file: str
    ca_file: str
    termination_log: str
    boot_id: str = field(default_factory=lambda: os.urandom(8).hex())

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> "Identity":
        """Raises ValueError that names the variable which is missing or wrong."""

        def need(name: str) -> str:
            if not env.get(name):
                raise ValueError(f"{name} is not set: the agent is started by Relight, see `relight run --help`")
            return env[name]

        def number(name: str) -> int:
            if not need(name).isdigit():
                raise ValueError(f"{name} is not a number: {env[name]!r}")
            return int(env[name])

        job_file = need("RELIGHT_JOB_FILE")
        return cls(
            job=JobFile.load(job_file),
            job_file=job_file,
            slot=number("RELIGHT_SLOT"),
            incarnation=number("RELIGHT_INCARNATION"),
            uid=need("RELIGHT_UID"),
            run_dir=need("RELIGHT_RUN_DIR"),
            address=need("RELIGHT_ADDRESS"),
            coordinator_url=need("RELIGHT_COORDINATOR_URL"),
            token_file=env.get("RELIGHT_TOKEN_FILE", ""),
            ca_file=env.get("RELIGHT_CA_FILE", ""),
            termination_log=env.get("RELIGHT_TERMINATION_LOG", "/dev/termination-log"),
        )
