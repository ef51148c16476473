"""Supernets on several ranks: the same paths, exact gradients, one ranking, and an end where paths differ."""

import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import worlds
from torch import nn
from torch.nn.functional import cross_entropy

from relight_agent.files import JobFile
from relight_trainer.context import WorkerContext
from relight_trainer.data.tensors import Samples, TensorSplit
from relight_trainer.models.digits_supernet import digits_supernet
from relight_trainer.peers import Peers, connect, form
from relight_trainer.settings.supernet import Supernet as Settings
from relight_trainer.supernet import PathGuard, PathsDiverged, Supernet, end_worker
from relight_trainer.supernet.choices import PathContext, path_text
from relight_trainer.sync_batchnorm import convert

if TYPE_CHECKING:
    from relight_trainer.data.draws import Draw

pytestmark = pytest.mark.timeout(120)

JOB = JobFile("default", "supernet", "u1", 1.0, 3, 1, {}, "c1")
SETTINGS = Settings.model_validate({"evaluate": 5, "recalibrate": {"samples": 50, "batch": 16}})


def split(count: int, seed: int) -> TensorSplit:
    generator = torch.Generator().manual_seed(seed)
    inputs = torch.randn(count, 1, 8, 8, generator=generator)
    return TensorSplit(Samples(inputs, torch.arange(count) % 10), torch.device("cpu"))


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    torch.manual_seed(0)
    return digits_supernet(4, 2).to(dtype)


def gradients(rank: int, world: int, sampler: str) -> tuple[float, int, int]:
    """How far a step of DDP over ranks is from one process with all samples, in float64; gradients that are None."""
    ours, single = network(torch.float64), network(torch.float64)
    convert(ours)
    replica = nn.parallel.DistributedDataParallel(ours, find_unused_parameters=True)
    rows = Supernet(Settings(sampler=sampler), ours, seed=3)
    whole = Supernet(Settings(sampler=sampler), single, seed=3)
    worst, idle, idle_alone = 0.0, 0, 0
    for step in range(2):
        x = torch.randn(9, 1, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(step))
        y = torch.arange(9)
        mine = [slice(0, 5), slice(5, 7), slice(7, 9)][rank]
        ours.zero_grad(set_to_none=True)
        single.zero_grad(set_to_none=True)
        paths = rows.paths(step)
        for i, path in enumerate(paths):
            rows.choose(path)
            with replica.no_sync() if i + 1 < len(paths) else nullcontext():
                loss = cross_entropy(replica(x[mine]), y[mine], reduction="sum") * (world / 9 / len(paths))
                loss.backward()
        for path in whole.paths(step):
            whole.choose(path)
            (cross_entropy(single(x), y) / len(paths)).backward()
        for a, b in zip(ours.parameters(), single.parameters(), strict=True):
            assert (a.grad is None) == (b.grad is None)
            if a.grad is not None and b.grad is not None:
                worst = max(worst, (a.grad - b.grad).abs().max().item())
        idle += sum(p.grad is None for p in ours.parameters())
        idle_alone += sum(p.grad is None for p in single.parameters())
    return worst, idle, idle_alone


def everything(context: WorkerContext) -> dict[str, Any]:
    form(torch.device("cpu"))
    rank, world = context.rank, context.world_size
    found: dict[str, Any] = {}
    torch.manual_seed(rank)  # as unequal as ranks can be
    rows = Supernet(Settings(), network(), seed=7)
    guard = PathGuard(connect("paths"), rank=rank, world=world, end=end_worker(context), interval=0.05)
    texts = []
    for step in range(1000):
        paths = rows.paths(step)
        guard.note(step, paths)
        texts.append(path_text(paths[0]))
    found["paths"] = "\n".join(texts)
    start = time.perf_counter()
    for step in range(1000, 2000):
        guard.note(step, paths)
    found["microseconds"] = (time.perf_counter() - start) * 1e3

    for sampler in ("uniform", "fair", "sandwich"):
        found[sampler] = gradients(rank, world, sampler)

    model = network()
    before = {n: t.clone() for n, t in model.state_dict().items()}
    model[1].eval()
    evaluated = Supernet(SETTINGS, model, seed=7)

    def sums(batch: Any, size: int) -> dict[str, torch.Tensor]:
        output = model(batch[0]).double()
        return {
            "loss": cross_entropy(output, batch[1], reduction="sum"),
            "accuracy": (output.argmax(1) == batch[1]).sum(),
        }

    train, test = split(64, seed=1), split(40, seed=2)
    options: Any = {"forward": lambda batch: model(batch[0]), "sums": sums, "interrupted": lambda: False}
    found["metrics"] = evaluated.evaluate(train, test, Peers(), **options)
    found["ranking"] = evaluated.ranking
    assert all(torch.equal(t, before[n]) for n, t in model.state_dict().items())
    assert [m.training for m in model][:3] == [True, False, True]

    alone = Peers()
    alone.rank, alone.world = 0, 1
    alone.sum = lambda tensor, _: tensor  # type: ignore[method-assign]
    fetched: list[Draw] = []
    batches = train.batches
    train.batches = lambda draws: batches(fetched.append(d) or d for d in draws)  # type: ignore[method-assign, func-returns-value]
    single = Supernet(SETTINGS, model, seed=7)
    assert single.evaluate(train, test, alone, **options) == found["metrics"]
    assert single.ranking == found["ranking"]
    assert len(np.unique(np.concatenate([d.indices for d in fetched]))) == 50
    assert {len(d.indices) for d in fetched} == {12, 13}
    fetched.clear()
    assert single.evaluate(train, test, alone, **options) == found["metrics"]
    assert fetched == []  # the statistics of unchanged weights are known
    guard.close()
    return found


