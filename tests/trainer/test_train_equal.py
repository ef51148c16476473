"""One global batch is one gradient, whoever computes which part of it."""

from dataclasses import replace
from typing import Any

import little
import pytest
import torch
import worlds
from test_train_exact import job
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from relight_trainer import train
from relight_trainer.config import parse
from relight_trainer.context import WorkerContext
from relight_trainer.data.splits import open_splits, splits_of
from relight_trainer.evaluate import shard_sums, sums_of
from relight_trainer.objective import Objective
from relight_trainer.peers import form
from relight_trainer.replicas import replicate
from relight_trainer.session import Session
from relight_trainer.settings.loader import Loader
from relight_trainer.shares import share

pytestmark = pytest.mark.timeout(300)  # a loaded machine starves worlds of four
CPU = torch.device("cpu")

# 37 samples in batches of 10: an epoch ends with a batch of 7; nothing divides by 2, 3 or 4 without a rest.
PLAIN = {"model": {"type": "little:Perceptron"}, "data": {"type": "little:samples", "count": 37}}
NORMED = {**PLAIN, "model": {"type": "little:Perceptron", "norm": True, "dropout": 0.3}}
SCENARIOS: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "three micro-batches": {**PLAIN, "train": {"accumulate": 3}},
    "micro-batches of at most 2": {**PLAIN, "train": {"micro_batch": 2}},
    "fewer samples than ranks": {**PLAIN, "train": {"global_batch": 3, "virtual_ranks": 4}},
    "batch norm, for four": {**NORMED, "train": {"virtual_ranks": 4, "last_batch": "drop"}},
    "batch norm, for four, two micro-batches": {**NORMED, "train": {"virtual_ranks": 4, "accumulate": 2, "global_batch": 24, "last_batch": "drop"}},
    "sync batch norm": {**PLAIN, "model": {"type": "little:Perceptron", "norm": True}, "sync_bn": True},
    "sync batch norm, fewer samples than ranks": {
        **PLAIN, "model": {"type": "little:Perceptron", "norm": True}, "sync_bn": True,
        "train": {"global_batch": 3},
    },
    "sync batch norm, two micro-batches": {
        **PLAIN, "model": {"type": "little:Perceptron", "norm": True}, "sync_bn": True, "train": {"accumulate": 2},
    },
    "clipped and averaged": {**PLAIN, "clip": {"type": "norm", "max": 0.1}, "ema": 0.9},
}  # fmt: skip


def configuration(name: str) -> dict[str, Any]:
    own = SCENARIOS[name]
    settings = {"duration": "5st", "global_batch": 10, "last_batch": "keep", "device": "cpu", **own.get("train", {})}
    rest = {"optimizer": {"type": "sgd", "lr": 0.5}, "schedule": {"type": "constant"}, "observe": {"time_split": False}}
    return {**rest, **own, "train": settings, "hooks": [{"type": "little:Capture", "name": name}]}


def trained(context: WorkerContext, config: dict[str, Any], number: int) -> Any:
    """Train in a generation and for a job of its own."""
    own = replace(
        context, generation=number, run_dir=context.run_dir / str(number),
        job=replace(context.job, uid=f"u{number}", nodes=context.world_size, checkpoint_dir=""),
    )  # fmt: skip
    parsed = parse(config)
    splits = open_splits(parsed.data, parsed.loader, parsed.train.seed, CPU)
    return train.train(parsed, splits, Session(own), CPU, own)


def everything(context: WorkerContext) -> Any:
    form(CPU)
    torch.use_deterministic_algorithms(True)
    for number, name in enumerate(SCENARIOS, 1):
        trained(context, configuration(name), number)
    return (
        {name: {k: v.tolist() for k, v in tensors.items()} for name, tensors in little.WEIGHTS.items()},
        evaluations(context),
        mean_of_means(context),
    )


def evaluations(context: WorkerContext) -> list[list[float]]:
    """(samples, summed loss, right answers) of test sets of 1 to 40 samples."""
    import torch.distributed as dist

    torch.manual_seed(0)
    model = little.Perceptron(norm=True)
    sums = sums_of(model, Objective(nn.CrossEntropyLoss()), None)  # type: ignore[arg-type]
    totals = []
    for size in range(1, 41):
        part = little.samples(40, test=size)
        splits = splits_of((part[0], part[1]), Loader(), 0, CPU)
        names, total = shard_sums(
            model, sums, splits.test, rank=context.rank, world=context.world_size, interrupted=lambda: False
        )
        assert names == ["loss", "accuracy"]
        assert model.training
        dist.all_reduce(total)
        totals.append(total.tolist())
    return totals


