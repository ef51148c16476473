"""Where the time of a training goes: measured against sleeps, never in the way."""

import json
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import worlds
from test_train_exact import job
from torch import nn

from relight_trainer import train
from relight_trainer.hooks import Hook
from relight_trainer.observe.timing import (
    Bound,
    DeviceClock,
    HostClock,
    LastGradient,
    Phase,
    TimeSplit,
    words,
)


class Device:
    """A double of a device's queue: marks are passed when `reach` says so, at the times it says."""

    def __init__(self) -> None:
        self.made = 0
        self.recorded: list[Any] = []
        self.asked_too_early = 0

    def mark(self) -> Any:
        self.made += 1
        device = self

        class Mark:
            at: float | None = None

            def record(self) -> None:
                self.at = None
                device.recorded.append(self)

            def query(self) -> bool:
                return self.at is not None

            def elapsed_time(self, end: Any) -> float:
                if self.at is None or end.at is None:  # CUDA raises
                    device.asked_too_early += 1
                return (end.at - self.at) * 1000

        return Mark()

    def reach(self, *times: float) -> None:
        for at in times:
            self.recorded.pop(0).at = at


def test_a_device_is_never_asked_for_what_it_has_not_reached_and_loses_no_time() -> None:
    device = Device()
    clock = DeviceClock(device.mark)
    for phase in (Phase.DATA, Phase.FORWARD, Phase.BACKWARD, Phase.OTHER):
        clock.enter(phase)
    clock.settle()
    assert sum(clock.seconds) == 0
    device.reach(1.0, 1.5)  # it is in the forward pass
    clock.settle()
    assert clock.seconds[Phase.DATA] == pytest.approx(0.5)
    assert sum(clock.seconds) == pytest.approx(0.5)
    for phase in (Phase.DATA, Phase.OTHER):  # the host goes on
        clock.enter(phase)
    device.reach(1.75, 3.75, 4.0, 8.0)
    clock.settle()
    assert clock.seconds[Phase.FORWARD] == pytest.approx(0.25)
    assert clock.seconds[Phase.BACKWARD] == pytest.approx(2.0)
    assert clock.seconds[Phase.OTHER] == pytest.approx(0.25)
    assert clock.seconds[Phase.DATA] == pytest.approx(4.5)
    for step in range(100):
        clock.enter(Phase.DATA)
        clock.enter(Phase.OTHER)
        device.reach(10.0 + step, 10.5 + step)
        clock.settle()
    assert device.made <= 10  # marks are used again
    assert device.asked_too_early == 0
    assert sum(clock.seconds) == pytest.approx(109.5 - 1.0)


def test_a_host_counts_each_moment_once() -> None:
    now = iter([0.0, 1.0, 3.0, 3.5, 10.0])
    clock = HostClock(lambda: next(now))
    for phase in (Phase.DATA, Phase.FORWARD, Phase.DATA):
        clock.enter(phase)
    clock.settle()
    assert clock.seconds == [2.0 + 6.5, 0.5, 0, 0, 0, 0, 0, 1.0]


@pytest.mark.parametrize(
    ("seconds", "said"),
    [
        ([6.3, 1.2, 1.5, 0.5, 0.3, 0.1, 99.0, 0.1], "data-bound 63 %"),
        ([1.0, 3.0, 4.0, 2.0, 0, 0, 0, 0], "compute-bound 90 %"),
        ([1.0, 1.0, 1.0, 0, 5.0, 0, 0, 0], "communication-bound 62 %"),
        ([0, 1.0, 0, 0, 0, 3.0, 0, 0], "checkpoint-bound 75 %"),
        ([0, 1.0, 0, 0, 0, 0, 0, 3.0], "overhead-bound 75 %"),
        ([0.0] * 8, "compute-bound 0 %"),
    ],
)
def test_the_verdict_names_what_most_of_the_time_outside_evaluation_goes_to(seconds: list[float], said: str) -> None:
    assert str(Bound(seconds)) == said


def test_shares_are_told_largest_first() -> None:
    assert words([3.0, 1.0, 0, 0, 0, 0, 6.0, 0.001]) == "evaluation 60 %, data 30 %, forward 10 %"


