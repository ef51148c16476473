"""A state flattened again and again is what it is flattened afresh."""

import json
from collections import deque
from typing import Any

import pytest
import torch
from torch import nn

from relight_trainer.checkpoint.container import flatten
from relight_trainer.checkpoint.repeated import Flattener


def same(flattener: Flattener, state: dict[str, Any]) -> None:
    quoted, paths, tensors = flattener(state)
    expected = flatten(state)
    assert json.loads(quoted) == expected[0]
    assert paths == expected[1]
    assert all(one is other for one, other in zip(tensors, expected[2], strict=True))


def test_a_training_is_flattened_as_if_each_step_were_the_first() -> None:
    model = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    flattener = Flattener()
    for step in range(6):
        optimizer.param_groups[0]["lr"] = 0.1 if step < 3 else 0.01
        model(torch.randn(4, 2)).sum().backward()
        optimizer.step()
        same(
            flattener,
            {"model": model.state_dict(keep_vars=True), "optimizer": optimizer.state_dict(), "loop": {"step": step}},
        )


def test_what_changes_in_place_is_noticed() -> None:
    tensor = torch.ones(2)
    live: dict[str, Any] = {
        "numbers": {"list": [1, 2], "pair": (1, [2])},
        "tensors": {"a": tensor},
        "one": {"b": torch.ones(())},
        "others": {"d": deque([1])},
        "nan": {"x": float("nan")},
        7: {},
    }
    del live[7]
    flattener = Flattener()
    changes = [
        lambda: None,
        lambda: live["numbers"]["list"].append(3),
        lambda: live["numbers"]["pair"][1].append(3),
        lambda: live["tensors"].update(a=torch.ones(2)),  # equal, and another one
        lambda: live["tensors"].update(c=torch.zeros(1)),  # later references move
        lambda: live["one"].update(b=torch.zeros(())),
        lambda: live["others"]["d"].append(2),
        lambda: live.update(new={"t": tensor}),
        lambda: live.pop("numbers"),
    ]
    for change in changes:
        change()
        same(flattener, live)
        same(flattener, live)


@pytest.mark.parametrize("key", [1, "$tensor"])
def test_keys_that_need_a_tag_are_written_as_ever(key: Any) -> None:
    same(Flattener(), {key: {"a": torch.ones(1)}})


@pytest.mark.parametrize(
    "value",
    [
        {"a": 1, "b": 0.1, "c": "x", "d": None, "e": True, "f": {"g": -2}},
        {"a": 2**53}, {"a": -(2**53)}, {"a": float("inf")}, {"a": float("nan")}, {"a": 1e300}, {"$a": 1}, {"a": {1: 2}},
        {"a": {}}, {}, {"a": [1]}, {"a": (1,)}, 5, "x", None,
    ],
)  # fmt: skip
def test_numbers_and_texts_are_written_as_ever(value: Any) -> None:
    same(Flattener(), {"loop": value, "t": {"x": torch.ones(1)}})
