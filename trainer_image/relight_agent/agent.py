"""The agent: PID 1 of a member. It obeys the coordinator, relays signals, and says how everything ended.

One thread decides (this loop); the launcher's reader and the reporter's two threads feed it events. It obeys only a
higher generation and drops the running one for it; workers outlive a coordinator that cannot be reached.
"""

import json
import os
import queue
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import traceback
from dataclasses import replace
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from relight_agent import preflight
from relight_agent.exits import ExitCode, exit_of
from relight_agent.files import FLUSHED, PROFILE, SUPERSEDED, Command, Outcome, clip, read_json
from relight_agent.generation import BAD_FORK, CommandGeneration, Generation, WorkerGeneration, World
from relight_agent.identity import Identity
from relight_agent.launcher import Launcher, inherited_env, python_module, python_of
from relight_agent.processes import Reaper, become_subreaper, descendants, kill_all
from relight_agent.reporting import Reporter, Stalled, process_age
from relight_agent.stacks import keep
from relight_agent.stalls import Learned

POLL_SECONDS = 0.01  # while workers run: how soon their end is seen
IDLE_SECONDS = 0.5
PARK_SECONDS = 1.0  # without an order: then the next one is worth being waited for by workers
OBSERVE_SECONDS = 0.1  # between looks at progress and heartbeats
SHARED_MEMORY = "/dev/shm"  # noqa: S108  # where libc keeps semaphores
MAX_LAUNCHER_DEATHS = 3
MAX_TERMINATION_BYTES = 4096
MAX_WORDS_BYTES = 900  # of each of two messages in there, which JSON's escapes may double
FLUSH_SECONDS = 60.0
FLUSH_BYTES_PER_SECOND = 100e6  # of a storage that nothing is known of
FLUSH_START_SECONDS = 1.0  # of a fork of the warm launcher
STOP_SECONDS = 120.0  # the leisure of a stop of the whole job: it ends with this, or with a SIGTERM
# Of its grace period a member may use this part to train on, while its successor is made ready.
TRAIN_ON = 0.5
# Within which the coordinator says that there is to be one: a drain may have taken the operator's leader from the same
# machine, and the next one needs a few seconds.
ANSWER_SECONDS = 4.0
# Workers that have not begun to train hold nothing new: they are not waited for when the member must go.
START_LEAVE_SECONDS = 2.0
# Code after a script's last step is not interrupted by a stop, and runs again if it does not finish. At a stop of the whole
# job, which has no time limit, it gets this long. A member that gets a signal has its grace period.
TAIL_SECONDS = 10.0
UPLOAD_AFTER_SECONDS = 30.0  # stacks go into an object store once their generation has ended, or after this long
KEEP_SECONDS = 5.0  # what an ending agent waits for that, or for a folder that hangs


def grace_margin(grace: float) -> float:
    """What is kept of the grace period for killing, reporting and exiting, in seconds."""
    return min(5.0, 0.1 * grace)