def test_ranks_train_the_same_paths_with_exact_gradients_and_share_one_ranking(tmp_path: Path) -> None:
    results = worlds.run(everything, root=tmp_path, job=JOB, ranks=3)
    for found in results:
        assert isinstance(found, dict), found
        assert found["paths"] == results[0]["paths"]
        for sampler in ("uniform", "fair", "sandwich"):
            worst, idle, idle_alone = found[sampler]
            assert worst <= 1e-12
            assert idle == idle_alone
        assert found["uniform"][1] > 0
        assert found["fair"][1] == 0  # one step trains every option
        assert found["metrics"] == results[0]["metrics"]
        assert found["ranking"] == results[0]["ranking"]
        assert found["microseconds"] < 500  # a few, where the machine is not shared
    [first, *_] = results
    assert first["metrics"]["paths"] == "5"
    assert first["metrics"]["best_path"] == first["ranking"][0]["path"]
    accuracies = [row["accuracy"] for row in first["ranking"]]
    assert accuracies == sorted(accuracies, reverse=True)
    assert first["metrics"]["test_accuracy"] == f"{sum(accuracies) / 5:.4f}"


class Careless(nn.Module):
    """Its paths come from the global generator, and one of them runs a collective that the other does not."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(4)
        self.linear = nn.Linear(4, 4)
        self.path = 0

    def sample_path(self, context: PathContext) -> int:
        return int(torch.randint(0, 2, ()))

    def set_path(self, path: int) -> None:
        self.path = path

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(self.linear(x)) if self.path else self.linear(x)


def diverging(context: WorkerContext, root: Path, hangs: bool) -> None:
    form(torch.device("cpu"))
    model = Careless()
    convert(model)
    rows = Supernet(Settings(), model, seed=0)
    torch.manual_seed(context.rank % 2)  # as a trainer that seeds each rank in another way

    ticks: list[None] = []  # of half a second, as this process gets them where the machine is shared

    def tick() -> None:
        while True:
            time.sleep(0.5)
            ticks.append(None)

    def end(error: Exception) -> None:
        (root / f"seconds-{context.rank}").write_text(str(len(ticks) / 2))
        end_worker(context)(error)

    guard = PathGuard(connect("paths"), rank=context.rank, world=context.world_size, end=end)
    dist.barrier()
    threading.Thread(target=tick, daemon=True).start()
    for step in range(100_000):
        paths = rows.paths(step)
        try:
            guard.note(step, paths)
        except PathsDiverged as error:
            (root / f"seconds-{context.rank}").write_text(str(len(ticks) / 2))
            guard.close()
            raise error from None
        rows.choose(paths[0])
        if hangs:
            model(torch.randn(3, 4)).sum()
        dist.all_reduce(torch.zeros(1))  # of the gradients


@pytest.mark.parametrize("hangs", [True, False])
def test_ranks_that_diverge_end_within_seconds_and_are_named(tmp_path: Path, hangs: bool) -> None:
    with worlds.world(diverging, tmp_path, hangs, root=tmp_path, job=JOB, ranks=3) as running:
        results = running.join()
        outcomes = [outcome for folder in running.folders for _, outcome in folder.outcomes(1)]
    seconds = min(float(file.read_text()) for file in tmp_path.glob("seconds-*"))
    words = "supernet: rank 1 took other paths than rank 0, in step"
    # A main thread that comes by raises; one that hangs, or is only slow, is ended with the same words as its outcome.
    raised = any(words in result for result in results)
    told = any(o.exit_code == 64 and o.message.startswith(words) for o in outcomes)
    assert told or (raised and not hangs), (results, outcomes)
    assert seconds < 20, (seconds, results, outcomes)  # one on a machine that has nothing else to do
