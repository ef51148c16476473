"""A model that replaces its buffers in each step, trained: on one worker or two, cut or not, the same bits."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import worlds
from test_train_exact import job, result, until
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from relight_trainer import train

pytestmark = pytest.mark.timeout(180)


class Dino(nn.Module):
    """A centre that is replaced, as DINO's; with `grows`, a queue of a number for each forward pass, and a late buffer."""

    def __init__(self, grows: bool = False) -> None:
        super().__init__()
        self.backbone = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))
        self.center: Tensor
        self.queue: Tensor
        self.register_buffer("center", torch.zeros(10))
        self.register_buffer("queue", torch.zeros(0))
        self.register_buffer("unset", None)
        self._grows = grows

    def training_step(self, batch: Any, run: Any) -> Tensor:
        images, labels = batch
        output = self.backbone(images)
        loss = cross_entropy(output - self.center, labels)
        if self.training:
            self.center = self.center * 0.9 + output.detach().mean(0) * 0.1
            if self._grows:
                self.queue = torch.cat([self.queue, output.detach()[:1, 0]])
                if run.step == 2 and not hasattr(self, "late"):
                    self.register_buffer("late", output.detach()[0])
        return loss


def settings(grows: bool = False) -> dict[str, Any]:
    return {
        "model": {"type": "test_replaced_in_training:Dino", "grows": grows},
        "train": {"duration": "6st", "global_batch": 16, "virtual_ranks": 2, "threads": 1},
        "ema": {"decay": 0.5, "warmup": False},
    }


@pytest.mark.parametrize("grows", [False, True])
def test_one_worker_that_plays_two_and_a_cut_training_end_with_the_bits_of_two_workers(
    tmp_path: Path, grows: bool
) -> None:
    def train_to_the_end(name: str, ranks: int, generation: int = 1) -> Any:
        root = tmp_path / name
        root.mkdir(exist_ok=True)
        the_job = job(root, **settings(grows))
        return result(worlds.run(train.run, root=root, job=the_job, ranks=ranks, generation=generation))

    two = train_to_the_end("two", 2)
    assert train_to_the_end("one", 1) == two
    root = tmp_path / "cut"
    root.mkdir()
    for generation, (victim, step) in enumerate([(0, 2), (1, 4)], 1):
        the_job = job(root, **settings(grows))
        outcomes = worlds.run(until, victim, step, root=root, job=the_job, generation=generation)
        assert outcomes[victim] == "died", outcomes
        shutil.rmtree(root / f"slot-{victim}")
    assert train_to_the_end("cut", 2, generation=3) == two


class Replaces(nn.Module):
    """A parameter that another one takes the place of, in the third step."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))

    def training_step(self, batch: Any, run: Any) -> Tensor:
        if self.training and run.step == 2:
            self.layers[1].weight = nn.Parameter(self.layers[1].weight.detach().clone())
        return cross_entropy(self.layers(batch[0]), batch[1])


def test_a_parameter_that_the_optimizer_would_not_move_is_named(tmp_path: Path) -> None:
    the_job = job(tmp_path, model={"type": "test_replaced_in_training:Replaces"})
    [found] = worlds.run(train.run, root=tmp_path, job=the_job, ranks=1)
    words = "ParametersReplaced: the optimizer does not hold the model's parameters layers.1.weight: they were replaced"
    assert str(found).startswith(words)
