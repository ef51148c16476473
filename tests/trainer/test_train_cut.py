"""A training that is cut after any of its steps goes on to the same bits."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import little
import pytest
import torch
import worlds
from test_train_exact import job

from relight_trainer import train
from relight_trainer.checkpoint import Snapshots, unpack
from relight_trainer.config import parse
from relight_trainer.context import WorkerContext
from relight_trainer.data.splits import open_splits
from relight_trainer.peers import form
from relight_trainer.session import Session

pytestmark = pytest.mark.timeout(120)
CPU = torch.device("cpu")
STEPS = 40

EVERYTHING: dict[str, Any] = {
    "model": {"type": "little:Perceptron", "norm": True, "dropout": 0.3, "double": False},
    "data": {"type": "little:noisy", "count": 53},
    "loader": {"workers": 0},
    "train": {
        "duration": f"{STEPS}st", "global_batch": 12, "accumulate": 3, "virtual_ranks": 2, "precision": "fp16",
        "last_batch": "drop", "device": "cpu", "log_every": 3,
    },
    "optimizer": {"type": "adamw", "lr": 0.01},
    "clip": {"type": "norm", "max": 1.0},
    "ema": 0.9,
    "freeze": [{"match": "first.*", "until": "17st"}],
    "evaluate": {"every": "13st"},
    "observe": {"time_split": False},
    "hooks": [{"type": "little:Keep"}],
}  # fmt: skip


def with_workers(count: int) -> dict[str, Any]:
    return {**EVERYTHING, "loader": {"workers": count}}


def life(context: WorkerContext, config: dict[str, Any], number: int, state: bytes | None, cut: int | None) -> Any:
    """One life of a job: from `state`, where there is one, until `cut` steps are done."""
    own = replace(
        context, generation=number, run_dir=context.run_dir / str(number),
        job=replace(context.job, checkpoint_dir=""),
    )  # fmt: skip
    if state is not None:
        planted = Snapshots(own.snapshots, job_uid=own.job.uid, config_hash=own.job.config_hash)
        planted.write(unpack(bytearray(state)), generation=0, step=0)
    little.Keep.states, little.Keep.cut = {}, cut
    parsed = parse(config)
    session = Session(own)
    try:
        return train.train(parsed, open_splits(parsed.data, parsed.loader, parsed.train.seed, CPU), session, CPU, own)
    except little.Cut:
        return None
    finally:
        session._stop.close()


def lives(context: WorkerContext) -> Any:
    form(CPU)
    torch.use_deterministic_algorithms(True)
    whole = life(context, EVERYTHING, 1, None, None)
    states = little.Keep.states
    differ = []
    for step in range(1, STEPS):
        # One step from each: that all steps are repeated exactly follows by induction. Loader processes are no difference.
        life(context, with_workers(2 if step % 8 == 3 else 0), 1 + step, states[step], step + 1)
        if little.Keep.states != {step + 1: states[step + 1]}:
            differ.append(step)
    last = life(context, with_workers(2), 1 + STEPS, states[STEPS // 2], None)
    scales = {float(unpack(bytearray(s))["scaler"]["scale"]) for s in states.values()}
    return sorted(states), differ, whole.result, last.result, len(set(states.values())), scales


def test_a_training_with_everything_in_it_can_be_cut_after_any_step(tmp_path: Path) -> None:
    [found] = worlds.run(lives, root=tmp_path, job=job(tmp_path), ranks=1)
    steps, differ, whole, last, distinct, scales = found
    assert steps == list(range(1, STEPS + 1))
    assert distinct == STEPS
    assert differ == []
    assert whole == last
    assert len(scales) > 1, "no step was skipped: the test says nothing of the scaler"
