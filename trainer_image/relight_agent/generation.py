"""One generation at one member: its workers, from `run` to the one outcome that the coordinator is told."""

import collections
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Deque, Dict, List, Optional, Set, Tuple

from relight_agent.cgroup import Cgroup
from relight_agent.exits import CLASS_ORDER, Class, ExitCode, Manner, exit_of
from relight_agent.files import (
    Command,
    GenerationFolder,
    Heartbeat,
    Outcome,
    Progress,
    clip,
    newest_snapshot,
    read_json,
)
from relight_agent.identity import Identity
from relight_agent.launcher import Launcher, inherited_env, path_of, python_of
from relight_agent.ledger import Ledger, Spent
from relight_agent.processes import Process, Reaper, descendants, is_alive, kill_all
from relight_agent.stacks import RankStack, collect, recorded
from relight_agent.stalls import Health, Learned, Pace, Paces, Silence, Watch

# After the first local failure, or the last outcome, workers get this long for their own words before they are killed.
LAST_WORD_SECONDS = 2.0
# A worker that is writing what no snapshot holds when the generation is dropped may finish.
CHECKPOINT_SECONDS = 15.0
# A plain command's processes get this long after SIGTERM when the generation is dropped.
COMMAND_TERM_SECONDS = 5.0
BAD_FORK = "bad fork:"
FULL_BYTES = 64 * 1024
MAX_LINE_BYTES = 4096  # of a command's stderr, from the end of a line


@dataclass(frozen=True)
class World:
    """What `run` says of a generation, as far as this member needs it."""

    generation: int
    run_id: str
    node_rank: int
    nodes: int
    master_address: str
    master_port: int
    host_store: bool
    committed_step: Optional[int] = None
    health: Health = field(default_factory=Health)
    members: Tuple[Dict[str, Any], ...] = ()  # slot, address and machine, by node rank
    furthest_step: int = 0  # steps that earlier generations have done

    @classmethod
    def from_command(cls, command: Dict[str, Any], uid: str) -> "World":
        world = command["world"]
        me = next(m for m in world["members"] if m["uid"] == uid)
        return cls(
            generation=int(world["generation"]),
            run_id=str(world["runId"]),
            node_rank=int(me["rank"]),
            nodes=len(world["members"]),
            master_address=str(world["masterAddress"]),
            master_port=int(world["masterPort"]),
            host_store=int(world["masterSlot"]) == int(me["slot"]),
            committed_step=command.get("committedStep"),
            health=Health.from_world(world.get("health")),
            members=tuple(
                {"slot": m["slot"], "address": m.get("address", ""), "machine": m.get("machine", "")}
                for m in sorted(world["members"], key=lambda m: int(m["rank"]))
            ),
            furthest_step=int(world.get("previousFurthestStep") or 0),
        )


def summarise(outcomes: List[Outcome]) -> Outcome:
    """The member's outcome from its workers': the root failure, else stopped, else completed with rank 0's result."""
    failed = [o for o in outcomes if o.kind == "failed"]
    if failed:
        root = min(failed, key=lambda o: (CLASS_ORDER.index(exit_of(o.exit_code).klass), o.at, o.rank))
        if exit_of(root.exit_code).klass is not Class.COLLATERAL:
            return root
        left = [o.rank for o in outcomes if o.kind == "completed" and o.result is None]
        return replace(root, left=min(left)) if left else root
    stopped = [o for o in outcomes if o.kind == "stopped"]
    if stopped:
        first = min(stopped, key=lambda o: (o.step, o.rank))
        kept = {o.kept for o in stopped}
        return replace(first, saved=all(o.saved for o in stopped), kept=first.kept if len(kept) == 1 else "")
    return min(outcomes, key=lambda o: (o.result is None, o.rank))


