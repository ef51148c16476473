"""Two ranks, each on its half of the data, and a model that nobody has wrapped in DistributedDataParallel.

argv: "trains", or "is set" where each rank sets its weights to its rank after each step.
"""

import sys

import torch
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from relight_trainer import client

torch.manual_seed(0)
model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.ReLU(), torch.nn.Linear(8, 1))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
run = client.start(model=model, optimizer=optimizer, init=True)
points = TensorDataset(torch.randn(64, 2, generator=torch.Generator().manual_seed(1)))
for (x,) in run.steps(DataLoader(points, batch_size=4, sampler=DistributedSampler(points)), epochs=4):
    optimizer.zero_grad()
    model(x).pow(2).mean().backward()
    optimizer.step()
    if sys.argv[1] == "is set":
        with torch.no_grad():
            for p in model.parameters():
                p.fill_(dist.get_rank())
