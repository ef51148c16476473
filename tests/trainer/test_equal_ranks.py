"""Ranks that do not hold the same state are found, and named, before anything wrong is kept."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import worlds
from test_train_exact import job
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from relight_agent.files import JobFile
from relight_trainer import client, train
from relight_trainer.context import WorkerContext
from relight_trainer.equality import ranks
from relight_trainer.hooks import Hook
from relight_trainer.run import Run

pytestmark = pytest.mark.timeout(120)


def plain(root: Path, **more: Any) -> JobFile:
    return replace(job(root), **more)


def model(seed: int = 0) -> nn.Module:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(2, 8), nn.ReLU(), nn.Linear(8, 1))


def batches() -> DataLoader[Any]:
    points = TensorDataset(torch.randn(64, 2, generator=torch.Generator().manual_seed(1)))
    return DataLoader(points, batch_size=4, sampler=DistributedSampler(points))


def trained(run: client.Run, net: nn.Module, optimizer: torch.optim.Optimizer, epochs: int = 1) -> Iterator[int]:
    for (x,) in run.steps(batches(), epochs=epochs):
        optimizer.zero_grad()
        net(x).pow(2).mean().backward()
        optimizer.step()
        yield run.step + 1


# After the start.


def forgot_to_wrap(context: WorkerContext) -> Any:
    net = model()
    optimizer = torch.optim.Adam(net.parameters())
    run = client.start(model=net, optimizer=optimizer, init=True)
    for _ in trained(run, net, optimizer, epochs=200):
        pass
    return run.outcome()


def test_a_model_that_is_not_wrapped_is_found_after_the_first_step(tmp_path: Path) -> None:
    answers = worlds.run(forgot_to_wrap, root=tmp_path, job=plain(tmp_path, checkpoint_steps=0))
    assert any(
        "RanksDiffer: after step 1 rank 1 and rank 0 hold different values in model, first in 0.weight" in answer
        for answer in answers
    )
    assert not any("completed" in answer for answer in answers)


def set_to_rank(context: WorkerContext, after: int) -> Any:
    """Equal but for what the script does by itself after step `after`."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    run = client.start(model=net, optimizer=optimizer, init=True)
    replica = run.wrap(net)
    for step in trained(run, replica, optimizer, epochs=2):
        if step == after:
            with torch.no_grad():
                optimizer.state[net[2].bias]["momentum_buffer"] += 1e-7 * context.rank
    return run.outcome()


def test_a_checkpoint_of_ranks_that_differ_is_never_committed(tmp_path: Path) -> None:
    answers = worlds.run(set_to_rank, 5, root=tmp_path, job=plain(tmp_path, checkpoint_steps=5))
    said = "RanksDiffer: after step 5 rank 1 and rank 0 hold different values in optimizer, first in state[3].momentum_buffer"
    assert all(said in answer for answer in answers)
    assert not list((tmp_path / "checkpoints").glob("step-*"))
    # The same state a step later: the one of step 5 was sound.
    (tmp_path / "later").mkdir()
    answers = worlds.run(set_to_rank, 6, root=tmp_path / "later", job=plain(tmp_path / "later", checkpoint_steps=5))
    assert all("RanksDiffer: after step 10 " in answer for answer in answers)
    assert [p.name for p in (tmp_path / "later" / "checkpoints").glob("step-*")] == ["step-000000005.g1"]


def test_the_end_compares_every_object(tmp_path: Path) -> None:
    answers = worlds.run(set_to_rank, 16, root=tmp_path, job=plain(tmp_path, checkpoint_dir="", checkpoint_steps=0))
    assert all("RanksDiffer: after step 16 rank 1 and rank 0 hold" in answer for answer in answers)


def in_between(context: WorkerContext) -> Any:
    ranks.LEAST_SECONDS = 0.05
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    run = client.start(model=net, optimizer=optimizer, init=True)
    replica = run.wrap(net)
    for step in trained(run, replica, optimizer, epochs=50_000):
        if step == 5:
            with torch.no_grad():
                net[0].bias += context.rank
    return run.step


