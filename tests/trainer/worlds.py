"""Small worlds for tests: each rank a process forked from a warm server, one member a rank unless told otherwise."""

import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from relight_agent.files import Command, GenerationFolder, JobFile

_warm = multiprocessing.get_context("forkserver")
_warm.set_forkserver_preload(["relight_trainer.train", "relight_trainer.client", "torch._dynamo"])
os.environ.update(
    OMP_NUM_THREADS="1", OPENBLAS_NUM_THREADS="1", GLOO_SOCKET_IFNAME="lo", CUDA_VISIBLE_DEVICES="", PYTHONHASHSEED="0"
)


@dataclass
class World:
    """The processes of one generation; `results[rank]` is what the target returned, or the exception's text."""

    folders: list[GenerationFolder]
    processes: list[BaseProcess]
    pipes: list[Connection]
    results: list[Any] = field(default_factory=list)

    def stop(self, slot: int, op: str = "stop") -> None:
        self.folders[slot].write_command(Command("test", op))

    def join(self, timeout: float = 90) -> list[Any]:
        for pipe in self.pipes:
            try:
                self.results.append(pipe.recv() if pipe.poll(timeout) else "no answer")
            except EOFError:
                self.results.append("died")
        for process in self.processes:
            process.join(timeout)
        return self.results


@contextmanager
def world(
    target: Callable[..., Any],
    *args: Any,
    root: Path,
    job: JobFile,
    generation: int = 1,
    ranks: int = 2,
    local_ranks: int = 1,
    **environment: str,
) -> Iterator[World]:
    """Start `target(context, *args)` on each rank; whatever still runs at the end is killed."""
    import torch.distributed as dist

    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    job.write(root / "job.json")
    folders = [GenerationFolder.create(root / f"slot-{slot}", generation) for slot in range(ranks // local_ranks)]
    processes, pipes = [], []
    for rank in range(ranks):
        slot, local_rank = divmod(rank, local_ranks)
        ours, theirs = _warm.Pipe(duplex=False)
        env = {
            "RELIGHT_JOB_FILE": str(root / "job.json"),
            "RELIGHT_RUN_DIR": str(root / f"slot-{slot}"),
            "RELIGHT_GENERATION_DIR": str(folders[slot].path),
            "RELIGHT_GENERATION": str(generation),
            "RELIGHT_SLOT": str(slot),
            "RANK": str(rank),
            "LOCAL_RANK": str(local_rank),
            "WORLD_SIZE": str(ranks),
            "LOCAL_WORLD_SIZE": str(local_ranks),
            "GROUP_RANK": str(slot),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(store.port),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
            **environment,
        }
        process = _warm.Process(target=_child, args=(target, args, env, theirs))
        process.start()
        theirs.close()
        processes.append(process)
        pipes.append(ours)
    running = World(folders, processes, pipes)
    try:
        yield running
    finally:
        for process in processes:
            if process.is_alive():
                process.kill()
            process.join()
        for pipe in pipes:
            pipe.close()


def _child(target: Callable[..., Any], args: tuple[Any, ...], env: dict[str, str], pipe: Connection) -> None:
    os.environ.update(env)
    import torch

    from relight_trainer.context import WorkerContext

    torch.set_num_threads(1)
    context = WorkerContext.from_env()
    try:
        result = target(context, *args)
    except SystemExit as end:
        result = f"SystemExit: {end.code}"
    except BaseException as error:
        traceback.print_exc()
        result = f"{type(error).__name__}: {error}"
    pipe.send(result)
    pipe.close()
    os._exit(0)


def run(target: Callable[..., Any], *args: Any, timeout: float = 90, **options: Any) -> list[Any]:
    """What each rank's `target(context, *args)` returned."""
    with world(target, *args, **options) as running:
        return running.join(timeout)
