"""Trainers with loops of their own: cut anywhere, they end as if they had not been.

With the real libraries, where they are installed or stand in the folder that RELIGHT_TEST_PEERS names.
"""

import ast
import contextlib
import importlib.util
import inspect
import os
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import worlds
from test_train_exact import job
from torch import nn
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from relight_agent.files import GenerationFolder
from relight_trainer import client
from relight_trainer.adapters.timm import RelightSaver
from relight_trainer.context import WorkerContext
from relight_trainer.session import Cursor, Session

pytestmark = pytest.mark.timeout(300)
PEERS = os.environ.get("RELIGHT_TEST_PEERS", "")
if PEERS:
    sys.path.append(PEERS)


def needs(library: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(importlib.util.find_spec(library) is None, reason=f"{library} is not installed")


def data() -> TensorDataset:
    generator = torch.Generator().manual_seed(1)
    points = torch.randn(48, 4, generator=generator)
    return TensorDataset(points, (points.sum(1) > 0).long())


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 2))


def with_lightning_in_ddp(folder: Path, accumulate: int) -> None:
    with_lightning(folder, accumulate, strategy="ddp", num_nodes=2, use_distributed_sampler=False)


def with_lightning(folder: Path, accumulate: int, **options: Any) -> None:
    import lightning.pytorch as pl

    from relight_trainer.adapters.lightning import RelightCallback

    class Module(pl.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.net = model()

        def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
            loss = nn.functional.cross_entropy(self.net(batch[0]), batch[1])
            self.log("loss", loss)
            return loss

        def validation_step(self, batch: Any, batch_idx: int) -> None:
            self.log("accuracy", (self.net(batch[0]).argmax(1) == batch[1]).float().mean())

        def configure_optimizers(self) -> Any:
            optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
            return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]  # by epoch

    relight = RelightCallback()
    trainer = pl.Trainer(
        max_epochs=3, accelerator="cpu", devices=1, accumulate_grad_batches=accumulate, callbacks=[relight], logger=False,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False, default_root_dir=folder,
        **options,
    )  # fmt: skip
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    sampler = DistributedSampler(data(), world, rank)  # shuffles, whatever the number of ranks
    trainer.fit(Module(), relight.loader(DataLoader(data(), 8 // world, sampler=sampler)), DataLoader(data(), 16))


def with_transformers(folder: Path, accumulate: int, rows: Any = None, **options: Any) -> None:
    from transformers import Trainer, TrainingArguments

    from relight_trainer.adapters.transformers import RelightCallback

    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = model()

        def forward(self, x: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
            logits = self.net(x)
            return {"loss": nn.functional.cross_entropy(logits, labels), "logits": logits}

    rows = [{"x": x, "labels": y} for x, y in data()] if rows is None else rows
    world = int(os.environ["WORLD_SIZE"])
    relight = RelightCallback()
    args = TrainingArguments(
        output_dir=str(folder / "out"), num_train_epochs=3, per_device_train_batch_size=8 // world, save_strategy="no", use_cpu=True,
        gradient_accumulation_steps=accumulate, logging_steps=1, report_to="none", disable_tqdm=True, learning_rate=0.01, **options,
    )  # fmt: skip
    trainer = Trainer(model=Model(), args=args, train_dataset=rows, callbacks=[relight])
    trainer.train(resume_from_checkpoint=relight.resume(trainer))


def with_a_stream_that_ends(folder: Path, accumulate: int) -> None:
    with_transformers_and_a_stream(folder, accumulate, passes=1)


def with_transformers_and_a_stream(folder: Path, accumulate: int, passes: int = 3) -> None:
    """The Trainer with data that has no index and no length."""
    from torch.utils.data import IterableDataset

    class Stream(IterableDataset[dict[str, torch.Tensor]]):
        def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
            return ({"x": x, "labels": y} for _ in range(passes) for x, y in data())

    with_transformers(folder, accumulate, rows=Stream(), max_steps=18 // accumulate)


def with_timms_shape(folder: Path, accumulate: int) -> None:
    net = model()
    optimizer = torch.optim.SGD(net.parameters(), 0.1, 0.9)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 18)
    saver = RelightSaver(net, optimizer, scheduler=scheduler)
    loader = DataLoader(data(), 8, shuffle=True)
    for epoch in range(saver.start_epoch, 3):
        for number, (x, y) in saver.batches(loader, epoch):
            loss = nn.functional.cross_entropy(net(x), y) / accumulate
            loss.backward()
            if (number + 1) % accumulate == 0:
                optimizer.step()
                optimizer.zero_grad()
                scheduler.step()
                if number + 1 < len(loader):
                    saver.save_recovery(epoch, number)
        best = saver.save_checkpoint(epoch, 0.5 if epoch == 1 else 0.25)
        assert best == ((0.25, 0) if epoch == 0 else (0.5, 1))
    saver.finish()


class Died(BaseException):
    """A life's end without a word: nothing of it is saved that is not saved already."""


def lives(context: WorkerContext, name: str, accumulate: int, root: Path, cuts: dict[int, int]) -> list[Any]:
    """How lives of one job end, one after the other in one process. `cuts` says, by generation, behind which step it
    dies; with 0 it is told to stop, with -1 nothing happens to it.
    """
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")  # the libraries' own
    if PEERS:
        sys.path.append(PEERS)
    step_done, requested = Session.step_done, Session._requested
    ends: list[Any] = []
    for generation, cut in cuts.items():

        def step_done_then_die(self: Session, cursor: Cursor, cut: int = cut) -> None:
            step_done(self, cursor)
            if cursor.step == cut:
                raise Died
            if cut == 0:  # the stop is agreed in a thread beside the training, which is short
                assert self._stop._decided.wait(60)

        Session.step_done = step_done_then_die  # type: ignore[method-assign]
        Session._requested = (lambda _: True) if cut == 0 else requested  # type: ignore[method-assign]
        client._current = None
        os.environ["RELIGHT_GENERATION"] = os.environ["TORCHELASTIC_RESTART_COUNT"] = str(generation)
        os.environ["RELIGHT_GENERATION_DIR"] = str(GenerationFolder.create(context.run_dir, generation).path)
        try:
            with contextlib.suppress(SystemExit):
                globals()[name](root, accumulate)
            ends.append(client.outcome())
        except Died:
            ends.append("died")
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()
    return ends


def run(root: Path, name: str, accumulate: int, cuts: list[int], *, first: int = 1, ranks: int = 1) -> list[Any]:
    root.mkdir(exist_ok=True)
    the_job = replace(job(root), checkpoint_steps=4)
    ends = worlds.run(
        lives, name, accumulate, root, dict(enumerate(cuts, first)),
        root=root, job=the_job, ranks=ranks, generation=first, timeout=150, TORCHELASTIC_RUN_ID="test",
    )  # fmt: skip
    assert all(len(end) == len(cuts) for end in ends), ends
    return ends[0]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    "name",
    [
        pytest.param("with_lightning", marks=needs("lightning")),
        pytest.param("with_transformers", marks=needs("transformers")),
        pytest.param("with_transformers_and_a_stream", marks=needs("transformers")),
        "with_timms_shape",
    ],
)
def test_a_training_that_is_cut_ends_with_the_same_weights(tmp_path: Path, name: str, accumulate: int) -> None:
    total = 18 // accumulate

    [whole] = run(tmp_path / "whole", name, accumulate, [-1])
    # Behind the first step, an epoch's last, its first, and the last but one; then to the end, and once more.
    ends = run(tmp_path / "cut", name, accumulate, [1, total // 3, total // 3 + 1, 0, total - 1, -1, -1])

    assert (whole.kind, whole.step) == ("completed", total), whole
    stopped = ends.pop(3)
    assert (stopped.kind, stopped.saved) == ("stopped", True), stopped
    assert total // 3 + 1 <= stopped.step < total
    assert ends[:4] == ["died"] * 4
    for end in ends[4:]:
        assert (end.kind, end.step) == ("completed", total), end
        assert end.result["weightsDigest"] == whole.result["weightsDigest"]


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("with_lightning_in_ddp", marks=needs("lightning")),
        pytest.param("with_transformers", marks=needs("transformers")),
    ],
)
def test_a_training_in_ddp_that_is_cut_ends_with_the_same_weights(tmp_path: Path, name: str) -> None:
    ends = [run(tmp_path / "whole", name, 1, [-1], ranks=2)[0]]
    for generation, cut in enumerate([7, 0, -1], 1):
        ends += run(tmp_path / "cut", name, 1, [cut], first=generation, ranks=2)

    whole, died, stopped, end = ends
    assert (whole.kind, whole.step, died, stopped.kind) == ("completed", 18, "died", "stopped"), ends
    assert (end.kind, end.result["weightsDigest"]) == ("completed", whole.result["weightsDigest"])


@needs("transformers")
def test_a_second_pass_over_data_without_a_length_is_refused(tmp_path: Path) -> None:
    [answer] = worlds.run(
        lives, "with_a_stream_that_ends", 1, tmp_path, {1: -1},
        root=tmp_path, job=job(tmp_path, checkpoints=False), ranks=1, timeout=150, TORCHELASTIC_RUN_ID="test",
    )  # fmt: skip
    assert answer.startswith("DataDiffers: the Trainer's training data has no length, and ended after step 6 of 18")


def test_outside_a_job_the_saver_does_nothing_and_knows_the_best(tmp_path: Path) -> None:
    with_timms_shape(tmp_path, 1)
    saver = RelightSaver(nn.Linear(1, 1), torch.optim.SGD([torch.zeros(1, requires_grad=True)], 1.0), decreasing=True)
    assert [saver.save_checkpoint(e, m)[1] for e, m in enumerate([3.0, 1.0, 2.0])] == [0, 1, 1]
    assert saver.find_recovery() == ""


@needs("timm")
def test_the_saver_takes_all_that_timms_own_takes(tmp_path: Path) -> None:
    """Its file is read and not imported: timm cannot be imported without torchvision."""
    spec = importlib.util.find_spec("timm")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse((Path(spec.origin).parent / "utils" / "checkpoint_saver.py").read_text())
    [theirs] = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "CheckpointSaver"]
    methods = [node for node in theirs.body if isinstance(node, ast.FunctionDef)]
    for method in methods:
        if method.name.startswith("_") and method.name != "__init__":
            continue
        ours = [*inspect.signature(getattr(RelightSaver, method.name)).parameters]
        wanted = [argument.arg for argument in method.args.args]
        assert ours[: len(wanted)] == wanted, method.name
    net = nn.Linear(1, 1)
    directories = {"checkpoint_dir": str(tmp_path), "recovery_dir": str(tmp_path), "max_history": 3, "decreasing": True}
    saver = RelightSaver(net, torch.optim.SGD(net.parameters(), 1.0), **directories)  # type: ignore[arg-type]
    saver.save_milestone(1)
    assert saver.save_checkpoint(0, 1.0) == (1.0, 0)
