"""What a machine is looked at for before its member's first generation: once for each agent, while the launcher gets warm.

A survivor is not looked at again: nothing here is on the way of a recovery but for its replacement, which waits for its
imports meanwhile. What is wrong with this machine alone ends the member with MACHINE_UNHEALTHY, and the machine is held
to account; what any machine would meet is the configuration's or the storage's.
"""

import ctypes
import errno
import os
import re
import shutil
import threading
import time
from pathlib import Path
from queue import Empty, Queue
from typing import Callable, Iterator, List, NamedTuple, Optional, Tuple, Union

from relight_agent.durable import sync
from relight_agent.exits import ExitCode
from relight_agent.files import JobFile, fsync_folder, read_json
from relight_agent.identity import Identity

# Of the folder in memory: what the files between agent and workers take at least.
LEAST_BYTES = 1 << 20
TIMEOUT_SECONDS = 60.0  # for all of it; storage that hangs would hang for ever
STORAGE_SECONDS = 5.0  # for the checkpoints' folder, where others of the job have written before
SKEW_SECONDS = 5.0  # of two clocks, that nobody need hear of
RECLAIM_SECONDS = 30.0  # for the memory of a GPU, after the end of the process that had it
# Of a GPU's memory: that others may hold without a word, and that they may hold at all.
HELD_UNSAID, HELD_ALLOWED = 0.1, 0.5

# No retry on any machine would be let in there.
_FORBIDDEN = (errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL)