def test_the_last_gradient_is_told_apart_from_the_others() -> None:
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    order: list[str] = []
    for name, parameter in model.named_parameters():
        parameter.register_post_accumulate_grad_hook(lambda _, name=name: order.append(name))
    last = LastGradient(model, lambda: order.append("reached"))
    for _ in range(3):
        model(torch.ones(1, 3)).sum().backward()
        last.backward_ended()
        order.append("|")
    first, second, third, _ = " ".join(order).split(" |")
    assert "reached" not in first
    assert second == third
    assert second.endswith(f"{first.split()[-1]} reached")
    last.remove()
    model(torch.ones(1, 3)).sum().backward()
    assert order.count("reached") == 2


def test_phases_are_those_of_the_loop(capsys: pytest.CaptureFixture[str]) -> None:
    """The points as the loop calls them, so many seconds after each."""
    now = 0.0
    split = TimeSplit(HostClock(lambda: now), node_rank=0, tell=True, window=100)
    run: Any = SimpleNamespace(
        world=1, step=7, passes=lambda _: [None], model=nn.Linear(1, 1), session=SimpleNamespace(shown={})
    )
    split.run_begin(run)
    lasts = {
        "step_begin": 1, "micro_begin": 512, "data_ready": 64, "forward_end": 32, "backward_end": 2,
        "gradients_ready": 8, "update_end": 16, "state_equal": 1, "saving": 4, "saved": 1,
    }  # fmt: skip
    for point, seconds in lasts.items():
        getattr(split, point)(run)
        now += seconds
    split.evaluation_begin(run)
    split.logged(run, {})  # what an evaluation logs
    assert run.session.shown == {}
    now += 1000
    split.evaluation_end(run, {})
    split.logged(run, {})
    assert split.clock.seconds == [512, 64, 32, 10, 0, 4, 1000, 19]
    assert run.session.shown == {"bound": "data-bound 80 %"}
    split.logged(run, {})
    split.run_end(run)
    [first, last] = capsys.readouterr().out.splitlines()
    assert first.startswith("relight: step 7: data-bound 80 % (evaluation 61 %, data 31 %, forward 4 %, ")
    assert last.startswith("relight: time until step 7: data-bound 80 % (")


def test_it_costs_next_to_nothing() -> None:
    split = TimeSplit(HostClock(), node_rank=0, tell=False)
    run: Any = SimpleNamespace()
    points = [getattr(split, p) for p in ("micro_begin", "data_ready", "forward_end", "backward_end", "saved")]

    def best_of(rounds: int) -> float:
        times = []
        for _ in range(rounds):
            began = time.perf_counter()
            for _ in range(200):
                for point in points:
                    point(run)
            times.append(time.perf_counter() - began)
        return min(times) / 200

    assert best_of(20) < 20e-6  # seconds a step; 3 us on an idle machine


class Slow(Hook):
    """Data that takes its time on rank 1."""

    order = 1
    seconds = 0.1

    def micro_begin(self, run: Any) -> None:
        if run.rank == 1:
            time.sleep(self.seconds)

    def run_end(self, run: Any) -> None:
        [split] = [hook for hook in run.hooks._hooks.values() if isinstance(hook, TimeSplit)]
        split.clock.settle()
        folder = Path(run.session._context.job.checkpoint_dir)
        (folder / f"seconds-{run.rank}").write_text(json.dumps(split.clock.seconds))


def test_who_waits_for_data_and_who_for_the_one_that_does_is_told_apart(tmp_path: Path) -> None:
    steps = 6
    the_job = job(tmp_path, steps=steps, hooks=[{"type": f"{__name__}:Slow"}], evaluate={"every": "99st"})
    outcomes = worlds.run(train.run, root=tmp_path, job=the_job)
    assert [outcome.kind for outcome in outcomes] == ["completed"] * 2
    waits, works = (json.loads((tmp_path / "checkpoints" / f"seconds-{rank}").read_text()) for rank in (0, 1))
    assert works[Phase.DATA] >= steps * Slow.seconds
    assert waits[Phase.DATA] < steps * Slow.seconds / 2
    # In the first step which gradient is the last is not known yet.
    assert waits[Phase.COMMUNICATION] > (steps - 2) * Slow.seconds
    assert works[Phase.COMMUNICATION] < waits[Phase.COMMUNICATION] / 2
    assert max(works[: Phase.EVALUATION]) == works[Phase.DATA]
