"""Trains a little and writes a digest of each variable that it is asked for: that a value came, and not which."""

import hashlib
import json
import os
import sys
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from relight_trainer import client

out, *names = sys.argv[1:]
model = nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
run = client.start(model=model, optimizer=optimizer, init=True)
replica = run.wrap(model)
loader = DataLoader(TensorDataset(torch.ones(12, 4)), batch_size=1)
for (inputs,) in run.steps(loader, epochs=1):
    optimizer.zero_grad()
    replica(inputs).square().mean().backward()
    optimizer.step()
    found = {n: hashlib.sha256(os.environ[n].encode()).hexdigest() if n in os.environ else None for n in names}
    Path(f"{out}-{torch.distributed.get_rank()}").write_text(json.dumps(found))
