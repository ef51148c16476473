"""Frozen parts keep every bit; thawing is a function of the step."""

from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import nn

from relight_trainer.checkpoint import pack, unpack
from relight_trainer.clip import build_clip
from relight_trainer.config import BadConfig, parse
from relight_trainer.ema import Ema
from relight_trainer.freeze import Freezer
from relight_trainer.optim import build_optimizer
from relight_trainer.settings.ema import EmaArguments
from relight_trainer.settings.position import Length
from relight_trainer.settings.spans import EpochSize

LENGTH = Length(100, EpochSize(steps=10, samples=640, batch=64))


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 8), nn.BatchNorm1d(8))
        self.head = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.backbone(x))
        return logits


def freezer(model: nn.Module, *rules: Any, length: Length = LENGTH) -> Freezer:
    return Freezer(parse({"freeze": list(rules)}).freeze, model, length)


def bits(model: nn.Module, prefix: str) -> dict[str, torch.Tensor]:
    return {n: t.clone() for n, t in model.state_dict().items() if n.startswith(prefix)}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> set[str]:
    return {name for name in a if torch.equal(a[name], b[name])}


def train(model: nn.Module, optimizer: torch.optim.Optimizer, ema: Ema, frozen: Freezer, steps: range) -> None:
    for step in steps:
        frozen.at(step)
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()
        ema.update()


@pytest.mark.parametrize("kind", ["sgd", "adamw", "lars", "lamb"])
def test_what_is_frozen_keeps_every_bit_over_100_steps(kind: str) -> None:
    model = Net()
    config = parse({"optimizer": {"type": kind, "weight_decay": 0.1}, "schedule": {"type": "constant"}})
    optimizer = build_optimizer(config.optimizer, model, 64)
    ema = Ema(EmaArguments(decay=0.9), model)
    frozen = freezer(model, "backbone")
    before, average = bits(model, ""), {n: t.clone() for n, t in ema.state_dict()["weights"].items()}
    train(model, optimizer, ema, frozen, range(100))
    backbone = {n for n in before if n.startswith("backbone")}
    assert len(backbone) == 14
    assert same(before, model.state_dict()) == backbone
    assert same(average, ema.state_dict()["weights"]) == backbone
    assert all(p.grad is None for p in model.backbone.parameters())
    assert [p for p in optimizer.state if any(p is q for q in model.backbone.parameters())] == []


def test_momentum_that_a_part_has_gathered_does_not_move_it_once_it_is_frozen() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    ema = Ema(EmaArguments(decay=0.9), model)
    frozen = freezer(model, {"match": "backbone.*", "after": "20st", "until": "60st"})
    train(model, optimizer, ema, frozen, range(20))
    before = bits(model, "backbone")
    train(model, optimizer, ema, frozen, range(20, 60))
    assert same(before, model.state_dict()) == set(before)
    train(model, optimizer, ema, frozen, range(60, 61))
    assert same(before, model.state_dict()) == set()
    assert model.backbone[1].training


KINDS = ["sgd", "adam", "adamw", "nadam", "radam", "adamax", "adagrad", "adadelta", "adafactor", "rmsprop", "rprop", "asgd",
    "lars", "lamb", "muon"]  # fmt: skip