class Agent:
    def __init__(self, me: Identity) -> None:
        self.me = me
        self._events: "queue.SimpleQueue[Tuple[str, Any]]" = queue.SimpleQueue()
        self._reporter = Reporter(me, lambda kind, value: self._events.put((kind, value)))
        self._reaper = Reaper()
        self._launcher: Optional[Launcher] = None
        self._launcher_ready = False
        self._launcher_deaths = 0
        self._generation: Optional[Generation] = None  # the one that runs, or ran last
        self._highest = 0  # the highest generation obeyed
        self._pending: Optional[World] = None  # to be run as soon as the launcher is warm
        self._leaving: Optional[str] = None  # the id of the stop, or "SIGTERM"
        self._leave_op = ""
        self._leave_by = 0.0
        self._told_at = 0.0
        self._ask_by = 0.0  # training goes on until then
        self._asked = False
        self._succeeded = 0  # the generation in which a successor is made ready for this member
        self._exit: Optional[Tuple[int, str]] = None
        self._observed_at = 0.0
        self._milestone: Any = None
        self._new = True  # the generation that runs is this member's first
        self._fit = False  # whether the pre-flight has found nothing that keeps this member from training
        self._look_by = 0.0
        self._age = 0.0  # seconds from the start of this process to its first line
        self._settled_generation: Optional[Generation] = None
        self._cold_generation = 0
        self._idle_since: Optional[float] = None  # for lack of an order, with everything ready for one
        self._parked = False  # the launcher has been told to have workers wait for the next order
        self._profile: Optional[str] = None  # the id of a trace that is asked for, until the workers can make it
        self._profiled = ""  # the id of the last one that was told to them
        self._is_command = me.job.entry["kind"] == "command"
        self._learned = Learned(whole_epoch=me.job.entry["kind"] == "config")
        self._stalled: Optional[Stalled] = None
        self._keeping: Optional[threading.Thread] = None  # stacks

    def run(self) -> int:
        """Returns the exit code; by then all descendants have ended and the termination message is written."""
        try:
            self._serve()
        except Exception as error:  # PID 1 does not die without a word, nor leaves anything behind
            traceback.print_exc()
            self._quit(ExitCode.MACHINE_UNHEALTHY, f"the agent cannot go on: {type(error).__name__}: {error}")
        assert self._exit is not None
        return self._end(*self._exit)

    def _serve(self) -> None:
        become_subreaper()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda n, _: self._events.put(("signal", n)))
        signal.signal(signal.SIGUSR1, lambda *_: self._events.put(("profile", "a signal")))
        Path(self.me.run_dir).mkdir(parents=True, exist_ok=True)
        self._age = round(process_age(), 3)
        self._reporter.observe(timings={"agent": self._age})
        if not self._is_command:
            self._start_launcher()
        self._look_by = time.monotonic() + preflight.TIMEOUT_SECONDS
        threading.Thread(target=self._look, name="preflight", daemon=True).start()
        self._reporter.start()
        while self._exit is None:
            self._step()

    def _step(self) -> None:
        try:
            kind, value = self._events.get(timeout=POLL_SECONDS if self._running() else IDLE_SECONDS)
        except queue.Empty:
            pass
        else:
            self._on_event(kind, value)
        self._reaper.reap()
        self._watch_generation()
        self._watch_leaving()
        self._watch_orphanhood()
        self._watch_preflight()
        self._watch_idleness()

    def _running(self) -> bool:
        return self._generation is not None and self._generation.outcome is None

    # -- events

    def _on_event(self, kind: str, value: Any) -> None:
        if kind == "signal":
            self._reporter.observe(terminating_at=time.monotonic())
            self._leave("SIGTERM", "save")
        elif kind == "profile":
            self._profile = value
        elif kind == "command":
            self._obey(value)
            self._reporter.acknowledge(str(value.get("id")))
        elif kind == "launcher":
            self._on_launcher(value)
        elif kind == "stacks":
            self._reporter.update(stacks_id=value[0], stacks=value[1])
        elif kind == "fit":
            self._fit = True
            self._become_ready()
        elif kind == "unfit":
            self._quit(value.code, str(value))
        elif kind == "refused":
            self._quit(ExitCode.STOPPED_UNSAVED, "the coordinator refuses this member")

    def _obey(self, command: Dict[str, Any]) -> None:
        op, generation = command.get("op"), int(command.get("generation") or 0)
        if op == "exit":
            self._exit_as_told(int(command.get("code") or 0), superseded=command.get("id") == SUPERSEDED)
        elif op == "stop":
            self._leave(str(command.get("id")), "stop")
        elif op == "save":
            runs_it = self._running() and self._generation is not None and self._generation.number == generation
            if runs_it and self._leaving is not None:
                self._ask_to_stop()
            elif runs_it and self._generation is not None:
                by = time.monotonic() + STOP_SECONDS
                leaves = bool(command.get("leaves"))
                self._generation.ask(Command(id=str(command.get("id")), op="save", deadline=by, leaves=leaves))
        elif op == "dump":
            self._dump(str(command.get("id")), generation)
        elif op == "wait":
            self._pending = None
            if self._running() and self._generation is not None and self._generation.number <= generation:
                self._generation.drop()
        elif op == "run":
            self._run(command, generation)
        else:
            print(
                f"relight-agent: unknown command, perhaps from a newer operator: {command}", file=sys.stderr, flush=True
            )
        self._start_pending()

    def _run(self, command: Dict[str, Any], generation: int) -> None:
        self._succeeded = generation if command.get("successor") else 0
        if self._leaving is not None:
            self._ask_by = max(self._ask_by, self._may_train_until())
        else:
            if generation > self._highest:
                self._highest = generation
                self._pending = World.from_command(command, self.me.uid)
                if self._running() and self._generation is not None:
                    self._generation.drop()
            profile = str(command.get("profile") or "")
            if profile and profile != self._profiled:
                self._profile = self._profiled = profile

    def _start_pending(self) -> None:
        if self._pending is None or self._running() or self._leaving is not None:
            return
        if not self._is_command and not self._launcher_ready:
            return
        world, self._pending = self._pending, None
        self._begin(world)

    def _begin(self, world: World, *, cold: bool = False) -> None:
        new = self._generation is None or cold and self._new
        self._new = new
        self._clean_up_before(world.generation)
        if self._is_command:
            self._generation = CommandGeneration(self.me, world, self._reaper)
        else:
            assert self._launcher is not None
            self._generation = WorkerGeneration(
                self.me, world, self._reaper, self._launcher, learned=self._learned, cold=cold, new=new
            )
        self._stalled = None
        self._reporter.update(
            state="Running",
            generation=world.generation,
            outcome=None,
            outcome_generation=0,
            furthest_step=0,
            progress=None,
            stopping_at=None,
            stalled=None,
            stacks_id="",
            stacks=[],
            pace=None,
            first_rank=world.node_rank * self.me.job.proc_per_node,
            spent=None,
        )

    def _clean_up_before(self, generation: int) -> None:
        for folder in Path(self.me.run_dir).glob("gen-*"):
            if folder.name != f"gen-{generation}":
                shutil.rmtree(folder, ignore_errors=True)

    # -- the launcher

    def _start_launcher(self) -> None:
        self._launcher_ready = False
        env = inherited_env(self.me.job.env, {})
        if not os.access(SHARED_MEMORY, os.W_OK | os.X_OK):
            self._quit(ExitCode.MACHINE_UNHEALTHY, f"{SHARED_MEMORY} cannot be written: torch needs it for semaphores")
            return
        try:
            self._launcher = Launcher(
                python_of(self.me.job.python), env, self.me.job.workdir, lambda m: self._events.put(("launcher", m))
            )
        except (OSError, ValueError) as error:  # ValueError: a NUL in a variable
            self._quit(ExitCode.BAD_CONFIG, f"the trainer's Python cannot be started: {error}")
        else:
            self._reaper.watch(self._launcher.pid)

    def _on_launcher(self, message: Dict[str, Any]) -> None:
        event = message.get("event")
        if event == "ready":
            self._launcher_ready = True
            self._launcher_deaths = 0
            self._reporter.observe(
                torch=str(message.get("torch", "")),
                python=str(message.get("python", "")),
                timings={"agent": self._age, "launcher": float(message.get("imported_seconds") or 0.0)},
            )
            if self.me.job.gpus and not message.get("cuda"):
                torch = f"torch {message.get('torch', '')} of {python_of(self.me.job.python)}"
                self._quit(ExitCode.BAD_CONFIG, f"{torch} is built without CUDA, and the job asks for GPUs")
            self._become_ready()
            self._start_pending()
        elif event == "closed":
            self._on_launcher_end(int(message["pid"]))
        elif isinstance(self._generation, WorkerGeneration) and message.get("generation") == self._generation.number:
            self._generation.on_event(message)

    def _on_launcher_end(self, pid: int) -> None:
        if self._launcher is None or self._launcher.pid != pid or self._exit is not None:
            return
        if isinstance(self._generation, WorkerGeneration) and self._running():
            self._generation.on_event({"event": "ended"})
        was_ready, self._launcher_ready = self._launcher_ready, False
        status = self._wait_for(pid)
        self._launcher_deaths += 1
        if not was_ready and status is not None and status > 0:
            python = python_of(self.me.job.python)
            message = f"{python} -m relight_trainer.launcher ended with {status}: is torch installed there? See the member's log"
            self._quit(ExitCode.BAD_CONFIG, message)
        elif self._launcher_deaths >= MAX_LAUNCHER_DEATHS:
            self._quit(ExitCode.MACHINE_UNHEALTHY, f"the warm launcher died {self._launcher_deaths} times ({status})")
        else:
            if not self._running():
                self._reporter.update(state="Starting")
            self._start_launcher()

    def _wait_for(self, pid: int) -> Optional[int]:
        deadline = time.monotonic() + 2.0
        while time.monotonic() < deadline:
            status = self._reaper.status(pid)
            if status is not None:
                return status
            time.sleep(0.01)
        return None

    def _become_ready(self) -> None:
        """Say so, as soon as everything is there that a generation needs."""
        warm = self._is_command or self._launcher_ready
        if self._fit and warm and self._leaving is None and not self._running():
            self._reporter.update(state="Ready", port=free_port(self.me.address))

    def _look(self) -> None:
        """In a thread of its own: storage may hang, and the launcher takes its time meanwhile."""
        try:
            preflight.look(self.me, self._reporter.notice)
        except preflight.Unfit as error:
            self._events.put(("unfit", error))
        except Exception as error:  # what cannot be looked at is no reason not to try
            self._reporter.notice(f"the pre-flight went wrong: {type(error).__name__}: {error}")
            self._events.put(("fit", None))
        else:
            self._events.put(("fit", None))

    def _watch_preflight(self) -> None:
        if not self._fit and self._exit is None and time.monotonic() > self._look_by:
            seconds = preflight.TIMEOUT_SECONDS
            self._quit(
                ExitCode.STORAGE_FAILED,
                f"the pre-flight has not ended within {seconds:.0f} s: does {self.me.job.checkpoint_dir or 'the disk'} answer?",
            )

    def _watch_idleness(self) -> None:
        """Have the workers of a member that waits wait too, ready but for their ranks."""
        ready = self._fit and self._launcher_ready and self._leaving is None and self._exit is None
        if not ready or self._running() or self._pending is not None:
            self._idle_since, self._parked = None, False
            return
        now = time.monotonic()
        if self._idle_since is None:
            self._idle_since = now
        elif not self._parked and now - self._idle_since >= PARK_SECONDS and self._launcher is not None:
            self._parked = True
            self._launcher.send({"op": "park", "proc_per_node": self.me.job.proc_per_node})

    # -- the running generation

    def _watch_generation(self) -> None:
        generation = self._generation
        if generation is None or generation.outcome is not None and self._reported(generation):
            return
        outcome = generation.poll()
        now = time.monotonic()
        if outcome is None:
            if now - self._observed_at >= OBSERVE_SECONDS:
                self._observed_at = now
                self._observe(generation)
                self._watch_progress(generation, now)
            return
        cold = isinstance(generation, WorkerGeneration) and outcome.message.startswith(BAD_FORK)
        if cold and self._pending is None and not self._cold_already(generation):
            self._restart_cold(generation)
            return
        self._settle(generation, outcome)

    def _observe(self, generation: Generation) -> None:
        progress = generation.progress()
        # People and recovery times wait for these two; the rest can wait for the next report.
        milestone = progress and (progress.restored_at, progress.first_step_at is not None, progress.checkpoint)
        share = self._reporter.update if milestone != self._milestone else self._reporter.observe
        self._milestone = milestone
        share(
            progress=progress,
            furthest_step=generation.furthest_step(),
            spent=generation.spent(stalled=self._stalled is not None),
        )
        if self._profile is not None and progress is not None and progress.first_step_at is not None:
            self._profile = None
            (Path(self.me.run_dir) / PROFILE).touch()  # by now its workers look

    def _watch_progress(self, generation: Generation, now: float) -> None:
        """Say that the workers are overdue, or no longer are; and how fast they are."""
        if generation.is_dropped:
            return
        self._reporter.observe(pace=generation.pace(now))
        silence = generation.silence(now) if self._leaving is None else None
        if (silence is None) == (self._stalled is None):
            return
        if silence is None:
            self._stalled = None
        else:
            rank = generation.world.node_rank * self.me.job.proc_per_node + silence.local_rank
            since = now - silence.seconds
            self._stalled = Stalled(generation.number, rank, silence.section, silence.step, since)
            print(
                f"relight-agent: rank {rank} has been silent for more than {silence.limit:.1f} s in {silence.section} after "
                f"step {silence.step}, and no other worker here makes progress",
                file=sys.stderr,
                flush=True,
            )
        self._reporter.update(stalled=self._stalled)

    def _dump(self, command: str, number: int) -> None:
        """Collect the workers' stacks beside this thread: it goes on watching, and the storage may be what hangs."""
        generation = self._generation
        if generation is None or not self._running() or generation.number != number:
            self._reporter.update(stacks_id=command, stacks=[])
            return

        def collect() -> None:
            brief, texts, records = generation.stacks()
            self._events.put(("stacks", (command, brief)))
            try:
                self._keep(generation, texts, records)
            except OSError as error:
                print(f"relight-agent: the stacks could not be kept: {error}", flush=True)

        self._keeping = threading.Thread(target=collect, name="stacks", daemon=True)
        self._keeping.start()

    def _keep(self, generation: Generation, texts: Dict[int, str], records: List[Path]) -> None:
        location = self.me.job.checkpoint_dir
        if location.startswith("file://"):
            location = location[len("file://") :]
        if not location or "://" not in location:
            if location:
                keep(location, generation.number, texts, records)
            return
        folder = Path(self.me.run_dir) / f"stacks-{generation.number}"
        keep(os.fspath(folder), generation.number, texts, records)
        # With a generation end all children of this process.
        deadline = time.monotonic() + UPLOAD_AFTER_SECONDS
        while generation.outcome is None and time.monotonic() < deadline:
            time.sleep(IDLE_SECONDS)
        argv = python_module(python_of(self.me.job.python), "relight_trainer.observe.mirror")
        env = inherited_env(self.me.job.env, {})
        subprocess.run([*argv, os.fspath(folder), location], env=env, stdin=subprocess.DEVNULL, check=False)
        shutil.rmtree(folder, ignore_errors=True)

    def _reported(self, generation: Generation) -> bool:
        return self._settled_generation is generation

    def _cold_already(self, generation: Generation) -> bool:
        return self._cold_generation == generation.number

    def _restart_cold(self, generation: Generation) -> None:
        """A forked worker could not use its device: once more, in a fresh interpreter."""
        self._cold_generation = generation.number
        world = generation.world
        shutil.rmtree(generation.folder.path, ignore_errors=True)
        self._begin(world, cold=True)

    def _settle(self, generation: Generation, outcome: Outcome) -> None:
        self._settled_generation = generation
        spent = generation.spent(stalled=self._stalled is not None)
        if self._stalled is not None:
            self._stalled = None
            self._learned.stalls += 1
        self._reporter.update(
            state="Ready" if self._is_command or self._launcher_ready else "Starting",
            port=free_port(self.me.address),
            outcome=outcome,
            outcome_generation=generation.number,
            stalled=None,
            pace=None,
            progress=generation.progress(),
            furthest_step=generation.furthest_step(),
            spent=spent,
        )
        self._start_pending()

    # -- leaving

    def _leave(self, reason: str, op: str) -> None:
        """Save and go: for SIGTERM within the grace period, for a stop of the whole job at leisure.

        Who has a successor coming may train on meanwhile; the coordinator says when to stop.
        """
        grace = self.me.job.grace_seconds
        now = time.monotonic()
        leave_by = now + grace - grace_margin(grace)
        if self._leaving is not None:
            # A second SIGTERM changes nothing; one that comes in a stop at leisure ends the leisure.
            if reason == "SIGTERM" != self._leaving:
                self._leaving, self._leave_by = reason, min(self._leave_by, leave_by)
            elif reason != "SIGTERM" and not self._asked:
                self._leave_op = op
                self._ask_to_stop()
            return
        self._leaving, self._leave_op = reason, op
        self._pending = None
        self._told_at = now
        self._leave_by = leave_by if reason == "SIGTERM" else max(leave_by, now + STOP_SECONDS)
        self._ask_by = self._may_train_until() if reason == "SIGTERM" else now
        if self._ask_by <= now:
            self._ask_to_stop()
        else:
            self._reporter.update()

    def _may_train_until(self) -> float:
        """Until when the workers go on after a SIGTERM, unless the coordinator asks for a stop before that."""
        generation = self._generation
        if generation is None or not self._running() or self._is_command or len(generation.world.members) < 2:
            return self._told_at
        part = TRAIN_ON * self.me.job.grace_seconds
        return self._told_at + (part if self._succeeded == generation.number else min(ANSWER_SECONDS, 0.4 * part))

    def _ask_to_stop(self) -> None:
        if self._asked:
            return
        self._asked = True
        if self._running() and self._generation is not None and self._leaving is not None:
            self._reporter.update(state="Stopping", stopping_at=time.monotonic())
            self._generation.ask(Command(id=self._leaving, op=self._leave_op, deadline=self._leave_by, leaves=True))

    def _watch_leaving(self) -> None:
        if self._leaving is None or self._exit is not None:
            return
        generation = self._generation
        if generation is not None and generation.outcome is None:
            now = time.monotonic()
            if now >= self._ask_by:
                self._ask_to_stop()
            # Who still writes a checkpoint may do so to the end; who does nothing is ended in time for a flush.
            if now > self._leave_by or (now > self._leave_by - self._flush_seconds() and not generation.is_saving()):
                generation.kill()
                self._go_unstopped()
            elif (
                now > self._told_at + START_LEAVE_SECONDS
                and not generation.has_begun()
                or self._leaving != "SIGTERM"
                and now > self._told_at + TAIL_SECONDS
                and generation.is_trained()
            ):
                generation.drop()
            return
        outcome = generation.outcome if generation is not None else None
        if outcome is not None and outcome.kind == "completed" and self._leaving != "SIGTERM":
            self._leaving, self._asked = None, False  # nothing to stop any more: the coordinator will say exit
            return
        # Who was to stay, and is told to leave only now, may hold what nobody else does.
        if outcome is not None and outcome.kind == "stopped" and outcome.saved and outcome.kept:
            self._quit(ExitCode.STOPPED_SAVED, f"stopped at step {outcome.step}, saved")
        elif self._flush():
            stopped = outcome is not None and outcome.kind == "stopped"
            text = (
                f"stopped at step {outcome.step}, saved"
                if outcome is not None and stopped
                else "stopped; the last snapshot is saved"
            )
            self._quit(ExitCode.STOPPED_SAVED, text)
        else:
            self._quit(ExitCode.STOPPED_UNSAVED, "stopped; nothing new was saved")

    def _go_unstopped(self) -> None:
        late = "the workers had not stopped when the grace period was about to end"
        if self._flush():
            self._quit(ExitCode.STOPPED_SAVED, f"{late}; the last snapshot is saved")
        else:
            self._quit(ExitCode.STOPPED_UNSAVED, late)

    def _flush_seconds(self) -> float:
        """How long before the end the workers are given up, so that their last snapshot can still be saved."""
        if self._is_command or not self.me.job.checkpoint_dir:
            return 0.0
        size = max((p.stat().st_size for p in (Path(self.me.run_dir) / "snapshots").glob("slot-*")), default=0)
        if not size:
            return 0.0
        seconds = FLUSH_START_SECONDS + size / FLUSH_BYTES_PER_SECOND
        return min(seconds, (self._leave_by - self._told_at) / 2)

    def _exit_as_told(self, code: int, *, superseded: bool) -> None:
        """A job that has failed may be run again: what only this memory holds is saved before it goes."""
        if self._running() and self._generation is not None:
            self._generation.kill()
        if code != ExitCode.COMPLETED and not superseded:
            self._leave_by = time.monotonic() + FLUSH_SECONDS
            self._flush()
        self._quit(code, "told to exit")

    def _flush(self) -> bool:
        """Write this member's newest snapshot to the checkpoint folder, unless something as new is there already."""
        if self._is_command or not self.me.job.checkpoint_dir or not (Path(self.me.run_dir) / "snapshots").exists():
            return False
        # Half of what is kept for the end: the termination message must be written before the SIGKILL.
        end = self._leave_by + grace_margin(self.me.job.grace_seconds) / 2
        until = min(end, time.monotonic() + FLUSH_SECONDS)
        if until <= time.monotonic():
            return False
        done = self._flush_warm(until)
        if done is None:
            done = self._flush_cold(until)
        step = read_json(Path(self.me.run_dir) / FLUSHED)
        if done and isinstance(step, int):
            progress = self._generation.progress() if self._generation is not None else None
            self._reporter.observe(progress=replace(progress, checkpoint=step) if progress is not None else None)
        return done

    def _flush_warm(self, until: float) -> Optional[bool]:
        """By a fork of the warm launcher: it has all its imports. None where there is none."""
        if self._launcher is None or not self._launcher_ready or not self._launcher.send({"op": "flush"}):
            return None
        others = []
        try:
            while True:
                kind, value = self._events.get(timeout=max(0.0, until - time.monotonic()))
                if kind == "launcher" and value.get("event") == "flushed":
                    return bool(value.get("status") == 0)
                others.append((kind, value))
                if kind == "launcher" and value.get("event") == "closed":
                    return None
        except queue.Empty:
            return False
        finally:
            for event in others:
                self._events.put(event)

    def _flush_cold(self, until: float) -> bool:
        env = inherited_env(self.me.job.env, {"RELIGHT_JOB_FILE": self.me.job_file, "RELIGHT_RUN_DIR": self.me.run_dir})
        try:
            done = subprocess.run(
                python_module(python_of(self.me.job.python), "relight_trainer.flush"),
                env=env,
                stdin=subprocess.DEVNULL,
                timeout=max(0.0, until - time.monotonic()),
                check=False,
            )
        except (OSError, ValueError, subprocess.TimeoutExpired):
            return False
        return done.returncode == 0

    def _watch_orphanhood(self) -> None:
        silent = time.monotonic() - self._reporter.answered_at
        if not self._running() and silent > self.me.job.orphan_seconds and self._exit is None:
            self._leave_by = time.monotonic() + FLUSH_SECONDS
            saved = self._flush()
            code = ExitCode.STOPPED_SAVED if saved else ExitCode.STOPPED_UNSAVED
            self._quit(code, f"no coordinator for {silent:.0f} s")

    # -- the end

    def _quit(self, code: int, message: str) -> None:
        if self._exit is None:
            self._exit = (int(code), message)

    def _end(self, code: int, message: str) -> int:
        self._reporter.last_words(timeout=2.0)
        if self._keeping is not None:
            self._keeping.join(KEEP_SECONDS)
        if self._launcher is not None:
            self._launcher.close()
        me = os.getpid()
        kill_all(lambda seen: set(descendants(me, seen)))
        self._reaper.reap()
        shutil.rmtree(self.me.run_dir, ignore_errors=True)  # memory, and it ends with the member
        outcome = self._generation.outcome if self._generation is not None else None
        write_termination_message(self.me.termination_log, code, message, outcome)
        return code


