"""Every learning-rate scheduler of torch, and its gradient scaler, go on from a checkpoint as if nothing had been."""

import inspect
import math

import pytest
import torch
from torch.optim import SGD, lr_scheduler

from relight_trainer.checkpoint import pack, unpack

MAKERS = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, Decay(0.9)),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, Decay(0.99)),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 3, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [4, 7, 7, 11], 0.5),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 8),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 12),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 14, 2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 9, 0.001),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, 2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, 3, mode="exp_range", gamma=0.9),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.3, total_steps=20),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1, cooldown=1),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, 1.0, 4), lr_scheduler.MultiStepLR(o, [3, 5], 0.3)], [6]
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o, 0.1, 1.0, 8), lr_scheduler.StepLR(o, 3, 0.5)]
    ),
    "SWALR": lambda o: torch.optim.swa_utils.SWALR(o, 0.02, 6, "cos"),
}


class Decay:
    """A schedule whose own state is to be saved: torch saves an object's attributes, and no functions."""

    def __init__(self, factor):
        self.factor = factor

    def __call__(self, step):
        return self.factor ** (step % 7)


def test_no_scheduler_of_torch_is_left_out():
    schedulers = {
        name
        for name, kind in vars(lr_scheduler).items()
        if inspect.isclass(kind) and issubclass(kind, lr_scheduler.LRScheduler) and not name.startswith("_")
    }
    assert schedulers - {"LRScheduler"} <= set(MAKERS)


def made(name):
    weight = torch.nn.Parameter(torch.ones(3))
    optimizer = SGD(
        [{"params": [weight]}, {"params": [torch.nn.Parameter(torch.ones(2))], "lr": 0.05}], 0.1, momentum=0.9
    )
    return optimizer, MAKERS[name](optimizer)


def stepped(optimizer, scheduler, begin, count):
    """The rates and momenta behind each of `count` steps."""
    seen = []
    for step in range(begin, begin + count):
        optimizer.step()
        if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
            scheduler.step(math.sin(step / 3))
        else:
            scheduler.step()
        seen.append([(group["lr"], group["momentum"]) for group in optimizer.param_groups])
    return seen


@pytest.mark.filterwarnings("ignore:The epoch parameter in `scheduler.step", "ignore:To get the last learning rate")
@pytest.mark.parametrize("cut", [1, 5, 8])
@pytest.mark.parametrize("name", MAKERS)
def test_a_scheduler_goes_on_as_if_nothing_had_been(name, cut):
    optimizer, scheduler = made(name)
    before = stepped(optimizer, scheduler, 0, cut)
    saved = bytes(pack({"optimizer": optimizer.state_dict(), "scheduler": scheduler.state_dict()}))
    expected = stepped(optimizer, scheduler, cut, 8)
    assert len({str(rates) for rates in before + expected}) > 1 or cut == 1

    other, later = made(name)
    state = unpack(saved)
    other.load_state_dict(state["optimizer"])
    later.load_state_dict(state["scheduler"])

    assert stepped(other, later, cut, 8) == expected


def test_a_gradient_scaler_goes_on_as_if_nothing_had_been():
    def steps(scaler, optimizer, weight, numbers):
        seen = []
        for number in numbers:
            optimizer.zero_grad()
            scaler.scale((weight * (math.inf if number % 4 == 3 else 1.0)).sum()).backward()
            scaler.step(optimizer)
            scaler.update()
            seen.append((scaler.get_scale(), weight.tolist()))
        return seen

    def parts():
        weight = torch.nn.Parameter(torch.ones(2))
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, growth_interval=2)
        return scaler, SGD([weight], 0.25, momentum=0.5), weight

    scaler, optimizer, weight = parts()
    steps(scaler, optimizer, weight, range(5))
    saved = bytes(pack({"scaler": scaler.state_dict(), "optimizer": optimizer.state_dict(), "weight": weight.detach()}))
    expected = steps(scaler, optimizer, weight, range(5, 13))

    scaler, optimizer, weight = parts()
    state = unpack(saved)
    scaler.load_state_dict(state["scaler"])
    optimizer.load_state_dict(state["optimizer"])
    with torch.no_grad():
        weight.copy_(state["weight"])
    assert steps(scaler, optimizer, weight, range(5, 13)) == expected
    assert len({scale for scale, _ in expected}) > 1
