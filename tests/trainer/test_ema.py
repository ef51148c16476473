"""The moving average against its closed form, and against torch's."""

from typing import Any

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from relight_trainer.checkpoint import pack, unpack
from relight_trainer.config import parse
from relight_trainer.ema import Ema
from relight_trainer.settings.ema import EmaArguments


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()


def step(model: nn.Module, n: int) -> None:
    generator = torch.Generator().manual_seed(n)
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape, generator=generator, dtype=p.dtype))
    model(torch.randn(6, 3, generator=generator, dtype=torch.float64))  # moves the statistics


def averages(ema: Ema) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in ema.state_dict()["weights"].items()}


@pytest.mark.parametrize("warmup", [False, True])
def test_the_average_is_its_closed_form(warmup: bool) -> None:
    model = net()
    ema = Ema(EmaArguments(decay=0.8, warmup=warmup), model)
    history = [averages(ema)]
    for n in range(40):
        step(model, n)
        ema.update()
        history.append({name: value.clone() for name, value in model.state_dict().items()})
    decays = [min(0.8, (1 + n) / (10 + n)) if warmup else 0.8 for n in range(1, 41)]
    for name, average in averages(ema).items():
        if not average.is_floating_point():
            assert torch.equal(average, history[-1][name])
            continue
        expected = torch.zeros_like(average)
        weight = 1.0
        for decay, at in zip(reversed(decays), reversed(history), strict=False):
            expected += weight * (1 - decay) * at[name]
            weight *= decay
        expected += weight * history[0][name]
        assert (average - expected).abs().max() <= 1e-12


def test_without_warmup_it_is_torchs() -> None:
    model = net()
    ours = Ema(EmaArguments(decay=0.9, warmup=False), model)
    theirs = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.9), use_buffers=True)
    theirs.update_parameters(model)  # the first one copies
    for n in range(20):
        step(model, n)
        ours.update()
        theirs.update_parameters(model)
    expected = theirs.module.state_dict()
    for name, average in averages(ours).items():
        if average.is_floating_point():  # torch averages counters too
            assert torch.allclose(average, expected[name], rtol=1e-12)


def test_what_does_not_move_keeps_its_bits() -> None:
    model = net()
    ema = Ema(EmaArguments(decay=0.3, warmup=True), model)
    frozen = model.get_submodule("2")
    before = {name: p.clone() for name, p in frozen.named_parameters()}
    for _ in range(50):
        with torch.no_grad():
            model.get_parameter("0.weight").normal_()
        ema.update()
    for name, p in before.items():
        assert torch.equal(averages(ema)[f"2.{name}"], p)


def test_a_cut_training_has_the_average_of_one_that_was_not_cut() -> None:
    model = net()
    whole = Ema(EmaArguments(decay=0.99), model)
    for n in range(10):
        if n == 4:
            saved = pack({"model": model.state_dict(), "ema": whole.state_dict()})
        step(model, n)
        whole.update()
    other = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2)).double()
    resumed = Ema(EmaArguments(decay=0.99), other)
    state = unpack(saved)
    other.load_state_dict(state["model"])
    resumed.load_state_dict(state["ema"])
    for n in range(4, 10):
        step(other, n)
        resumed.update()
    for name, average in averages(whole).items():
        assert torch.equal(average, averages(resumed)[name])


def test_inside_the_swap_the_model_has_the_averages_and_afterwards_its_own_bits() -> None:
    model = net()
    ema = Ema(EmaArguments(decay=0.5, warmup=False), model)
    step(model, 0)
    ema.update()
    own = {name: value.clone() for name, value in model.state_dict().items()}
    average = averages(ema)
    places = [p.data_ptr() for p in model.parameters()]

    def fail_inside() -> None:
        with ema.swapped():
            for name, value in model.state_dict().items():
                assert torch.equal(value, average[name])
            raise InterruptedError

    with pytest.raises(InterruptedError):
        fail_inside()
    assert [p.data_ptr() for p in model.parameters()] == places
    for name, value in model.state_dict().items():
        assert torch.equal(value, own[name])
    for name, value in averages(ema).items():
        assert torch.equal(value, average[name])


def test_reset_begins_anew() -> None:
    model = net()
    ema = Ema(EmaArguments(), model)
    step(model, 0)
    ema.update()
    ema.reset()
    assert ema.updates == 0
    for name, value in averages(ema).items():
        assert torch.equal(value, model.state_dict()[name])


def test_following_a_step_on_a_device_never_waits_for_the_host() -> None:
    model = nn.Linear(3, 2, device="meta")  # whose values nobody can read
    ema = Ema(EmaArguments(), model)
    ema.update()


def test_another_models_average_is_refused() -> None:
    ema = Ema(EmaArguments(), nn.Linear(2, 2))
    with pytest.raises(ValueError, match="of another model: bias, weight, x"):
        ema.load_state_dict({"updates": 0, "weights": {"x": torch.zeros(1)}})


@pytest.mark.parametrize("value", [0.999, {"decay": 0.999}, {"decay": 0.999, "warmup": True}])
def test_a_number_is_the_decay(value: Any) -> None:
    config: Any = parse({"ema": value})
    assert config.ema == EmaArguments(decay=0.999)