@pytest.mark.parametrize("scaled", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_every_optimizer_leaves_alone_what_is_frozen_in_mid_training(kind: str, scaled: bool) -> None:
    """Its moments are there, and its weight decay; a clip of the gradients sees none of it either."""
    model = Net()
    decays = {} if kind == "rprop" else {"weight_decay": 0.1}
    momentum = {"momentum": 0.9} if kind in ("sgd", "rmsprop", "lars") else {}
    others = {"others": {"type": "adamw", "lr": 0.01, "weight_decay": 0.1}} if kind == "muon" else {}
    section = {"type": kind, "lr": 0.01, **decays, **momentum, **others}
    optimizer = build_optimizer(parse({"optimizer": section}).optimizer, model, 64)
    scaler = torch.amp.GradScaler("cpu", enabled=scaled)
    clip = build_clip(parse({"clip": {"type": "norm", "max": 0.5}}).clip, model)
    assert clip is not None
    frozen = freezer(model, {"match": "backbone", "after": "3st", "until": "6st"})
    seen = []
    for step in range(8):
        frozen.at(step)
        seen.append(bits(model, "backbone"))
        x = torch.randn(16, 4, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        scaler.scale(model(x).square().mean()).backward()
        scaler.unscale_(optimizer)
        norm = clip()
        learning = [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]
        assert len(learning) == (2 if 3 <= step < 6 else 10)
        assert norm > 0
        scaler.step(optimizer)
        scaler.update()
    changed = [len(same(a, b)) < len(a) for a, b in pairwise(seen)]
    assert changed == [True, True, True, False, False, False, True]


@pytest.mark.parametrize("cut", [0, 3, 29, 30, 31, 45])
def test_a_training_cut_at_any_step_of_the_schedule_ends_bit_equal(cut: int) -> None:
    rules = ({"match": "*", "but": "head", "until": "30%"}, {"match": "backbone.0", "until": "4ep"})

    def begin() -> tuple[Net, torch.optim.Optimizer, Ema, Freezer]:
        model = Net()
        optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
        return model, optimizer, Ema(EmaArguments(decay=0.9), model), freezer(model, *rules)

    model, optimizer, ema, frozen = begin()
    train(model, optimizer, ema, frozen, range(cut))
    data = pack({"model": model.state_dict(), "optimizer": optimizer.state_dict(), "ema": ema.state_dict()})
    train(model, optimizer, ema, frozen, range(cut, 50))

    other, optimizer, average, frozen = begin()
    frozen.at(0)  # as a process begins, before it knows where it goes on
    state = unpack(data)
    other.load_state_dict(state["model"])
    optimizer.load_state_dict(state["optimizer"])
    average.load_state_dict(state["ema"])
    train(other, optimizer, average, frozen, range(cut, 50))
    assert same(model.state_dict(), other.state_dict()) == set(model.state_dict())
    assert same(ema.state_dict()["weights"], average.state_dict()["weights"]) == set(model.state_dict())


def test_the_frozen_set_is_a_function_of_the_step_and_changes_are_told_once() -> None:
    model = Net()
    rules = ({"match": "*", "but": "head", "until": "3ep"}, {"match": "backbone.0", "until": "50st"})
    forward, jumping = freezer(model, *rules), freezer(Net(), *rules)
    changed = [step for step in range(100) if forward.at(step)]
    assert changed == [0, 30, 50]
    assert jumping.at(70) is False
    assert jumping.at(10) is True
    assert jumping.frozen(40) == forward.frozen(40) == {"backbone.0.weight", "backbone.0.bias"}
    assert not [p for p in model.parameters() if not p.requires_grad]


def test_what_was_not_to_learn_in_the_first_place_never_thaws() -> None:
    model = Net()
    model.backbone[3].requires_grad_(False)
    frozen = freezer(model, {"match": "backbone", "until": "10st"})
    frozen.at(0)
    frozen.at(10)
    assert [n for n, p in model.named_parameters() if not p.requires_grad] == ["backbone.3.weight", "backbone.3.bias"]


def test_a_norm_that_was_in_evaluation_mode_in_the_first_place_stays_there_when_it_thaws() -> None:
    model = Net()
    model.backbone[1].eval()
    frozen = freezer(model, {"match": "backbone", "until": "10st"})
    frozen.at(0)
    assert [model.backbone[1].training, model.backbone[4].training] == [False, False]
    frozen.at(10)
    assert [model.backbone[1].training, model.backbone[4].training] == [False, True]


def test_norms_move_their_statistics_unless_all_of_them_is_frozen() -> None:
    model = Net()
    frozen = freezer(model, "*.weight", "backbone.4")
    frozen.at(0)
    assert [model.backbone[1].training, model.backbone[4].training] == [True, False]
    before = bits(model, "backbone")
    model(torch.randn(6, 4))
    assert {"backbone.4.running_mean", "backbone.4.num_batches_tracked"} <= same(before, model.state_dict())
    assert "backbone.1.running_mean" not in same(before, model.state_dict())


@pytest.mark.parametrize(
    ("rules", "text"),
    [
        (["backbon.*"], 'config.freeze[0].match: fits no name in the model; found "backbon.*"; allowed: backbone'),
        ([{"match": ["head", "haed"]}], 'config.freeze[0].match[1]: fits no name in the model; found "haed"; allowed: head'),
        ([{"match": "head", "but": "tail"}], 'config.freeze[0].but: fits no name in the model; found "tail"'),
        (["backbone", {"match": "head", "after": "50%"}], "config.freeze: nothing is left to train at step 50"),
        ([{"match": "head", "after": "20st", "until": "2ep"}], "config.freeze[0].until: it would end at step 20, before it begins at step 20"),
    ],
)  # fmt: skip
def test_rules_that_cannot_be_meant_are_refused(rules: Any, text: str) -> None:
    with pytest.raises(BadConfig) as caught:
        freezer(Net(), *rules)
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (nn.Flatten(), "config.model: the model Flatten has no parameters: nothing would train"),
        (
            nn.Linear(2, 2).requires_grad_(False),
            "config.model: the model Linear has parameters, and none of them requires",
        ),
    ],
)
@pytest.mark.parametrize("rules", [[], ["weight"]])
def test_a_model_of_which_nothing_trains_is_told_as_such(model: nn.Module, text: str, rules: list[Any]) -> None:
    with pytest.raises(BadConfig) as caught:
        freezer(model, *rules)
    assert str(caught.value).startswith(text)


def test_one_pattern_a_list_and_a_rule_are_the_same() -> None:
    forms: list[Any] = ["head", ["head"], {"match": "head"}, [{"match": ["head"]}]]
    assert len({str(parse({"freeze": form}).freeze) for form in forms}) == 1
