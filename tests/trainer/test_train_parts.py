"""The parts of the training core against something independent of them."""

import json
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import worlds
from test_train_exact import job
from torch import nn

from relight_agent.files import GenerationFolder, JobFile
from relight_trainer import chaos, train
from relight_trainer.context import WorkerContext
from relight_trainer.data.digits import digits
from relight_trainer.due import CheckpointDue

pytestmark = pytest.mark.timeout(120)


def test_digits_are_scikit_learns_split_by_class() -> None:
    from sklearn.datasets import load_digits

    theirs = load_digits()
    train_part, test_part = digits(test_fraction=0.2, split_seed=0)
    assert (train_part.size, test_part.size) == (1438, 359)
    ours = torch.cat([train_part.inputs, test_part.inputs]).reshape(-1, 64).numpy()
    labels = torch.cat([train_part.labels, test_part.labels]).numpy()
    assert sorted(map(tuple, np.c_[ours * 16, labels])) == sorted(map(tuple, np.c_[theirs.data, theirs.target]))
    for label in range(10):
        share = (test_part.labels == label).sum() / (theirs.target == label).sum()
        assert 0.195 < share < 0.205
    assert not torch.equal(digits(test_fraction=0.2, split_seed=1).test.inputs, test_part.inputs)


def test_one_process_learns_the_digits(tmp_path: Path) -> None:
    the_job = replace(job(tmp_path), entry={"kind": "config", "config": {"train": {"device": "cpu"}}})
    [outcome] = worlds.run(train.run, root=tmp_path, job=the_job, ranks=1)
    assert outcome.step == 330
    assert float(outcome.result["metrics"]["test_accuracy"]) >= 0.985


def uneven(context: WorkerContext) -> Any:
    """Gradients of one step on a share of 3 or 2 of 5 samples, and those of all five in one process."""
    from torch.nn.functional import cross_entropy

    from relight_trainer.peers import form
    from relight_trainer.replicas import EqualBuffers, replicate
    from relight_trainer.shares import share

    form(torch.device("cpu"))
    torch.manual_seed(0)
    model, single = nn.Linear(4, 3).double(), nn.Linear(4, 3).double()
    single.load_state_dict(model.state_dict())
    x, y = torch.randn(5, 4, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1])
    state = torch.get_rng_state()
    replica = replicate(model, torch.device("cpu"))
    assert torch.equal(torch.get_rng_state(), state)
    assert all(p.grad is None for p in model.parameters())
    mine = share(5, context.rank, 2)
    (cross_entropy(replica(x[mine]), y[mine], reduction="sum") * (2 / 5)).backward()
    cross_entropy(single(x), y).backward()
    gaps = [
        (p.grad - q.grad).abs().max().item()
        for p, q in zip(model.parameters(), single.parameters(), strict=True)
        if p.grad is not None and q.grad is not None
    ]

    norm = nn.BatchNorm1d(3)
    norm.register_buffer("flag", torch.tensor([context.rank == 0]))
    norm(torch.randn(7, 3, generator=torch.Generator().manual_seed(context.rank)))
    if context.rank:
        norm(torch.randn(7, 3))
    EqualBuffers([norm], torch.device("cpu")).sync()
    return max(gaps), {name: b.tolist() for name, b in norm.named_buffers()}


def test_shares_of_different_size_give_the_gradient_of_the_whole_batch_and_buffers_rank_0s(tmp_path: Path) -> None:
    (gap_0, buffers_0), (gap_1, buffers_1) = worlds.run(uneven, root=tmp_path, job=job(tmp_path))
    assert max(gap_0, gap_1) < 1e-15
    assert buffers_0 == buffers_1
    alone = nn.BatchNorm1d(3)
    alone(torch.randn(7, 3, generator=torch.Generator().manual_seed(0)))
    assert buffers_0 == {
        "running_mean": pytest.approx(alone.running_mean.tolist(), rel=1e-5),
        "running_var": pytest.approx(alone.running_var.tolist(), rel=1e-5),
        "num_batches_tracked": 1,
        "flag": [True],
    }


