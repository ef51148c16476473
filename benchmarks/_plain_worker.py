"""What plain torchrun starts in benchmarks/recovery.py: Relight's training core, with checkpoints and nothing else of Relight.

`_plain_worker.py FOLDER`: the job file, the checkpoints and the workers' progress lie in FOLDER, which all pods share.
What a worker's memory held is not looked for again: each start goes on from the newest checkpoint.
"""

import os
import sys
from pathlib import Path

from relight_agent.files import GenerationFolder
from relight_trainer import train
from relight_trainer.context import WorkerContext
from relight_trainer.peers import connect

shared = Path(sys.argv[1])
rank = int(os.environ["RANK"])
store = connect("plain")
if rank == 0:
    number = shared / "generation"
    generation = int(number.read_text() if number.exists() else 0) + 1
    number.write_text(str(generation))
    store.set("generation", str(generation))
store.wait(["generation"])
generation = int(store.get("generation"))
folder = GenerationFolder.create(shared / "runs" / str(rank), generation)
os.environ.update(
    RELIGHT_JOB_FILE=str(shared / "job.json"),
    RELIGHT_RUN_DIR=f"/dev/shm/plain-{generation}",  # snapshots are taken as in Relight, and never read
    RELIGHT_GENERATION_DIR=str(folder.path),
    RELIGHT_GENERATION=str(generation),
    RELIGHT_SLOT=str(rank),
)
context = WorkerContext.from_env()
assert context is not None
train.run(context)
