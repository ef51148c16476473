"""How long does a training stand still for a snapshot, and for a checkpoint?

Models of 200 MB and 1 GB in one process, whose steps take a fixed time: what a step takes beyond that, when a snapshot is
taken after it or a checkpoint is due, is the stall. It is compared with copying as many bytes once within the same memory,
which no consistent copy can do without.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed import HashStore, PrefixStore

import _runs
from relight_agent.files import GenerationFolder, JobFile
from relight_trainer import session as sessions
from relight_trainer import train
from relight_trainer.config import parse
from relight_trainer.context import WorkerContext
from relight_trainer.data.splits import splits_of
from relight_trainer.data.tensors import Samples
from relight_trainer.hooks import Hook
from relight_trainer.run import Run
from trainer_overhead import store

STEP_SECONDS = 0.25
NEVER = 10**6
MEGABYTES = (200, 1000)
CHECKPOINT_SECONDS = (
    10.0  # from one to the next: one that the one before is still being written then is left out, and costs nothing
)
CACHE_BYTES = 1 << 30  # more than any
PART_BYTES = 1 << 24  # of each tensor: a model has many


class Large(nn.Module):
    """Holds `megabytes`, and takes its time."""

    def __init__(self, megabytes: int) -> None:
        super().__init__()
        count = megabytes * 10**6 // PART_BYTES
        self.parts = nn.ParameterList(
            nn.Parameter(torch.randn(PART_BYTES // 4), requires_grad=False) for _ in range(count)
        )
        self.small = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        with torch.no_grad():  # a step changes all of it, so that all of it is copied
            torch._foreach_add_([part[:1] for part in self.parts], 1.0)
        time.sleep(STEP_SECONDS)
        logits: Tensor = self.small(inputs)
        return logits


class Clock(Hook):
    """When each step began."""

    at: list[float]

    def run_begin(self, _: Run) -> None:
        Clock.at = []

    def step_begin(self, _: Run) -> None:
        Clock.at.append(time.perf_counter())


def periods(megabytes: int, steps: int, disk: Path, *, snapshot: int, checkpoint: int) -> list[float]:
    """Seconds from the beginning of each step to that of the next one."""
    config = parse(
        {
            "model": {"type": "stall:Large", "megabytes": megabytes},
            "train": {"duration": f"{steps}st", "global_batch": 4, "device": "cpu"},
            "optimizer": {"type": "sgd", "lr": 0.1, "nesterov": False, "weight_decay": 0.0},
            "hooks": [{"type": "stall:Clock"}],
        }
    )
    with (
        store() as port,
        tempfile.TemporaryDirectory(dir="/dev/shm") as memory,
        tempfile.TemporaryDirectory(dir=disk) as folder,
    ):
        run_dir = Path(memory)
        job = JobFile(
            namespace="default", name="stall", uid="u", created=1.0, nodes=1, proc_per_node=1,
            entry={"kind": "config", "config": {}}, config_hash="c",
            checkpoint_dir=folder, checkpoint_steps=checkpoint, snapshot_every=snapshot,
        )  # fmt: skip
        context = WorkerContext(
            job=job, folder=GenerationFolder.create(run_dir, 1), run_dir=run_dir, generation=1, slot=0, rank=0,
            local_rank=0, world_size=1, local_world_size=1, node_rank=0,
        )  # fmt: skip
        sessions.connect = lambda prefix: PrefixStore(  # type: ignore[assignment]
            prefix, torch.distributed.TCPStore("127.0.0.1", port, is_master=False, wait_for_workers=False)
        )
        torch.distributed.init_process_group("gloo", store=HashStore(), rank=0, world_size=1)
        device = train.prepare(config.train, 0)
        samples = Samples(torch.randn(64, 4), torch.zeros(64, dtype=torch.long))
        splits = splits_of((samples, None), config.loader, config.train.seed, device)
        train.train(config, splits, sessions.Session(context), device, context)
        torch.distributed.destroy_process_group()
    return [after - before for before, after in zip(Clock.at, Clock.at[1:], strict=False)]


def copying(megabytes: int) -> float:
    """Seconds for one copy of so many bytes into memory that is there already, none of them in a cache: so a step leaves them."""
    source, target = (torch.ones(megabytes * 10**6 // 4) for _ in range(2))
    others = torch.ones(CACHE_BYTES // 4)
    torch.set_num_threads(1)  # as the training's
    took = []
    for _ in range(7):
        others += 1
        began = time.perf_counter()
        target.copy_(source)
        took.append(time.perf_counter() - began)
    return statistics.median(took)


def stalls(found: list[float], every: int, skip: int) -> list[float]:
    """What each step with something after it took beyond the median of those with nothing; the first `skip` apart."""
    plain = statistics.median(s for i, s in enumerate(found, 1) if i % every)
    return [s - plain for i, s in enumerate(found, 1) if i % every == 0][skip:]


def measure(megabytes: int, times: int, disk: Path) -> dict[str, Any]:
    copy = copying(megabytes)
    every = 6
    snapshots = stalls(periods(megabytes, every * (times + 2) + 1, disk, snapshot=every, checkpoint=NEVER), every, 2)
    every = round(CHECKPOINT_SECONDS / STEP_SECONDS)
    checkpoints = stalls(periods(megabytes, every * (times + 1) + 1, disk, snapshot=NEVER, checkpoint=every), every, 0)
    return {
        "megabytes": megabytes,
        "one copy": round(copy, 4),
        "snapshot": round(statistics.median(snapshots), 4),
        "first checkpoint": round(checkpoints[0], 4),
        "later checkpoints": round(statistics.median(checkpoints[1:]), 4),
        "copies, snapshot": round(statistics.median(snapshots) / copy, 2),
        "copies, later checkpoints": round(statistics.median(checkpoints[1:]) / copy, 2),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=6, help="snapshots, and checkpoints, of each model (default 6)")
    parser.add_argument("--disk", type=Path, default=Path(tempfile.gettempdir()), help="where the checkpoints go")
    parser.add_argument("--results", type=Path, default=_runs.RESULTS, help="folder for the JSON of the numbers")
    arguments = parser.parse_args()
    rows = [measure(megabytes, arguments.times, arguments.disk) for megabytes in MEGABYTES]
    print(_runs.table([tuple(rows[0]), *(tuple(row.values()) for row in rows)]))
    _runs.write(arguments.results, "stall", {"step seconds": STEP_SECONDS, "sizes": rows})


if __name__ == "__main__":
    sys.modules["stall"] = sys.modules["__main__"]
    main()
