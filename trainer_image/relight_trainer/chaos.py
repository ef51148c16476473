"""Faults on purpose: the file in $RELIGHT_CHAOS_FILE says which member is preempted or killed after which step."""

import signal
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from relight_agent.files import read_json
from relight_trainer.context import WorkerContext


class Fault(NamedTuple):
    id: str
    action: str  # preempt | kill | announce | withdraw
    step: int


class Chaos:
    """The faults of this member; each happens once in the life of a job, whichever incarnation meets it."""

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        entries = read_json(context.chaos_file) if context.chaos_file and context.local_rank == 0 else None
        self._faults = [
            Fault(str(e["id"]), str(e["action"]), int(e["step"]))
            for e in entries or ()
            if int(e["slot"]) == context.slot
        ]

    def after_step(self, step: int) -> None:
        """Called when `step` steps are done. Does not return from a kill."""
        for fault in self._faults:
            if fault.step == step and self._claim(fault):
                self._fire(fault)

    def _claim(self, fault: Fault) -> bool:
        try:
            Path(f"{self._context.chaos_file}.{fault.id}.fired").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True

    def _fire(self, fault: Fault) -> None:
        context = self._context
        # In a session of its own: it must outlive the member that it kills.
        subprocess.Popen(
            [
                *(sys.executable, "-m", "relight_agent.chaos", fault.action),
                *("--agent-pid", str(context.agent_pid)),
                *("--run-dir", str(context.run_dir)),
                *("--grace", str(context.job.grace_seconds)),
            ],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        while fault.action == "kill":  # the kill is to happen exactly here
            signal.pause()
