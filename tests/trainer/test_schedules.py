"""Schedules against torch's, timm's and fvcore's.

peers_schedules.json holds what timm (aa4b5850) and fvcore (3378afe) themselves computed, for the settings beside it.
"""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler as theirs

from relight_trainer.config import BadConfig, check, parse
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
    train = {"duration": f"{total}st"}
    config = parse(
        {"schedule": schedule, "optimizer": {"type": "sgd", "lr": lr}, "evaluate": {"every": "1ep"}, "train": train}
    )
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


def test_an_optimizer_without_momentum_has_none_cycled() -> None:
    for optimizer in ({"type": "adagrad"}, {"type": "rmsprop"}, {"type": "sgd", "momentum": 0, "nesterov": False}):
        config = parse({"optimizer": optimizer})
        schedule = build_schedule(config.schedule, config.optimizer, Length(10, EPOCH), 64)
        assert {schedule(step).momentum for step in range(10)} == {None}
        assert len({schedule(step).lr for step in range(10)}) == 10


def test_a_constant_schedule_leaves_the_optimizer_as_configured() -> None:
    for config in (Sgd(lr=0.2, momentum=0.5), AdamW(lr=0.01, beta1=0.8)):
        built = build_optimizer(config, Weight(), 64)
        before = {k: v for k, v in built.param_groups[0].items() if k != "params"}
        set_rates(built, build_schedule(Constant(), config, Length(10, EPOCH), 64)(5))
        assert {k: v for k, v in built.param_groups[0].items() if k != "params"} == before


PEERS = json.loads((Path(__file__).parent / "peers_schedules.json").read_text())


@pytest.mark.parametrize("case", PEERS, ids=[f"{i}-{c['peer']}-{c['schedule']['type']}" for i, c in enumerate(PEERS)])
def test_schedules_are_those_of_timm_and_fvcore(case: dict[str, Any]) -> None:
    schedule = ours(case["schedule"], case["total"], lr=0.5)
    assert max(abs(schedule(step).lr - rate) for step, rate in enumerate(case["rates"])) <= 1e-15


def chain(warmup: int, rest: Any, start: float = 0.01) -> Any:
    """Torch's way of a warm-up: one scheduler after the other."""
    base = optimizer()
    first = theirs.LinearLR(base, start_factor=start, total_iters=warmup)
    return theirs.SequentialLR(base, [first, rest(base)], milestones=[warmup])


TORCHS: list[tuple[dict[str, Any], int, Any]] = [
    ({"type": "constant"}, 20, lambda: theirs.ConstantLR(optimizer(), factor=1.0)),
    ({"type": "cosine"}, 50, lambda: theirs.CosineAnnealingLR(optimizer(), T_max=50)),
    ({"type": "cosine", "end": 0.05}, 50, lambda: theirs.CosineAnnealingLR(optimizer(), T_max=50, eta_min=0.005)),
    ({"type": "cosine", "cycles": 3, "cycle_growth": 2.0}, 70, lambda: theirs.CosineAnnealingWarmRestarts(optimizer(), T_0=10, T_mult=2)),
    ({"type": "cosine", "cycles": 5}, 50, lambda: theirs.CosineAnnealingWarmRestarts(optimizer(), T_0=10)),
    ({"type": "linear"}, 50, lambda: theirs.LinearLR(optimizer(), start_factor=1.0, end_factor=0.0, total_iters=50)),
    ({"type": "linear", "end": 0.2}, 50, lambda: theirs.LinearLR(optimizer(), start_factor=1.0, end_factor=0.2, total_iters=50)),
    ({"type": "poly", "power": 3.0}, 50, lambda: theirs.PolynomialLR(optimizer(), total_iters=50, power=3.0)),
    ({"type": "exponential", "end": 0.01}, 50, lambda: theirs.ExponentialLR(optimizer(), gamma=0.01 ** (1 / 50))),
    ({"type": "step", "every": "7st", "factor": 0.3}, 50, lambda: theirs.StepLR(optimizer(), step_size=7, gamma=0.3)),
    ({"type": "step", "every": "1ep"}, 50, lambda: theirs.StepLR(optimizer(), step_size=10)),
    ({"type": "multistep", "at": ["40%", "3ep", "45st"], "factor": 0.2}, 50, lambda: theirs.MultiStepLR(optimizer(), milestones=[20, 30, 45], gamma=0.2)),
    ({"type": "cosine", "warmup": "10st"}, 60, lambda: chain(10, lambda o: theirs.CosineAnnealingLR(o, T_max=50))),
    ({"type": "poly", "power": 1.0, "warmup": "1ep", "warmup_from": 0.5}, 60, lambda: chain(10, lambda o: theirs.PolynomialLR(o, total_iters=50), 0.5)),
    ({"type": "constant", "warmup": "20%"}, 50, lambda: chain(10, lambda o: theirs.ConstantLR(o, factor=1.0))),
    ({"type": "inverse_sqrt", "timescale": "10st"}, 50, lambda: theirs.LambdaLR(optimizer(), lambda t: math.sqrt(10 / max(t, 10)))),
    ({"type": "wsd", "decay": "20st", "shape": "linear", "warmup": "5st"}, 50,
     lambda: theirs.LambdaLR(optimizer(), lambda t: 0.01 + 0.99 * t / 5 if t < 5 else min(1.0, (50 - t) / 20))),
    ({"type": "wsd", "end": 0.1}, 50, lambda: theirs.LambdaLR(optimizer(), lambda t: 1.0 if t < 40 else 1 - 0.9 * math.sqrt((t - 40) / 10))),
    ({"type": "sequence", "parts": [{"length": "20st", "schedule": {"type": "linear", "end": 0.5}}, {"peak": 0.5, "schedule": {"type": "cosine"}}]}, 50,
     lambda: theirs.LambdaLR(optimizer(), lambda t: 1 - t / 40 if t < 20 else 0.25 * (1 + math.cos(math.pi * (t - 20) / 30)))),
]  # fmt: skip


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step:UserWarning")  # SequentialLR's own call
@pytest.mark.parametrize(
    ("schedule", "total", "torchs"), TORCHS, ids=[f"{i}-{c[0]['type']}" for i, c in enumerate(TORCHS)]
)
def test_schedules_are_torchs_at_every_step(schedule: dict[str, Any], total: int, torchs: Any) -> None:
    built = ours(schedule, total)
    assert max(abs(built(step).lr - rate) for step, rate in enumerate(walk(torchs(), total))) <= 1e-12


