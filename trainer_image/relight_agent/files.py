"""The files through which an agent and its workers speak, in the member's run folder on a tmpfs.

Every JSON file is written by rename, so that a reader sees the old one or the new one. Readers ignore unknown keys.

    $RELIGHT_RUN_DIR/
      snapshots/                the newest training states of this member; they outlive the workers
      gen-<g>/                  one folder a generation ($RELIGHT_GENERATION_DIR)
        pid-<local rank>        worker -> agent: its process id, so that one that died without a word is told apart
        members.json            agent -> workers: who else is in the generation, and where
        command.json            agent -> workers: Command
        progress.json           the pod's local rank 0 -> agent, at most once a second: Progress
        heartbeat-<local rank>  worker -> agent: Heartbeat, a few bytes of shared memory
        stack-<local rank>      worker -> agent: its Python stacks, each time it is asked by stacks.SIGNAL
        patience.json           agent -> workers: the seconds that a rank of this job may be silent, whatever it does
        flight-<rank>           NCCL's flight recorder, on a GPU
        ledger                  the pod's local rank 0 -> agent: what its seconds have gone to, as Ledger keeps it
        outcome-<local rank>.json   worker -> agent, once, its last act: Outcome
        errors/                 torch's error files
"""

import json
import mmap
import os
import struct
import time
from dataclasses import asdict, dataclass, field, fields
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional, Tuple, Type, TypeVar, Union

from relight_agent.durable import sync

T = TypeVar("T")
PathLike = Union[str, "os.PathLike[str]"]

# Bounds on what a worker may say, so that nothing it says can make a status write fail (the coordinator checks again).
MAX_METRICS = 32
MAX_MESSAGE_BYTES = 1024
MAX_NOTICES = 8

# In the run folder: the step that `relight_trainer.flush` has brought into the checkpoint folder.
FLUSHED = "flushed.json"
# In the run folder of a member whose machine is announced to go, where no cluster has taints for that.
LEAVING = "leaving"
# In the run folder: who touches it has this member's workers trace their next steps; a number in it is how many.
PROFILE = "profile"
# The id of the command to a member whose slot is another's.
SUPERSEDED = "exit:superseded"


def write_json(path: PathLike, value: Any, *, durable: bool = False, private: bool = False) -> None:
    """Write `value` as JSON to `path` by rename; with `durable`, also through to the disk.

    `private`: no other user can read it, whatever the umask and the folder.
    """
    path = os.fspath(path)
    temporary = f"{path}.{os.getpid()}.{time.monotonic_ns()}.tmp"
    try:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with open(os.open(temporary, flags, 0o600 if private else 0o666), "w", encoding="utf-8") as file:
            json.dump(value, file, allow_nan=False, separators=(",", ":"))
            if durable:
                file.flush()
                sync(file.fileno(), path)
        os.replace(temporary, path)
    except BaseException:
        try:
            os.unlink(temporary)  # half a file on a full disk would stay for ever
        except OSError:
            pass
        raise
    if durable:
        fsync_folder(os.path.dirname(path) or ".")


