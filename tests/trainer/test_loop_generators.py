"""What a loop draws from a generator of its own is, after a resume, what it would have drawn."""

import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import worlds
from test_train_exact import job
from torch import nn

from relight_trainer import client
from relight_trainer.context import WorkerContext

pytestmark = pytest.mark.timeout(120)

NUMPY = np.random.default_rng(3)
OTHERS: dict[str, Any] = {"random": random.Random(5)}


def by_helper() -> float:
    return float(NUMPY.random()) + OTHERS["random"].random()


class Noise(nn.Module):
    """Draws from a generator that it keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.generator = torch.Generator().manual_seed(7)

    def forward(self) -> torch.Tensor:
        return self.weight * torch.rand((), generator=self.generator)


class Trainer:
    """A loop as a method, with what it needs in attributes."""

    def __init__(self, apart: bool) -> None:
        self.rng = np.random.RandomState(11 + apart * int(os.environ["RANK"]))
        self.model = Noise()
        self.drawn: list[list[float]] = []

    def train(self, die_after: int | None) -> list[list[float]]:
        run = client.start(model=self.model, init=True)
        here = random.Random(13)
        for _ in run.steps([0] * 5, epochs=3):
            numbers = [by_helper(), self.rng.rand(), float(self.model().detach()), here.random()]
            with torch.no_grad():
                self.model.weight.add_(numbers[0])
            self.drawn.append(numbers)
            if run.step + 1 == die_after:
                os._exit(1)
        return self.drawn


def lived(context: WorkerContext, die_after: int | None, apart: bool) -> Any:
    return Trainer(apart).train(die_after)


@pytest.mark.parametrize("die_after", [1, 4, 5, 11])
def test_a_resumed_loop_draws_what_it_would_have_drawn(tmp_path: Path, die_after: int) -> None:
    (tmp_path / "whole").mkdir()
    [whole] = worlds.run(lived, None, False, root=tmp_path / "whole", job=job(tmp_path, checkpoints=False), ranks=1)
    the_job = job(tmp_path, checkpoints=False)
    assert worlds.run(lived, die_after, False, root=tmp_path, job=the_job, ranks=1) == ["died"]
    [resumed] = worlds.run(lived, None, False, root=tmp_path, job=the_job, ranks=1, generation=2)
    assert 15 - die_after <= len(resumed) <= 16 - die_after
    assert resumed == whole[-len(resumed) :]
    assert len({tuple(numbers) for numbers in whole}) == len(whole), "each batch draws other numbers"


def drawn_apart(context: WorkerContext, apart: bool) -> Any:
    rng = Trainer(apart).rng
    model = nn.Linear(1, 1)
    run = client.start(model=model, init=True)
    run.wrap(model)
    return [rng.rand() for _ in run.steps([0] * 4, epochs=1)]


@pytest.mark.parametrize("apart", [False, True])
def test_generators_that_are_equal_on_all_ranks_stay_equal_and_others_apart(tmp_path: Path, apart: bool) -> None:
    one, two = worlds.run(drawn_apart, apart, root=tmp_path, job=job(tmp_path, checkpoints=False))
    assert len(one) == 4
    assert (set(one).isdisjoint(two)) if apart else one == two
