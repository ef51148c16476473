"""A live state is, at every look, what `state_dict()` gives."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from relight_trainer.checkpoint import live
from relight_trainer.checkpoint.container import flatten
from relight_trainer.checkpoint.repeated import Flattener


class Training:
    def __init__(self, optimizer: Callable[..., torch.optim.Optimizer]) -> None:
        self.model = nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3), nn.Sequential(nn.Linear(3, 1)))
        self.optimizer = optimizer(self.model.parameters(), lr=0.1)
        self._objects = {"model": self.model, "optimizer": self.optimizer}
        self._state = {name: live(o) for name, o in self._objects.items()}
        self._flatten = Flattener()

    def step(self) -> None:
        self.optimizer.zero_grad()
        self.model(torch.randn(4, 2)).sum().backward()
        self.optimizer.step()

    def look(self) -> None:
        quoted, paths, tensors = self._flatten(self._state)
        model = self.model.state_dict(keep_vars=True)
        expected = flatten({"model": model, "optimizer": self.optimizer.state_dict()})
        assert json.loads(quoted) == expected[0]
        assert paths == expected[1]
        assert all(one is other for one, other in zip(tensors, expected[2], strict=True))


def _sgd(parameters: Any, lr: float) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=lr, momentum=0.9)


@pytest.mark.parametrize("optimizer", [_sgd, torch.optim.AdamW, torch.optim.Adagrad, torch.optim.LBFGS])
def test_every_step_of_a_training_with_a_schedule(optimizer: Any) -> None:
    training = Training(optimizer)
    for step in range(5):
        training.optimizer.param_groups[0]["lr"] = 0.1 / (step + 1)
        if not isinstance(training.optimizer, torch.optim.LBFGS):
            training.step()
        training.look()


def _changes(training: Training) -> dict[str, Callable[[], object]]:
    model, optimizer = training.model, training.optimizer
    group = optimizer.param_groups[0]
    norm: Any = model[1]
    own = torch.ones(1)
    first: Any = model[0]
    return {
        "another buffer": lambda: setattr(norm, "running_mean", torch.ones(3)),
        "another buffer of one equal number": lambda: setattr(
            norm, "num_batches_tracked", norm.num_batches_tracked.clone()
        ),
        "a new buffer": lambda: first.register_buffer("count", torch.zeros(1)),
        "a buffer that is not saved": lambda: first.register_buffer("scratch", torch.zeros(1), persistent=False),
        "no bias": lambda: setattr(first, "bias", None),
        "another module": lambda: setattr(model, "0", nn.Linear(2, 3)),
        "a module more, deep inside": lambda: model[2].add_module("more", nn.Linear(1, 1)),  # type: ignore[operator, union-attr]
        "a hook of the state": lambda: first.register_state_dict_post_hook(
            lambda _, state, prefix, __: state.update({prefix + "own": own})
        ),
        "momentum": lambda: group.update(momentum=0.5),
        "a setting more": lambda: group.update(extra=1),
        "a setting of another kind": lambda: group.update(lr=torch.tensor(0.1)),
        "a list among the settings": lambda: group.update(extra=[1]),
        "a group more": lambda: optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))]}),
        "another moment": lambda: optimizer.state[first.weight].update(momentum_buffer=torch.ones(3, 2)),
        "a number in the state": lambda: optimizer.state[first.weight].update(steps=1),
        "no state": optimizer.state.clear,
        "loaded": lambda: optimizer.load_state_dict(optimizer.state_dict()),
        "a hook of the optimizer's": lambda: optimizer.register_state_dict_post_hook(
            lambda _, state: {**state, "own": 1}
        ),
    }


@pytest.mark.parametrize("change", _changes(Training(_sgd)))
def test_whatever_changes_is_seen(change: str) -> None:
    training = Training(_sgd)
    training.step()
    training.look()
    training.look()
    _changes(training)[change]()
    training.look()
    training.look()


def test_what_has_changed_in_place_within_a_setting_is_seen() -> None:
    for looks in range(2):  # a list from the beginning, or in the place of a number
        training = Training(_sgd)
        training.optimizer.param_groups[0]["extra"] = 0
        for _ in range(looks):
            training.look()
        training.optimizer.param_groups[0]["extra"] = seen = [1]
        training.look()
        seen.append(2)
        training.look()


def test_a_module_with_a_say_in_its_state_is_asked_each_time() -> None:
    class Own(nn.Linear):
        count = 0

        def get_extra_state(self) -> Tensor:
            return torch.tensor(self.count)

        def set_extra_state(self, state: Tensor) -> None:
            self.count = int(state)

    training = Training(_sgd)
    own = training.model[0] = Own(2, 3)
    state, flattener = {"model": live(training.model)}, Flattener()
    for own.count in range(3):
        *_, tensors = flattener(state)
        assert tensors[2].item() == own.count


def test_a_state_that_cannot_be_saved_does_not_spoil_the_next() -> None:
    training, flattener = Training(_sgd), Flattener()
    state = {"model": live(training.model), "loop": {"step": 1}}
    flattener(state)
    training.model[0].register_buffer("count", torch.zeros(1))
    with pytest.raises(Exception, match=r"loop\.x"):
        flattener({**state, "loop": {"x": object()}})
    *_, tensors = flattener(state)
    assert len(tensors) == len(training.model.state_dict())
