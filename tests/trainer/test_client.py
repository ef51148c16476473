"""Own scripts with the client: cut anywhere, they end as if they had not been."""

import contextlib
import os
import runpy
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import worlds
from test_train_exact import job
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from relight_trainer import client
from relight_trainer.context import WorkerContext
from relight_trainer.session import Cursor, Session

pytestmark = pytest.mark.timeout(120)
EXAMPLE = Path(__file__).parents[2] / "examples" / "own_script.py"


def example(context: WorkerContext, victim: int = -1, step: int = -1) -> Any:
    """Run the example; as rank `victim`, die once `step` steps are done."""
    step_done = Session.step_done

    def step_done_then_die(self: Session, cursor: Cursor) -> None:
        step_done(self, cursor)
        if context.rank == victim and cursor.step == step:
            os._exit(9)

    Session.step_done = step_done_then_die  # type: ignore[method-assign]
    with contextlib.suppress(SystemExit):
        runpy.run_path(str(EXAMPLE), run_name="__main__")
    return client.outcome()


def test_the_example_ends_the_same_after_a_kill_and_a_stop(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole, of_rank_1 = (
        o.result for o in worlds.run(example, root=tmp_path / "whole", job=job(tmp_path, checkpoints=False))
    )
    assert whole["weightsDigest"] == of_rank_1["weightsDigest"]
    assert float(whole["metrics"]["accuracy"]) > 0.9

    the_job = replace(job(tmp_path), checkpoint_steps=100)
    outcomes = worlds.run(example, 0, 37, root=tmp_path, job=the_job, generation=1)
    assert outcomes[0] == "died"
    shutil.rmtree(tmp_path / "slot-0")
    with worlds.world(example, root=tmp_path, job=the_job, generation=2) as second:
        while (progress := second.folders[1].progress()) is None or progress.step < 38:
            time.sleep(0.01)
        assert (progress.resumed_kind, progress.resumed_from) == ("snapshot", 37)
        second.stop(1)
        outcomes = second.join()
        written = [dict(folder.outcomes(1))[0] for folder in second.folders]
    assert written == outcomes
    assert {o.kind for o in outcomes} == {"stopped"}
    [stopped_at] = {o.step for o in outcomes}
    assert 38 <= stopped_at < 320
    with worlds.world(example, root=tmp_path, job=the_job, generation=3) as third:
        ended = third.join()[0].result
        progress = third.folders[0].progress()
    assert progress is not None
    assert progress.resumed_from == stopped_at
    assert ended["weightsDigest"] == whole["weightsDigest"]
    assert ended["metrics"]["accuracy"] == whole["metrics"]["accuracy"]

    again = worlds.run(example, root=tmp_path, job=the_job, generation=4)
    assert [o.result["weightsDigest"] for o in again] == [whole["weightsDigest"]] * 2


class Lines(IterableDataset[torch.Tensor]):
    """Seven samples with noise drawn as they are read; no length."""

    def __iter__(self) -> Iterator[torch.Tensor]:
        for i in range(7):
            yield torch.rand(3) + i


def accumulating(context: WorkerContext, kind: str, die_after: int | None) -> Any:
    """Three epochs in windows of three batches; each batch's sum and a random number go into the weights' history."""
    torch.manual_seed(5)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9)
    run = client.start(model=model, optimizer=optimizer, init=True, seed=3)
    loader: Any
    if kind == "iterable":
        loader = DataLoader(Lines(), batch_size=1)
    else:
        # By fork, as in a worker: a fork server's loader processes would not see their rank die.
        fork = "fork" if int(kind) else None
        rows = TensorDataset(torch.arange(21.0).view(7, 3))
        loader = DataLoader(rows, shuffle=True, num_workers=int(kind), multiprocessing_context=fork)
    windows = 0
    for batch in run.steps(loader, epochs=3, accumulate=3):
        x = batch[0] if isinstance(batch, list) else batch
        (model(x).sum() * torch.rand(())).backward()
        if run.stepping:
            optimizer.step()
            optimizer.zero_grad()
            windows += 1
        if windows == die_after and not run.stepping:
            os._exit(9)
    return run.step, windows, run.outcome().result["weightsDigest"]  # type: ignore[union-attr,index]


@pytest.mark.parametrize("kind", ["iterable", "0", "2"])
def test_windows_of_batches_are_replayed_whole(tmp_path: Path, kind: str) -> None:
    (tmp_path / "whole").mkdir()
    [(steps, windows, digest)] = worlds.run(
        accumulating, kind, None, root=tmp_path / "whole", job=job(tmp_path, checkpoints=False), ranks=1
    )
    assert (steps, windows) == (9, 9)  # 7 batches: windows of 3, 3 and 1
    the_job = job(tmp_path, checkpoints=False)
    assert worlds.run(accumulating, kind, 4, root=tmp_path, job=the_job, ranks=1) == ["died"]
    resumed = worlds.run(accumulating, kind, None, root=tmp_path, job=the_job, ranks=1, generation=2)
    assert resumed == [(9, 5, digest)]


def early(context: WorkerContext) -> Any:
    model = nn.Linear(2, 1)
    run = client.start(model=model, init=True)
    run.wrap(model)
    for _ in run.steps([torch.ones(2)] * 5, epochs=2):
        if run.step == 2:
            break
    run.finish()
    return run.outcome()


def test_a_script_may_end_early(tmp_path: Path) -> None:
    outcomes = worlds.run(early, root=tmp_path, job=job(tmp_path))
    assert [(o.kind, o.step) for o in outcomes] == [("completed", 3)] * 2
    # and though each rank began with other weights, they are one model
    assert outcomes[0].result == outcomes[1].result


def without_group(context: WorkerContext) -> None:
    client.start(model=nn.Linear(2, 1))


def test_a_script_without_a_process_group_is_told_so(tmp_path: Path) -> None:
    [answer] = worlds.run(without_group, root=tmp_path, job=job(tmp_path), ranks=1)
    assert answer.startswith("Misused: client.start needs the process group")


def test_outside_a_job_the_loop_is_plain() -> None:
    model = nn.Linear(2, 1)
    run = client.start(model=model)
    assert run.wrap(model) is model
    seen = []
    for batch in run.steps([1, 2, 3], epochs=2, accumulate=2):
        seen.append((run.epoch, batch, run.stepping))
        run.log(loss=1.0)
    assert seen == [(0, 1, False), (0, 2, True), (0, 3, True), (1, 1, False), (1, 2, True), (1, 3, True)]
    assert run.step == 4
    assert client.outcome() is None
    with pytest.raises(client.Misused):
        next(run.steps([1], epochs=1))
