"""All ranks stop at the same step, whoever is told to and wherever each of them is."""

import random
import shutil
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import worlds
from test_train_exact import job

from relight_trainer import train
from relight_trainer.context import WorkerContext
from relight_trainer.peers import Interrupted, Peers, connect, form
from relight_trainer.stop import StopAgreement

pytestmark = pytest.mark.timeout(120)


def stepping(context: WorkerContext, seed: int, victims: dict[int, float], steps: int = 10**6) -> Any:
    """Steps with a collective each, evaluations now and then; `victims`: rank -> second at which its agent asks."""
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
    step, left_in = 0, "end"
    while step < steps:
        if step % 5 == 4:
            time.sleep(rng.random() * 0.02)
            try:
                peers.sum(torch.ones(1), lambda step=step: agreement.should_leave(step))
            except Interrupted:
                left_in = "evaluation"
                break
        if not agreement.enter(step):
            left_in = "step"
            break
        time.sleep(rng.random() * 0.01)
        dist.all_reduce(ones)
        time.sleep(rng.random() * 0.01)
        step += 1
        agreement.at_boundary(step)
    else:
        if not agreement.finish(step):
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
    """Heartbeats, snapshots and the agreement to stop cost none; what remains is DDP's one bucket."""
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
        one, other = worlds.run(counted, root=root, job=the_job, ranks=2)
        assert one == other
        found.append(one)
    few, many = found
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
