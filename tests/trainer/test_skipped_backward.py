"""Ranks that leave out the backward pass of different steps average gradients of different steps: never a success."""

from pathlib import Path
from typing import Any

import pytest
import torch
import worlds
from test_train_exact import job
from torch import nn
from torch.optim import SGD

from relight_trainer import client
from relight_trainer.context import WorkerContext

pytestmark = pytest.mark.timeout(120)


def skipping(context: WorkerContext, skipped: tuple[int, int]) -> Any:
    """Each rank leaves out one step, as for a loss that is not finite."""
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    optimizer = SGD(model.parameters(), lr=0.1)
    run = client.start(model=model, optimizer=optimizer, init=True)
    net = run.wrap(model)
    for i, x in enumerate(run.steps([torch.randn(2) for _ in range(8)], epochs=1)):
        loss = net(x).sum()
        if i == skipped[context.rank]:
            continue
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return run.step


def test_ranks_that_leave_out_different_steps_do_not_succeed(tmp_path: Path) -> None:
    answers = worlds.run(skipping, (3, 5), root=tmp_path, job=job(tmp_path, checkpoints=False))
    for answer in answers:
        assert answer.startswith(
            "RanksDiffer: by step 8 rank 1 and rank 0 have run their backward passes in different steps"
        )


def test_all_ranks_may_leave_out_the_same_step(tmp_path: Path) -> None:
    assert worlds.run(skipping, (3, 3), root=tmp_path, job=job(tmp_path, checkpoints=False)) == [8, 8]


def freezing(context: WorkerContext) -> Any:
    """A layer is frozen in the middle of the training, as the loop goes on."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 1))
    optimizer = SGD(model.parameters(), lr=0.1, momentum=0.9)
    run = client.start(model=model, optimizer=optimizer, init=True)
    net = run.wrap(model)
    for i, x in enumerate(run.steps([torch.ones(2)] * 8, epochs=1)):
        if i == 3:
            model[0].requires_grad_(False)
            frozen = model[0].weight.clone()
        optimizer.zero_grad()
        net(x).sum().backward()
        optimizer.step()
    return run.step, torch.equal(frozen, model[0].weight)


@pytest.mark.parametrize("ranks", [1, 2])
def test_a_layer_may_be_frozen_in_the_loop(tmp_path: Path, ranks: int) -> None:
    answers = worlds.run(freezing, root=tmp_path, job=job(tmp_path, checkpoints=False), ranks=ranks)
    assert answers == [(8, True)] * ranks
