"""The parts of the training core for scripts and notebooks: each example of docs/library.md, and what it promises."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import worlds
from test_train_exact import job
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.optim.lr_scheduler import LambdaLR
from torch.utils.data import DataLoader, TensorDataset

from relight_trainer import library
from relight_trainer.checkpoint import Fenced, NoUsableCheckpoint
from relight_trainer.config import BadConfig
from relight_trainer.context import WorkerContext

pytestmark = pytest.mark.timeout(120)
PAGE = Path(__file__).parents[2] / "docs" / "library.md"


def examples() -> list[str]:
    return re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def namespace() -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    data = TensorDataset(torch.randn(60, 4), torch.randint(2, (60,)))
    return {
        "torch": torch,
        "model": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "loss_of": nn.CrossEntropyLoss(),
        "dataset": data,
        "loader": DataLoader(data, 12),
        "batch": data[:12],
    }


@pytest.mark.parametrize("number", range(len(examples())))
def test_each_example_of_the_page_runs_and_takes_at_most_five_lines(
    number: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code = examples()[number]
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith(("from ", "import "))]
    assert len(lines) <= 5, code
    exec(compile(code, f"{PAGE.name}, example {number}", "exec"), namespace())


def test_the_page_shows_every_part() -> None:
    shown = PAGE.read_text()
    assert [name for name in library.__all__ if name not in shown] == []


def two_losses(context: WorkerContext, parts: int) -> Any:
    """The gradient of micro-batches on this rank's samples, in float64."""
    dist.init_process_group("gloo")
    torch.manual_seed(1)
    x, y = torch.randn(14, 3, dtype=torch.float64), torch.randn(14, 1, dtype=torch.float64)
    model = nn.Linear(3, 1).double()
    mine = slice(context.rank * 7, context.rank * 7 + 7)
    replica = DistributedDataParallel(model)
    exchanges = 0

    def count(state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
        nonlocal exchanges
        exchanges += 1
        return dist.algorithms.ddp_comm_hooks.default_hooks.allreduce_hook(None, bucket)  # type: ignore[arg-type]

    replica.register_comm_hook(None, count)
    for (inputs, targets), weight in library.micro_batches((x[mine], y[mine]), parts, replica):
        (nn.functional.mse_loss(replica(inputs), targets) * weight).backward()
    whole = nn.Linear(3, 1).double()
    whole.load_state_dict(model.state_dict())
    nn.functional.mse_loss(whole(x), y).backward()
    assert model.weight.grad is not None
    assert whole.weight.grad is not None
    return exchanges, float((model.weight.grad - whole.weight.grad).abs().max())


@pytest.mark.parametrize("parts", [1, 3, 7, 9])
def test_micro_batches_give_the_gradient_of_the_whole_batch_with_one_exchange(tmp_path: Path, parts: int) -> None:
    for answer in worlds.run(two_losses, parts, root=tmp_path, job=job(tmp_path)):
        exchanges, difference = answer
        assert exchanges == 1
        assert difference < 1e-15


def test_micro_batches_cut_mappings_and_sequences_alike() -> None:
    batch = {"x": torch.arange(5), "pair": (torch.arange(5), [torch.arange(10).view(5, 2)]), "name": "kept"}
    pieces = list(library.micro_batches(batch, 2))
    assert [piece.weight for piece in pieces] == [0.4, 0.6]
    assert torch.cat([piece.batch["x"] for piece in pieces]).tolist() == list(range(5))
    assert torch.cat([piece.batch["pair"][1][0] for piece in pieces]).tolist() == batch["pair"][1][0].tolist()  # type: ignore[index]
    assert pieces[0].batch["name"] == "kept"


@pytest.mark.parametrize(
    ("batch", "parts", "message"),
    [
        (torch.ones(4), 0, "parts: found 0; allowed: 1 or more"),
        (("a", 1), 2, "no tensor"),
        ((torch.ones(4), torch.ones(3)), 2, r"different numbers of samples or none \(3, 4\)"),
        (torch.ones(0, 3), 2, "found no sample"),
    ],
)
def test_a_batch_that_cannot_be_cut_is_refused(batch: Any, parts: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        list(library.micro_batches(batch, parts))


def test_global_batches_are_the_same_in_every_world() -> None:
    def order(world: int, epoch: int) -> list[list[int]]:
        ranks = [library.GlobalBatches(50, 12, seed=3, rank=rank, world=world) for rank in range(world)]
        for rank in ranks:
            rank.set_epoch(epoch)
        return [[i for share in shares for i in share] for shares in zip(*ranks, strict=True)]

    one = order(1, 0)
    assert [len(batch) for batch in one] == [12] * 4
    assert len({i for batch in one for i in batch}) == 48
    assert order(2, 0) == order(3, 0) == one
    assert order(2, 1) == order(1, 1) != one


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"samples": 0, "global_batch": 4}, "found 0 samples"),
        ({"samples": 8, "global_batch": 0}, "batches of 0"),
        ({"samples": 8, "global_batch": 16}, "does not fit a training set of 8"),
        ({"samples": 9, "global_batch": 4, "keep_tail": True, "rank": 0, "world": 2}, "a batch of 1 samples leaves some of 2"),
        ({"samples": 8, "global_batch": 4, "rank": 2, "world": 2}, "rank: found 2 of 2 ranks"),
    ],
)  # fmt: skip
def test_batches_that_cannot_be_shared_out_are_refused(arguments: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        library.GlobalBatches(**arguments)


def test_a_learning_rate_is_that_of_torchs_own_schedules() -> None:
    rate = library.learning_rate({"type": "onecycle"}, lr=0.1, steps=40)
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1)
    theirs = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=40, cycle_momentum=False)
    for step in range(40):
        assert rate(step) == pytest.approx(theirs.get_last_lr()[0], abs=1e-12)
        optimizer.step()
        if step < 39:
            theirs.step()
    warm = library.learning_rate({"type": "cosine", "warmup": "2ep"}, lr=0.2, steps=100, steps_per_epoch=10)
    scheduler = LambdaLR(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.2), lambda step: warm(step) / 0.2)
    assert scheduler.get_last_lr() == [warm(0)]
    assert warm(20) == max(map(warm, range(100)))


