"""The training core over a storage that is far away, slow and broken: it ends with the same weights."""

import errno
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
import worlds
from test_train_exact import job

from relight_agent.files import GenerationFolder
from relight_trainer import train
from relight_trainer.checkpoint.object_place import ObjectPlace
from relight_trainer.context import WorkerContext
from relight_trainer.session import Cursor, Session

pytestmark = pytest.mark.timeout(120)
URL = "memory://bucket/runs"


class Died(BaseException):
    pass


def lives(context: WorkerContext, root: Path, the_job: Any, cuts: list[tuple[int, int]]) -> list[Any]:
    """Lives of one job, one after the other in one process, each without the memory of the one before.

    Each is (the step it dies behind, the step of the checkpoint at which the store is full).
    """
    ends = []
    step_done, write = Session.step_done, ObjectPlace.write
    for generation, (cut, full) in enumerate(cuts, 1):
        shutil.rmtree(context.run_dir, ignore_errors=True)
        folder = GenerationFolder.create(context.run_dir, generation)
        os.environ["RELIGHT_GENERATION"] = str(generation)

        def step_done_then_die(self: Session, cursor: Cursor, cut: int = cut) -> None:
            step_done(self, cursor)
            if cursor.step == cut:
                raise Died

        def write_unless_full(self: ObjectPlace, begun: str, file: str, parts: Any, full: int = full) -> Any:
            if begun.startswith(f"step-{full:09d}."):
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(self, begun, file, parts)

        Session.step_done = step_done_then_die  # type: ignore[method-assign]
        ObjectPlace.write = write_unless_full  # type: ignore[method-assign]
        try:
            outcome = train.run(replace(context, job=the_job, folder=folder, generation=generation))
            progress = folder.progress()
            assert progress is not None
            ends.append((outcome, progress.resumed_kind, progress.resumed_from, progress.notices))
        except Died:
            ends.append("died")
        dist.destroy_process_group()
    place = ObjectPlace.at(the_job.checkpoint_dir)
    return [*ends, place.names("step-")]


def test_a_far_and_broken_store_costs_checkpoints_and_nothing_else(tmp_path: Path) -> None:
    def run(name: str, cuts: list[tuple[int, int]], **more: Any) -> list[Any]:
        root = tmp_path / name
        root.mkdir()
        the_job = replace(job(root), checkpoint_dir=f"{URL}/{name}", checkpoint_steps=2, **more)
        [ends] = worlds.run(lives, root, the_job, cuts, root=root, job=the_job, ranks=1)
        return ends

    (whole, *_), names = run("whole", [(-1, -1)])
    assert (
        names
        == ["step-000000008.g1", "step-000000010.g1", "step-000000012.g1", "step-000000012.g1.final"][-len(names) :]
    )

    best = {"metric": "loss", "mode": "max", "keep": 1}
    died, again, end, names = run("cut", [(5, -1), (9, 8), (-1, 10)], checkpoint_best=best)

    assert (died, again) == ("died", "died")
    outcome, kind, resumed_from, notices = end
    assert (kind, resumed_from) == ("checkpoint", 6)  # not 8: the store was full
    assert outcome.kind == "completed"
    assert outcome.result["weightsDigest"] == whole.result["weightsDigest"]
    assert any(
        "training goes on without the checkpoint of step 10: cannot write" in n and "No space left" in n
        for n in notices
    )
    assert names[-1] == "step-000000012.g3.final"
    assert "step-000000002.g1" in names  # the highest loss was at the beginning
    assert not any(n.startswith("step-000000010") for n in names)