class Generation:
    """Common to both kinds: the folder, the instant it was dropped, and the outcome once it is known."""

    def __init__(self, me: Identity, world: World, reaper: Reaper) -> None:
        self.me = me
        self.world = world
        self.number = world.generation
        self.folder = GenerationFolder.create(me.run_dir, world.generation)
        self.outcome: Optional[Outcome] = None
        self._reaper = reaper
        self._dropped_at: Optional[float] = None
        self._container = Cgroup()
        self._oom_kills = self._container.read().oom_kills

    def progress(self) -> Optional[Progress]:
        return self.folder.progress()

    def furthest_step(self) -> int:
        return self.folder.furthest_step(self.me.job.proc_per_node)

    def spent(self, *, stalled: bool) -> Optional[Spent]:
        """What the workers' seconds have gone to, up to now or to their end; None where they do not say.

        What workers that are `stalled` seem to be doing is not counted: they do nothing.
        """
        spent = Ledger.read(self.folder.ledger_path)
        if spent is None or stalled:
            return spent
        return spent.at(self.outcome.at if self.outcome is not None else time.monotonic())

    def has_begun(self) -> bool:
        """Whether the workers are past starting and restoring."""
        return True

    def is_saving(self) -> bool:
        """Whether a worker is writing a checkpoint, or its last words."""
        return False

    def is_trained(self) -> bool:
        """Whether all workers are behind the last step: the final state is saved, and what they do is done again."""
        return False

    @property
    def is_dropped(self) -> bool:
        return self._dropped_at is not None

    def silence(self, now: float) -> Optional[Silence]:  # noqa: ARG002  # nothing is known of a plain command
        """The longest silence, where all workers are overdue; None as long as one may still go on."""
        return None

    def pace(self, now: float) -> Optional[Pace]:  # noqa: ARG002
        """What a step takes the slowest local worker by itself, where that is known."""
        return None

    def stacks(self) -> Tuple[List[RankStack], Dict[int, str], List[Path]]:
        """What the workers do now: in brief, as text by rank, and what NCCL has recorded. Takes a second or two."""
        return [], {}, []

    def ask(self, command: Command) -> None:
        """Ask the workers to save and stop."""
        raise NotImplementedError

    def drop(self) -> None:
        """The generation is over elsewhere: end it here, soon."""
        if self._dropped_at is None:
            self._dropped_at = time.monotonic()

    def poll(self) -> Optional[Outcome]:
        """The outcome, once every local process of the generation has ended."""
        raise NotImplementedError

    def kill(self) -> None:
        raise NotImplementedError

    def _starved(self) -> str:
        """What to say where the kernel has killed a process of the generation for its container's memory; else nothing.

        The container itself goes on, and its runtime says nothing (before Kubernetes 1.28 on cgroup v2; always on v1).
        """
        now = self._container.read()
        if now.oom_kills is None or self._oom_kills is None or now.oom_kills <= self._oom_kills:
            return ""
        limit = f" of {now.memory_limit >> 20} MiB" if now.memory_limit is not None else ""
        return f"the kernel killed it for want of memory: its container's limit{limit} is used up"

    def _failed(self, code: ExitCode, message: str) -> Outcome:
        rank = self.world.node_rank * self.me.job.proc_per_node
        return Outcome("failed", rank, self.furthest_step(), int(code), message=clip(message), at=time.monotonic())


