"""Forms a world, writes what it sees into the generation's folder, then reduces until told how to end.

argv: how to end: "return" | "exit CODE" | "raise TEXT" | "loop" (until a peer is lost).
"""

import atexit
import json
import os
import sys
import time
from pathlib import Path

import torch
import torch.distributed as dist

folder = Path(os.environ["RELIGHT_GENERATION_DIR"])
local_rank = os.environ["LOCAL_RANK"]


def note(name, value):
    path = folder / f"{name}-{local_rank}.json"
    path.with_suffix(".tmp").write_text(json.dumps(value))
    path.with_suffix(".tmp").rename(path)


def links():
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        try:
            found[entry.name] = str(entry.readlink())
        except OSError:
            continue
    return found


inherited = links()
atexit.register(note, "atexit", "ran")
dist.init_process_group("gloo")
x = torch.ones(1000)
dist.all_reduce(x)
note(
    "formed",
    {
        "at": time.monotonic(),
        "rank": dist.get_rank(),
        "world": dist.get_world_size(),
        "sum": x[0].item(),
        "pid": os.getpid(),
        "parent": os.getppid(),
        "inherited": inherited,
        "threads": torch.get_num_threads(),
        "seed": torch.initial_seed(),
        "argv": sys.argv,
        "cwd": str(Path.cwd()),
        "bad_fork": torch.cuda._is_in_bad_fork(),
    },
)
match sys.argv[1:]:
    case ["loop"]:
        while True:
            dist.all_reduce(x.fill_(1))
            time.sleep(0.002)
    case ["exit", code]:
        sys.exit(int(code))
    case ["raise", text]:
        raise ValueError(text)
