"""Has a stranger's file read by a child process, which may be ended whatever the file makes it do."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from relight_trainer.inspect.contents import Unreadable, WrongInput
from relight_trainer.inspect.limits import Limits, MiB

_KINDS = {"WrongInput": WrongInput, "Unreadable": Unreadable}
# Threads of numpy's libraries have stacks and buffers of their own, which would count, and nothing here uses them.
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def ask(what: str, paths: list[str], limits: Limits, **options: Any) -> Any:
    """The JSON-able answer of `__main__`'s function `what` for the contents of `paths`.

    Raises WrongInput, OSError, and Unreadable, also where reading took more than `limits` allow.
    """
    request = {
        "what": what,
        "paths": paths,
        "limits": {"memory": limits.memory, "seconds": limits.seconds},
        "options": options,
    }
    # -P: a module in the current folder must not be taken for one of ours.
    command = [sys.executable, "-P", "-m", "relight_trainer.inspect"]
    done = subprocess.run(
        command,
        input=json.dumps(request).encode(),
        stdout=subprocess.PIPE,
        env={**os.environ, **_ONE_THREAD},
        check=False,
    )
    try:
        answer = json.loads(done.stdout) if done.returncode == 0 else None
    except ValueError:
        answer = None
    if answer is None:
        raise _ended(done.returncode, paths, limits)
    if "error" not in answer:
        return answer["result"]
    if answer["error"] == "OSError":
        raise OSError(answer["errno"], answer["message"], answer["filename"])
    raise _KINDS[answer["error"]](answer["message"])


def _ended(code: int, paths: list[str], limits: Limits) -> Exception:
    files = " and ".join(map(str, map(Path, paths)))
    if code == -signal.SIGXCPU:
        return Unreadable(too_long(files, limits))
    if code == -signal.SIGKILL:
        return Unreadable(f"{files}: the system ended the process that read it, most likely because memory ran out")
    if code < 0:
        return Unreadable(f"{files}: reading it ended the reader with {signal.Signals(-code).name}: it is damaged")
    return RuntimeError(f"the process that reads {files} ended with {code}")


def too_long(files: str, limits: Limits) -> str:
    return f"{files}: it takes more than {limits.seconds} s of the processor's time to read; --read-seconds allows more"


def too_large(files: str, limits: Limits) -> str:
    return f"{files}: it takes more than {limits.memory // MiB} MiB of memory to read; --read-memory allows more"