class WorkerGeneration(Generation):
    """Workers forked by the warm launcher."""

    def __init__(
        self,
        me: Identity,
        world: World,
        reaper: Reaper,
        launcher: Launcher,
        *,
        learned: Learned,
        cold: bool = False,
        new: bool = True,
    ) -> None:
        """`new`: this member has been in no generation before."""
        super().__init__(me, world, reaper)
        self._learned = learned
        opaque = me.job.entry["kind"] != "config"
        self._watch = Watch(learned, world.health, me.job.proc_per_node, now=time.monotonic(), opaque=opaque)
        self._paces = Paces()
        self._patience_told = 0.0
        self._launcher = launcher
        self._pid: Optional[int] = None
        self._ended = False
        self._last_words_at: Optional[float] = None
        self._store_failed: Optional[str] = None
        self.folder.write_members(list(world.members))
        env = {
            "RELIGHT_JOB_FILE": me.job_file,
            "RELIGHT_RUN_DIR": me.run_dir,
            "RELIGHT_GENERATION_DIR": str(self.folder.path),
            "RELIGHT_GENERATION": str(world.generation),
            "RELIGHT_SLOT": str(me.slot),
            "RELIGHT_UID": me.uid,
            "RELIGHT_AGENT_PID": str(os.getpid()),
            "RELIGHT_NEW_MEMBER": "1" if new else "",
            "RELIGHT_COMMITTED_STEP": "" if world.committed_step is None else str(world.committed_step),
            "RELIGHT_FURTHEST_STEP": str(world.furthest_step),
        }
        sent = launcher.send(
            {
                "op": "run",
                "generation": world.generation,
                "run_id": world.run_id,
                "node_rank": world.node_rank,
                "nodes": world.nodes,
                "proc_per_node": me.job.proc_per_node,
                "master_address": world.master_address,
                "master_port": world.master_port,
                "host_store": world.host_store,
                "env": env,
                "generation_dir": str(self.folder.path),
                "cold": cold,
            }
        )
        if not sent:
            self._ended = True

    def on_event(self, event: Dict[str, Any]) -> None:
        """A launcher's message about this generation."""
        kind = event.get("event")
        if kind == "started":
            self._pid = int(event["pid"])
            self._launcher.store_pid = event.get("store_pid")
        elif kind == "ended":
            self._ended = True
        elif kind == "store_failed":
            self._store_failed = str(event.get("message", "no message"))
            self._ended = True

    def has_begun(self) -> bool:
        return any(b is not None and b[0] != "start" for b in self._heartbeats())

    def is_saving(self) -> bool:
        return any(b is not None and b[0] in ("checkpoint", "end") for b in self._heartbeats())

    def is_trained(self) -> bool:
        return all(b is not None and b[0] == "after" for b in self._heartbeats())

    def silence(self, now: float) -> Optional[Silence]:
        ended = frozenset(i for i, _ in self.folder.outcomes(self.me.job.proc_per_node))
        found = self._watch.look(now, self._heartbeats(), ended=ended, epoch=whole_epochs(self.folder.progress()))
        self._tell_patience()
        return found

    def pace(self, now: float) -> Optional[Pace]:
        told = {i: Heartbeat.read_own(self.folder.heartbeat_path(i)) for i in range(self.me.job.proc_per_node)}
        return self._paces.look(now, {i: own for i, own in told.items() if own is not None})

    def stacks(self) -> Tuple[List[RankStack], Dict[int, str], List[Path]]:
        workers = self.me.job.proc_per_node
        first_rank = self.world.node_rank * workers
        records = recorded(self.folder, range(first_rank, first_rank + workers))
        return (*collect(self.folder, first_rank, workers, time.monotonic()), records())

    def _tell_patience(self) -> None:
        """So that no collective times out while all may still be well. Told again when it has changed by much."""
        patience = self._learned.longest(self.world.health)
        if abs(patience - self._patience_told) > 0.2 * self._patience_told:
            self._patience_told = patience
            try:
                self.folder.write_patience(patience)
            except OSError:
                pass  # full: the workers keep what they have

    def ask(self, command: Command) -> None:
        try:
            self.folder.write_command(command)
        except OSError as error:  # full, or removed: what remains is to end without a new save
            print(f"relight-agent: the workers cannot be asked to save: {error}", file=sys.stderr, flush=True)
            self.drop()

    def poll(self) -> Optional[Outcome]:
        if self.outcome is not None:
            return self.outcome
        now = time.monotonic()
        local = range(self.me.job.proc_per_node)
        outcomes = dict(self.folder.outcomes(self.me.job.proc_per_node))
        missing = [i for i in local if i not in outcomes]
        pids = {i: self.folder.pid(i) for i in local}
        if self._last_words_at is None and (not missing or any(o.kind == "failed" for o in outcomes.values())):
            self._last_words_at = now
        # A worker whose outcome is there may still be in its exit handlers.
        over = self._ended or (not missing and all(pid is None or not is_alive(pid) for pid in pids.values()))
        over = over or (self._last_words_at is not None and now > self._last_words_at + LAST_WORD_SECONDS)
        over = over or (self._dropped_at is not None and now > self._dropped_at + self._patience())
        if not over:
            return None
        dead = {i for i in missing if (pid := pids[i]) is not None and not is_alive(pid)}
        self.kill()
        # What was written between the two looks counts as well.
        outcomes = dict(self.folder.outcomes(self.me.job.proc_per_node))
        for i in missing:
            if i not in outcomes:
                outcomes[i] = self._silent(i, died=i in dead)
        self.outcome = summarise(list(outcomes.values()))
        return self.outcome

    def _patience(self) -> float:
        sections = {b[0] for b in self._heartbeats() if b is not None}
        held = newest_snapshot(self.me.run_dir)
        saving = "end" in sections or ("checkpoint" in sections and (held is None or held < self.furthest_step()))
        return CHECKPOINT_SECONDS if saving else LAST_WORD_SECONDS

    def _heartbeats(self) -> List[Optional[Tuple[str, int, float]]]:
        return [Heartbeat.read(self.folder.heartbeat_path(i)) for i in range(self.me.job.proc_per_node)]

    def _silent(self, local_rank: int, *, died: bool) -> Outcome:
        if self._store_failed is not None:
            return self._failed(ExitCode.PEER_LOST, f"the process group's store could not start: {self._store_failed}")
        if self._dropped_at is not None or not died:
            text = (
                "ended because the generation was over"
                if self._dropped_at is not None
                else "never got to form its world"
            )
            return self._failed(ExitCode.PEER_LOST, text)
        starved = self._starved()
        text = f"a worker died without a word ({starved or 'killed, or a crash in native code'})"
        if memory_is_full(self.me.run_dir):
            text += f"; {self.me.run_dir} is full, and the state of a step must fit there, twice"
        outcome = self._failed(ExitCode.OUT_OF_MEMORY if starved else ExitCode.EXCEPTION, text)
        return replace(outcome, rank=outcome.rank + local_rank, manner=str(Manner.DIED))

    def kill(self) -> None:
        """End the generation's session and whatever has been orphaned below the agent; not the launcher, not the store."""
        me, pid = os.getpid(), self._pid

        def select(seen: List[Process]) -> Set[int]:
            kept = {self._launcher.pid, self._launcher.store_pid}
            mine = {p.pid for p in seen if pid is not None and p.session == pid}
            orphans = {p.pid for p in seen if p.parent == me and p.pid not in kept}
            below: Set[int] = set()
            for root in mine | orphans:
                below.update(descendants(root, seen))
            return (mine | orphans | below) - kept

        kill_all(select)
        self._reaper.reap()


