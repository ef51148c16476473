"""`waiting.py WHERE WAITS MENDED`: 40 steps; an early one waits a minute, for its data or in an evaluation before it, until MENDED exists.

It makes the file WAITS as soon as it waits.
"""

import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset

from relight_trainer import client

where, waits, mended = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])


def wait() -> None:
    if mended.exists():
        return
    waits.touch()
    time.sleep(60)


class Slow(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 40

    def __getitem__(self, index: int) -> torch.Tensor:
        if where == "data" and index >= 10:
            wait()
        return torch.full((4,), index / 40)


model = nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
run = client.start(model=model, optimizer=optimizer, init=True)
replica = run.wrap(model)
for inputs in run.steps(DataLoader(Slow(), batch_size=1), epochs=1):
    if where == "evaluation" and run.step == 5:
        wait()
    optimizer.zero_grad()
    replica(inputs).square().mean().backward()
    optimizer.step()
