"""What the training depends on and was not given is seen at the start."""

from pathlib import Path
from typing import Any

import pytest
import torch
import worlds
from test_train_exact import job
from torch import nn
from torch.optim import SGD, lr_scheduler

from relight_trainer import client
from relight_trainer.context import WorkerContext
from relight_trainer.given import NotGiven, check_given

pytestmark = pytest.mark.timeout(120)


class Held:
    """An object of a script's own that saves a module inside."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module


def test_an_optimizer_of_parameters_of_no_given_module_is_refused() -> None:
    model, head = nn.Linear(2, 2), nn.Linear(2, 1)
    optimizer = SGD([{"params": model.parameters()}, {"params": head.parameters()}], lr=0.1)
    with pytest.raises(
        NotGiven, match=r"optimizer: param_groups\[1\]\.params\[0\], of shape \[1, 2\], is in no module given"
    ):
        check_given({"model": model, "optimizer": optimizer})
    check_given({"model": model, "head": head, "optimizer": optimizer})
    check_given({"model": model, "head": Held(head), "optimizer": optimizer})
    check_given({"both": nn.ModuleList([model, head]), "optimizer": optimizer})


def test_a_bare_parameter_is_refused_until_it_is_in_a_module() -> None:
    model, scale = nn.Linear(2, 1), nn.Parameter(torch.ones(()))
    optimizer = SGD([*model.parameters(), scale], lr=0.1)
    with pytest.raises(NotGiven, match=r"of shape \[\]"):
        check_given({"model": model, "optimizer": optimizer})
    check_given({"model": model, "extra": nn.ParameterList([scale]), "optimizer": optimizer})


class Wrapper:
    def __init__(self, scheduler: Any) -> None:
        self.scheduler = scheduler


def test_a_scheduler_that_is_not_given_is_refused() -> None:
    model = nn.Linear(2, 1)
    optimizer = SGD(model.parameters(), lr=0.1)
    objects = {"model": model, "optimizer": optimizer}
    check_given(objects)
    first = lr_scheduler.LinearLR(optimizer, total_iters=5)
    with pytest.raises(NotGiven, match="its learning rate is set by a LinearLR that is not given"):
        check_given(objects)
    check_given({**objects, "scheduler": first})
    check_given({**objects, "scheduler": Wrapper(first)})
    chain = lr_scheduler.SequentialLR(optimizer, [first, lr_scheduler.CosineAnnealingLR(optimizer, 10)], milestones=[5])
    with pytest.raises(NotGiven):
        check_given({**objects, "scheduler": first})
    check_given({**objects, "scheduler": chain})
    del chain, first
    check_given(objects)  # nobody sets the rate any more


def test_another_optimizers_scheduler_does_not_matter() -> None:
    model, other = nn.Linear(2, 1), nn.Linear(2, 1)
    optimizer, others = SGD(model.parameters(), lr=0.1), SGD(other.parameters(), lr=0.1)
    theirs, mine = lr_scheduler.StepLR(others, 1), lr_scheduler.StepLR(optimizer, 1)
    check_given({"model": model, "optimizer": optimizer, "scheduler": mine})
    assert theirs.optimizer is others


def late(context: WorkerContext) -> Any:
    model = nn.Linear(2, 1)
    optimizer = SGD(model.parameters(), lr=0.1)
    run = client.start(model=model, optimizer=optimizer, init=True)
    scheduler = lr_scheduler.CosineAnnealingLR(optimizer, 10)
    for x in run.steps([torch.ones(2)] * 10, epochs=1):
        model(x).backward()
        optimizer.step()
        scheduler.step()
    return run.step


def test_a_scheduler_made_after_the_start_is_refused_after_the_first_step(tmp_path: Path) -> None:
    [answer] = worlds.run(late, root=tmp_path, job=job(tmp_path), ranks=1)
    assert answer.startswith("NotGiven: optimizer: its learning rate is set by a CosineAnnealingLR that is not given")
