"""A model whose graph is another one in each step, micro-batch and rank, named in configurations as "branching:Branching"."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from relight_trainer.run import Run
from relight_trainer.seeds import streams

RANKS = 2  # that `on_rank` counts: as many virtual ranks are in the configuration


def part_of(run: Run) -> tuple[int, int]:
    """(virtual rank, its micro-batch) of the present micro-batch, which do not depend on how many real ranks there are.

    A part's number is in nothing that a model is given, but in the seed of its random numbers.
    """
    train = run.config.train
    seed_of = streams(train.seed, "step")
    numbers = {seed_of(run.step, number): number for number in range(RANKS * train.accumulate)}
    return divmod(numbers.get(torch.initial_seed(), 0), train.accumulate)  # another seed in an evaluation


class Branching(nn.Module):
    """4 numbers to 3 classes through a trunk, and branches beside it.

    `branches` says of each branch where it is used: a mapping of `steps`, `micros` and `ranks`, each a list of those in
    which it is, or absent for all of them.
    """

    def __init__(self, branches: Sequence[dict[str, list[int]]]) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 6)
        self.branches = nn.ModuleList(nn.Linear(4, 6) for _ in branches)
        self.head = nn.Linear(6, 3)
        self.uses = branches
        self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.head(self.trunk(inputs).tanh())
        return output

    def training_step(self, batch: Any, run: Run) -> Tensor:
        inputs, labels = batch
        rank, micro = part_of(run)
        hidden = self.trunk(inputs)
        for branch, use in zip(self.branches, self.uses, strict=True):
            where = {"steps": run.step, "micros": micro, "ranks": rank}
            if all(where[name] in allowed for name, allowed in use.items()):
                hidden = hidden + branch(inputs)
        return nn.functional.cross_entropy(self.head(hidden.tanh()), labels)


class Hungry(nn.Module):
    """Uses its trunk in all micro-batches but the last of each rank, where the loss depends on its inputs alone."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(4, 3)
        self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.trunk(inputs)
        return output

    def training_step(self, batch: Any, run: Run) -> Tensor:
        inputs, labels = batch
        _, micro = part_of(run)
        if micro == run.config.train.accumulate - 1:
            return inputs.clone().requires_grad_().square().mean()
        return nn.functional.cross_entropy(self.trunk(inputs), labels)


class Table(nn.Module):
    """A sparse embedding and a head; `rows` says, by step, whether the embedding is used."""

    def __init__(self, steps: Sequence[int]) -> None:
        super().__init__()
        self.table = nn.Embedding(16, 3, sparse=True)
        self.head = nn.Linear(4, 3)
        self.steps = steps
        self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.head(inputs)
        return output

    def training_step(self, batch: Any, run: Run) -> Tensor:
        inputs, labels = batch
        logits: Tensor = self.head(inputs)
        if run.step in self.steps:
            logits = logits + self.table((inputs[:, 0].abs() * 8).long().clamp(max=15))
        return nn.functional.cross_entropy(logits, labels)


def worst_gap(a: dict[str, Any], b: dict[str, Any]) -> float:
    """The largest difference of two sets of weights, as lists."""
    assert a.keys() == b.keys()
    return max((torch.tensor(a[k]) - torch.tensor(b[k])).abs().max().item() for k in a)
