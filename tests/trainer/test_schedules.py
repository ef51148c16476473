"""Schedules against torch's, timm's and fvcore's."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as theirs

from relight_trainer.config import parse
from relight_trainer.optim import build_optimizer, set_rates
from relight_trainer.schedule import Schedule, build_schedule
from relight_trainer.settings.optimizer import AdamW, Sgd
from relight_trainer.settings.position import Length
from relight_trainer.settings.schedule import Constant, OneCycle
from relight_trainer.settings.spans import EpochSize

EPOCH = EpochSize(steps=10, samples=640, batch=64)


class Weight(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))


def ours(schedule: dict[str, Any], total: int, lr: float = 0.1) -> Schedule:
    config = parse({"schedule": schedule, "optimizer": {"type": "sgd", "lr": lr}, "evaluate": {"every": "1ep"}})
    return build_schedule(config.schedule, config.optimizer, Length(total, EPOCH), 64)


def optimizer(lr: float = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)


def walk(scheduler: Any, total: int) -> list[float]:
    """The rates that torch's scheduler takes `total` steps with."""
    rates = []
    for _ in range(total):
        rates.append(scheduler.optimizer.param_groups[0]["lr"])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


@pytest.mark.parametrize("anneal", ["cos", "linear"])
@pytest.mark.parametrize("total", [2, 3, 7, 330, 1000])
@pytest.mark.parametrize("settings", [Sgd(lr=0.1), AdamW(lr=0.003)])
def test_onecycle_is_torchs(settings: Sgd | AdamW, total: int, anneal: Any) -> None:
    schedule = build_schedule(OneCycle(anneal=anneal), settings, Length(total, EPOCH), 64)
    optimizer = build_optimizer(settings, Weight(), 64)
    scheduler = theirs.OneCycleLR(optimizer, settings.lr, total_steps=total, anneal_strategy=anneal)  # type: ignore[arg-type]
    for step in range(total):
        [group] = optimizer.param_groups
        momentum = group["betas"][0] if "betas" in group else group["momentum"]
        assert abs(schedule(step).lr - group["lr"]) <= 1e-12
        assert abs((schedule(step).momentum or 0.0) - momentum) <= 1e-12
        optimizer.step()
        if step + 1 < total:
            scheduler.step()


def test_without_cycling_the_momentum_stays() -> None:
    schedule = build_schedule(OneCycle(cycle_momentum=False), Sgd(momentum=0.7), Length(10, EPOCH), 64)
    assert {schedule(step).momentum for step in range(10)} == {None}


def test_a_constant_schedule_leaves_the_optimizer_as_configured() -> None:
    for config in (Sgd(lr=0.2, momentum=0.5), AdamW(lr=0.01, beta1=0.8)):
        built = build_optimizer(config, Weight(), 64)
        before = {k: v for k, v in built.param_groups[0].items() if k != "params"}
        set_rates(built, build_schedule(Constant(), config, Length(10, EPOCH), 64)(5))
        assert {k: v for k, v in built.param_groups[0].items() if k != "params"} == before
