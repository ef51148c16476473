"""`ends.py HOW [FILE]`: trains with the client, two epochs of ten batches of four, and ends in the way it is told to.

"break": leaves its loop in step 13; "break, finish": and calls run.finish(). "uneven": rank 1 has one batch less in each
epoch. "tail": behind the loop, rank 0 kills its member's agent, and with it all processes of the member, unless FILE
exists, which it makes; then each rank adds a line to FILE. "wait": waits there for FILE, for which it asks by FILE with the suffix ".there".
"""

import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from relight_trainer import client

how = sys.argv[1]
torch.manual_seed(0)
model = nn.Linear(2, 1)
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
run = client.start(model=model, optimizer=optimizer, init=True)
rank = torch.distributed.get_rank()
net = run.wrap(model)
data = TensorDataset(torch.randn(40 - 4 * (how == "uneven" and rank == 1), 2))
for (x,) in run.steps(DataLoader(data, 4), epochs=2):
    optimizer.zero_grad()
    loss = net(x).square().mean()
    loss.backward()
    optimizer.step()
    run.log(loss=loss)
    if "break" in how and run.step + 1 == 13:
        break
if "finish" in how:
    run.finish()
if how == "wait":
    Path(sys.argv[2]).with_suffix(".there").touch()
    while not Path(sys.argv[2]).exists():
        time.sleep(0.05)
if how == "tail":
    done = Path(sys.argv[2])
    if rank == 0 and not done.exists():
        done.touch()
        os.kill(int(os.environ["RELIGHT_AGENT_PID"]), signal.SIGKILL)
        signal.pause()
    torch.distributed.barrier()
    with done.open("a") as file:
        file.write(f"rank {rank} after step {run.step}\n")
