"""Models with a random graph, another one in each step, micro-batch and rank: "random_models:RandomModel" by its seed."""

import random
from typing import Any

import torch
from branching import part_of
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from relight_trainer.run import Run

STEPS, WIDTH = 5, 5


def uses(draw: random.Random) -> set[tuple[int, int, int]]:
    """The (step, micro-batch, rank) in which a part of a model is used."""
    steps, micros, ranks = range(STEPS), range(3), range(2)
    everywhere = {(s, m, r) for s in steps for m in micros for r in ranks}
    match draw.choice(["always", "step", "micro", "rank", "random", "once", "never", "early", "late"]):
        case "always":
            return everywhere
        case "step":
            some = {s for s in steps if draw.random() < 0.5}
            return {u for u in everywhere if u[0] in some}
        case "micro":
            micro = draw.choice([*micros])
            return {u for u in everywhere if u[1] != micro}
        case "rank":
            rank = draw.choice([*ranks])
            return {u for u in everywhere if u[2] == rank}
        case "random":
            return {u for u in everywhere if draw.random() < 0.5}
        case "once":
            return {draw.choice(sorted(everywhere))}
        case "early":
            return {u for u in everywhere if u[0] < 2}
        case "late":
            return {u for u in everywhere if u[0] >= 2}
    return set()


class Branch(nn.Module):
    """One of the ways through a block."""

    def __init__(self, draw: random.Random, others: list["Branch"]) -> None:
        super().__init__()
        self.line = nn.Linear(WIDTH, WIDTH, bias=draw.random() < 0.7)
        self.scale = nn.Parameter(torch.tensor(1.0)) if draw.random() < 0.3 else None
        if others and draw.random() < 0.3:
            self.line.weight = draw.choice(others).line.weight  # tied
        if draw.random() < 0.15:
            self.line.requires_grad_(False)
        self.norm = nn.BatchNorm1d(WIDTH) if draw.random() < 0.2 else None
        self.how = draw.choice(["plain"] * 6 + ["detached", "times zero", "checkpointed", "dropped out"])
        self.used = uses(draw)

    def forward(self, x: Tensor) -> Tensor:
        y = checkpoint(self.line, x, use_reentrant=False) if self.how == "checkpointed" else self.line(x)
        if self.scale is not None:
            y = y * self.scale
        if self.norm is not None and len(x) > 1:
            y = self.norm(y)
        match self.how:
            case "detached":
                return y.detach()  # type: ignore[no-any-return]
            case "times zero":
                return y * 0.0  # type: ignore[no-any-return]
            case "dropped out":
                return nn.functional.dropout(y, 0.3, self.training)
        return y  # type: ignore[no-any-return]


class RandomModel(nn.Module):
    """Blocks of branches, one after another; beside them perhaps a table, a buffer that is replaced, a lone parameter."""

    center: Tensor

    def __init__(self, seed: int) -> None:
        super().__init__()
        draw = random.Random(seed)
        self.first = nn.Linear(4, WIDTH)
        self.blocks = nn.ModuleList()
        branches: list[Branch] = []
        for _ in range(draw.randint(1, 3)):
            block = nn.ModuleList()
            for _ in range(draw.randint(1, 3)):
                branches.append(Branch(draw, branches))
                block.append(branches[-1])
            self.blocks.append(block)
        self.head = nn.Linear(WIDTH, 3)
        self.replaces = draw.random() < 0.4
        self.register_buffer("center", torch.zeros(WIDTH))
        self.lone = nn.Parameter(torch.ones(2, 2)) if draw.random() < 0.3 else None
        self.lone_used = uses(draw)
        self.table = nn.Embedding(8, WIDTH, sparse=draw.random() < 0.7) if draw.random() < 0.25 else None
        self.table_used = uses(draw)
        self.idle = nn.Linear(3, 3) if draw.random() < 0.15 else None
        self.first_used = uses(draw) if draw.random() < 0.2 else None
        self.data_decides = draw.random() < 0.2
        self.double()

    def forward(self, inputs: Tensor) -> Tensor:
        output: Tensor = self.head(self.first(inputs))
        return output

    def training_step(self, batch: Any, run: Run) -> dict[str, Tensor]:
        inputs, labels = batch
        rank, micro = part_of(run)
        place = run.step, micro, rank
        if self.first_used is not None and place not in self.first_used:
            x = nn.functional.pad(inputs, (0, WIDTH - 4))
        else:
            x = self.first(inputs)
        for block in self.blocks:
            assert isinstance(block, nn.ModuleList)
            parts = [branch(x) for branch in block if place in branch.used]
            if self.data_decides and parts and inputs.sum() > 0:
                parts.pop()
            x = sum(parts, x).tanh()
        if self.table is not None and place in self.table_used:
            x = x + self.table((inputs[:, 0].abs() * 4).long().clamp(max=7))
        if self.replaces:
            x = x - self.center
            if self.training:
                self.center = self.center * 0.9 + x.detach().mean(0) * 0.1
        loss = nn.functional.cross_entropy(self.head(x), labels)
        if self.lone is not None and place in self.lone_used:
            loss = loss + (self.lone.square() * inputs[:, :2].mean()).mean()
        return {"loss": loss}


def config(seed: int) -> dict[str, Any]:
    """A random configuration around the random model."""
    draw = random.Random(seed + 1_000_000)
    model = RandomModel(seed)
    accumulate = draw.choice([1, 1, 2, 3])
    sparse = model.table is not None and model.table.sparse
    if sparse:
        optimizer = {"type": "sgd", "lr": 0.1, "momentum": 0.0, "nesterov": False, "weight_decay": 0.0}
    else:
        optimizer = {"type": "sgd", "lr": 0.1, "momentum": 0.9, "weight_decay": 0.05}
    ddp: dict[str, Any] = {}
    if draw.random() < 0.3:
        ddp["gradient_as_bucket_view"] = True
    if draw.random() < 0.3:
        ddp["bucket_cap_mb"] = 0.0001
    if draw.random() < 0.15 and not sparse:  # torch cannot find unused parameters with sparse gradients
        ddp["find_unused_parameters"] = True
    sections: dict[str, Any] = {"ddp": ddp}
    if draw.random() < 0.3:
        after = draw.randint(1, STEPS - 1)
        freeze: dict[str, Any] = {"match": "blocks.0.*", "after": f"{after}st"}
        if draw.random() < 0.5 and after < STEPS - 1:
            freeze["until"] = f"{after + 1}st"
        sections["freeze"] = [freeze]
    if draw.random() < 0.2 and not sparse:
        sections["clip"] = {"type": "norm", "max": 0.1}
    batch = 12 * accumulate
    samples = 2 * batch + draw.choice([0, 0, 1, batch // 2])
    keep = "keep" if not any(isinstance(m, nn.BatchNorm1d) for m in model.modules()) and draw.random() < 0.7 else "drop"
    train = {"duration": f"{STEPS}st", "global_batch": batch, "accumulate": accumulate, "last_batch": keep}
    return {
        "model": {"type": "random_models:RandomModel", "seed": seed},
        "data": {"type": "little:samples", "count": samples},
        "train": {**train, "virtual_ranks": 2, "device": "cpu", "seed": seed},
        "optimizer": optimizer,
        "schedule": {"type": "constant"},
        "observe": {"time_split": False},
        **sections,
    }
