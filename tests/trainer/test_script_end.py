"""A script's training is over once its planned steps or `run.finish()` are reached, on all ranks after the same step."""

import os
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import worlds
from test_train_exact import job
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from relight_agent.exits import ExitCode
from relight_agent.files import Heartbeat, Outcome
from relight_trainer import client, worker
from relight_trainer.context import WorkerContext
from relight_trainer.loop_end import LastStep, went_on

pytestmark = pytest.mark.timeout(120)


def loader(batches: int = 10) -> Any:
    data = torch.randn(4 * batches, 2, generator=torch.Generator().manual_seed(1))
    return DataLoader(TensorDataset(data), 4)


def parts() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Linear(2, 1)
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def trained(how: str, *, batches: int = 10, epochs: int = 2, leave: int | None = None, meet: bool = True) -> client.Run:
    """Train by `run.steps`, left in the batch that makes step `leave`. `how` in words: finish | break."""
    model, optimizer = parts()
    run = client.start(model=model, optimizer=optimizer, init=True)
    net = run.wrap(model) if meet else model
    for (x,) in run.steps(loader(batches), epochs=epochs):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
        if run.step + 1 == leave:
            break
    if "finish" in how:
        run.finish()
    return run


def ended(context: WorkerContext, how: str, leave: int | None, epochs: int = 2) -> Outcome:
    """What a worker says of a script that ends with 0."""
    worker.run_script = lambda *_: trained(how, leave=leave, epochs=epochs) and None  # type: ignore[assignment]
    return worker._run_to_the_end(context)


def script_job(path: Path, *, checkpoints: bool = True) -> Any:
    return replace(job(path, checkpoints=checkpoints), entry={"kind": "script", "argv": ["train.py"]}, snapshot_every=1)


def test_a_script_that_breaks_out_of_its_loop_has_not_succeeded_and_can_go_on(tmp_path: Path) -> None:
    the_job = script_job(tmp_path)
    broken = worlds.run(ended, "break", 13, root=tmp_path, job=the_job)
    assert {(o.kind, o.exit_code) for o in broken} == {("failed", ExitCode.BAD_CONFIG)}
    assert "left its training loop in step 13 of 20" in broken[0].message
    assert "run.finish()" in broken[0].message

    mended = worlds.run(ended, "finish", 13, root=tmp_path, job=the_job, generation=2)
    assert {(o.kind, o.step) for o in mended} == {("completed", 13)}
    (tmp_path / "whole").mkdir()
    whole = worlds.run(ended, "finish", 13, root=tmp_path / "whole", job=script_job(tmp_path / "whole"))
    assert [o.result for o in mended] == [o.result for o in whole]


def without_a_step(context: WorkerContext) -> Any:
    def script(*_: object) -> None:
        model, optimizer = parts()
        client.start(model=model, optimizer=optimizer, init=True)

    worker.run_script = script  # type: ignore[assignment]
    return worker._run_to_the_end(context)


def test_a_script_that_never_takes_a_step_has_not_succeeded(tmp_path: Path) -> None:
    [end] = worlds.run(without_a_step, root=tmp_path, job=script_job(tmp_path), ranks=1)
    assert (end.kind, end.exit_code) == ("failed", ExitCode.BAD_CONFIG)
    assert "without a training step" in end.message


def tail(context: WorkerContext, leave: int | None, epochs: int, die: bool) -> Any:
    """(steps done in this process, whether the training was over before it, what the job has come to)."""
    model, optimizer = parts()
    run = client.start(model=model, optimizer=optimizer, init=True)
    over, net, steps = run.finished, run.wrap(model), 0
    for (x,) in run.steps(loader(), epochs=epochs):
        optimizer.zero_grad()
        net(x).square().mean().backward()
        optimizer.step()
        steps += 1
        if run.step + 1 == leave:
            break
    run.finish()
    assert run.finished
    if die:
        os._exit(9)
    return steps, over, client.at_the_end()


@pytest.mark.parametrize("leave", [None, 13])
def test_what_stands_behind_the_loop_is_done_again_after_a_kill(tmp_path: Path, leave: int | None) -> None:
    the_job = script_job(tmp_path)
    assert worlds.run(tail, leave, 2, True, root=tmp_path, job=the_job) == ["died", "died"]
    again = worlds.run(tail, leave, 2, False, root=tmp_path, job=the_job, generation=2)
    assert [(steps, over) for steps, over, _ in again] == [(0, True)] * 2
    assert {(o.kind, o.step) for *_, o in again} == {("completed", leave or 20)}
    assert len(again[0][2].result["weightsDigest"]) == 64
    # And once more, where all memory is gone: by the final checkpoint.
    (tmp_path / "slot-0").rename(tmp_path / "gone-0")
    (tmp_path / "slot-1").rename(tmp_path / "gone-1")
    anew = worlds.run(tail, leave, 2, False, root=tmp_path, job=the_job, generation=3)
    assert [(steps, o.result) for steps, _, o in anew] == [(0, o.result) for *_, o in again]


