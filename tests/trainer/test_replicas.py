"""A resumed DDP sums in the order of one that never stopped."""

import hashlib
from pathlib import Path
from typing import Any

import pytest
import torch
import worlds
from test_train_exact import job
from torch import nn

from relight_trainer import replicas
from relight_trainer.context import WorkerContext
from relight_trainer.peers import form

pytestmark = pytest.mark.timeout(120)


def buckets(context: WorkerContext, path: Path, start: int, stop: int, warm: bool) -> Any:
    """Steps `start` to `stop` of a model of several buckets, from and to the file at `path`."""
    form(torch.device("cpu"))
    torch.manual_seed(0)
    layers = [part for _ in range(6) for part in (nn.Linear(256, 256), nn.ReLU())]
    model = nn.Sequential(*layers, nn.Linear(256, 10))
    if not warm:
        replicas.warm_up = lambda _: None
    replica = replicas.replicate(model, torch.device("cpu"))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    if start:
        saved = torch.load(path)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
    for step in range(start, stop):
        generator = torch.Generator().manual_seed(1000 * step + context.rank)
        inputs = torch.randn(16, 256, generator=generator)
        labels = torch.randint(0, 10, (16,), generator=generator)
        optimizer.zero_grad(set_to_none=True)
        nn.functional.cross_entropy(replica(inputs), labels).backward()
        optimizer.step()
    if context.rank == 0:
        torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, path)
    return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in model.parameters())).hexdigest()


@pytest.mark.parametrize("warm", [True, False])
def test_the_warm_up_makes_a_resumed_process_sum_as_one_that_never_stopped(tmp_path: Path, warm: bool) -> None:
    def run(start: int, stop: int) -> set[str]:
        return set(
            worlds.run(buckets, tmp_path / "state", start, stop, warm, root=tmp_path, job=job(tmp_path), ranks=4)
        )

    whole = run(0, 6)
    assert len(whole) == 1
    run(0, 3)
    # Without it the sums differ: the test would see it.
    assert (run(3, 6) == whole) == warm


def replaced(context: WorkerContext) -> Any:
    form(torch.device("cpu"))
    model = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    equal = replicas.EqualBuffers([model], torch.device("cpu"))
    before = dict(model.named_buffers())
    model.to("cpu:0")  # another name of the same device, which is enough for it
    model(torch.randn(7, 3, generator=torch.Generator().manual_seed(context.rank)))
    equal.sync()
    assert all(buffer is not before[name] for name, buffer in model.named_buffers())
    return {name: buffer.tolist() for name, buffer in model.named_buffers()}


def test_buffers_that_were_replaced_are_kept_equal_too(tmp_path: Path) -> None:
    mine, theirs = worlds.run(replaced, root=tmp_path, job=job(tmp_path))
    assert mine == theirs
    assert mine["1.running_mean"] != [0.0] * 3
