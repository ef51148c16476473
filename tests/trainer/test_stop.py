"""All ranks stop at the same step, whoever is told to and wherever each of them is."""

import random
import shutil
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import worlds
from test_train_exact import job
from torch import nn

from relight_agent.ledger import Ledger
from relight_trainer import client, train
from relight_trainer.context import WorkerContext
from relight_trainer.hooks import Hook
from relight_trainer.peers import Interrupted, Peers, connect, form
from relight_trainer.run import Run
from relight_trainer.session import Session
from relight_trainer.stop import StopAgreement

pytestmark = pytest.mark.timeout(120)


def stepping(
    context: WorkerContext, seed: int, victims: dict[int, float], steps: int = 10**6, meet: str = "in each step"
) -> Any:
    """Steps with a collective each, evaluations now and then; `victims`: rank -> second at which its agent asks.

    `meet` in each of a step's parts, or in its last one.
    """
    form(torch.device("cpu"))
    peers = Peers()
    rng = random.Random(seed * 100 + context.rank)
    asked_at = time.monotonic() + victims.get(context.rank, 1e9)
    said: list[str] = []
    agreement = StopAgreement(
        connect("stop-test"),
        rank=context.rank,
        world=context.world_size,
        requested=lambda: time.monotonic() >= asked_at,
        say=said.append,
        poll=0.01,
        patience=30.0,  # a busy machine is no reason to give up
    )
    ones = torch.ones(8)
    parts = 1 if meet == "in each step" else 4
    step, left_in = 0, "end"
    while step < steps and left_in == "end":
        if step % 5 == 4:
            time.sleep(rng.random() * 0.02)
            try:
                peers.sum(torch.ones(1), lambda step=step: agreement.should_leave(step))
            except Interrupted:
                left_in = "evaluation"
                break
        for part in range(parts):
            if not agreement.enter(step, part, last=part == parts - 1):
                left_in = f"part {part}"
                break
            time.sleep(rng.random() * 0.01)
            if meet != "in the last part" or part == parts - 1:
                dist.all_reduce(ones)
            time.sleep(rng.random() * 0.01)
        else:
            step += 1
            agreement.at_boundary(step)
    if left_in == "end" and not agreement.finish(step):
        left_in = "finish"
    agreement.close()
    return step, left_in, said