def test_a_script_with_more_epochs_than_were_trained_trains_on(tmp_path: Path) -> None:
    the_job = script_job(tmp_path)
    assert worlds.run(tail, None, 2, True, root=tmp_path, job=the_job) == ["died", "died"]
    on = worlds.run(tail, None, 3, False, root=tmp_path, job=the_job, generation=2)
    assert [(steps, o.step) for steps, _, o in on] == [(10, 30)] * 2


def uneven(context: WorkerContext, meet: bool) -> Any:
    """Rank 1 has one batch less in each of two epochs."""
    try:
        return trained("finish", batches=10 - context.rank, meet=meet).step
    finally:
        if not meet and context.rank == 0:
            time.sleep(3)  # its own steps would be over before anybody looks


def test_a_rank_whose_loop_ends_first_is_named_within_seconds_while_others_wait_for_it(tmp_path: Path) -> None:
    with worlds.world(uneven, True, root=tmp_path, job=script_job(tmp_path)) as world:
        while not (said := dict(world.folders[0].outcomes(1))):
            time.sleep(0.05)
        seen = Heartbeat.read(world.folders[0].heartbeat_path(0))
        assert seen is not None
        assert time.monotonic() - seen[2] < 5.0  # since its last step
    [outcome] = said.values()
    assert (outcome.kind, outcome.exit_code) == ("failed", ExitCode.BAD_CONFIG)
    assert (
        "the loop of rank 1 ended after step 18 (2 epochs of 9 batches of a DataLoader of TensorDataset)"
        in outcome.message
    )
    assert "rank 0 has begun step 19 (2 epochs of 10 batches" in outcome.message
    assert outcome.step == 18


def ends_after(context: WorkerContext, steps: tuple[int, ...]) -> Any:
    """No rank waits for another: what is found is found at the end."""
    mine = steps[context.rank]
    model, optimizer = parts()
    run = client.start(model=model, optimizer=optimizer, init=True)
    for _ in range(mine):
        run.enter(0, run.step)
        run.done(epoch=0, batch=run.step + 1)
    dist.barrier()  # so that nobody has ended before another has done its last step
    if context.rank == 1:
        time.sleep(1)
    run.finish()
    return run.step


@pytest.mark.parametrize("steps", [(4, 5), (5, 4)])
def test_ranks_that_end_after_different_steps_do_not_succeed(tmp_path: Path, steps: tuple[int, int]) -> None:
    the_job = script_job(tmp_path, checkpoints=False)
    with worlds.world(ends_after, steps, root=tmp_path, job=the_job) as world:
        while not (world.pipes[1].poll(0.05) or dict(world.folders[1].outcomes(1))):
            pass
        said = [o.message for f in world.folders for o in dict(f.outcomes(1)).values()]
        if not said:
            said = [world.pipes[1].recv()]
        # The rank that waits is ended by its agent.
    assert f"rank 0 ended after step {steps[0]}" in said[0]
    assert f"step {steps[1]}" in said[0]


def test_equal_ends_meet_though_one_comes_late(tmp_path: Path) -> None:
    assert worlds.run(ends_after, (4, 4), root=tmp_path, job=script_job(tmp_path)) == [4, 4]


def shows_life(context: WorkerContext) -> Any:
    beats = []

    def note() -> None:
        beat = Heartbeat.read(context.folder.heartbeat_path(0))
        assert beat is not None
        beats.append(beat)

    run = trained("")
    note()
    time.sleep(0.05)
    run.alive()
    note()
    with run.evaluation():
        note()
    note()
    return beats


def test_behind_the_loop_is_a_section_of_its_own_that_can_show_life(tmp_path: Path) -> None:
    [beats] = worlds.run(shows_life, root=tmp_path, job=script_job(tmp_path), ranks=1)
    assert [section for section, *_ in beats] == ["after", "after", "evaluation", "after"]
    assert beats[1][2] > beats[0][2] + 0.04


def test_how_a_loop_ended_is_kept_in_bounds() -> None:
    last = LastStep(1, 18, "x" * 5000 + "é")
    read = LastStep.read(last.text().encode())
    assert (read.rank, read.step, len(read.how)) == (1, 18, 200)
    assert len(went_on(read, 0, 18, "y" * 200, within=True)) < 1024
