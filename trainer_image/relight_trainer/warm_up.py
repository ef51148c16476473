"""What a member that waits for its first generation can read in advance, into the machine's page cache: code and data's index.

An image folder of a million files takes a cold machine minutes to list. What is read here is thrown away; that it has been
read is what a spare, or a successor, is quicker by. Only data sets of our own are opened: who knows what others do.
"""

import contextlib
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

from relight_agent.files import JobFile

INDEXED = frozenset({"image_folder", "tar_shards", "arrays", "csv"})  # what there is to be read of a data set
_MOST = 10_000  # files that are looked at for code: a job's folder may hold its data too


def main() -> int:
    """In a child of the launcher, which kills it when there is something to be done."""
    os.nice(19)
    job = JobFile.load(os.environ["RELIGHT_JOB_FILE"])
    os.chdir(job.workdir)
    _read_code(job)
    if (job.entry.get("config") or {}).get("data", {}).get("type") in INDEXED:
        _read_index(job)
    return 0


def _read_code(job: JobFile) -> None:
    """Python's files in the job's folder, and in that of its script."""
    argv = job.entry.get("argv") or []
    script = [Path(argv[0]).parent] if job.entry["kind"] == "script" and argv else []
    for folder in dict.fromkeys(path.resolve() for path in [*script, Path()]):
        for path in islice(_files(folder), _MOST):
            if path.suffix in {".py", ".pyc"}:
                with contextlib.suppress(OSError):
                    path.read_bytes()


def _files(folder: Path) -> Iterator[Path]:
    for path, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        yield from (Path(path, name) for name in names)


def _read_index(job: JobFile) -> None:
    import torch

    from relight_trainer.config import parse
    from relight_trainer.data.splits import open_splits

    config = parse(job.entry["config"])
    with contextlib.suppress(Exception):  # it is told by the worker that cannot do without
        open_splits(config.data, config.loader, config.train.seed, torch.device("cpu"))
