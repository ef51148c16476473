"""A command that knows nothing of Relight: torchrun reads its variables, and the script keeps its own state in $STATE.

Its first attempt fails on purpose, on rank 1.
"""

import os
from pathlib import Path

import torch
import torch.distributed as dist

STEPS = 20


def main() -> None:
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    state = Path(os.environ["STATE"]) / f"steps-{rank}"
    state.parent.mkdir(exist_ok=True)
    # Ranks may have saved different steps: all go on from the one that all have done.
    done = torch.tensor(int(state.read_text()) if state.exists() else 0)
    dist.all_reduce(done, dist.ReduceOp.MIN)
    first = int(done)
    total = torch.zeros(1)
    for step in range(first, STEPS):
        if rank == 1 and step == 7 and first == 0:
            raise ValueError("rank 1 fails on purpose, once")
        total.fill_(step)
        dist.all_reduce(total)
        state.write_text(str(step + 1))
    dist.barrier()
    state.unlink(missing_ok=True)
    print(f"rank {rank}: steps {first + 1} to {STEPS} done, the last sum is {total.item():g}", flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
