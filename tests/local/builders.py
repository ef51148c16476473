"""The real `relight run` in a subprocess with a state folder of its own, and the jobs that it is given."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from relight_agent.processes import descendants, is_alive, processes
from relight_operator.local.private import run_root

SCRIPTS = Path(__file__).parent / "scripts"
TIMEOUT_SECONDS = 90.0
SEED = int(os.environ["RELIGHT_TEST_SEED"])


@dataclass(frozen=True)
class Job:
    """A TrainingJob: by default digits on a tiny CNN, two nodes of one process, a checkpoint every 20 steps."""

    name: str = "small"
    nodes: int = 2
    steps: int = 120
    every: int = 20
    trainer: dict[str, Any] = field(default_factory=dict)  # {}: the core's CNN; else spec.trainer
    spec: dict[str, Any] = field(default_factory=dict)  # more of spec

    def config(self, **more: Any) -> dict[str, Any]:
        """spec.trainer.config of the core's CNN."""
        return {
            "model": {"type": "digits_cnn", "width": 4},
            "data": {"type": "digits"},
            "train": {"duration": f"{self.steps}st", "global_batch": 32, "threads": 1, "log_every": 10},
            **more,
        }

    def write(self, folder: Path) -> Path:
        spec = {
            "nodes": self.nodes,
            "trainer": self.trainer or {"config": self.config()},
            "checkpoint": {
                "persistentVolumeClaim": {"claimName": "ckpt"},
                "interval": {"steps": self.every},
                "snapshot": {"every": 1},  # Auto leaves out steps that are shorter than its pause
            },
            **self.spec,
        }
        document = {
            "apiVersion": "relight.dev/v1alpha1",
            "kind": "TrainingJob",
            "metadata": {"name": self.name},
            "spec": spec,
        }
        path = folder / f"{self.name}.yaml"
        path.write_text(yaml.safe_dump(document, sort_keys=False))
        return path

    def with_spec(self, **more: Any) -> "Job":
        return replace(self, spec={**self.spec, **more})


def script(name: str, *arguments: object, env: dict[str, object] | None = None) -> dict[str, Any]:
    """spec.trainer of a script of tests/local/scripts."""
    variables = [{"name": k, "value": str(v)} for k, v in (env or {}).items()]
    return {"script": [str(SCRIPTS / name), *map(str, arguments)], "env": variables}


def command(*argv: object) -> dict[str, Any]:
    return {"command": [sys.executable, *map(str, argv)]}


def preempt(slot: int, *, at: int) -> tuple[str, str]:
    return "--chaos", f"preempt-node:{slot}@step:{at}"


def kill(slot: int, *, at: int) -> tuple[str, str]:
    return "--chaos", f"kill-node:{slot}@step:{at}"


@dataclass(frozen=True)
class Result:
    code: int
    stdout: str
    said: str  # what a person reads: stderr with `-o json`, else stdout
    final: dict[str, Any]  # the object on stdout with `-o json`

    @property
    def digest(self) -> str:
        digest = self.final["weightsDigest"]
        assert isinstance(digest, str)
        assert len(digest) == 64
        return digest

    @property
    def restarts(self) -> dict[str, Any]:
        return dict(self.final["restarts"])

    @property
    def reason(self) -> str:
        return next(str(c["reason"]) for c in self.final["conditions"] if c["type"] == self.final["phase"])


class Running:
    """One `relight run` that has been started."""

    def __init__(
        self,
        home: "Home",
        file: Path,
        arguments: Sequence[str],
        *,
        output: str,
        program: str | None = None,
        **more: Any,
    ) -> None:
        """`program`: a script in the place of `relight`. `more` goes to Popen."""
        self._home = home
        self._json = output == "json"
        self._out, self._err = (home.path / f"{k}-{home.started}" for k in ("out", "err"))
        argv = [
            sys.executable,
            *([program] if program else ["-m", "relight_operator.cli"]),
            "run",
            str(file),
            "--state-dir",
            str(home.state),
            "-o",
            output,
        ]
        with self._out.open("wb") as out, self._err.open("wb") as err:
            self.process = subprocess.Popen(
                [*argv, *arguments],
                env={**os.environ, "OMP_NUM_THREADS": "1"},
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                start_new_session=True,
                **more,
            )

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    def die(self) -> None:
        """SIGKILL the runner, and it alone."""
        self.process.kill()
        self.process.wait()

    def said(self) -> str:
        return (self._err if self._json else self._out).read_text()

    def wait(self, timeout: float = TIMEOUT_SECONDS) -> Result:
        try:
            code = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"`relight run` did not end within {timeout} s; it said:\n{self.said()}") from None
        stdout = self._out.read_text()
        # Pure JSON or nothing at all: anything else on stdout would break a script that reads it.
        final = json.loads(stdout) if self._json and stdout else {}
        return Result(code, stdout, self.said(), final)

    def until(self, condition: Callable[[dict[str, Any]], object], what: str, timeout: float = 60.0) -> dict[str, Any]:
        """Wait until the stored status fulfils `condition`; that status."""
        deadline = time.monotonic() + timeout
        while time.monotonic() < deadline:
            status = self._home.status()
            if condition(status):
                return status
            assert self.process.poll() is None, f"`relight run` ended before {what}:\n{self.said()}"
            time.sleep(0.01)
        raise AssertionError(f"not within {timeout} s: {what}; the status is {status}")

    def until_step(self, step: int) -> dict[str, Any]:
        """A job that is not paced may be over by then."""
        return self.until(lambda s: s.get("progress", {}).get("step", 0) >= step, f"step {step}")


