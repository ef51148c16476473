"""What a plain torchrun starts: knows nothing of Relight; its second worker fails at the first start."""

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.elastic.multiprocessing.errors import record


@record
def main() -> None:
    dist.init_process_group("gloo")
    rank, total = dist.get_rank(), torch.ones(1)
    dist.all_reduce(total)
    started = Path(sys.argv[1])
    if rank == 1 and not started.exists():
        started.touch()
        raise ValueError(f"no such digit on rank {rank}")
    dist.barrier()
    print(f"rank {rank} of {int(total)}", flush=True)
    dist.destroy_process_group()


main()