@pytest.mark.parametrize("schedule", [c[0] for c in TORCHS] + [{"type": "onecycle"}])
def test_a_rate_depends_on_nothing_but_its_step(schedule: dict[str, Any]) -> None:
    in_order = [ours(schedule, 60)(step) for step in range(60)]
    built = ours(schedule, 60)
    for step in random.Random(0).sample(range(60), 60):
        assert built(step) == in_order[step]
    assert built.state_dict() == {}
    assert all(rates.lr >= 0 for rates in in_order)


@pytest.mark.parametrize("shape", ["linear", "cos", "exponential"])
def test_every_warm_up_rises_from_its_share_to_where_the_schedule_stands(shape: str) -> None:
    schedule = {"type": "multistep", "at": ["10st"], "factor": 0.5}
    warmed = ours({**schedule, "warmup": "20st", "warmup_from": 0.1, "warmup_shape": shape}, 50)
    rates = [warmed(step).lr for step in range(50)]
    assert rates[0] == pytest.approx(0.1 * 0.1 * 0.5)
    assert rates[:21] == sorted(rates[:21])
    assert rates[20:] == [pytest.approx(0.05)] * 30
    middle = {"linear": 0.55, "cos": 0.55, "exponential": math.sqrt(0.1)}[shape]
    assert rates[10] == pytest.approx(0.05 * middle)


def test_a_training_shorter_than_its_warm_up_is_refused() -> None:
    with pytest.raises(
        BadConfig, match=r"config\.schedule\.warmup: the warm-up is longer than the training of 20 steps"
    ):
        ours({"type": "cosine", "warmup": "5ep"}, 20)


@pytest.mark.parametrize("better", ["lower", "higher"])
def test_plateau_is_torchs_and_goes_on_from_a_checkpoint(better: str) -> None:
    settings = {
        "type": "plateau",
        "metric": "m",
        "better": better,
        "factor": 0.3,
        "patience": 2,
        "cooldown": 1,
        "end": 0.01,
    }
    base = optimizer()
    scheduler = theirs.ReduceLROnPlateau(
        base, "min" if better == "lower" else "max", factor=0.3, patience=2, cooldown=1, min_lr=0.001, eps=0.0
    )
    chance = random.Random(7)
    values = [chance.uniform(0.5, 1.5) * 0.99**n for n in range(60)]
    schedule = ours(settings, 600)
    factors = set()
    for step, value in enumerate(values):
        text = f"{value:.4f}"
        schedule.observe({"m": text, "other": "0"}, step)
        scheduler.step(float(text))
        assert schedule(123).lr == pytest.approx(base.param_groups[0]["lr"], rel=1e-12)
        factors.add(schedule(0).lr)
        resumed = ours(settings, 600)
        resumed.load_state_dict(json.loads(json.dumps(schedule.state_dict())))
        schedule = resumed
        schedule.observe({"m": text, "other": "0"}, step)  # evaluated again, right after the resume
    assert len(factors) >= 4
    with pytest.raises(
        BadConfig, match=r'config.schedule.metric: no such metric in the evaluation; found "m"; did you mean "mm"'
    ):
        schedule.observe({"mm": "1"}, 60)


