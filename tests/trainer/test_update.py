"""The optimizer's step is torch's own, and whoever listens to it still hears it."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.optim import SGD, Adam, AdamW, NAdam, Optimizer, RMSprop
from torch.optim import optimizer as internals

from relight_trainer.update import Update

Make = Callable[[Any], Optimizer]


def made(make: Make) -> tuple[list[nn.Parameter], Optimizer]:
    generator = torch.Generator().manual_seed(0)
    parameters = [nn.Parameter(torch.randn(*shape, generator=generator)) for shape in ((4, 3), (4,))]
    return parameters, make(parameters)


def moved(make: Make, step_of: Callable[[Optimizer], Callable[[], object]]) -> list[Tensor]:
    parameters, optimizer = made(make)
    step, generator = step_of(optimizer), torch.Generator().manual_seed(1)
    for _ in range(3):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        step()
        assert torch.is_grad_enabled()
    return [p.detach() for p in parameters]


class Careful(SGD):
    """With a step of its own around torch's."""

    steps = 0

    def step(self, closure: Any = None) -> Any:
        self.steps += 1
        return super().step(closure)


@pytest.mark.parametrize(
    ("make", "by_itself"),
    [
        pytest.param(lambda p: SGD(p, lr=0.1, momentum=0.9), True, id="SGD"),
        pytest.param(lambda p: Adam(p, lr=0.1, amsgrad=True), True, id="Adam"),
        pytest.param(lambda p: AdamW(p, lr=0.1), True, id="AdamW"),
        pytest.param(lambda p: NAdam(p, lr=0.1), True, id="NAdam"),
        pytest.param(lambda p: RMSprop(p, lr=0.1, centered=True), True, id="RMSprop"),
        pytest.param(lambda p: Careful(p, lr=0.1), False, id="a step around torch's"),
    ],
)
def test_parameters_move_as_by_the_optimizers_step_to_the_bit(make: Make, by_itself: bool) -> None:
    assert (Update(made(make)[1])._step is not None) is by_itself
    found, expected = moved(make, Update), moved(make, lambda o: o.step)
    assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))


def test_a_step_of_ones_own_is_called() -> None:
    _, optimizer = made(lambda p: Careful(p, lr=0.1))
    Update(optimizer)()
    assert isinstance(optimizer, Careful)
    assert optimizer.steps == 1


def by_hook(optimizer: Optimizer, heard: list[str]) -> None:
    optimizer.register_step_post_hook(lambda *_: heard.append("post"))


def before_by_hook(optimizer: Optimizer, heard: list[str]) -> None:
    optimizer.register_step_pre_hook(lambda *_: heard.append("pre"))


def by_name(optimizer: Optimizer, heard: list[str]) -> None:
    step = optimizer.step
    optimizer.step = lambda *_: (heard.append("step"), step())  # type: ignore[method-assign]


@pytest.mark.parametrize("listen", [by_hook, before_by_hook, by_name])
def test_who_begins_to_listen_hears_the_next_step(listen: Callable[[Optimizer, list[str]], None]) -> None:
    _, optimizer = made(lambda p: SGD(p, lr=0.1))
    update, heard = Update(optimizer), list[str]()
    update()
    listen(optimizer, heard)
    update()
    update()
    assert len(heard) == 2


def test_hooks_on_all_optimizers_are_heard() -> None:
    _, optimizer = made(lambda p: SGD(p, lr=0.1))
    update, heard = Update(optimizer), list[str]()
    handle = internals.register_optimizer_step_post_hook(lambda *_: heard.append("post"))
    try:
        update()
    finally:
        handle.remove()
    update()
    assert heard == ["post"]


def test_a_profile_shows_the_step() -> None:
    _, optimizer = made(lambda p: SGD(p, lr=0.1))
    update = Update(optimizer)
    with torch.profiler.profile() as profile:
        update()
    assert "Optimizer.step#SGD.step" in {e.key for e in profile.key_averages()}


@pytest.mark.parametrize("lost", ["_use_grad_for_differentiable", "_global_optimizer_pre_hooks"])
def test_torchs_own_way_is_taken_with_another_torch(monkeypatch: pytest.MonkeyPatch, lost: str) -> None:
    parameters, optimizer = made(lambda p: SGD(p, lr=0.1))
    monkeypatch.delattr(internals, lost)
    assert Update(optimizer)._step is None
    assert parameters
