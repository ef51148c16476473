"""A job that goes on in a smaller or larger world trains on the same samples, to the same weights."""

import shutil
from pathlib import Path
from typing import Any

import little
import pytest
import torch
import worlds
from test_train_exact import job

from relight_trainer import train
from relight_trainer.context import WorkerContext

pytestmark = pytest.mark.timeout(300)  # a loaded machine starves worlds of four

CONFIG: dict[str, Any] = {
    "model": {"type": "little:Perceptron", "norm": True, "dropout": 0.3},
    "data": {"type": "little:samples", "count": 41},
    "train": {"duration": "12st", "global_batch": 32, "accumulate": 2, "virtual_ranks": 8, "device": "cpu"},
    "observe": {"time_split": False},
    "hooks": [{"type": "little:Capture", "name": "end"}, {"type": "little:Seen"}],
}


def until(context: WorkerContext, step: int) -> Any:
    """Train until `step` steps are done and end without a word; what this rank has been fed, by step, and the end."""
    little.Seen.cut = step
    try:
        train.run(context)
    except little.Cut:
        return little.Seen.inputs, None
    return little.Seen.inputs, {name: tensor.tolist() for name, tensor in little.WEIGHTS["end"].items()}


def fed(answers: list[Any]) -> dict[int, list[Any]]:
    """What all ranks together were fed in each step, in no order."""
    assert all(isinstance(answer, tuple) for answer in answers), answers
    steps = {step for inputs, _ in answers for step in inputs}
    return {step: sorted(row for inputs, _ in answers for row in inputs.get(step, [])) for step in steps}


def test_four_ranks_then_two_then_eight_then_three_do_what_four_do(tmp_path: Path) -> None:
    def config(name: str) -> Any:
        root = tmp_path / name
        root.mkdir()
        the_job = job(root, checkpoints=False)
        the_job.entry["config"] = CONFIG
        return root, the_job

    root, the_job = config("whole")
    whole = worlds.run(until, 0, root=root, job=the_job, ranks=4, timeout=120)
    root, the_job = config("changing")
    seen: dict[int, list[Any]] = {}
    for generation, (ranks, step) in enumerate([(4, 3), (2, 6), (8, 9), (3, 0)], 1):
        answers = worlds.run(until, step, root=root, job=the_job, generation=generation, ranks=ranks, timeout=120)
        assert not seen.keys() & fed(answers).keys()
        seen |= fed(answers)
        for slot in range(1, ranks):
            shutil.rmtree(root / f"slot-{slot}", ignore_errors=True)
    assert seen == fed(whole)
    assert sorted(seen) == list(range(12))
    assert all(len(rows) == 32 for rows in seen.values())
    expected, found = whole[0][1], answers[0][1]
    assert max((torch.tensor(found[k]) - torch.tensor(expected[k])).abs().max().item() for k in found) <= 1e-12


def test_a_world_larger_than_its_virtual_ranks_is_refused(tmp_path: Path) -> None:
    """Whoever had no part would keep its batch norm's statistics as they began, and lend them to all."""
    the_job = job(tmp_path, checkpoints=False)
    the_job.entry["config"] = {**CONFIG, "train": {**CONFIG["train"], "virtual_ranks": 1}}
    answers = worlds.run(until, 3, root=tmp_path, job=the_job, ranks=2)
    assert [("virtual_ranks 1" in str(a), "auto, 2 or more" in str(a)) for a in answers] == [(True, True)] * 2
