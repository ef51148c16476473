"""What a member that waits for its first generation can read in advance: its data's index, into the machine's page cache.

An image folder of a million files takes a cold machine minutes to list. What is read here is thrown away; that it has been
read is what a spare, or a successor, is quicker by. Only sets of our own are opened: who knows what others do.
"""

import contextlib
import os

from relight_agent.files import JobFile

INDEXED = frozenset({"image_folder", "tar_shards", "arrays", "csv"})  # what there is to be read of a data set


def main() -> int:
    """In a child of the launcher, which kills it when there is something to be done. 0 where something has been read."""
    os.nice(19)
    job = JobFile.load(os.environ["RELIGHT_JOB_FILE"])
    if (job.entry.get("config") or {}).get("data", {}).get("type") not in INDEXED:
        return 1
    import torch

    from relight_trainer.config import parse
    from relight_trainer.data.splits import open_splits

    os.chdir(job.workdir)
    config = parse(job.entry["config"])
    with contextlib.suppress(Exception):  # it is told by the worker that cannot do without
        open_splits(config.data, config.loader, config.train.seed, torch.device("cpu"))
    return 0