@pytest.mark.parametrize(
    ("schedule", "more", "message"),
    [
        ({"type": "cosin"}, {}, r'schedule.type: .*did you mean "cosine"'),
        ({"type": "cosine", "warmup": "2ep"}, {}, "steps_per_epoch: missing"),
        ({"type": "plateau"}, {}, "ReduceLROnPlateau"),
        ({"type": "onecycle", "cycle_momentum": True}, {}, "cycle_momentum: sets more than a learning rate"),
        ({"type": "constant"}, {"steps": 0}, "steps: out of range; found 0"),
        ({"type": "constant"}, {"lr": float("inf")}, "lr: out of range; found inf"),
    ],
)
def test_a_schedule_that_is_no_function_of_the_step_is_refused(
    schedule: dict[str, Any], more: dict[str, Any], message: str
) -> None:
    with pytest.raises(BadConfig, match=message):
        library.learning_rate(schedule, **{"lr": 0.1, "steps": 10, **more})


def test_converting_batch_norm_returns_the_model_and_can_be_undone() -> None:
    model = nn.Sequential(nn.Conv2d(1, 2, 3), nn.BatchNorm2d(2))
    assert library.sync_batch_norm(model) is model
    assert type(model[1]) is not nn.BatchNorm2d
    assert library.plain_batch_norm(model) is model
    assert type(model[1]) is nn.BatchNorm2d


def parts() -> dict[str, Any]:
    torch.manual_seed(0)
    model = nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    model(torch.ones(3)).sum().backward()
    optimizer.step()
    return {"model": model, "optimizer": optimizer}


def test_checkpoints_come_back_and_a_damaged_one_is_passed_over(tmp_path: Path) -> None:
    said: list[str] = []
    assert library.Checkpoints(tmp_path).load(parts()) is None
    objects = parts()
    checkpoints = library.Checkpoints(tmp_path, say=said.append)
    checkpoints.save(objects, 10)
    with torch.no_grad():
        objects["model"].weight.add_(1)
    newest = Path(checkpoints.save(objects, 20))

    again = parts()
    assert library.Checkpoints(tmp_path).load(again) == 20
    assert torch.equal(again["model"].weight, objects["model"].weight)
    for shard in newest.glob("shard-*"):
        shard.write_bytes(b"x" * shard.stat().st_size)
    assert library.Checkpoints(tmp_path, say=said.append).load(again) == 10
    assert any("it is not used" in text for text in said)


def test_an_older_program_may_not_save_once_a_newer_one_has_begun(tmp_path: Path) -> None:
    older = library.Checkpoints(tmp_path)
    older.save(parts(), 1)
    library.Checkpoints(tmp_path).load(parts())
    with pytest.raises(Fenced):
        older.save(parts(), 2)


def test_only_damaged_checkpoints_are_an_error_and_a_missing_name_loads_nothing(tmp_path: Path) -> None:
    saved = Path(library.Checkpoints(tmp_path).save(parts(), 1))
    objects = {**parts(), "scaler": torch.amp.GradScaler("cpu")}
    with torch.no_grad():
        objects["model"].weight.zero_()
    with pytest.raises(KeyError, match="lacks scaler; it holds model, optimizer"):
        library.Checkpoints(tmp_path).load(objects)
    assert not objects["model"].weight.any()
    (saved / "manifest.json").write_text("{}")
    with pytest.raises(NoUsableCheckpoint):
        library.Checkpoints(tmp_path, say=lambda _: None).load(parts())


def save_together(context: WorkerContext, folder: str) -> Any:
    dist.init_process_group("gloo")
    objects = parts()
    checkpoints = library.Checkpoints(folder)
    begun = checkpoints.load(objects)
    checkpoints.save(objects, (begun or 0) + 5)
    other = {**parts()}
    with torch.no_grad():
        other["model"].weight.zero_()
    again = library.Checkpoints(folder).load(other)
    return begun, again, bool(torch.equal(other["model"].weight, objects["model"].weight))


def save_apart(context: WorkerContext, folder: str) -> None:
    dist.init_process_group("gloo")
    objects = parts()
    with torch.no_grad():
        objects["model"].bias += context.rank  # as after a step without DistributedDataParallel
    library.Checkpoints(folder).save(objects, 3)


def test_ranks_whose_states_differ_write_no_checkpoint(tmp_path: Path) -> None:
    answers = worlds.run(save_apart, str(tmp_path / "ckpt"), root=tmp_path, job=job(tmp_path))
    words = "RanksDiffer: no checkpoint of step 3: rank 1 and rank 0 hold different values in model, first in bias"
    assert [answer[: len(words)] for answer in answers] == [words] * 2
    assert not list((tmp_path / "ckpt").glob("step-*"))


def test_ranks_save_and_load_together(tmp_path: Path) -> None:
    folder = str(tmp_path / "ckpt")
    assert worlds.run(save_together, folder, root=tmp_path, job=job(tmp_path)) == [(None, 5, True)] * 2
    shards = list((tmp_path / "ckpt").glob("step-*/shard-*"))
    assert len(shards) == 2
    assert worlds.run(save_together, folder, root=tmp_path, job=job(tmp_path), generation=2) == [(5, 10, True)] * 2
