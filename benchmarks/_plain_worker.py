"""What plain torchrun starts in benchmarks/recovery.py: Relight's training core, with checkpoints and nothing else of Relight.

`_plain_worker.py FOLDER`: the job file, the checkpoints and the workers' progress lie in FOLDER, which all pods share.
What a worker's memory held is not looked for again: each start goes on from the newest checkpoint.
"""

import os
import sys
import time
from pathlib import Path

from torch.distributed import TCPStore

from relight_agent.files import GenerationFolder
from relight_trainer import train
from relight_trainer.context import WorkerContext

shared = Path(sys.argv[1])
rank = int(os.environ["RANK"])
# All ranks of a start know its master, no two starts have the same: by that they agree on its number.
agreed = shared / f"start-{os.environ['MASTER_ADDR']}-{os.environ['MASTER_PORT']}"
if rank == 0:
    number = shared / "generation"
    generation = int(number.read_text() if number.exists() else 0) + 1
    for path in (number, agreed):
        written = path.with_name(f".{path.name}")
        written.write_text(str(generation))
        written.rename(path)
while not agreed.exists():
    time.sleep(0.005)
generation = int(agreed.read_text())
folder = GenerationFolder.create(shared / "runs" / str(rank), generation)
os.environ.update(
    RELIGHT_JOB_FILE=str(shared / "job.json"),
    RELIGHT_RUN_DIR=f"/dev/shm/plain-{generation}",  # snapshots are taken as in Relight, and never read
    RELIGHT_GENERATION_DIR=str(folder.path),
    RELIGHT_GENERATION=str(generation),
    RELIGHT_SLOT=str(rank),
)
# Where torchrun keeps none for the workers, the first of them does.
ours = rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
store = TCPStore("0.0.0.0", int(os.environ["MASTER_PORT"]), is_master=True, wait_for_workers=False) if ours else None
context = WorkerContext.from_env()
assert context is not None
train.run(context)
