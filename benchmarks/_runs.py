"""What the programs here share: `relight run` as a user starts it, tables, results."""

import json
import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from relight_agent.processes import is_alive

ROOT = Path(__file__).resolve().parent.parent
RESULTS = Path(__file__).resolve().parent / "results"
DIGITS = ROOT / "examples" / "digits.yaml"
STEPS = 330  # of examples/digits.yaml
INTERVAL = 100  # its steps between two checkpoints


def start(file: Path, state: Path, *arguments: str) -> subprocess.Popen[str]:
    """`relight run FILE -o json`; what it says to people goes to `state`/../said."""
    argv = [sys.executable, "-m", "relight_operator.cli", "run", str(file), "--state-dir", str(state), "-o", "json"]
    with (state.parent / "said").open("a") as said:
        return subprocess.Popen(
            [*argv, *arguments], stdout=subprocess.PIPE, stderr=said, stdin=subprocess.DEVNULL, text=True
        )


def finish(process: subprocess.Popen[str], timeout: float = 300.0) -> dict[str, Any]:
    """The final status object, with the runner's exit code as `code`."""
    stdout, _ = process.communicate(timeout=timeout)
    return {**(json.loads(stdout) if stdout else {}), "code": process.returncode}


def run(file: Path, state: Path, *arguments: str) -> dict[str, Any]:
    return finish(start(file, state, "--fresh", *arguments))


def faults(*texts: str) -> list[str]:
    return [word for text in texts for word in ("--chaos", text)]


def processes_of(state: Path) -> dict[int, dict[str, str]]:
    """pid -> environment of every living process that was started for the job in `state`, its runner apart."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or not is_alive(int(entry.name)):
            continue
        try:
            words = (entry / "environ").read_bytes().decode("utf-8", "replace").split("\0")
        except OSError:
            continue
        environment = dict(word.split("=", 1) for word in words if "=" in word)
        if environment.get("RELIGHT_JOB_FILE") == str(state / "job-file.json"):
            found[int(entry.name)] = environment
    return found


def is_agent(pid: int) -> bool:
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return words[1:3] == [b"-m", b"relight_agent"]


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-int(share * 1000) * len(ordered) // 1000) - 1)]


def table(rows: Sequence[Sequence[object]]) -> str:
    """Columns; the first row is the heading."""
    text = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in text) for i in range(len(text[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in text
    )


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", flush=True)


def write(folder: Path, name: str, result: dict[str, Any], *, quiet: bool = False) -> None:
    """`folder`/NAME.json, with what one must know of the machine to judge the numbers."""
    where = {
        "cpus": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": version("torch"),
        "system": f"{platform.system()} {platform.release()} {platform.machine()}",
        "load": round(os.getloadavg()[0], 2),
    }
    folder.mkdir(exist_ok=True)
    path = folder / f"{name}.json"
    path.write_text(
        json.dumps({**result, "machine": where, "at": time.strftime("%Y-%m-%dT%H:%M:%S%z")}, indent=2) + "\n"
    )
    if not quiet:
        say(f"written: {path}")
