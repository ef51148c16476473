"""`libraries.py NOTES FLAG`: a script with a library that takes its time, which is timed; slow steps until FLAG is there."""

import json
import os
import sys
import time
from pathlib import Path

began, there = time.monotonic(), "sklearn.ensemble" in sys.modules
import sklearn.ensemble  # noqa: E402, F401

took = time.monotonic() - began

import torch  # noqa: E402
from torch import nn  # noqa: E402
from torch.utils.data import DataLoader, TensorDataset  # noqa: E402

from relight_trainer import client  # noqa: E402

notes, flag = map(Path, sys.argv[1:])
with notes.open("a") as file:
    file.write(json.dumps([int(os.environ["RELIGHT_GENERATION"]), int(os.environ["RANK"]), there, took]) + "\n")

torch.manual_seed(0)
model = nn.Linear(4, 2)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
run = client.start(model=model, optimizer=optimizer, init=True)
replica = run.wrap(model)
loader = DataLoader(TensorDataset(torch.ones(200, 4)), batch_size=1)
for (inputs,) in run.steps(loader, epochs=1):
    time.sleep(0.005 if flag.exists() else 0.2)
    optimizer.zero_grad()
    replica(inputs).square().mean().backward()
    optimizer.step()
