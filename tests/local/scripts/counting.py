"""A script with the client: 80 steps, each written down by rank 0 as soon as it is done."""

import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from relight_trainer import client

model = nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
run = client.start(model=model, optimizer=optimizer, init=True)
replica = run.wrap(model)
loader = DataLoader(TensorDataset(torch.arange(160, dtype=torch.float32).reshape(40, 4) / 160), batch_size=1)
for (inputs,) in run.steps(loader, epochs=2):
    optimizer.zero_grad()
    replica(inputs).square().mean().backward()
    optimizer.step()
    if torch.distributed.get_rank() == 0:
        with Path(sys.argv[1]).open("a") as file:
            file.write(f"{run.step + 1}\n")
