"""Writes what a script can see of the process that it runs in into the generation's folder."""

import json
import multiprocessing
import os
import signal
import sys
import threading
from pathlib import Path

import torch

folder = Path(os.environ["RELIGHT_GENERATION_DIR"])
told = {
    "environment": dict(os.environ),
    "argv": sys.argv,
    "path": sys.path,
    "folder": str(Path.cwd()),
    "threads": [threading.active_count(), len(list(Path("/proc/self/task").iterdir())), torch.get_num_threads()],
    "seed": torch.initial_seed(),
    "signals": {s.name: str(signal.getsignal(s)).partition(" at ")[0] for s in signal.valid_signals() if s < 32},
    "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, [])),
    "stdin": str(Path("/proc/self/fd/0").readlink()),
    "stdout": str(Path("/proc/self/fd/1").readlink()),
    "nice": os.nice(0),
    "daemon": multiprocessing.current_process().daemon,
    "has_parent": multiprocessing.parent_process() is not None,
    "own_group": os.getpgid(0) == os.getppid(),
    "device": torch.cuda.is_initialized(),
}
seen = {"pid": os.getpid(), "told": told, "modules": [name for name in sys.argv[1:] if name in sys.modules]}
path = folder / f"seen-{os.environ['LOCAL_RANK']}.json"
path.with_suffix(".tmp").write_text(json.dumps(seen, default=str))
path.with_suffix(".tmp").rename(path)
