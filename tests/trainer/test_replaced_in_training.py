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
from relight_trainer.inspect import read
from relight_trainer.inspect.statistics import Bytes

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


class Careless(nn.Module):
    """It moves its buffers in evaluation mode too: one in place, one by another tensor, one by another shape."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
        self.center: Tensor
        self.scale: Tensor
        self.seen: Tensor
        self.register_buffer("center", torch.zeros(10))
        self.register_buffer("scale", torch.zeros(10))
        self.register_buffer("seen", torch.zeros(0))

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.layers(images)
        mean = output.detach().mean(0)
        output = output - self.center - self.scale
        self.scale.lerp_(mean, 0.1)
        self.center = self.center * 0.9 + mean * 0.1
        self.seen = torch.cat([self.seen, mean[:1]])
        return output


def test_an_evaluation_changes_no_buffer_however_often_it_is_made(tmp_path: Path) -> None:
    found = []
    for name, ranks, every in (("never", 1, None), ("often", 1, "1st"), ("two", 2, "2st")):
        root = tmp_path / name
        root.mkdir()
        config = {**settings(), "model": {"type": "test_replaced_in_training:Careless"}, "evaluate": {"every": every}}
        found.append(result(worlds.run(train.run, root=root, job=job(root, **config), ranks=ranks)))
    assert found[1] == found[0]
    assert found[2]["weightsDigest"] == found[0]["weightsDigest"]  # what it measures depends on its shares, though


class Teacher(nn.Module):
    """Distillation as it is often written: the teacher is put into evaluation mode by `train()`, which trainers call."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10)).requires_grad_(False)
        self.fixed = nn.BatchNorm1d(10).eval()  # and what is so from the start stays so
        self.student = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.BatchNorm1d(10))

    def train(self, mode: bool = True) -> "Teacher":
        super().train(mode)
        self.teacher.eval()
        return self

    def forward(self, images: Tensor) -> Tensor:
        output: Tensor = self.fixed(self.student(images)) + 0.1 * self.teacher(images)
        return output


def test_a_teacher_that_train_puts_into_evaluation_mode_keeps_its_statistics(tmp_path: Path) -> None:
    the_job = job(tmp_path, model={"type": "test_replaced_in_training:Teacher"}, evaluate={"every": "3st"})
    result(worlds.run(train.run, root=tmp_path, job=the_job, ranks=2))
    [final] = tmp_path.glob("checkpoints/step-*.final")
    with Bytes() as data:
        moved = {
            name.removeprefix("model.").rpartition(".")[0]
            for name, ref in read(final).tensors()
            if name.endswith("num_batches_tracked") and data.whole(ref).item() > 0
        }
    assert moved == {"student.2"}
