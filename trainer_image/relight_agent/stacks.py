"""What the workers of a member are doing right now: their Python stacks, and what the kernel says of their processes.

A worker writes its stacks when it gets SIGNAL, by faulthandler, which needs no GIL. One that has been stopped, or is
stuck in the kernel, writes none: then /proc says as much. Nothing here waits for a worker longer than a moment.
"""

import os
import re
import signal
import time
from pathlib import Path
from typing import Callable, Dict, Iterable, List, NamedTuple, Optional, Sequence, Tuple

from relight_agent.files import GenerationFolder, Heartbeat, clip
from relight_agent.processes import descendants, processes

SIGNAL = signal.SIGRTMIN + 7  # nobody's: SIGUSR1 and SIGUSR2 belong to scripts
ANSWER_SECONDS = 1.0  # what a worker gets to write its stacks
SETTLE_SECONDS = 0.05
MAX_BYTES = 256 * 1024  # of what is kept of one worker
MAX_FRAMES = 4  # that are reported
MAX_FRAME_BYTES = 120
MAX_LOADERS = 16  # loader processes of one worker
KEPT_GENERATIONS = 20
# Prefixes of files in the generation's folder, each followed by a rank: relight_trainer.peers tells NCCL of them.
FLIGHT = "flight-"
FLIGHT_PIPE = "ask-flight-"

_FRAME = re.compile(r'^  File "(?P<path>[^"]*)", line (?P<line>\d+) in (?P<function>\S+)')
_THREAD = re.compile(r"^(?:Current thread|Thread) 0x")
# Where the innermost frame of a rank is that waits for its peers, and nothing else.
_COLLECTIVE = ("/torch/distributed/", "/relight_trainer/peers.py", "/relight_trainer/stop.py")


class RankStack(NamedTuple):
    """What one worker was doing. `state` is the kernel's letter (R running, S sleeping, D in the kernel, T stopped).

    `doing`: collective (it waits for its peers), backward (it computes, or waits there), code; "" where it did not answer.
    """

    rank: int
    section: str
    step: int
    silent: float  # seconds
    state: str
    doing: str
    frames: List[str]  # the innermost first


def collect(
    folder: GenerationFolder, first_rank: int, workers: int, now: float
) -> Tuple[List[RankStack], Dict[int, str]]:
    """(the stacks in brief, the whole text by rank) of a generation's workers."""
    asked = {}
    for i in range(workers):
        pid = folder.pid(i)
        if pid is not None:
            asked[i] = (pid, _ask(pid, folder.stack_path(i)))
    deadline = time.monotonic() + ANSWER_SECONDS
    found, texts = [], {}
    for i, (pid, start) in asked.items():
        answer = _answer(folder.stack_path(i), start, deadline) if start is not None else ""
        beat = Heartbeat.read(folder.heartbeat_path(i)) or ("start", 0, now)
        state = process_state(pid)
        frames = main_thread(answer)
        brief = RankStack(
            rank=first_rank + i,
            section=beat[0],
            step=beat[1],
            silent=max(0.0, now - beat[2]),
            state=state[:1],
            doing=doing(frames),
            frames=[clip(short(f), MAX_FRAME_BYTES) for f in frames[:MAX_FRAMES]],
        )
        found.append(brief)
        texts[brief.rank] = _page(brief, pid, state, answer, folder.stack_path(i))
    return found, texts


def keep(location: str, generation: int, texts: Dict[int, str], recorded: Sequence[Path] = ()) -> None:
    """Write `texts` to `stacks/generation-<g>/rank-<r>.txt` of the job's folder, and beside them NCCL's records.

    May take as long as a hung storage hangs: for a thread that nobody waits for. Raises OSError.
    """
    stacks = Path(location) / "stacks"
    folder = stacks / f"generation-{generation}"
    folder.mkdir(parents=True, exist_ok=True)
    for rank, text in texts.items():
        (folder / f"rank-{rank}.txt").write_text(text, encoding="utf-8")
    for record in recorded:
        (folder / record.name).write_bytes(record.read_bytes()[: 64 * MAX_BYTES])
    _forget_old(stacks)


def _forget_old(stacks: Path) -> None:
    numbered = [(int(p.name.rpartition("-")[2]), p) for p in stacks.glob("generation-*") if p.name[11:].isdigit()]
    for _, old in sorted(numbered)[:-KEPT_GENERATIONS]:
        for file in list(old.iterdir()):
            file.unlink()
        old.rmdir()


