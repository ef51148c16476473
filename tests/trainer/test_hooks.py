"""Hooks: order, cost, state, failures."""

import timeit
from collections.abc import Callable
from typing import Any

import pytest

from relight_trainer.hooks import Hook, Hooks

RUN: Any = object()


def recorder(name: str, calls: list[str], order: int = 50, policy: Any = "fail", broken: bool = False) -> Hook:
    class Recorder(Hook):
        on_error = policy

        def __init__(self) -> None:
            self.order = order
            self.count = 0

        def state_dict(self) -> dict[str, Any]:
            return {"count": self.count}

        def load_state_dict(self, state: dict[str, Any]) -> None:
            self.count = state["count"]

        def step_begin(self, run: Any) -> None:
            calls.append(f"{name}.step_begin")
            if broken:
                raise RuntimeError("no disk")

        def step_end(self, run: Any) -> None:
            self.count += 1
            calls.append(f"{name}.step_end")

        def logged(self, run: Any, metrics: Any) -> None:
            calls.append(f"{name}.logged {metrics}")

    return Recorder()


def test_hooks_are_called_by_order_and_then_as_configured() -> None:
    calls: list[str] = []
    hooks = Hooks([recorder("b", calls), recorder("c", calls), recorder("a", calls, order=1)])
    hooks.step_begin(RUN)
    hooks.data_ready(RUN)
    hooks.logged(RUN, {"loss": 1.0})
    hooks.step_end(RUN)
    assert calls == [
        "a.step_begin", "b.step_begin", "c.step_begin",
        "a.logged {'loss': 1.0}", "b.logged {'loss': 1.0}", "c.logged {'loss': 1.0}",
        "a.step_end", "b.step_end", "c.step_end",
    ]  # fmt: skip


def test_the_points_are_those_of_the_base_class() -> None:
    own = {n for n in vars(Hook) if not n.startswith("_") and isinstance(vars(Hook)[n], Callable)}  # type: ignore[arg-type]
    assert own == {*Hooks.POINTS, "state_dict", "compared_state", "load_state_dict"}
    assert {*Hooks.POINTS} <= {*Hooks.__annotations__}


def test_a_point_that_nobody_overrides_costs_less_than_a_microsecond() -> None:
    hooks = Hooks([recorder("a", [])])
    seconds = min(timeit.repeat(lambda: hooks.micro_begin(RUN), number=10_000, repeat=20)) / 10_000
    assert seconds < 1e-6


def test_states_go_by_name_and_survive_a_change_of_hooks() -> None:
    hooks = Hooks([recorder("a", []), recorder("b", []), Hook()])
    for _ in range(3):
        hooks.step_end(RUN)
    saved = hooks.state_dict()
    assert saved == {"Recorder": {"count": 3}, "Recorder-2": {"count": 3}}
    fresh = Hooks([recorder("a", [])])
    fresh.load_state_dict(saved)
    fresh.step_end(RUN)
    assert fresh.state_dict() == {"Recorder": {"count": 4}}


def test_each_hooks_time_is_counted() -> None:
    hooks = Hooks([recorder("a", []), Hook()])
    hooks.step_end(RUN)
    assert hooks.seconds["Recorder"] > 0 == hooks.seconds["Hook"]


def test_a_hook_that_may_fail_is_left_out_once_it_has_and_one_that_may_not_ends_the_training() -> None:
    calls: list[str] = []
    said: list[str] = []
    hooks = Hooks([recorder("a", calls, policy="warn", broken=True), recorder("b", calls)], said.append)
    for _ in range(2):
        hooks.step_begin(RUN)
        hooks.step_end(RUN)
    assert calls == ["a.step_begin", "b.step_begin", "b.step_end", "b.step_begin", "b.step_end"]
    assert said == ["the hook Recorder is left out from now on: RuntimeError: no disk"]
    with pytest.raises(RuntimeError, match="no disk"):
        Hooks([recorder("a", calls, broken=True)]).step_begin(RUN)