def whole_epochs(progress: Optional[Progress]) -> Optional[int]:
    """How many epochs training has behind it; None where that is not known."""
    whole = str(progress.epoch).partition(".")[0] if progress is not None and progress.restored_at else ""
    return int(whole) if whole.isdigit() else None


def memory_is_full(folder: str) -> bool:
    """Whether nothing more can be written to a tmpfs: who writes to mapped memory there is killed by SIGBUS."""
    try:
        return shutil.disk_usage(folder).free < FULL_BYTES
    except OSError:
        return False


class CommandGeneration(Generation):
    """A user's own command, as it is, under plain torchrun variables."""

    def __init__(self, me: Identity, world: World, reaper: Reaper) -> None:
        super().__init__(me, world, reaper)
        self._tail: Deque[str] = collections.deque(maxlen=60)
        self._terminated_at: Optional[float] = None
        self._terminate_for = COMMAND_TERM_SECONDS
        self._error_file = self.folder.errors / "error.json"
        env = inherited_env(
            me.job.env,
            {
                # torchrun is found beside the interpreter, activated or not.
                "PATH": os.path.dirname(python_of(me.job.python)) + os.pathsep + path_of(me.job.env),
                "PET_NNODES": str(world.nodes),
                "PET_NODE_RANK": str(world.node_rank),
                "PET_NPROC_PER_NODE": str(me.job.proc_per_node),
                "PET_MASTER_ADDR": world.master_address,
                "PET_MASTER_PORT": str(world.master_port),
                "PET_RDZV_ID": world.run_id,
                "PET_MAX_RESTARTS": "0",
                "TORCHELASTIC_ERROR_FILE": str(self._error_file),
            },
        )
        try:
            self._process: Optional[subprocess.Popen[bytes]] = subprocess.Popen(
                me.job.entry["argv"],
                env=env,
                cwd=me.job.workdir,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                start_new_session=True,
            )
        except (OSError, ValueError) as error:  # ValueError: a NUL in an argument or a variable
            self._process = None
            self.outcome = self._failed(ExitCode.BAD_CONFIG, f"trainer.command cannot be started: {error}")
            return
        reaper.watch(self._process.pid)
        self._pumping = threading.Thread(target=self._pump, args=(self._process,), name="stderr", daemon=True)
        self._pumping.start()

    def _pump(self, process: "subprocess.Popen[bytes]") -> None:
        assert process.stderr is not None
        line = b""
        with process.stderr as stderr:
            while chunk := os.read(stderr.fileno(), 65536):
                try:
                    sys.stderr.buffer.write(chunk)
                    sys.stderr.flush()
                except OSError:
                    pass  # a full disk; who did not read on would make the command wait for ever
                # A progress bar ends its lines with a carriage return.
                *lines, line = (line + chunk).replace(b"\r", b"\n").split(b"\n")
                line = line[-MAX_LINE_BYTES:]
                self._tail.extend(
                    found[-MAX_LINE_BYTES:].decode("utf-8", "replace").rstrip() for found in lines if found
                )
        self._tail.append(line.decode("utf-8", "replace").rstrip())

    def furthest_step(self) -> int:
        return 0

    def ask(self, command: Command) -> None:
        self._terminate(max(0.0, command.deadline - time.monotonic()))

    def drop(self) -> None:
        super().drop()
        self._terminate(COMMAND_TERM_SECONDS)

    def _terminate(self, patience: float) -> None:
        if self._terminated_at is None and self._process is not None:
            self._terminated_at = time.monotonic()
            self._terminate_for = patience
            try:
                os.killpg(self._process.pid, signal.SIGTERM)
            except (ProcessLookupError, PermissionError):
                pass

    def poll(self) -> Optional[Outcome]:
        if self.outcome is not None or self._process is None:
            return self.outcome
        status = self._reaper.status(self._process.pid)
        overdue = self._terminated_at is not None and time.monotonic() > self._terminated_at + self._terminate_for
        if status is None and not overdue:
            return None
        self.kill()
        self._process.returncode = status if status is not None else -signal.SIGKILL
        rank = self.world.node_rank * self.me.job.proc_per_node
        now = time.monotonic()
        # A command that has been told to end may well end with 0: it has not completed for that.
        if self._dropped_at is not None:
            self.outcome = self._failed(ExitCode.PEER_LOST, "ended because the generation was over")
        elif self._terminated_at is not None:
            self.outcome = Outcome("stopped", rank, at=now)
        elif status == 0:
            self.outcome = Outcome("completed", rank, at=now)
        else:
            # What it wrote last may still be in the pipe.
            self._pumping.join(LAST_WORD_SECONDS)
            code, reason, starved = code_of_command(status or 0), self._reason(status or 0), self._starved()
            if starved and code is ExitCode.EXCEPTION:
                code, reason = ExitCode.OUT_OF_MEMORY, f"{reason}: {starved}"
            failed = self._failed(code, reason)
            self.outcome = replace(failed, exit_status=shell_status(status or 0))
        return self.outcome

    def _reason(self, status: int) -> str:
        """The root cause in the command's own words: torch's error file, else the last exception on stderr."""
        error = read_json(self._error_file)
        message = error.get("message") if isinstance(error, dict) else None
        if isinstance(message, dict):
            message = message.get("message")
        ended = f"killed by {signal.Signals(-status).name}" if status < 0 else f"exit code {status}"
        if isinstance(message, str) and message:
            return f"{message} ({ended})"
        return f"{last_exception(list(self._tail)) or 'no exception on stderr'} ({ended})"

    def kill(self) -> None:
        assert self._process is not None
        me, pid = os.getpid(), self._process.pid

        def select(seen: List[Process]) -> Set[int]:
            roots = {p.pid for p in seen if p.session == pid or p.parent == me}
            return roots.union(*(descendants(r, seen) for r in roots))

        kill_all(select)
        self._reaper.reap()


