"""Where training goes on from, and what happens where it cannot."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import worlds
from test_train_exact import job, result, uncut, until

from relight_agent.files import JobFile
from relight_trainer import losses, train
from relight_trainer.checkpoint import Snapshots, SnapshotsOff
from relight_trainer.context import WorkerContext
from relight_trainer.session import Cursor, Session

pytestmark = pytest.mark.timeout(120)


def lose_everything(root: Path, the_job: JobFile, step: int, generation: int = 1) -> None:
    """Train to `step`, then kill all members: their memory is gone, checkpoints stay."""
    worlds.run(until, 0, step, root=root, job=the_job, generation=generation)
    for slot in (0, 1):
        shutil.rmtree(root / f"slot-{slot}")


def committed(root: Path) -> list[Path]:
    return sorted((root / "checkpoints").glob("step-*"))


def flip_a_bit(checkpoint: Path) -> None:
    shard = max(checkpoint.glob("*.safetensors"), key=lambda p: p.stat().st_size)
    data = bytearray(shard.read_bytes())
    data[-1] ^= 1
    shard.write_bytes(data)


def test_when_all_members_are_lost_the_last_checkpoint_is_next(tmp_path: Path) -> None:
    whole = uncut(tmp_path / "whole", 2)
    the_job = job(tmp_path)
    lose_everything(tmp_path, the_job, 8)
    with worlds.world(train.run, root=tmp_path, job=the_job, generation=2, RELIGHT_COMMITTED_STEP="5") as again:
        assert result(again.join()) == whole
        progress = again.folders[1].progress()
    assert progress is not None
    assert (progress.resumed_kind, progress.resumed_from) == ("checkpoint", 5)
    assert (progress.step, progress.checkpoint, progress.snapshot) == (12, 12, 12)
    instants = [progress.formed_at, progress.restored_at, progress.first_step_at, progress.updated_at]
    assert None not in instants
    assert instants == sorted(set(instants))
    assert progress.epoch == f"{12 / 22:.2f}"
    assert committed(tmp_path)[-1].name.endswith(".final")


def test_a_damaged_checkpoint_is_passed_over_and_said_so(tmp_path: Path) -> None:
    whole = uncut(tmp_path / "whole", 2)
    the_job = job(tmp_path)
    lose_everything(tmp_path, the_job, 11)
    assert [p.name[:14] for p in committed(tmp_path)] == ["step-000000005", "step-000000010"]
    flip_a_bit(committed(tmp_path)[1])
    with worlds.world(train.run, root=tmp_path, job=the_job, generation=2) as again:
        assert result(again.join()) == whole
        progress = again.folders[0].progress()
    assert progress is not None
    assert progress.resumed_from == 5
    assert any("step-000000010" in notice for notice in progress.notices)


def test_training_never_starts_from_scratch_where_all_checkpoints_are_damaged_or_gone(tmp_path: Path) -> None:
    the_job = job(tmp_path)
    lose_everything(tmp_path, the_job, 11)
    for checkpoint in committed(tmp_path):
        flip_a_bit(checkpoint)
    answers = worlds.run(train.run, root=tmp_path, job=the_job, generation=2, timeout=30)
    assert answers[0].startswith("NoUsableCheckpoint")
    shutil.rmtree(tmp_path / "checkpoints")
    for slot in (0, 1):
        shutil.rmtree(tmp_path / f"slot-{slot}", ignore_errors=True)
    answers = worlds.run(train.run, root=tmp_path, job=the_job, generation=3, RELIGHT_COMMITTED_STEP="10")
    assert all(a.startswith("StateLost: a checkpoint of step 10 had been committed") for a in answers)


def test_a_snapshot_is_enough_where_all_checkpoints_are_damaged(tmp_path: Path) -> None:
    whole = uncut(tmp_path / "whole", 2)
    the_job = job(tmp_path)
    worlds.run(until, 1, 4, root=tmp_path, job=the_job)
    kept = tmp_path / "kept"
    (tmp_path / "slot-0").rename(kept)
    shutil.rmtree(tmp_path / "slot-1")
    worlds.run(until, 1, 9, root=tmp_path, job=the_job)  # another life, whose checkpoint is newer
    for slot in (0, 1):
        shutil.rmtree(tmp_path / f"slot-{slot}")
    kept.rename(tmp_path / "slot-0")
    for checkpoint in committed(tmp_path):
        flip_a_bit(checkpoint)
    with worlds.world(train.run, root=tmp_path, job=the_job, generation=2) as again:
        assert result(again.join()) == whole
        progress = again.folders[0].progress()
    assert progress is not None
    assert (progress.resumed_kind, progress.resumed_from) == ("snapshot", 4)
    assert any("step-000000005" in notice for notice in progress.notices)


def test_a_job_that_has_ended_ends_at_once_when_run_again(tmp_path: Path) -> None:
    the_job = job(tmp_path)
    [first, _] = worlds.run(train.run, root=tmp_path, job=the_job)
    for slot in (0, 1):
        shutil.rmtree(tmp_path / f"slot-{slot}")
    with worlds.world(train.run, root=tmp_path, job=the_job, generation=2) as again:
        assert result(again.join()) == first.result
        progress = again.folders[0].progress()
    assert progress is not None
    assert progress.first_step_at is None


@pytest.mark.parametrize("victim", [1, 2])
def test_local_workers_share_their_members_snapshot(tmp_path: Path, victim: int) -> None:
    options = {"ranks": 4, "local_ranks": 2}
    (tmp_path / "whole").mkdir()
    whole = result(worlds.run(train.run, root=tmp_path / "whole", job=job(tmp_path, checkpoints=False), **options))
    the_job = replace(job(tmp_path, checkpoints=False), proc_per_node=2)
    worlds.run(until, victim, 5, root=tmp_path, job=the_job, **options)
    shutil.rmtree(tmp_path / f"slot-{victim // 2}")
    with worlds.world(train.run, root=tmp_path, job=the_job, generation=2, **options) as again:
        assert result(again.join()) == whole
        progress = again.folders[0].progress()
    assert progress is not None
    # A lost worker's peers may be a step ahead, or have closed theirs and lost it with the member.
    assert progress.resumed_from in {4, 5}


def crowded(context: WorkerContext) -> Any:
    def no_room(self: Snapshots, *_: Any, **__: Any) -> None:
        raise SnapshotsOff("two states of 1 MB do not fit")

    Snapshots.write = no_room  # type: ignore[method-assign]
    return train.run(context)


def test_without_room_for_snapshots_training_goes_on_and_says_so_once(tmp_path: Path) -> None:
    with worlds.world(crowded, root=tmp_path, job=job(tmp_path)) as running:
        result(running.join())
        progress = running.folders[0].progress()
    assert progress is not None
    assert progress.notices == ["training goes on without snapshots: two states of 1 MB do not fit"]
    assert progress.snapshot is None
    assert progress.checkpoint == 12


def digests_each_step(context: WorkerContext) -> Any:
    """Of each step, the digest of the whole state of this rank as it would be saved, metrics included."""
    import hashlib

    from relight_trainer.checkpoint import pack

    digests = []
    step_done = Session.step_done

    def step_done_then_digest(self: Session, cursor: Cursor) -> None:
        step_done(self, cursor)
        digests.append(hashlib.sha256(pack(self._state())).hexdigest())

    Session.step_done = step_done_then_digest  # type: ignore[method-assign]
    train.run(context)
    return digests


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_at_each_steps_end_all_ranks_hold_the_same_state(tmp_path: Path, precision: str) -> None:
    digests = worlds.run(digests_each_step, root=tmp_path, job=job(tmp_path, precision=precision), ranks=3)
    assert digests[0] == digests[1] == digests[2]
    assert len(set(digests[0])) == 12


def nan_on_rank_1(context: WorkerContext) -> Any:
    if context.rank == 1:
        forward = losses.CrossEntropy.forward
        calls = iter(range(100))

        def poisoned(*args: Any) -> torch.Tensor:
            return forward(*args) * (float("nan") if next(calls) == 3 else 1.0)

        losses.CrossEntropy.forward = poisoned  # type: ignore[method-assign]
    return train.run(context)


def test_a_loss_that_is_not_finite_never_reaches_a_snapshot(tmp_path: Path) -> None:
    answers = worlds.run(nan_on_rank_1, root=tmp_path, job=job(tmp_path, checkpoints=False))
    assert answers[1] == "NonFiniteLoss: the loss is nan in step 4"
    for slot in (0, 1):
        newest = Snapshots(tmp_path / f"slot-{slot}" / "snapshots", job_uid="u1", config_hash="c1").newest()
        assert newest is not None
        assert newest.step == 3


def test_evaluation_during_training_changes_nothing_and_shows(tmp_path: Path) -> None:
    whole = uncut(tmp_path / "whole", 2)
    the_job = job(tmp_path, checkpoints=False, evaluate={"every": "4st"})
    worlds.run(until, 1, 9, root=tmp_path, job=the_job)
    snapshots = Snapshots(tmp_path / "slot-0" / "snapshots", job_uid="u1", config_hash="c1")
    from relight_trainer.checkpoint import unpack

    assert "test_accuracy" in unpack(snapshots.read())["loop"]["metrics"]
    shutil.rmtree(tmp_path / "slot-1")
    assert result(worlds.run(train.run, root=tmp_path, job=the_job, generation=2)) == whole


def test_a_batch_that_does_not_fit_is_a_wrong_configuration(tmp_path: Path) -> None:
    the_job = job(tmp_path)
    the_job.entry["config"]["train"]["global_batch"] = 2000
    answers = worlds.run(train.run, root=tmp_path, job=the_job)
    assert all("train.global_batch 2000: allowed is" in a for a in answers)
