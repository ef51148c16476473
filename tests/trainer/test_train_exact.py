"""A job that was cut anywhere ends with the same weights, bit for bit, as one that was not."""

import os
import shutil
from pathlib import Path
from typing import Any

import pytest
import worlds

from relight_agent.files import JobFile, Outcome
from relight_trainer import train
from relight_trainer.context import WorkerContext
from relight_trainer.session import Cursor, Session

pytestmark = pytest.mark.timeout(120)


def job(root: Path, *, steps: int = 12, checkpoints: bool = True, precision: str = "fp32", **more: Any) -> JobFile:
    config = {
        "model": {"type": "digits_cnn", "width": 4},
        "train": {"duration": f"{steps}st", "precision": precision, "device": "cpu", "log_every": 1},
        **more,
    }
    return JobFile(
        namespace="default",
        name="digits",
        uid="u1",
        created=1.0,
        nodes=2,
        proc_per_node=1,
        entry={"kind": "config", "config": config},
        config_hash="c1",
        checkpoint_dir=str(root / "checkpoints") if checkpoints else "",
        checkpoint_steps=5,
        snapshot_every=1,  # Auto leaves out steps that are shorter than its pause
    )


def until(context: WorkerContext, victim: int, step: int) -> Outcome:
    """Train, but die without a word as rank `victim` once `step` steps are done."""
    step_done = Session.step_done

    def step_done_then_die(self: Session, cursor: Cursor) -> None:
        step_done(self, cursor)
        if context.rank == victim and cursor.step == step:
            os._exit(9)

    Session.step_done = step_done_then_die  # type: ignore[method-assign]
    return train.run(context)


def result(outcomes: list[Any]) -> dict[str, Any]:
    assert [getattr(o, "kind", o) for o in outcomes] == ["completed"] * len(outcomes)
    results = [o.result for o in outcomes]
    assert all(r == results[0] for r in results)
    return results[0]


def uncut(root: Path, ranks: int, **options: Any) -> dict[str, Any]:
    root.mkdir()
    return result(worlds.run(train.run, root=root, job=job(root, **options), ranks=ranks))


@pytest.mark.parametrize(("ranks", "precision"), [(2, "fp32"), (4, "fp32"), (2, "bf16"), (2, "fp16")])
def test_a_job_that_loses_a_member_ends_with_the_same_weights(tmp_path: Path, ranks: int, precision: str) -> None:
    whole = uncut(tmp_path / "whole", ranks, precision=precision)
    root = tmp_path / "cut"
    root.mkdir()
    the_job = job(root, precision=precision)
    for generation, (victim, step) in enumerate([(0, 1), (ranks - 1, 4), (0, 11)], 1):
        outcomes = worlds.run(until, victim, step, root=root, job=the_job, generation=generation, ranks=ranks)
        assert outcomes[victim] == "died"
        shutil.rmtree(root / f"slot-{victim}")  # a killed machine's memory is gone
    with worlds.world(train.run, root=root, job=the_job, generation=9, ranks=ranks) as last:
        assert result(last.join()) == whole
        progress = last.folders[0].progress()
    assert progress is not None
    assert (progress.resumed_kind, progress.resumed_from) == ("snapshot", 11)
