"""`failing.py HOW [MENDED]`: ends badly in the way it is told to, until the file MENDED exists (it is made at the first
failure where MENDED ends in ".once"). With HOW "step:N", trains with the client and the last rank fails after step N;
with "leave:N" it ends there as if all had been done.
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


class NoSuchDigit(ValueError):
    pass


def end(how: str, rank: int) -> NoReturn:
    if how == "signal":
        os.kill(os.getpid(), signal.SIGKILL)
    if how.startswith("exit:"):
        sys.exit(int(how.removeprefix("exit:")))
    raise NoSuchDigit(f"eleven, on rank {rank}")


def mended() -> bool:
    if len(sys.argv) < 3:
        return False
    path = Path(sys.argv[2])
    if path.exists():
        return True
    if path.suffix == ".once":
        path.touch()
    return False


def train(steps: int, fails_at: int | None, how: str) -> None:
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    run = client.start(model=model, optimizer=optimizer, init=True)
    replica = run.wrap(model)
    for (inputs,) in run.steps(DataLoader(TensorDataset(torch.ones(steps, 4)), batch_size=1), epochs=1):
        optimizer.zero_grad()
        replica(inputs).sum().backward()
        optimizer.step()
        if run.step + 1 == fails_at and torch.distributed.get_rank() == torch.distributed.get_world_size() - 1:
            end(how, torch.distributed.get_rank())


how = sys.argv[1]
fails = not mended()
if how.startswith(("step:", "leave:")):
    kind, _, step = how.partition(":")
    train(40, int(step) if fails else None, "raise" if kind == "step" else "exit:0")
elif fails:
    end(how, int(os.environ["RANK"]))
