"""A trace of a few steps by torch's profiler, when somebody asks for one.

    kubectl annotate trainingjob NAME relight.dev/profile=anything-new --overwrite         all members of the job
    kill -USR1 <pid of `relight run`>                                                      the same, without a cluster
    touch $RELIGHT_RUN_DIR/profile            (kubectl exec <pod> -- sh -c 'touch $RELIGHT_RUN_DIR/profile')  one member

Each worker then traces its next steps into `profiles/step-<n>-rank-<r>.json.gz` of the job's folder, for
chrome://tracing or https://ui.perfetto.dev. A number in the file is how many steps.
"""

import contextlib
import threading
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity

from relight_agent.files import PROFILE
from relight_trainer.hooks import Hook
from relight_trainer.observe.mirror import Mirror
from relight_trainer.run import Run

REQUEST = PROFILE
MOST_STEPS = 1000
_LOOK_SECONDS = 0.5


class Request:
    """Looks for the file in a thread, so that steps need not."""

    def __init__(self, path: Path, steps: int) -> None:
        self._path = path
        self._default = steps
        # A request that is older than this worker was answered by those before it.
        self._seen = self._stamp()
        self.steps = 0  # asked for and not yet begun
        self._over = threading.Event()

    def open(self) -> None:
        threading.Thread(target=self._look, name="profile", daemon=True).start()

    def close(self) -> None:
        self._over.set()

    def _look(self) -> None:
        while not self._over.wait(_LOOK_SECONDS):
            stamp = self._stamp()
            if stamp is not None and stamp != self._seen:
                self.steps = self._wanted()
            self._seen = stamp

    def _stamp(self) -> int | None:
        try:
            return self._path.stat().st_mtime_ns
        except OSError:
            return None

    def _wanted(self) -> int:
        with contextlib.suppress(OSError, ValueError):
            return min(MOST_STEPS, max(1, int(self._path.read_text(encoding="utf-8"))))
        return self._default


class ProfileOnDemand(Hook):
    """Costs a comparison a step until a trace is asked for."""

    order = 1
    on_error = "warn"

    def __init__(self, request: Request, folder: Path, mirror: Mirror | None = None) -> None:
        self._mirror = mirror
        self._request = request
        self._folder = folder
        self._profiler: torch.profiler.profile | None = None
        self._until = 0

    def run_begin(self, run: Run) -> None:  # noqa: ARG002  # as in Hook
        self._request.open()

    def step_begin(self, run: Run) -> None:
        if self._request.steps:
            if self._profiler is None:
                self._until = run.step + self._request.steps
                activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if run.device.type == "cuda" else [])]
                self._profiler = torch.profiler.profile(activities=activities, record_shapes=True)
                self._profiler.start()
            self._request.steps = 0

    def saved(self, run: Run) -> None:
        if self._profiler is None:
            return
        if run.step >= self._until:
            profiler, self._profiler = self._profiler, None
            profiler.stop()
            self._folder.mkdir(parents=True, exist_ok=True)
            path = self._folder / f"step-{run.step}-rank-{run.rank}.json.gz"
            profiler.export_chrome_trace(str(path))
            if self._mirror is not None:
                threading.Thread(target=self._mirror.push, name="profile", daemon=True).start()
            run.session.say(f"the profiler's trace of steps until {run.step} is in profiles/{path.name}")

    def run_end(self, run: Run) -> None:  # noqa: ARG002  # as in Hook
        self._request.close()
        if self._profiler is not None:
            self._profiler.stop()
