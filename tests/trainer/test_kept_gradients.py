"""A script that accumulates gradients over steps by itself is refused; who updates in some steps alone is not."""

from pathlib import Path
from typing import Any

import pytest
import torch
import worlds
from test_train_exact import job
from torch import nn
from torch.optim import SGD, Optimizer

from relight_trainer import client
from relight_trainer.context import WorkerContext
from relight_trainer.kept_gradients import GradientsWatch, KeptGradients

pytestmark = pytest.mark.timeout(120)


def by_itself(context: WorkerContext, every: int, accumulate: int) -> Any:
    """`every`: how many batches the script makes one update of, by a count of its own."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))
    optimizer = SGD(model.parameters(), lr=0.1)
    run = client.start(model=model, optimizer=optimizer, init=True)
    net = run.wrap(model)
    for i, x in enumerate(run.steps([torch.ones(2)] * 12, epochs=1, accumulate=accumulate)):
        net(x).sum().backward()
        if (i + 1) % every == 0:
            optimizer.step()
            optimizer.zero_grad()
    return run.step


@pytest.mark.parametrize("ranks", [1, 2])
def test_gradients_kept_from_one_step_to_the_next_are_refused(tmp_path: Path, ranks: int) -> None:
    for answer in worlds.run(by_itself, 4, 1, root=tmp_path, job=job(tmp_path, checkpoints=False), ranks=ranks):
        assert answer.startswith("KeptGradients: optimizer.step() would apply gradients of several steps")
        assert "run.steps(loader, epochs=..., accumulate=N)" in answer


@pytest.mark.parametrize(("every", "accumulate", "steps"), [(1, 1, 12), (4, 4, 3), (2, 4, 3)])
def test_gradients_of_one_step_may_be_accumulated(tmp_path: Path, every: int, accumulate: int, steps: int) -> None:
    the_job = job(tmp_path, checkpoints=False)
    assert worlds.run(by_itself, every, accumulate, root=tmp_path, job=the_job, ranks=1) == [steps]


def watched(optimizer: Optimizer) -> GradientsWatch:
    return GradientsWatch({"optimizer": optimizer})


def backward(model: nn.Module) -> None:
    model(torch.ones(1, 2)).sum().backward()


@pytest.mark.parametrize("to_none", [True, False])
@pytest.mark.parametrize("updates", [{2, 5}, {0, 4, 5}, {5}])
def test_gradients_that_are_set_back_before_the_next_backward_pass_are_no_matter(
    to_none: bool, updates: set[int]
) -> None:
    """An adversary's turn, or a GradScaler's step that is left out."""
    model = nn.Linear(2, 1)
    optimizer = SGD(model.parameters(), lr=0.1)
    watch = watched(optimizer)
    for step in range(6):
        optimizer.zero_grad(set_to_none=to_none)
        backward(model)
        if step in updates:
            optimizer.step()
        watch.step_done()


def test_gradients_of_anothers_turn_that_are_dropped_before_the_own_one_are_no_matter() -> None:
    """A generator whose output its critic learns from, not detached."""
    model = nn.Linear(2, 1)
    optimizer = SGD(model.parameters(), lr=0.1)
    watch = watched(optimizer)
    for step in range(9):
        backward(model)
        if step % 3 == 2:
            optimizer.zero_grad()
            backward(model)
            optimizer.step()
        watch.step_done()


def test_an_update_after_a_turn_of_another_is_refused_where_both_have_left_gradients() -> None:
    model, unused = nn.Linear(2, 1), nn.Linear(2, 1)
    optimizer = SGD([*model.parameters(), *unused.parameters()], lr=0.1)
    watch = watched(optimizer)
    for _ in range(2):
        backward(model)
        optimizer.step()
        optimizer.zero_grad()
        watch.step_done()
    for _ in range(3):
        backward(model)
        watch.step_done()
    backward(model)
    with pytest.raises(KeptGradients, match=r"optimizer\.step\(\) would apply"):
        optimizer.step()


def test_a_sparse_gradient_is_looked_at() -> None:
    table = nn.Embedding(4, 2, sparse=True)
    optimizer = SGD(table.parameters(), lr=0.1)
    watch = watched(optimizer)
    for _ in range(2):
        table(torch.tensor([1])).sum().backward()
        watch.step_done()
    with pytest.raises(KeptGradients):
        optimizer.step()
