"""One step of a configuration on the CPU, in a process of its own: it finds what a worker would refuse.

`python -m relight_trainer.trial REQUEST.json ANSWER.json`: the request is {"config", "nodes", "proc_per_node"}, the answer
{"problem": text or null, "samples": of the step}. The working folder is the job's.
"""

import os
import sys
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from relight_agent.files import GenerationFolder, JobFile, read_json, write_json
from relight_trainer import hygiene
from relight_trainer.config import TrainerConfig, canonical, check, parse
from relight_trainer.context import WorkerContext
from relight_trainer.data.splits import open_splits
from relight_trainer.failures import describe
from relight_trainer.feed import Feed
from relight_trainer.init_from import init_from
from relight_trainer.peers import form
from relight_trainer.session import Session
from relight_trainer.setup import Training
from relight_trainer.shares import share
from relight_trainer.train import prepare


def try_out(config: TrainerConfig, workers: int) -> int:
    """Build all that a worker of `config` builds, and take one step of one worker's smallest micro-batch; its samples.

    Raises what a worker would raise.
    """
    check(config)
    settings = config.train.model_copy(update={"device": "cpu"})
    here = config.model_copy(update={"train": settings})
    device = prepare(settings, 0)
    splits = open_splits(here.data, here.loader, settings.seed, device)
    parts = workers * settings.micro_batches(workers)
    samples = min(len(range(settings.global_batch)[share(settings.global_batch, i, parts)]) for i in range(parts))
    with _world_of_one(here) as context:
        form(device, context.folder.members())
        session = Session(context)
        # The whole step first: where the freezing, the schedule and the evaluations stand follows from its size.
        whole = Training(here, splits, session, device, context)
        if here.init_from:
            init_from(here.init_from, whole.run.model)
        whole.close()
        small = settings.model_copy(update={"global_batch": samples, "accumulate": 1, "micro_batch": None})
        small = small.model_copy(update={"virtual_ranks": "auto"})
        training = Training(here.model_copy(update={"train": small}), splits, session, device, context)
        training.restore()
        run = training.run
        with closing(Feed(training.sampler, training.dealer, splits.train, run.step, run.total_steps)) as feed:
            size = training.sampler.size(run.step)
            training.before_step()
            training.step(feed.parts(run.step), feed.batches, size, training.dealer.fewest(size))
        training.close()
        dist.destroy_process_group()
    return samples


@contextmanager
def _world_of_one(config: TrainerConfig) -> Iterator[WorkerContext]:
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        entry = {"kind": "config", "config": canonical(config)}
        JobFile("default", "trial", "trial", 0.0, 1, 1, entry, "trial", str(Path.cwd())).write(root / "job.json")
        store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)  # type: ignore[attr-defined]
        os.environ.update(
            RELIGHT_JOB_FILE=str(root / "job.json"),
            RELIGHT_RUN_DIR=name,
            RELIGHT_GENERATION_DIR=str(GenerationFolder.create(root, 1).path),
            RELIGHT_GENERATION="1",
            RELIGHT_SLOT="0",
            RANK="0",
            LOCAL_RANK="0",
            WORLD_SIZE="1",
            LOCAL_WORLD_SIZE="1",
            GROUP_RANK="0",
            MASTER_ADDR="127.0.0.1",
            MASTER_PORT=str(store.port),
            TORCHELASTIC_USE_AGENT_STORE="True",
        )
        context = WorkerContext.from_env()
        assert context is not None
        yield context


def main() -> int:
    hygiene.leave_working_folder_out_of_path()
    sys.path.append(str(Path.cwd()))  # last, as in a worker
    request: Any = read_json(sys.argv[1])
    torch.set_num_threads(1)
    answer: dict[str, Any] = {"problem": None, "samples": 0}
    try:
        answer["samples"] = try_out(parse(request["config"]), int(request["nodes"]) * int(request["proc_per_node"]))
    except Exception as error:
        answer["problem"] = describe(error)
    write_json(sys.argv[2], answer)
    sys.stdout.flush()
    os._exit(0)  # loader processes and threads of the trial have nothing left to do


if __name__ == "__main__":
    main()