def write_termination_message(path: str, code: int, message: str, outcome: Optional[Outcome]) -> None:
    """The end in at most 4096 bytes of JSON. Written in place: kubelet mounts the file, so it cannot be renamed over."""
    value: Dict[str, Any] = {
        "exitCode": code,
        "cause": str(exit_of(code).cause),
        "message": clip(message, MAX_WORDS_BYTES),
    }
    if outcome is not None:
        value.update(outcome=outcome.kind, step=outcome.step, saved=outcome.saved)
        if outcome.kind == "failed":
            words = clip(outcome.message, MAX_WORDS_BYTES)
            value.update(rank=outcome.rank, workerExitCode=outcome.exit_code, workerMessage=words)
    data = json.dumps(value, ensure_ascii=False).encode()
    assert len(data) <= MAX_TERMINATION_BYTES
    try:
        with open(path, "wb") as file:
            file.write(data)
    except OSError as error:
        print(f"relight-agent: cannot write {path}: {error}", flush=True)


def read_termination_message(path: str) -> Optional[Dict[str, Any]]:
    value = read_json(path)
    return value if isinstance(value, dict) else None


def free_port(address: str) -> int:
    """A TCP port that is free on `address` just now."""
    with socket.socket(socket.AF_INET6 if ":" in address else socket.AF_INET) as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])