@pytest.mark.parametrize("seed", range(12))
def test_random_victims_and_delays_end_in_one_step(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    ranks = rng.choice([2, 3, 4])
    victims = {rank: rng.random() * 0.3 for rank in rng.sample(range(ranks), rng.randint(1, ranks))}
    results = worlds.run(stepping, seed, victims, root=tmp_path, job=job(tmp_path), ranks=ranks, timeout=60)
    assert len({step for step, _, _ in results}) == 1, results
    assert all(left_in != "end" and not said for _, left_in, said in results), results


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("meet", ["in each part", "in the last part"])
def test_a_step_of_several_parts_is_left_before_the_same_part(tmp_path: Path, seed: int, meet: str) -> None:
    rng = random.Random(seed)
    victims = {rank: 0.1 + rng.random() * 0.2 for rank in rng.sample(range(3), rng.randint(1, 3))}
    arguments = stepping, seed, victims, 10**6, meet
    results = worlds.run(*arguments, root=tmp_path, job=job(tmp_path), ranks=3, timeout=60)
    # Whoever is in an evaluation may leave it at a boundary that others are to enter a step from.
    assert len({(step, left_in.replace("evaluation", "part 0")) for step, left_in, _ in results}) == 1, results
    assert all(left_in != "end" and not said for _, left_in, said in results), results


@pytest.mark.parametrize("seed", range(4))
def test_a_stop_asked_for_as_ranks_finish_stops_all_or_none(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    results = worlds.run(
        stepping,
        seed,
        {rng.randrange(3): rng.random() * 0.15},
        8,
        root=tmp_path,
        job=job(tmp_path),
        ranks=3,
        timeout=60,
    )
    steps = {step for step, _, _ in results}
    ends = {left_in == "end" for _, left_in, _ in results}
    assert len(steps) == 1, results
    assert len(ends) == 1, results


def silent(context: WorkerContext) -> Any:
    """Rank 1 takes no part; rank 0 is asked to stop."""
    form(torch.device("cpu"))
    dist.barrier()
    if context.rank == 1:
        time.sleep(2)
        return None
    said: list[str] = []
    agreement = StopAgreement(
        connect("stop-test"), rank=0, world=2, requested=lambda: True, say=said.append, poll=0.01, patience=0.3
    )
    began = time.monotonic()
    step = 0
    while time.monotonic() < began + 1:
        assert agreement.enter(step)
        step += 1
        agreement.at_boundary(step)
    return time.monotonic() - began, said


def test_without_an_answer_training_goes_on_and_says_so(tmp_path: Path) -> None:
    (seconds, said), _ = worlds.run(silent, root=tmp_path, job=job(tmp_path))
    assert seconds < 2
    assert len(said) == 1
    assert "given up" in said[0]


def counted(context: WorkerContext) -> dict[str, int]:
    """What a whole training has asked of its process group, by name."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profiler:
        train.run(context)
    names = Counter(event.name for event in profiler.events())
    return {name: count for name, count in names.items() if name.startswith("gloo:")}


def test_a_step_costs_no_collective_but_the_one_for_its_gradients(tmp_path: Path) -> None:
    """Heartbeats, snapshots, comparing the ranks and the agreement to stop cost none; what remains is DDP's one bucket.

    At the start rank 0 sends the state to the other rank, so that the two count different operations.
    """
    found = []
    for steps in (10, 30):
        root = tmp_path / str(steps)
        root.mkdir()
        the_job = job(root)
        the_job.entry["config"] = {
            "model": {"type": "little:Perceptron"},
            "data": {"type": "little:samples", "count": 41},
            "train": {"duration": f"{steps}st", "global_batch": 8, "device": "cpu", "log_every": 1000},
        }
        found.append(worlds.run(counted, root=root, job=the_job, ranks=2))
    for few, many in zip(*found, strict=True):
        assert many == few | {"gloo:all_reduce": few["gloo:all_reduce"] + 20}


@pytest.mark.parametrize("checkpoints", [True, False])
def test_a_stopped_job_goes_on_to_the_same_end(tmp_path: Path, checkpoints: bool) -> None:
    steps = 400
    whole = worlds.run(train.run, root=tmp_path, job=job(tmp_path, steps=steps, checkpoints=False))
    root = tmp_path / "stopped"
    root.mkdir()
    the_job = job(root, steps=steps, checkpoints=checkpoints)
    with worlds.world(train.run, root=root, job=the_job) as first:
        while (progress := first.folders[1].progress()) is None or progress.step < 1:
            time.sleep(0.01)
        first.stop(1)
        outcomes = first.join()
    assert {o.kind for o in outcomes} == {"stopped"}
    assert all(o.saved for o in outcomes)
    [step] = {o.step for o in outcomes}
    assert 0 < step < steps
    if checkpoints:
        for slot in (0, 1):
            shutil.rmtree(root / f"slot-{slot}")
    with worlds.world(train.run, root=root, job=the_job, generation=2) as second:
        again = second.join()
        progress = second.folders[0].progress()
    assert progress is not None
    assert progress.resumed_from == step
    assert progress.resumed_kind == ("checkpoint" if checkpoints else "snapshot")
    assert again[0].result == whole[0].result


class Asked(Hook):
    """Has its rank told to stop inside part 1 of the third step, where that is wanted; parts are slow from there on."""

    wanted = asked = False
    parts = 0

    def micro_begin(self, run: Run) -> None:
        Asked.part(run.step, run.micro)

    @staticmethod
    def part(step: int, number: int) -> None:
        Asked.parts += 1
        if Asked.wanted and step >= 2:
            Asked.asked |= dist.get_rank() == 1 and number == 1
            time.sleep(0.25)


def asked(context: WorkerContext, train_it: str, wanted: bool) -> Any:
    """How a training ended, how many parts it took for that, and the seconds that were of no use to it."""
    Asked.wanted = wanted
    Session._requested = lambda _: Asked.asked  # type: ignore[method-assign]
    outcome = train.run(context) if train_it == "core" else by_script()
    spent = Ledger.read(context.folder.ledger_path)
    assert spent is not None
    return outcome, Asked.parts, spent.seconds["drain"]


def by_script() -> Any:
    """Four steps of eight batches, in DDP, with batch norm."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 1))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    run = client.start(model=model, optimizer=optimizer, init=True)
    replica = run.wrap(model)
    batches = [torch.randn(4, 3, generator=torch.Generator().manual_seed(i)) for i in range(32)]
    try:
        for number, x in enumerate(run.steps(batches, epochs=1, accumulate=8)):
            Asked.part(run.step, number % 8)
            replica(x).square().mean().backward()
            if run.stepping:
                optimizer.step()
                optimizer.zero_grad()
    except SystemExit:
        pass
    return run.outcome()


@pytest.mark.parametrize("train_it", ["core", "core, sync BN", "script"])
def test_a_step_of_long_parts_is_dropped_at_a_stop_and_done_again(tmp_path: Path, train_it: str) -> None:
    config = {
        "model": {"type": "digits_cnn", "width": 4},
        "train": {"duration": "4st", "accumulate": 8, "global_batch": 64, "device": "cpu", "log_every": 1},
        "hooks": [{"type": "test_stop:Asked"}],
        **({"sync_bn": True} if "sync BN" in train_it else {}),
    }
    # No snapshots but those that a stop takes: what is in memory is to be the state before the step.
    the_job = replace(job(tmp_path, checkpoints=False), entry={"kind": "config", "config": config}, snapshot_every=100)
    train_it = train_it.split(",", maxsplit=1)[0]
    (tmp_path / "whole").mkdir()
    whole = worlds.run(asked, train_it, False, root=tmp_path / "whole", job=the_job)
    stopped = worlds.run(asked, train_it, True, root=tmp_path, job=the_job)
    assert {(end.kind, end.step, end.saved) for end, *_ in stopped} == {("stopped", 2, True)}
    [parts] = {parts for _, parts, _ in stopped}
    assert 2 * 8 + 2 <= parts < 3 * 8
    assert all(drained > 0.25 * (parts - 2 * 8) for *_, drained in stopped)
    again = worlds.run(asked, train_it, False, root=tmp_path, job=the_job, generation=2)
    assert [(end.result, parts) for end, parts, _ in again] == [(end.result, 2 * 8) for end, *_ in whole]