def test_ranks_that_come_to_differ_are_found_between_checkpoints(tmp_path: Path) -> None:
    answers = worlds.run(in_between, root=tmp_path, job=plain(tmp_path, checkpoint_dir="", checkpoint_steps=0))
    assert all("rank 1 and rank 0 hold different values in model, first in 0.bias" in answer for answer in answers)
    steps = [int(answer.split("after step ")[1].split()[0]) for answer in answers]
    assert 5 <= steps[0] < 800_000


def stopped(context: WorkerContext, flag: Path) -> Any:
    """Differs from step 5 on, and is then told to stop."""
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    run = client.start(model=net, optimizer=optimizer, init=True)
    replica = run.wrap(net)
    for step in trained(run, replica, optimizer, epochs=5000):
        if step == 5:
            with torch.no_grad():
                net[0].bias += context.rank
            flag.touch()
    return run.outcome()


def test_a_stop_hands_no_state_on_that_differs(tmp_path: Path) -> None:
    flag = tmp_path / "differs"
    with worlds.world(stopped, flag, root=tmp_path, job=plain(tmp_path, checkpoint_steps=0)) as running:
        until(flag.exists)
        running.stop(0)
        answers = running.join()
    assert all("rank 1 and rank 0 hold different values in model, first in 0.bias" in answer for answer in answers)
    assert not list((tmp_path / "checkpoints").glob("step-*"))


def until(condition: Callable[[], bool]) -> None:
    while not condition():
        time.sleep(0.01)


def fleeting(context: WorkerContext) -> Any:
    net = model()
    net.register_buffer("seen", torch.tensor(float(context.rank)), persistent=False)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    run = client.start(model=net, optimizer=optimizer, init=True)
    replica = DistributedDataParallel(net, broadcast_buffers=False)
    for _ in trained(run, replica, optimizer):
        net.seen = torch.tensor(float(context.rank))
    return run.outcome()


def test_a_buffer_that_is_not_persistent_may_differ(tmp_path: Path) -> None:
    outcomes = worlds.run(fleeting, root=tmp_path, job=job(tmp_path))
    assert [o.kind for o in outcomes] == ["completed"] * 2
    assert outcomes[0].result == outcomes[1].result


class Nudge(Hook):
    """Moves the weights by what is another number on each rank."""

    def update_end(self, run: Run) -> None:
        with torch.no_grad():
            next(run.model.parameters()).add_(1e-3 * run.rank)


def test_a_hook_that_moves_weights_by_the_rank_ends_the_job(tmp_path: Path) -> None:
    the_job = job(tmp_path, hooks=[{"type": "test_equal_ranks:Nudge"}])
    answers = worlds.run(train.run, root=tmp_path, job=the_job)
    assert any(
        "RanksDiffer: after step 1 rank 1 and rank 0 hold different values in model, first in" in a for a in answers
    )
    assert not list((tmp_path / "checkpoints").glob("step-*"))


# At the start.


def begins(context: WorkerContext, how: str) -> Any:
    """One epoch of a script that begins differently on each rank, as `how` says."""
    net = model(context.rank if how.startswith("weights") else 0)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1 * (1 + context.rank * (how == "optimizer")))
    run = client.start(model=net, optimizer=optimizer, init=True)
    used: nn.Module = net
    match how:
        case "weights, client's DDP":
            used = run.wrap(net)
        case "weights, own DDP":
            used = DistributedDataParallel(net)
    for _ in trained(run, used, optimizer):
        pass
    return run.outcome()


@pytest.mark.parametrize("how", ["weights, client's DDP", "weights, own DDP"])
def test_a_model_that_begins_differently_is_rank_0s_under_ddp(tmp_path: Path, how: str) -> None:
    outcomes = worlds.run(begins, how, root=tmp_path, job=job(tmp_path))
    assert [getattr(o, "kind", o) for o in outcomes] == ["completed"] * 2
    assert outcomes[0].result == outcomes[1].result


