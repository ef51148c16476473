"""A module that a script's steps change, and that was not given to `client.start`, is refused; others are left alone."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import worlds
from test_train_exact import job
from torch import nn
from torch.optim import SGD
from torch.optim.swa_utils import AveragedModel

from relight_trainer import client
from relight_trainer.context import WorkerContext

pytestmark = pytest.mark.timeout(120)


class Centered(nn.Module):
    """As DINO's loss: its buffer is replaced."""

    center: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("center", torch.zeros(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.center = self.center * 0.9 + x.detach().mean(0) * 0.1
        return (x - self.center).pow(2).sum()


def trained(context: WorkerContext, kind: str, given: bool) -> Any:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    optimizer = SGD(model.parameters(), lr=0.1)
    other: Any = {
        "average": lambda: AveragedModel(model),
        "teacher under data": lambda: copy.deepcopy(model).eval(),
        "frozen teacher": lambda: copy.deepcopy(model).eval().requires_grad_(False),
        "teacher's statistics": lambda: copy.deepcopy(model).requires_grad_(False),
        "loss": Centered,
        "loss without state": nn.MSELoss,
        "a view of the model": lambda: nn.Sequential(*model[:2]),
        "a part beside the model": lambda: nn.ModuleDict({"student": model, "loss": Centered()}),
        "late": lambda: copy.deepcopy(model).eval(),
    }[kind]()
    run = client.start(model=model, optimizer=optimizer, init=True, **({"other": other} if given else {}))
    net = run.wrap(model)
    for i, x in enumerate(run.steps([torch.randn(3, 2) for _ in range(10)], epochs=1)):
        optimizer.zero_grad()
        out = net(x)
        loss = other if kind == "loss" else other["loss"] if kind == "a part beside the model" else torch.sum
        loss(out).backward()
        optimizer.step()
        if kind == "average":
            other.update_parameters(model)
        elif kind == "teacher under data" or (kind == "late" and i > 2):
            for mine, theirs in zip(other.parameters(), model.parameters(), strict=True):
                mine.data.mul_(0.9).add_(theirs.data, alpha=0.1)
        elif kind not in ("loss", "a part beside the model", "loss without state", "a view of the model"):
            other(x)
        torch.nn.functional.linear(x, copy.deepcopy(model)[0].weight)  # a module that does not last
    return run.step


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("average", "the module AveragedModel is an average of weights"),
        ("teacher under data", r"the module Sequential has been changed by the training (0.weight)"),
        ("teacher's statistics", "the module Sequential has been changed by the training (1.running_mean)"),
        ("loss", "the module Centered has been changed by the training (center)"),
        ("a part beside the model", "the module ModuleDict has been changed by the training (loss.center)"),
        ("late", r"the module Sequential has been changed by the training (0.weight)"),
    ],
)
def test_a_module_that_steps_change_is_refused_until_it_is_given(tmp_path: Path, kind: str, words: str) -> None:
    (tmp_path / "given").mkdir()
    [answer] = worlds.run(trained, kind, False, root=tmp_path, job=job(tmp_path, checkpoints=False), ranks=1)
    assert answer.startswith(f"NotGiven: {words}, and is not given to client.start")
    the_job = job(tmp_path / "given", checkpoints=False)
    assert worlds.run(trained, kind, True, root=tmp_path / "given", job=the_job, ranks=1) == [10]


@pytest.mark.parametrize("kind", ["frozen teacher", "loss without state", "a view of the model"])
def test_a_module_that_stays_as_it_is_need_not_be_given(tmp_path: Path, kind: str) -> None:
    the_job = job(tmp_path, checkpoints=False)
    assert worlds.run(trained, kind, False, root=tmp_path, job=the_job, ranks=1) == [10]
