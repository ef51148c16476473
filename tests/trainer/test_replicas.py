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