def shell_status(status: int) -> int:
    """An exit status as a shell and a container show it: 128 and the signal for who was killed by one.

    >>> shell_status(9), shell_status(-9)
    (9, 137)
    """
    return status if status >= 0 else 128 - status


def code_of_command(status: int) -> ExitCode:
    """What a plain command's exit status means. It knows nothing of disruptions: those codes are a stranger's here.

    >>> code_of_command(75).name, code_of_command(65).name
    ('EXCEPTION', 'BAD_DATA')
    """
    told = status in set(ExitCode) and exit_of(status).klass in (
        Class.FINAL,
        Class.COUNTED,
        Class.STORAGE,
        Class.MACHINE,
    )
    return ExitCode(status) if told else ExitCode.EXCEPTION


_EXCEPTION_LINE = re.compile(
    r"^(?:\[rank\d+\]:\s*)?((?:[A-Za-z_][\w.]*\.)?[A-Z]\w*(?:Error|Exception|Interrupt|Exit)\b(?::.*)?)$"
)


def last_exception(lines: List[str]) -> Optional[str]:
    """The last exception that is not torchrun's own report of a child's.

    >>> last_exception(["ValueError: no such digit", "torch.distributed.elastic.multiprocessing.errors.ChildFailedError:"])
    'ValueError: no such digit'
    """
    found = [m.group(1) for line in lines if (m := _EXCEPTION_LINE.match(line.strip()))]
    own = [f for f in found if not f.startswith("torch.distributed.elastic")]
    return own[-1] if own else None