class Home:
    """A folder for one job: its file, its state. After a test nothing of it may be left alive, or in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.state = path / "state"
        self.started = 0
        self._runs: list[Running] = []

    def start(self, job: Job, *arguments: str | Iterable[str], output: str = "json", **more: Any) -> Running:
        self.path.mkdir(parents=True, exist_ok=True)
        self.started += 1
        flat = [a for group in arguments for a in ([group] if isinstance(group, str) else group)]
        run = Running(self, job.write(self.path), flat, output=output, **more)
        self._runs.append(run)
        return run

    @property
    def _pace(self) -> Path:
        return self.path / "pace"

    def paced(self, job: Job) -> Job:
        """`job`, of the core's config, which takes its time in each step until `full_speed`."""
        self.path.mkdir(parents=True, exist_ok=True)
        self._pace.touch()
        return self._with_pace(job, file=str(self._pace))

    def slow_from(self, job: Job, step: int, *, later: float = 0.0) -> Job:
        """`job`, of the core's config, which takes its time from `step` on, until there is a second generation.

        A member that is told to leave trains on until its successor is ready: a quick job would be over by then.
        `later`: the seconds that each step takes longer from then on.
        """
        return self._with_pace(job, after=step, later=later)

    def _with_pace(self, job: Job, **how: object) -> Job:
        self.path.mkdir(parents=True, exist_ok=True)
        shutil.copy(SCRIPTS / "paced.py", self.path)
        config = (job.trainer or {"config": job.config()})["config"]
        return replace(job, trainer={"config": {**config, "hooks": [{"type": "paced:Paced", **how}]}})

    def full_speed(self) -> None:
        self._pace.unlink()

    def run(self, job: Job, *arguments: str | Iterable[str], output: str = "json") -> Result:
        return self.start(job, *arguments, output=output).wait()

    def status(self) -> dict[str, Any]:
        try:
            return dict(json.loads((self.state / "job.json").read_text()).get("status", {}))
        except (FileNotFoundError, ValueError):  # none yet, or damaged on purpose
            return {}

    def checkpoints(self) -> list[Path]:
        """Committed ones, oldest first."""
        return sorted(self.state.glob("volumes/ckpt/default/*/step-*"))

    def processes(self) -> dict[int, dict[str, str]]:
        """pid -> environment of every process that was started for this job, runners apart."""
        mark = str(self.state / "job-file.json")
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and is_alive(int(entry.name)):
                environment = environment_of(int(entry.name))
                if environment.get("RELIGHT_JOB_FILE") == mark:
                    found[int(entry.name)] = environment
        return found

    def power_cut(self) -> None:
        """Every process of the job is gone at once, and so is its memory: this machine has been switched off."""
        for run in self._runs:
            run.die()
        while found := self.processes():
            for pid in found:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
            time.sleep(0.01)
        shutil.rmtree(run_root(self.state), ignore_errors=True)

    def leftovers(self, patience: float = 3.0) -> list[str]:
        """What a run that is over has left behind, in words."""
        deadline = time.monotonic() + patience
        while (found := self._left()) and time.monotonic() < deadline:
            time.sleep(0.05)
        return found

    def _left(self) -> list[str]:
        runners = [f"runner {r.process.pid}" for r in self._runs if r.process.poll() is None]
        members = [f"process {pid}: {command_line(pid)}" for pid in self.processes()]
        memory = run_root(self.state)
        return [*runners, *members, *([f"folder {memory}"] if memory.exists() else [])]


def environment_of(pid: int) -> dict[str, str]:
    try:
        data = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (item.partition("=") for item in data.decode("utf-8", "replace").split("\0"))
    return {name: value for name, found, value in pairs if found}


def command_line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace").replace("\0", " ").strip()
    except OSError:
        return ""


class Finished(NamedTuple):
    """A job that nothing happened to."""

    home: Home
    job: Job
    result: Result


def agent_of(home: Home, slot: int) -> int:
    """The pid of the agent of the slot's present member."""
    uid = next(s["uid"] for s in home.status()["slots"] if s["slot"] == slot)
    return next(
        pid
        for pid, environment in home.processes().items()
        if environment.get("RELIGHT_UID") == uid and "-m relight_agent" in command_line(pid)
    )


def launcher_of(home: Home, slot: int) -> int:
    """The pid of the slot's warm launcher."""
    agent = agent_of(home, slot)
    [launcher] = [p.pid for p in processes() if p.parent == agent and "relight_trainer.launcher" in command_line(p.pid)]
    return launcher


def elastic_agent_of(home: Home, slot: int) -> int:
    """The pid of torch's elastic agent of the slot's present generation: the launcher's child that has children."""
    launcher, seen = launcher_of(home, slot), processes()
    [elastic_agent] = [p.pid for p in seen if p.parent == launcher and descendants(p.pid, seen)]
    return elastic_agent


def workers_of(home: Home, slot: int) -> list[int]:
    return descendants(elastic_agent_of(home, slot))


def waited_for(found: Callable[[], Any], seconds: float = 60.0) -> Any:
    """What `found` returns as soon as that is true; nobody there yet is as good as false."""
    until = time.monotonic() + seconds
    while True:
        try:
            if value := found():
                return value
        except StopIteration:
            pass
        assert time.monotonic() < until
        time.sleep(0.01)
