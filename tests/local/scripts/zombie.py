"""`zombie.py FOLDER`: trains 40 steps. In generation 1 everything of the member is frozen in step 20, FOLDER/frozen.json
says which processes that are; later generations wait after step 30 for FOLDER/attempted. Outside a job: prints the digest.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from relight_agent.processes import descendants
from relight_trainer import client
from relight_trainer.checkpoint import weights_digest

FOLDER, PATIENCE_SECONDS = Path(sys.argv[1]), 300.0


def freeze() -> None:
    agent, me = int(os.environ["RELIGHT_AGENT_PID"]), os.getpid()
    others = [pid for pid in descendants(agent) if pid != me]
    written = FOLDER / "frozen.tmp"
    written.write_text(json.dumps({"agent": agent, "others": others, "worker": me}))
    written.replace(FOLDER / "frozen.json")
    for pid in (agent, *others, me):
        os.kill(pid, signal.SIGSTOP)


def wait_for_the_zombie() -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not (FOLDER / "attempted").exists() and time.monotonic() < deadline:
        time.sleep(0.02)


generation = int(os.environ.get("RELIGHT_GENERATION", "0"))
model = nn.Linear(4, 2)
nn.init.ones_(model.weight)
nn.init.zeros_(model.bias)
optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
data = torch.arange(160, dtype=torch.float32).reshape(40, 4) / 160
run = client.start(model=model, optimizer=optimizer, init=True)
for done, (inputs,) in enumerate(run.steps(DataLoader(TensorDataset(data), batch_size=1), epochs=1), start=run.step):
    optimizer.zero_grad()
    model(inputs).square().sum().backward()
    optimizer.step()
    if generation == 1 and done == 19:
        freeze()
    if generation > 1 and done == 29:
        wait_for_the_zombie()
if not generation:
    print(weights_digest([*model.named_parameters(), *model.named_buffers()]))
