"""`failing.py HOW [MENDED]`: ends badly in the way it is told to, until the file MENDED exists (it is made at the first
failure where MENDED ends in ".once"). "starve" takes memory for ever. "early" uses no client: rank 1 ends with 0 while
rank 0 waits for it. With HOW "step:N", trains with the client, and the last rank fails once it has
applied step N; with "forward:N" it fails before it, with "leave:N" it ends with 0 there. "outage:N" is "forward:N" with an error of a network, which
may pass. VOLATILE in the environment puts what differs each time into the words.
"""

import os
import signal
import sys
from pathlib import Path
from typing import NoReturn

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from relight_trainer import client

HELD: list[bytearray] = []
MENDED = Path(sys.argv[2]) if len(sys.argv) > 2 else None


class NoSuchDigit(ValueError):
    pass


class Broken(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no text for you")


def end(how: str, rank: int) -> NoReturn:
    if MENDED is not None and MENDED.suffix == ".once":
        MENDED.touch()
    if how == "signal":
        os.kill(os.getpid(), signal.SIGKILL)
    while how == "starve":
        HELD.append(bytearray(1 << 24))
    if how.startswith("exit:"):
        sys.exit(int(how.removeprefix("exit:")))
    if how == "leave":
        sys.exit(0)
    if how == "missing":
        raise FileNotFoundError(2, "No such file", "/data/cafe.jpg")
    if how == "text":
        sys.exit("error: --data-dir is required")
    if how == "broken":
        raise Broken
    if how == "import":
        import no_such_module_anywhere  # noqa: F401
    if how == "outage":
        raise ConnectionResetError(f"by the object store, on rank {rank}")
    words = f" (pid {os.getpid()}, {object()!r})" if "VOLATILE" in os.environ else ""
    raise NoSuchDigit(f"eleven, on rank {rank}{words}")


def train(steps: int, fails_at: int | None, how: str) -> None:
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = client.start(model=model, optimizer=optimizer, init=True)
    replica = run.wrap(model)
    for (inputs,) in run.steps(DataLoader(TensorDataset(torch.ones(steps, 4)), batch_size=1), epochs=1):
        here = run.step + 1 == fails_at and torch.distributed.get_rank() == torch.distributed.get_world_size() - 1
        if here and how != "step":
            end(how, torch.distributed.get_rank())
        optimizer.zero_grad()
        replica(inputs).sum().backward()
        optimizer.step()
        if here:
            end(how, torch.distributed.get_rank())


how = sys.argv[1]
fails = MENDED is None or not MENDED.exists()
kind, _, step = how.partition(":")
if kind in {"step", "forward", "leave", "outage"}:
    train(40, int(step) if fails else None, kind)
elif how == "early":
    torch.distributed.init_process_group("gloo")
    if fails and torch.distributed.get_rank() == 1:
        end("leave", 1)
    torch.distributed.all_reduce(torch.ones(1))
elif fails:
    end(how, int(os.environ["RANK"]))