def mean_of_means(context: WorkerContext) -> float:
    """How far the usual way, DDP over each rank's mean loss, is from the gradient of 10 samples."""
    torch.manual_seed(0)
    model, single = little.Perceptron(), little.Perceptron()
    single.load_state_dict(model.state_dict())
    (inputs, labels), _ = little.samples(10)
    mine = share(10, context.rank, context.world_size)
    cross_entropy(replicate(model, CPU)(inputs[mine]), labels[mine]).backward()
    cross_entropy(single(inputs), labels).backward()
    return max(far(p.grad, q.grad) for p, q in zip(model.parameters(), single.parameters(), strict=True))


def far(one: Tensor | None, other: Tensor | None) -> float:
    assert one is not None
    assert other is not None
    return (one - other).abs().max().item()


@pytest.fixture(scope="module")
def by_world(tmp_path_factory: pytest.TempPathFactory) -> dict[int, list[Any]]:
    """What each rank of worlds of 1 to 4 has found."""
    found = {}
    for ranks in (1, 2, 3, 4):
        root = tmp_path_factory.mktemp(f"of-{ranks}")
        found[ranks] = worlds.run(everything, root=root, job=job(root), ranks=ranks, timeout=150)
        assert all(isinstance(answer, tuple) for answer in found[ranks]), found[ranks]
    return found


def gap(one: dict[str, Any], other: dict[str, Any]) -> float:
    assert one.keys() == other.keys()
    return max(far(torch.tensor(one[k]).double(), torch.tensor(other[k]).double()) for k in one)


@pytest.mark.parametrize("ranks", [2, 3, 4])
@pytest.mark.parametrize("name", SCENARIOS)
def test_any_number_of_ranks_is_one_rank_with_the_whole_batch(by_world: Any, ranks: int, name: str) -> None:
    weights = by_world[ranks][0][0]
    assert all(answer[0] == weights for answer in by_world[ranks]), "ranks differ"
    assert gap(weights[name], by_world[1][0][0][name]) <= 1e-12


def test_accumulation_is_the_big_batch_without_batch_norm(by_world: Any) -> None:
    alone = by_world[1][0][0]
    for name in ("three micro-batches", "micro-batches of at most 2"):
        assert gap(alone[name], alone["plain"]) <= 1e-12


def test_with_batch_norm_micro_batches_are_another_training(by_world: Any) -> None:
    alone = by_world[1][0][0]
    assert gap(alone["sync batch norm, two micro-batches"], alone["sync batch norm"]) > 1e-4


@pytest.mark.parametrize("ranks", [3, 4])
def test_the_mean_of_the_ranks_means_is_not_the_mean(by_world: Any, ranks: int) -> None:
    assert by_world[ranks][0][2] > 1e-3
    assert by_world[1][0][2] == by_world[2][0][2] * 0 <= 1e-15


def test_evaluation_of_one_rank_is_what_torch_alone_computes(by_world: Any) -> None:
    torch.manual_seed(0)
    model = little.Perceptron(norm=True).eval()
    for size, found in enumerate(by_world[1][0][1], 1):
        test = little.samples(40, test=size)[1]
        with torch.no_grad():
            output = model(test.inputs)
        right = (output.argmax(1) == test.labels).sum().item()
        loss = cross_entropy(output, test.labels, reduction="sum").item()
        assert (found[0], found[2]) == (size, right)
        assert found[1] == pytest.approx(loss, abs=1e-12 * size)


@pytest.mark.parametrize("ranks", [2, 3, 4])
def test_evaluation_is_exact_for_every_size_of_test_set(by_world: Any, ranks: int) -> None:
    for size, (ours, alone) in enumerate(zip(by_world[ranks][0][1], by_world[1][0][1], strict=True), 1):
        assert ours[0] == alone[0] == size
        assert ours[1:] == pytest.approx(alone[1:], abs=1e-12 * size)