class Unfit(Exception):
    """The member cannot train here."""

    def __init__(self, code: ExitCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def look(me: Identity, warn: Callable[[str], None]) -> None:
    """Look at everything. Raises Unfit; `warn` hears what a person should know and training can bear."""
    run_folder(me.run_dir)
    storage = Path(me.job.checkpoint_dir) if me.job.checkpoint_dir and "://" not in me.job.checkpoint_dir else None
    if storage is not None:
        checkpoint_folder(storage, me, warn)
        room_for_snapshots(me.run_dir, storage, me.job, warn)
    if me.job.gpus:
        gpus(min(me.job.gpus, me.job.proc_per_node), warn)


def run_folder(folder: str) -> None:
    """The folder in memory can be used, and has room. Raises Unfit."""
    room = shutil.disk_usage(folder)
    if room.total < LEAST_BYTES:
        raise Unfit(
            ExitCode.BAD_CONFIG,
            f"{folder} holds {size(room.total)} in all: a member needs {size(LEAST_BYTES)} there, and the state of a step "
            "twice; raise trainer.sharedMemory",
        )
    if room.free < LEAST_BYTES:
        raise Unfit(ExitCode.MACHINE_UNHEALTHY, f"{folder} is full: {size(room.free)} of {size(room.total)} are left")
    try:
        try_out(Path(folder), "run")
    except OSError as error:
        raise Unfit(ExitCode.MACHINE_UNHEALTHY, f"{folder} cannot be used: {said(error)}") from error


def checkpoint_folder(folder: Path, me: Identity, warn: Callable[[str], None]) -> None:
    """Checkpoints can be written there. Raises Unfit.

    Of a member that replaces another: its job has used the folder before, so what keeps this one out is its machine; and
    storage that is full, ill or slow must not keep training from going on.
    """
    found = Queue()  # type: Queue[Union[bool, OSError]]
    trial = threading.Thread(target=_try_out, args=(folder, me.uid, found), name="storage", daemon=True)
    trial.start()
    try:
        answer = found.get(timeout=STORAGE_SECONDS if me.incarnation else None)
    except Empty:
        warn(
            f"{folder} has not answered within {STORAGE_SECONDS:g} s: checkpoints will be late; training goes on meanwhile"
        )
        return
    if not isinstance(answer, OSError):
        if not answer:
            warn(
                f"{folder}: this file system cannot flush a folder to the disk; a power cut there can lose the newest "
                "checkpoint"
            )
        return
    error = answer
    text = f"checkpoints cannot be written to {folder}: {said(error)}"
    if error.errno in _FORBIDDEN:
        if me.incarnation:
            raise Unfit(ExitCode.MACHINE_UNHEALTHY, f"{text}, on this machine") from error
        raise Unfit(ExitCode.BAD_CONFIG, f"{text} (as user {os.getuid()}, group {os.getgid()})") from error
    if not me.incarnation:
        raise Unfit(ExitCode.STORAGE_FAILED, text) from error
    warn(f"{text}; training goes on meanwhile")


def _try_out(folder: Path, name: str, found: "Queue[Union[bool, OSError]]") -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        found.put(try_out(folder, name))
    except OSError as error:
        found.put(error)


def try_out(folder: Path, name: str) -> bool:
    """Create, flush, rename, read back and remove a file. False where the file system cannot flush. Raises OSError."""
    before, after = folder / f".probe-{name}.tmp", folder / f".probe-{name}"
    text = os.urandom(16).hex()
    try:
        with before.open("w", encoding="ascii") as file:
            file.write(text)
            file.flush()
            flushed = sync(file.fileno(), before)
        os.replace(before, after)
        flushed = fsync_folder(folder) and flushed
        if after.read_text(encoding="ascii") != text:
            raise OSError(errno.EIO, "what was written is not what is read")
        return flushed
    finally:
        for path in (before, after):
            try:
                path.unlink()
            except OSError:
                pass


def room_for_snapshots(folder: str, storage: Path, job: JobFile, warn: Callable[[str], None]) -> None:
    """Where the job has a checkpoint, its size is known: two such states are to fit into memory."""
    state = state_bytes(storage, job)
    free = shutil.disk_usage(folder).free
    if state and free < 2 * state:
        warn(
            f"snapshots will be off: the state of a step takes {size(state)}, twice, and {folder} has {size(free)} left; "
            "raise trainer.sharedMemory"
        )


def state_bytes(storage: Path, job: JobFile) -> int:
    """The size of the newest checkpoint of this configuration; 0 where there is none to be read."""
    try:
        folders = sorted(storage.glob("step-*"), key=lambda p: p.stat().st_mtime)
        manifest = read_json(folders[-1] / "manifest.json") if folders else None
    except OSError:
        return 0
    if not isinstance(manifest, dict) or manifest.get("config_hash") != job.config_hash:
        return 0
    files = manifest.get("files")
    sizes = [f.get("bytes") for f in files.values() if isinstance(f, dict)] if isinstance(files, dict) else []
    return sum(s for s in sizes if isinstance(s, int))


class Gpu(NamedTuple):
    total: int  # bytes
    used: int


def gpus(wanted: int, warn: Callable[[str], None], *, dev: str = "/dev", patience: float = RECLAIM_SECONDS) -> None:
    """As many GPUs are here as workers want, and their memory is free. Raises Unfit."""
    library = _nvml()
    found = list(_gpus_of(library)) if library is not None else None
    there = len(found) if found is not None else len([n for n in os.listdir(dev) if re.fullmatch(r"nvidia\d+", n)])
    if there < wanted:
        raise Unfit(ExitCode.MACHINE_UNHEALTHY, f"{there} of {wanted} GPUs are here")
    deadline = time.monotonic() + patience
    held = _held(found or [])
    while library is not None and held and time.monotonic() < deadline:
        time.sleep(0.2)
        held = _held(list(_gpus_of(library)))
    text = ", ".join(f"GPU {i}: {size(gpu.used)} of {size(gpu.total)}" for i, gpu in held)
    if any(gpu.used > HELD_ALLOWED * gpu.total for _, gpu in held):
        raise Unfit(ExitCode.MACHINE_UNHEALTHY, f"memory is held by somebody else after {patience:.0f} s: {text}")
    if held:
        warn(f"memory is held by somebody else: {text}")


def _held(found: List[Optional[Gpu]]) -> List[Tuple[int, Gpu]]:
    """Those of which somebody holds more than a driver does, and their numbers."""
    return [(i, gpu) for i, gpu in enumerate(found) if gpu is not None and gpu.used > HELD_UNSAID * gpu.total]


class _Memory(ctypes.Structure):
    _fields_ = [("total", ctypes.c_ulonglong), ("free", ctypes.c_ulonglong), ("used", ctypes.c_ulonglong)]


def _nvml() -> Optional[ctypes.CDLL]:
    """NVIDIA's management library, which asks the driver and opens no context; None where there is none that works."""
    try:
        library = ctypes.CDLL("libnvidia-ml.so.1")
        return library if library.nvmlInit_v2() == 0 else None
    except (OSError, AttributeError):
        return None


def _gpus_of(library: ctypes.CDLL) -> Iterator[Optional[Gpu]]:
    """Each GPU; None in its place where it does not tell its memory (a share of one)."""
    count = ctypes.c_uint()
    if library.nvmlDeviceGetCount_v2(ctypes.byref(count)) != 0:
        return
    for index in range(count.value):
        handle, memory = ctypes.c_void_p(), _Memory()
        told = (
            library.nvmlDeviceGetHandleByIndex_v2(index, ctypes.byref(handle)) == 0
            and library.nvmlDeviceGetMemoryInfo(handle, ctypes.byref(memory)) == 0
            and memory.total > 0
        )
        yield Gpu(memory.total, memory.used) if told else None


def skew(ahead: float) -> Optional[str]:
    """What to say of a clock that is `ahead` seconds before the coordinator's; None where that is nothing."""
    if abs(ahead) <= SKEW_SECONDS:
        return None
    way = "ahead of" if ahead > 0 else "behind"
    return f"this machine's clock is {abs(ahead):.0f} s {way} the coordinator's: certificates and object stores may refuse it"


def said(error: OSError) -> str:
    return error.strerror or str(error)


def size(amount: int) -> str:
    """In words.

    >>> size(512), size(3 << 19), size(16 << 30)
    ('512 bytes', '1.5 MiB', '16.0 GiB')
    """
    units: List[Tuple[int, str]] = [(1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")]
    for least, unit in units:
        if amount >= least:
            return f"{amount / least:.1f} {unit}"
    return f"{amount} bytes"