def recorded(folder: GenerationFolder, ranks: Iterable[int]) -> Callable[[], List[Path]]:
    """Ask NCCL for its flight records; what is called for them later gives those that there are."""
    for rank in ranks:
        try:
            pipe = os.open(f"{folder.path / FLIGHT_PIPE}{rank}.pipe", os.O_WRONLY | os.O_NONBLOCK)
        except OSError:
            continue  # no GPU, or nobody who reads it
        try:
            os.write(pipe, b"1")
        except OSError:
            pass
        finally:
            os.close(pipe)
    return lambda: sorted(p for p in folder.path.glob(f"{FLIGHT}*") if p.is_file())


def main_thread(text: str) -> List[str]:
    """The frames of the main thread in what faulthandler writes, innermost first: it lists threads newest first."""
    frames: List[str] = []
    for line in text.splitlines():
        if _THREAD.match(line):
            frames = []
        elif _FRAME.match(line):
            frames.append(line)
    return frames


def short(frame: str) -> str:
    """A frame as faulthandler writes it, in fewer words.

    >>> short('  File "/usr/lib/python3.11/re/__init__.py", line 166 in match')
    're/__init__.py:166 in match'
    """
    found = _FRAME.match(frame)
    if found is None:
        return frame.strip()
    return f"{'/'.join(found['path'].split('/')[-2:])}:{found['line']} in {found['function']}"


def doing(frames: Sequence[str]) -> str:
    """What a main thread with these frames is at, by the innermost of them."""
    found = _FRAME.match(frames[0]) if frames else None
    if found is None:
        return ""
    if any(mark in found["path"] for mark in _COLLECTIVE):
        return "collective"
    return "backward" if "/torch/autograd/" in found["path"] else "code"


def process_state(pid: int) -> str:
    """As /proc names it, such as "T (stopped)"; "" where there is no such process."""
    return _status(pid).get("State", "")


def _status(pid: int) -> Dict[str, str]:
    try:
        text = Path(f"/proc/{pid}/status").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.splitlines())
    return {name: value.strip() for name, _, value in pairs}


def _ask(pid: int, path: Path) -> Optional[int]:
    """Have the process write its stacks to `path`; how long that was before. None for one that would die of the signal."""
    try:
        caught = int(_status(pid).get("SigCgt", "0"), 16)
        if not caught >> (SIGNAL - 1) & 1:
            return None
        size = path.stat().st_size
        os.kill(pid, SIGNAL)
    except (OSError, ValueError):
        return None
    return size


def _answer(path: Path, start: int, deadline: float) -> str:
    """What has been written behind `start`, once it no longer grows."""
    size, quiet_since = start, time.monotonic()
    while (now := time.monotonic()) < deadline:
        try:
            grown = path.stat().st_size
        except OSError:
            return ""
        if grown != size:
            size, quiet_since = grown, now
        elif size > start and now - quiet_since >= SETTLE_SECONDS:
            break
        time.sleep(0.01)
    return _read(path, start)


def _read(path: Path, start: int) -> str:
    try:
        with open(path, "rb") as file:
            file.seek(start)
            return file.read(MAX_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""


def _page(brief: RankStack, pid: int, state: str, answer: str, path: Path) -> str:
    parts = [
        (
            f"rank {brief.rank}, process {pid}: {state or 'gone'}, in {brief.section} after step {brief.step}, "
            f"silent for {brief.silent:.1f} s\n"
        ),
        *_kernel(pid),
        answer or "It did not write its stacks.\n",
    ]
    for loader in descendants(pid, processes())[:MAX_LOADERS]:
        start = _ask(loader, path)
        text = _answer(path, start, time.monotonic() + ANSWER_SECONDS / 4) if start is not None else ""
        command = _first_line(Path(f"/proc/{loader}/cmdline")).replace("\0", " ")
        parts += [f"\nprocess {loader} below it: {process_state(loader)} {clip(command, 200)}\n", text]
    return "".join(parts)[:MAX_BYTES]


def _kernel(pid: int) -> List[str]:
    """Where each thread waits in the kernel, as far as that is told; its stack there is told to root alone."""
    lines = []
    for task in sorted(Path(f"/proc/{pid}/task").glob("[0-9]*"), key=lambda p: int(p.name))[:64]:
        waits = _first_line(task / "wchan")
        if waits not in ("", "0"):
            lines.append(f"thread {task.name} ({_first_line(task / 'comm')}) waits in the kernel: {waits}\n")
    try:
        lines += [f"  {line}\n" for line in Path(f"/proc/{pid}/stack").read_text(encoding="ascii").splitlines()[:16]]
    except (OSError, ValueError):
        pass
    return lines


def _first_line(path: Path) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.readline(4096).strip()
    except OSError:
        return ""