class Mailbox(dict[str, bytes]):
    def put(self, key: str, value: bytes) -> None:
        self[key] = value

    def get(self, key: str, timeout: float) -> bytes:
        return self[key]


def due(the_job: JobFile, seconds_of_step: Any, steps: int) -> tuple[list[int], list[float], int]:
    """Steps at which two ranks save, the times of it, and how many questions were asked."""
    now = [0.0]
    mailbox = Mailbox()
    ranks = [CheckpointDue(the_job, rank=r, exchange=mailbox, clock=lambda: now[0]) for r in (0, 1)]
    saved, times = [], []
    for step in range(1, steps + 1):
        now[0] += seconds_of_step(step)
        answers = {rank.at(step, step // 10 if step % 10 == 0 else None) for rank in ranks}
        assert len(answers) == 1
        if answers == {True}:
            saved.append(step)
            times.append(now[0])
            for rank in ranks:
                rank.saved()
    return saved, times, len(mailbox)


def test_checkpoints_by_steps_and_epochs() -> None:
    nothing = replace(job(Path("/")), checkpoint_steps=0)
    assert due(nothing, lambda _: 1.0, 50)[0] == []
    assert due(replace(nothing, checkpoint_steps=20), lambda _: 1.0, 50)[0] == [20, 40]
    assert due(replace(nothing, checkpoint_epochs=2), lambda _: 1.0, 50)[0] == [20, 40]


@pytest.mark.parametrize("slow_down", [0.3, 1.0, 1.9])
def test_checkpoints_by_time_come_in_time_for_few_questions(slow_down: float) -> None:
    the_job = replace(job(Path("/")), checkpoint_steps=0, checkpoint_seconds=60.0)
    _, times, questions = due(the_job, lambda step: 0.05 * (slow_down if step > 3000 else 1.0), 8000)
    gaps = np.diff([0.0, *times])
    assert len(gaps) >= 3
    assert (abs(gaps - 60) < 1.0).all(), gaps
    assert questions < 16 * len(gaps)


def member(tmp_path: Path, slot: int, faults: list[dict[str, Any]]) -> WorkerContext:
    file = tmp_path / "chaos.json"
    file.write_text(json.dumps(faults))
    return WorkerContext(
        job=job(tmp_path),
        folder=GenerationFolder.create(tmp_path / "run", 1),
        run_dir=tmp_path / "run",
        generation=1,
        slot=slot,
        rank=slot,
        local_rank=0,
        world_size=2,
        local_world_size=1,
        node_rank=slot,
        agent_pid=4321,
        chaos_file=file,
    )


def test_a_fault_happens_once_at_its_step_in_its_slot(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[list[str]] = []
    monkeypatch.setattr(chaos.subprocess, "Popen", lambda argv, **_: started.append(argv))
    faults = [
        {"id": "a", "action": "preempt", "slot": 1, "step": 3},
        {"id": "b", "action": "kill", "slot": 0, "step": 3},
    ]
    for _ in range(2):
        of_slot_1 = chaos.Chaos(member(tmp_path, 1, faults))
        for step in range(6):
            of_slot_1.after_step(step)
    [argv] = started
    assert argv[1:4] == ["-m", "relight_agent.chaos", "preempt"]
    assert argv[4:] == ["--agent-pid", "4321", "--run-dir", str(tmp_path / "run"), "--grace", "120.0"]
    assert (tmp_path / "chaos.json.a.fired").exists()


def test_a_kill_waits_to_be_killed(tmp_path: Path) -> None:
    member(tmp_path, 0, [{"id": "b", "action": "kill", "slot": 0, "step": 1}])
    script = f"""
import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_train_parts import chaos, member
chaos.subprocess.Popen = lambda *a, **k: print("fired", flush=True)
chaos.Chaos(member(Path({str(tmp_path)!r}), 0, [dict(id="b", action="kill", slot=0, step=1)])).after_step(1)
print("went on", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, env={**os.environ})
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == b"fired\n"
        process.send_signal(signal.SIGKILL)
        assert process.stdout.read() == b""
    assert process.returncode == -signal.SIGKILL