def test_a_model_that_begins_differently_and_stays_outside_ddp_is_refused(tmp_path: Path) -> None:
    answers = worlds.run(begins, "weights", root=tmp_path, job=job(tmp_path))
    assert all("StartsDiffer: model: 0.weight began with different values on rank 1 and rank 0" in a for a in answers)
    assert all("seed" in a and "per_rank={'model': ...}" in a for a in answers)
    assert not list((tmp_path / "checkpoints").glob("step-*"))


def test_an_optimizer_that_begins_differently_is_refused(tmp_path: Path) -> None:
    answers = worlds.run(begins, "optimizer", root=tmp_path, job=job(tmp_path))
    said = "StartsDiffer: rank 1 and rank 0 begin with different values in optimizer, first in param_groups[0].lr (0.1 on rank 0, 0.2 on rank 1)"
    assert all(said in a for a in answers)


class Place:
    """A loader's or a sampler's state: each rank's own."""

    def __init__(self, rank: int) -> None:
        self.rank = rank

    def state_dict(self) -> dict[str, Any]:
        return {"shard": torch.tensor([self.rank])}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.rank = int(state["shard"])


def with_place(context: WorkerContext) -> Any:
    return client.start(model=model(), place=Place(context.rank), init=True)


def test_any_object_that_begins_differently_is_refused(tmp_path: Path) -> None:
    answers = worlds.run(with_place, root=tmp_path, job=job(tmp_path))
    assert all(
        "StartsDiffer: rank 1 and rank 0 begin with different values in place, first in shard" in a for a in answers
    )


def averaged(context: WorkerContext) -> Any:
    """Another seed on each rank, and an average of the model beside it, as many scripts have it."""
    net = model(context.rank)
    average = torch.optim.swa_utils.AveragedModel(net)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    run = client.start(model=net, average=average, optimizer=optimizer, init=True)
    replica = run.wrap(net)
    for _ in trained(run, replica, optimizer):
        average.update_parameters(net)
    return run.outcome()


def test_an_average_that_was_copied_from_a_model_needs_no_ddp(tmp_path: Path) -> None:
    outcomes = worlds.run(averaged, root=tmp_path, job=job(tmp_path))
    assert [getattr(o, "kind", o) for o in outcomes] == ["completed"] * 2
    assert outcomes[0].result == outcomes[1].result


class Clock:
    """Seconds that each rank has measured for itself, and a number that all ranks must agree on."""

    def __init__(self, rank: int) -> None:
        self.seconds, self.agreed = float(rank), 1

    def state_dict(self) -> dict[str, Any]:
        return {"seconds": self.seconds, "agreed": self.agreed}

    def compared_state(self) -> dict[str, Any]:
        return {"agreed": self.agreed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.seconds, self.agreed = state["seconds"], state["agreed"]


def with_clock(context: WorkerContext, stop_after: int | None, agreed: bool = True) -> Any:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    clock = Clock(context.rank)
    run = client.start(model=net, optimizer=optimizer, clock=clock, init=True)
    begun = run.step
    replica = run.wrap(net)
    for step in trained(run, replica, optimizer):
        clock.seconds += context.rank + 0.5
        if step == 5 and not agreed:
            clock.agreed += context.rank
        if step == stop_after:
            os._exit(9)
    return begun


def test_snapshots_of_one_step_may_differ_in_what_each_rank_has_for_its_notes(tmp_path: Path) -> None:
    the_job = plain(tmp_path, checkpoint_dir="", checkpoint_steps=0)
    assert worlds.run(with_clock, 4, root=tmp_path, job=the_job) == ["died"] * 2
    assert worlds.run(with_clock, None, root=tmp_path, job=the_job, generation=2) == [3, 3]


def test_and_in_nothing_else(tmp_path: Path) -> None:
    the_job = plain(tmp_path, checkpoint_dir="", checkpoint_steps=0)
    assert worlds.run(with_clock, 6, False, root=tmp_path, job=the_job) == ["died"] * 2
    answers = worlds.run(with_clock, None, root=tmp_path, job=the_job, generation=2)
    assert all("hold different values in clock, first in agreed (1 on rank 0, 2 on rank 1)" in str(a) for a in answers)