def fsync_folder(path: PathLike) -> bool:
    """Flush a folder's entries to the storage; False where its file system cannot. Raises OSError with the path."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return sync(descriptor, path)
    finally:
        os.close(descriptor)


def newest_snapshot(run_dir: str) -> Optional[int]:
    """The step of the newest closed snapshot of a member; None for none."""
    marks = (read_json(path) for path in Path(run_dir, "snapshots").glob("slot-*.json"))
    steps = (mark.get("step") for mark in marks if isinstance(mark, dict))
    return max((step for step in steps if isinstance(step, int)), default=None)


def read_json(path: PathLike) -> Optional[Any]:
    """The parsed file, or None where there is none (or where what is there is not JSON: half a disk, a stranger's)."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None


def read_row(path: PathLike, size: int) -> Optional[bytes]:
    """The first `size` bytes of what a worker keeps in shared memory; None where there are not so many yet."""
    try:
        with open(path, "rb") as file:
            data = file.read(size)
    except OSError:
        return None
    return data if len(data) == size else None


def from_dict(cls: Type[T], value: Any) -> Optional[T]:
    """A dataclass from JSON: unknown keys ignored, None for anything that does not fit."""
    if not isinstance(value, dict):
        return None
    known = {f.name for f in fields(cls)}  # type: ignore[arg-type]  # a dataclass type
    try:
        return cls(**{k: v for k, v in value.items() if k in known})
    except TypeError:
        return None


def plain(text: str) -> str:
    """`text` without what a terminal would obey or hide: control characters but newlines, marks of direction, surrogates."""
    return text if text.isprintable() else "".join(c for c in text if c == "\n" or c.isprintable())


def clip(text: str, limit: int = MAX_MESSAGE_BYTES) -> str:
    """`text` as `plain` leaves it, in at most `limit` bytes of UTF-8."""
    clean = plain(text)
    data = clean.encode("utf-8", "replace")
    return clean if len(data) <= limit else data[: limit - 3].decode("utf-8", "ignore") + "..."


@dataclass(frozen=True)
class Command:
    """What the agent asks of its workers; `id` distinguishes two requests of one kind.

    op "save": agree with all ranks on a step, save there and stop; this member `leaves`, or it stays and a peer leaves.
    op "stop": the same, and a committed checkpoint is wanted: every member leaves.
    `deadline` is the CLOCK_MONOTONIC second by which it must be done (one machine, so one clock).
    """

    id: str
    op: str
    deadline: float = 0.0
    leaves: bool = False


@dataclass(frozen=True)
class Progress:
    """How far the job is, as rank 0 of the world (or local rank 0 of each pod) sees it. Times are CLOCK_MONOTONIC."""

    generation: int
    step: int  # optimizer steps done
    total_steps: int = 0
    epoch: str = ""
    samples: int = 0
    resumed_from: int = 0  # the step this generation started from
    resumed_kind: str = "scratch"  # scratch | snapshot | checkpoint
    metrics: Dict[str, str] = field(default_factory=dict)  # values as strings: non-finite ones are allowed
    snapshot: Optional[int] = None  # the newest closed snapshot's step
    checkpoint: Optional[int] = None  # the newest committed checkpoint's step
    first_step_at: Optional[float] = None  # when the first step of this generation had been done
    formed_at: Optional[float] = None  # when the process group was up
    restored_at: Optional[float] = None
    sent_bytes: int = 0  # of tensors, by this rank to others at this generation's restore
    received_bytes: int = 0  # and from them
    updated_at: float = 0.0
    notices: List[str] = field(default_factory=list)  # what a person should hear, e.g. a quarantined checkpoint


@dataclass(frozen=True)
class Outcome:
    """How a worker ended: its last act. A worker that leaves none died without a word.

    kind "completed": with `result` {"weightsDigest": ..., "metrics": {name: text}} from rank 0.
    kind "stopped": at `step`; `saved` where the state of that step is in a snapshot or a checkpoint. `kept` says why
    this member may go: it is in a committed "checkpoint", or "peers" that stay hold it; "" where it may not just go.
    kind "failed": with exit code, message and the rank.

    `fingerprint`: what makes the exception recognisable when it comes again, "" where that says nothing (see
    relight_trainer.fingerprint). `exit_status`: what the user's code itself ended with, where that is no code of ours.
    `manner`: of a failure, how the worker ended (`exits.Manner`).
    `left`: of a member's outcome: a rank of it that had ended with 0, without a result, while the others still wanted it.
    """

    kind: str
    rank: int
    step: int = 0
    exit_code: int = 0
    saved: bool = False
    message: str = ""
    at: float = 0.0  # CLOCK_MONOTONIC
    kept: str = ""  # checkpoint | peers | ""
    result: Optional[Dict[str, Any]] = None
    fingerprint: str = ""
    exit_status: Optional[int] = None
    left: Optional[int] = None
    manner: str = ""


_HEARTBEAT = struct.Struct("<qqd")
_OWN = struct.Struct("<dq")  # behind it
# "end": the final checkpoint; "after": what a script or a hook does behind the last step.
SECTIONS = ("start", "data", "train", "evaluation", "checkpoint", "end", "after")


class Heartbeat:
    """(section, step, time) of one worker in shared memory, written on every step for 0.2 us.

    The agent reads the furthest step from it even when the worker has been killed: lostSteps needs the truth, not
    what rank 0 said a second ago. And it sees from it that a worker is alive, and what it does (stalls.py).
    """

    def __init__(self, path: PathLike) -> None:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            os.ftruncate(descriptor, _HEARTBEAT.size + _OWN.size)
            self._map = mmap.mmap(descriptor, _HEARTBEAT.size + _OWN.size)
        finally:
            os.close(descriptor)

    def beat(self, section: int, step: int) -> None:
        """`section` is an index into SECTIONS; `step` counts optimizer steps done."""
        _HEARTBEAT.pack_into(self._map, 0, section, step, time.monotonic())

    def entering(self, section: int) -> Callable[[], None]:
        """What is called where the same step goes on in `section`: it writes one byte, the number's lowest."""
        return partial(self._map.__setitem__, 0, section)

    def tell_own(self, seconds: float, steps: int) -> None:
        """`seconds` of this worker's own work went into the last `steps` steps: its waiting for peers is none of it."""
        _OWN.pack_into(self._map, _HEARTBEAT.size, seconds, steps)

    @staticmethod
    def read_own(path: PathLike) -> Optional[Tuple[float, int]]:
        """What `tell_own` told last; None where that is nothing."""
        data = read_row(path, _HEARTBEAT.size + _OWN.size)
        if data is None:
            return None
        seconds, steps = _OWN.unpack_from(data, _HEARTBEAT.size)
        return (seconds, steps) if steps > 0 else None

    @staticmethod
    def read(path: PathLike) -> Optional[Tuple[str, int, float]]:
        """(section, steps done, CLOCK_MONOTONIC second), or None where nothing has been written yet."""
        data = read_row(path, _HEARTBEAT.size)
        if data is None:
            return None
        section, step, at = _HEARTBEAT.unpack(data)
        if at == 0.0 or not 0 <= section < len(SECTIONS):
            return None
        return SECTIONS[section], step, at


class GenerationFolder:
    """The files of one generation in one member's run folder."""

    def __init__(self, path: PathLike) -> None:
        self.path = Path(path)

    @classmethod
    def create(cls, run_dir: PathLike, generation: int) -> "GenerationFolder":
        folder = cls(Path(run_dir) / f"gen-{generation}")
        (folder.path / "errors").mkdir(parents=True, exist_ok=True)
        return folder

    def write_command(self, command: Command) -> None:
        write_json(self.path / "command.json", asdict(command))

    def command(self) -> Optional[Command]:
        return from_dict(Command, read_json(self.path / "command.json"))

    def write_progress(self, progress: Progress) -> None:
        write_json(self.path / "progress.json", asdict(progress))

    def progress(self) -> Optional[Progress]:
        return from_dict(Progress, read_json(self.path / "progress.json"))

    def heartbeat_path(self, local_rank: int) -> Path:
        return self.path / f"heartbeat-{local_rank}"

    def stack_path(self, local_rank: int) -> Path:
        return self.path / f"stack-{local_rank}"

    def write_patience(self, seconds: float) -> None:
        write_json(self.path / "patience.json", seconds)

    def patience(self) -> Optional[float]:
        value = read_json(self.path / "patience.json")
        return float(value) if isinstance(value, (int, float)) and value > 0 else None

    def furthest_step(self, local_ranks: int) -> int:
        """The largest number of optimizer steps any local worker has done."""
        beats = (Heartbeat.read(self.heartbeat_path(i)) for i in range(local_ranks))
        return max((b[1] for b in beats if b), default=0)

    def write_outcome(self, local_rank: int, outcome: Outcome) -> None:
        write_json(self.path / f"outcome-{local_rank}.json", asdict(outcome))

    def outcomes(self, local_ranks: int) -> Iterator[Tuple[int, Outcome]]:
        """(local rank, outcome) of each worker that left one."""
        for i in range(local_ranks):
            outcome = from_dict(Outcome, read_json(self.path / f"outcome-{i}.json"))
            if outcome is not None:
                yield i, outcome

    def write_pid(self, local_rank: int, pid: Optional[int] = None) -> None:
        """That of this process, or `pid`."""
        write_json(self.path / f"pid-{local_rank}", pid or os.getpid())

    def pid(self, local_rank: int) -> Optional[int]:
        value = read_json(self.path / f"pid-{local_rank}")
        return value if isinstance(value, int) else None

    def write_members(self, members: List[Dict[str, Any]]) -> None:
        write_json(self.path / "members.json", members)

    def members(self) -> List[Dict[str, Any]]:
        """Slot, address and machine of each member of the generation, by node rank; empty where nobody has written them."""
        value = read_json(self.path / "members.json")
        return [m for m in value if isinstance(m, dict)] if isinstance(value, list) else []

    @property
    def ledger_path(self) -> Path:
        return self.path / "ledger"

    @property
    def errors(self) -> Path:
        return self.path / "errors"


@dataclass(frozen=True)
class JobFile:
    """What every member of a job is given, frozen at the job's first start (`$RELIGHT_JOB_FILE`).

    `entry` is one of
        {"kind": "config", "config": {...}}          the core's YAML, validated and dumped canonically
        {"kind": "script", "argv": ["train.py", ...]} | {"kind": "module", "argv": ["pkg.train", ...]}
        {"kind": "command", "argv": [...]}           run cold under plain torchrun variables
    """

    namespace: str
    name: str
    uid: str
    created: float  # unix seconds: the first key of the order of checkpoints
    nodes: int  # of the largest world that the job may have: a step is divided as that world would divide it
    proc_per_node: int
    entry: Dict[str, Any]
    config_hash: str
    workdir: str = "."
    code_dir: str = ""  # the checkout of `spec.code`, "" where the job has none
    env: Dict[str, str] = field(default_factory=dict)
    # What the job says in the place of values that are in the container's environment alone, by the variable's name.
    env_references: Dict[str, str] = field(default_factory=dict)
    python: str = ""  # "" is the agent's own interpreter
    # "" where the job has no durable storage; the job's own folder, or its URL in a store, namespace and name in it
    checkpoint_dir: str = ""
    checkpoint_seconds: float = 0.0  # 0 is off
    checkpoint_steps: int = 0
    checkpoint_epochs: int = 0
    checkpoint_keep: int = 3
    checkpoint_best: Dict[str, Any] = field(
        default_factory=dict
    )  # {"metric", "mode", "keep"}; {}: only the newest are kept
    snapshot_every: int = 0  # optimizer steps; 0: as often as costs next to nothing
    grace_seconds: float = 120.0
    orphan_seconds: float = 1800.0
    gpus: int = 0  # that each member is to have; 0 where it trains without

    def commit(self) -> str:
        """The commit of the job's code that is here; "" where it has none. A checkout that is pinned has no branch."""
        try:
            return (Path(self.code_dir) / ".git" / "HEAD").read_text(encoding="ascii").strip() if self.code_dir else ""
        except (OSError, ValueError):
            return ""

    @classmethod
    def load(cls, path: PathLike) -> "JobFile":
        job = from_dict(cls, read_json(path))
        if job is None:
            raise ValueError(f"{os.fspath(path)} is not a Relight job file")
        return job

    def write(self, path: PathLike) -> None:
        write_json(path, asdict(self), durable=True, private=True)
