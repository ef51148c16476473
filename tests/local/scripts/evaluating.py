"""`evaluating.py LOG`: after 70 of 80 steps rank 0 alone evaluates, until member 1's agent has written into its LOG that
it is overdue, and a little longer.
"""

import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from relight_trainer import client

model = nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
run = client.start(model=model, optimizer=optimizer, init=True)
replica = run.wrap(model)
loader = DataLoader(TensorDataset(torch.ones(20, 4)), batch_size=1)
for (inputs,) in run.steps(loader, epochs=4):
    time.sleep(0.05)
    optimizer.zero_grad()
    replica(inputs).square().mean().backward()
    optimizer.step()
    if run.step == 70 and torch.distributed.get_rank() == 0:
        with run.evaluation():
            give_up = time.monotonic() + 60
            while "rank 1 has been silent" not in Path(sys.argv[1]).read_text() and time.monotonic() < give_up:
                time.sleep(0.1)
            time.sleep(1.0)
