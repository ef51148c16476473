"""The agent's end of the warm launcher: a child that has imported torch and forks the workers of each generation.

The protocol is in docs/architecture.md §3. A reader thread turns the launcher's lines into events of the agent's queue.
"""

import json
import os
import socket
import subprocess
import sys
import threading
from typing import Any, Callable, Dict, List, Optional

# What `python -m MODULE` does, but that the working folder is not searched: a user's `queue.py` there must not become
# the library's. (`-P` would do, from Python 3.11 on.) In its place comes the library, before PYTHONPATH.
_RUN_MODULE = """\
import sys
if not sys.path[0]:
    import os
    sys.path[0] = os.path.dirname(os.__file__)
import runpy
runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
"""


def python_module(python: str, module: str) -> List[str]:
    """The command line that runs `module` with a job's interpreter."""
    return [python, "-c", _RUN_MODULE, module]


class Launcher:
    def __init__(
        self, python: str, env: Dict[str, str], workdir: str, on_event: Callable[[Dict[str, Any]], None]
    ) -> None:
        """Start it; `on_event` is called from another thread with each message, and {"event": "closed"} at its end."""
        ours, theirs = socket.socketpair()
        with theirs:
            self._process = subprocess.Popen(
                python_module(python, "relight_trainer.launcher"),
                env={**env, "RELIGHT_LAUNCHER_FD": str(theirs.fileno())},
                cwd=workdir,
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
            )
        self.pid = self._process.pid
        self.store_pid: Optional[int] = None
        self._socket = ours
        self._on_event = on_event
        threading.Thread(target=self._read, name="launcher", daemon=True).start()

    def _read(self) -> None:
        with self._socket.makefile("r", encoding="utf-8") as lines:
            try:
                for line in lines:
                    message = json.loads(line)
                    if isinstance(message, dict):
                        self._on_event(message)
            except (OSError, ValueError):
                pass
        self._on_event({"event": "closed", "pid": self.pid})

    def send(self, message: Dict[str, Any]) -> bool:
        """False where the launcher is gone; its end is an event of its own."""
        try:
            self._socket.sendall(json.dumps(message).encode() + b"\n")
        except OSError:
            return False
        return True

    def close(self) -> None:
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass
        # The agent reaps; without this Popen's destructor would warn about a child that it believes alive.
        self._process.returncode = 0


def python_of(job_python: str) -> str:
    """The interpreter of the workers: the job's, else the agent's own."""
    return job_python or sys.executable


def inherited_env(job_env: Dict[str, str], own: Dict[str, str]) -> Dict[str, str]:
    """The agent's environment with the job's on top; what Relight sets cannot be overlaid."""
    return {**os.environ, **job_env, **own}


def path_of(job_env: Dict[str, str]) -> str:
    return job_env.get("PATH") or os.environ.get("PATH") or os.defpath