def halved(step: int, total: int, *, times: int) -> float:
    return 0.5 ** (times * step // total)


def test_a_function_of_ones_own_is_a_schedule_and_its_arguments_are_checked() -> None:
    own = f"{__name__}:halved"
    built = ours({"type": own, "times": 4}, 40)
    assert [built(step).lr for step in (0, 9, 10, 39)] == [0.1, 0.1, 0.05, 0.0125]
    warmed = ours({"type": "sequence", "parts": [{"schedule": {"type": own, "times": 4, "warmup": "5st"}}]}, 40)
    assert [warmed(step).lr for step in (0, 5, 10)] == [pytest.approx(0.001), 0.1, 0.05]
    for wrong, text in (
        ({"type": own, "times": 4, "tmes": 4}, "config.schedule.type: does not take the other fields: got an unexpected keyword argument 'tmes'"),
        ({"type": own}, "config.schedule.type: does not take the other fields: missing a required argument: 'times'"),
        ({"type": "no_such_module:f"}, "config.schedule.type: no_such_module cannot be imported"),
        ({"type": "math:squrt"}, 'config.schedule.type: math has no squrt; found "math:squrt"; did you mean "math:sqrt"?'),
    ):  # fmt: skip
        with pytest.raises(BadConfig) as caught:
            ours(wrong, 40)
        assert str(caught.value).startswith(text)
        with pytest.raises(BadConfig) as caught:  # before anything starts
            check(parse({"schedule": wrong}))
        assert str(caught.value).startswith(text)
    check(parse({"schedule": {"type": own, "times": 4}}))


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"schedule": {"type": "cosin"}}, 'config.schedule.type: unknown name; found "cosin"; did you mean "cosine"?'),
        ({"schedule": {"type": "cosine", "warmup": "5epochs"}}, 'config.schedule.warmup: not a place in the training; found "5epochs"; allowed: epochs, optimizer steps, samples or a share of the training, such as 5ep'),
        ({"schedule": {"type": "multistep", "at": ["5ep", "110%"]}}, 'config.schedule.at[1]: not a place in the training; found "110%"'),
        ({"schedule": {"type": "sequence", "parts": [{}, {}]}}, "config.schedule.parts[0].length: missing; allowed: a length"),
        ({"schedule": {"type": "sequence", "parts": [{"schedule": {"type": "onecycle"}}]}}, "config.schedule.parts[0].schedule.type: unknown name"),
        ({"optimizer": {"type": "adagrad"}, "schedule": {"type": "onecycle", "cycle_momentum": True}}, "config.schedule.cycle_momentum: adagrad has no momentum to cycle; found true; allowed: false"),
        ({"optimizer": {"type": "sgd", "groups": [{"match": "*", "momentum": 0.5}]}}, "config.schedule.cycle_momentum: a group has a momentum of its own, which would be cycled too; found null; allowed: false"),
        ({"schedule": {"type": "plateau"}}, "config.schedule.type: nothing is evaluated before the training has ended"),
    ],
)  # fmt: skip
def test_schedules_that_cannot_be_meant_are_refused(config: dict[str, Any], text: str) -> None:
    with pytest.raises(BadConfig) as caught:
        parse(config)
    assert str(caught.value).startswith(text)


@pytest.mark.parametrize("text", ["5ep", "500st", "64000sa", "10%", "2.5%", "0.1%", "100%"])
def test_a_position_is_written_as_it_was_read(text: str) -> None:
    config: Any = parse({"schedule": {"type": "constant", "warmup": text}})
    assert str(config.schedule.warmup) == text
    assert config.model_dump(mode="json")["schedule"]["warmup"] == text
    length = Length(1000, EPOCH)
    steps = {"5ep": 50, "500st": 500, "64000sa": 1000, "10%": 100, "2.5%": 25, "0.1%": 1, "100%": 1000}
    assert length.steps(config.schedule.warmup) == steps[text]
