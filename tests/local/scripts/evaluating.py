"""`evaluating.py SECONDS`: two epochs; after each, rank 0 alone evaluates for that long while the others wait for it."""

import sys
import time

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from relight_trainer import client

model = nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
run = client.start(model=model, optimizer=optimizer, init=True)
replica = run.wrap(model)
loader = DataLoader(TensorDataset(torch.ones(20, 4)), batch_size=1)
for (inputs,) in run.steps(loader, epochs=2):
    optimizer.zero_grad()
    replica(inputs).square().mean().backward()
    optimizer.step()
    if run.step % 20 == 19:
        with run.evaluation():
            if torch.distributed.get_rank() == 0:
                time.sleep(float(sys.argv[1]))
