"""State that is each rank's own: saved, checked and given back by rank."""

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import worlds
from test_train_exact import job
from torch import nn

from relight_agent.files import JobFile
from relight_trainer import client
from relight_trainer.context import WorkerContext
from relight_trainer.inspect.reader import read
from relight_trainer.session import Cursor, Session

pytestmark = pytest.mark.timeout(120)
ROWS = 12


class Table:
    """The rows of a table that this rank keeps: `ROWS` over all ranks."""

    def __init__(self, rank: int, world: int) -> None:
        share = ROWS // world
        self.rows = torch.arange(rank * share, (rank + 1) * share, dtype=torch.float64)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        assert state["rows"].shape == self.rows.shape
        self.rows = state["rows"]


class DividedTable(Table):
    """A table that can be divided over another number of ranks."""

    def redistribute(self, states: list[dict[str, Any]]) -> dict[str, Any]:
        import torch.distributed as dist

        rows = torch.cat([state["rows"] for state in states])
        return {"rows": rows.chunk(dist.get_world_size())[dist.get_rank()].clone()}


def trained(context: WorkerContext, kind: type[Table], die_after: int | None = None) -> Any:
    """Ten steps of a shared model under DDP and a table of which each rank has its own rows."""
    if die_after is not None:
        step_done = Session.step_done

        def step_done_then_die(self: Session, cursor: Cursor) -> None:
            step_done(self, cursor)
            if context.rank == 1 and cursor.step == die_after:
                os._exit(9)

        Session.step_done = step_done_then_die  # type: ignore[method-assign]
    torch.manual_seed(0)
    net = nn.Linear(2, 1)
    table = kind(context.rank, context.world_size)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    run = client.start(model=net, optimizer=optimizer, per_rank={"table": table}, init=True)
    begun = run.step
    replica = run.wrap(net)
    for x in run.steps([torch.full((3, 2), float(i)) for i in range(10)], epochs=1):
        optimizer.zero_grad()
        replica(x).sum().backward()
        optimizer.step()
        table.rows = table.rows * 1.5 + run.step
    return begun, table.rows.tolist(), run.outcome().result["weightsDigest"]  # type: ignore[union-attr,index]


def the_job(root: Path) -> JobFile:
    return replace(job(root), checkpoint_steps=4)


def test_each_rank_gets_its_own_state_back(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole = worlds.run(trained, Table, root=tmp_path / "whole", job=the_job(tmp_path / "whole"))
    assert whole[0][1] != whole[1][1]
    assert worlds.run(trained, Table, 6, root=tmp_path, job=the_job(tmp_path))[1] == "died"
    # Rank 0's member still lives, and holds no part of rank 1's: the job goes back to the checkpoint.
    shutil.rmtree(tmp_path / "slot-1")
    resumed = worlds.run(trained, Table, root=tmp_path, job=the_job(tmp_path), generation=2)
    assert [r[0] for r in resumed] == [4, 4]
    assert [r[1:] for r in resumed] == [r[1:] for r in whole]


def test_own_state_is_in_the_checkpoint_and_checked(tmp_path: Path) -> None:
    worlds.run(trained, Table, 6, root=tmp_path, job=the_job(tmp_path))
    [checkpoint] = (tmp_path / "checkpoints").glob("step-*")
    assert {"own-0-of-2.safetensors", "own-1-of-2.safetensors"} <= {p.name for p in checkpoint.iterdir()}
    assert "table" not in read(checkpoint).tree
    own = checkpoint / "own-1-of-2.safetensors"
    damaged = bytearray(own.read_bytes())
    damaged[-1] ^= 1
    own.write_bytes(damaged)
    answers = worlds.run(trained, Table, root=tmp_path, job=the_job(tmp_path), generation=2)
    assert any("own-1-of-2.safetensors does not match its checksum" in str(answer) for answer in answers)


def test_a_world_of_another_size_is_refused(tmp_path: Path) -> None:
    worlds.run(trained, Table, 6, root=tmp_path, job=the_job(tmp_path))
    answers = worlds.run(trained, Table, root=tmp_path, job=the_job(tmp_path), generation=2, ranks=3)
    said = "UnfitParts: per_rank: "
    assert all(
        a.startswith(said) and "saved by 2 ranks, this world has 3, and table cannot be redistributed" in a
        for a in answers
    )


def test_an_object_that_redistributes_goes_on_in_a_world_of_another_size(tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    whole = worlds.run(trained, DividedTable, root=tmp_path / "whole", job=the_job(tmp_path / "whole"))
    worlds.run(trained, DividedTable, 6, root=tmp_path, job=the_job(tmp_path))
    resumed = worlds.run(trained, DividedTable, root=tmp_path, job=the_job(tmp_path), generation=2, ranks=3)
    assert [r[0] for r in resumed] == [4, 4, 4]
    assert [row for r in resumed for row in r[1]] == [row for r in whole for row in r[1]]


def test_a_stop_commits_a_checkpoint_with_every_ranks_part(tmp_path: Path) -> None:
    with worlds.world(forever, root=tmp_path, job=replace(the_job(tmp_path), checkpoint_steps=0)) as running:
        while (progress := running.folders[1].progress()) is None or progress.step < 2:
            pass
        running.stop(1, "save")
        answers = running.join()
    assert answers == ["SystemExit: 0"] * 2
    [checkpoint] = (tmp_path / "checkpoints").glob("step-*")
    assert (checkpoint / "own-1-of-2.safetensors").exists()


def forever(context: WorkerContext) -> Any:
    net = nn.Linear(2, 1)
    run = client.start(model=net, per_rank={"table": Table(context.rank, 2)}, init=True)
    run.wrap(net)
    for _ in run.steps([torch.ones(2)] * 100, epochs=100_000):
        pass


def misused(context: WorkerContext, how: str) -> Any:
    net = nn.Linear(2, 1)
    match how:
        case "twice":
            client.start(model=net, per_rank={"model": net}, init=True)
        case "stateless":
            client.start(model=net, per_rank={"rows": [1]}, init=True)  # type: ignore[dict-item]
        case "DDP":
            from relight_trainer.peers import form

            form(torch.device("cpu"))
            client.start(per_rank={"model": nn.parallel.DistributedDataParallel(net)})


@pytest.mark.parametrize(
    ("how", "said"),
    [
        ("twice", "Misused: client.start: model is given twice, as an argument and in per_rank"),
        (
            "stateless",
            "Misused: client.start: per_rank['rows'] is a list; allowed: objects with the methods state_dict",
        ),
        ("DDP", "Misused: client.start: per_rank['model'] is in DistributedDataParallel"),
    ],
)
def test_what_cannot_be_per_rank_is_refused(tmp_path: Path, how: str, said: str) -> None:
    [answer] = worlds.run(misused, how, root=tmp_path, job=job(tmp_path), ranks=1)
    assert answer.startswith(said)
